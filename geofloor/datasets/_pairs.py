"""Pairs of a positive and a negative example of similar length."""

from __future__ import annotations

import math
import re
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import Bunch

_SAME_START = 60  # letters and digits; texts with the same start are variants of one text


class Example(NamedTuple):
    """A text with its group and its label, 1 or 0."""

    text: str
    group: str
    label: int


class PairPool:
    """Collector of pairs of similar length, from the same package if `same_package`."""

    def __init__(self, same_package: bool, n_pairs: int) -> None:
        self._same_package, self._n_pairs = same_package, n_pairs
        self._waiting: dict[Any, tuple[deque[Example], deque[Example]]] = defaultdict(lambda: (deque(), deque()))
        self._seen: set[str] = set()
        self.pairs: list[tuple[Example, Example]] = []

    @property
    def full(self) -> bool:
        return len(self.pairs) >= self._n_pairs

    def add(self, example: Example, package: str) -> None:
        """Pair the example with a waiting one of the other class, or let it wait."""
        start = re.sub(r"\W+", "", example.text.lower())[:_SAME_START]
        if self.full or start in self._seen:
            return
        length = round(3 * math.log2(len(example.text)))  # a bin spans a factor of 1.26
        waiting = self._waiting[length, package if self._same_package else ""]
        if waiting[1 - example.label]:
            partner = waiting[1 - example.label].popleft()
            self.pairs.append((example, partner) if example.label else (partner, example))
        elif len(waiting[example.label]) < self._n_pairs:  # more are never needed, and a stream may be endless
            waiting[example.label].append(example)
        else:
            return
        self._seen.add(start)


def bunch_of_pairs(
    pools: Mapping[str, PairPool], descriptions: Mapping[str, str], n_per_class: int, remedy: str
) -> Bunch:
    """Return texts, labels and groups of each concept.

    Raises
    ------
    ValueError
        If a pool is not full; the message ends in `remedy`.
    """
    found = Bunch()
    for name, pool in pools.items():
        if not pool.full:
            raise ValueError(
                f"n_per_class={n_per_class}, but {name!r} has {len(pool.pairs)} examples per class here; "
                f"ask for fewer, leave the concept out, or {remedy}."
            )
        examples = [example for pair in pool.pairs for example in pair]
        found[name] = Bunch(
            texts=[example.text for example in examples],
            labels=np.array([example.label for example in examples], dtype=np.int64),
            groups=np.array([example.group for example in examples]),
            description=descriptions[name],
        )
    return found
