"""Rows of data, from arrays, memory maps, stores or streams, cut into batches for a training loop."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from sklearn.utils import check_array

from geofloor._training.sampling import epoch_rows, steps_per_epoch

_SAMPLE_ROWS = 65_536
_FINGERPRINT_ROWS = 1024


def fingerprint(rows: np.ndarray, n_rows: int | None) -> str:
    """Digest that tells one data set from another, without reading all of it."""
    digest = hashlib.sha256(f"{n_rows}:{rows.shape[1:]}".encode())
    digest.update(np.ascontiguousarray(rows, dtype=np.float32).data)
    return digest.hexdigest()


class ArrayRows:
    """Rows that can be read in any order: each epoch takes a fresh permutation of them.

    Attributes
    ----------
    sample : ndarray of shape (n_sampled, n_inputs), float32
        Evenly spaced rows.
    fingerprint : str
        Digest of the shape and of a few rows.
    """

    def __init__(self, X: Any) -> None:
        self._X = X
        self.sample = self._take(_evenly(len(X), _SAMPLE_ROWS))
        self.fingerprint = fingerprint(self._take(_evenly(len(X), _FINGERPRINT_ROWS)), len(X))

    def n_steps(self, batch_size: int, n_epochs: int) -> int:
        return n_epochs * steps_per_epoch(len(self._X), batch_size)

    def batches(self, batch_size: int, n_epochs: int, first_step: int, seed: int) -> Iterator[np.ndarray]:
        for step in range(first_step, self.n_steps(batch_size, n_epochs)):
            yield self._take(epoch_rows(len(self._X), batch_size, step, seed))

    def _take(self, rows: np.ndarray) -> np.ndarray:
        batch = np.asarray(self._X[rows], dtype=np.float32)
        if not np.isfinite(batch).all():
            wrong = rows[~np.isfinite(batch).all(axis=1)][0]
            raise ValueError(f"X contains NaN or infinity, first in row {wrong}.")
        return batch


class StreamRows:
    """Batches that come in an order of their own and are cut to the size asked for.

    Rows that fill no batch at the end are dropped, unless there are no others.

    Attributes
    ----------
    sample : ndarray of shape (n_sampled, n_inputs), float32
        The first batch, or its first rows.
    fingerprint : str
        Digest of the first batch.
    """

    def __init__(self, stream: Iterable[Any]) -> None:
        self._stream = stream
        self._one_shot = iter(stream) is stream
        self._n_rows = sum(map(len, stream)) if isinstance(stream, list | tuple) else None
        iterator = iter(stream)
        try:
            first = next(iterator)
        except StopIteration:
            raise ValueError(
                "X is an empty iterable: Found array with 0 sample(s) while a minimum of 1 is required."
            ) from None
        if self._one_shot:  # what was looked at must still be trained on
            self._stream = itertools.chain([first], iterator)
        self.sample = self._check(first)[:_SAMPLE_ROWS]
        self.fingerprint = fingerprint(self.sample[:_FINGERPRINT_ROWS], self._n_rows)

    def n_steps(self, batch_size: int, n_epochs: int) -> int | None:
        return None if self._n_rows is None else max(n_epochs * self._n_rows // batch_size, 1)

    def batches(self, batch_size: int, n_epochs: int, first_step: int, seed: int) -> Iterator[np.ndarray]:
        if self._one_shot and n_epochs > 1:
            raise ValueError(f"n_epochs={n_epochs} passes need data that can be read again; X is a one-time iterator.")
        step = 0
        rest: list[np.ndarray] = []
        held = 0
        for piece in itertools.chain.from_iterable(itertools.repeat(self._stream, n_epochs)):
            rest.append(self._check(piece))
            held += len(rest[-1])
            if held < batch_size:
                continue
            joined = np.concatenate(rest)
            for start in range(0, held - batch_size + 1, batch_size):
                if step >= first_step:
                    yield joined[start : start + batch_size]
                step += 1
            rest = [joined[held - held % batch_size :]]
            held %= batch_size
        if step == 0 and first_step == 0 and held:
            yield np.concatenate(rest)

    def _check(self, batch: Any) -> np.ndarray:
        batch = check_array(batch, dtype=np.float32, order="C", input_name="X")
        if hasattr(self, "sample") and batch.shape[1] != self.sample.shape[1]:
            raise ValueError(f"A batch of X has {batch.shape[1]} inputs, the first had {self.sample.shape[1]}.")
        return batch


def _evenly(n_rows: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, n_rows - 1, min(n_rows, most)).astype(np.int64))
