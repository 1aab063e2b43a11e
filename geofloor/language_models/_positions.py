"""Positions of sequences that count: all but the first ones and those of excluded tokens."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from geofloor._validation import check_number, plain_array, shown
from geofloor.language_models._loading import load_tokenizer


@dataclass(frozen=True)
class Positions:
    """The positions of a sequence that give activations.

    Parameters
    ----------
    skip_first : int
        Positions left out at the start of each sequence.
    excluded : list of int
        Tokens whose positions are left out.
    pooled : bool
        Whether a sequence gives one row, in place of one row per position.
    """

    skip_first: int
    excluded: Sequence[int] = ()
    pooled: bool = False

    def kept(self, ids: np.ndarray) -> np.ndarray:
        """Return a mask over token ids of shape (..., seq_len)."""
        after = np.arange(ids.shape[-1]) >= self.skip_first
        return after & self.included(ids)

    def included(self, ids: np.ndarray) -> np.ndarray:
        """Return a mask over token ids that leaves out excluded tokens only."""
        return np.isin(ids, self.excluded, invert=True) if self.excluded else np.ones(ids.shape, dtype=bool)

    def count(self, ids: np.ndarray) -> int:
        """Return the number of positions left of one sequence."""
        if not self.excluded:
            return max(len(ids) - self.skip_first, 0)
        return int(self.included(ids[self.skip_first :]).sum())

    def n_rows(self, ids: np.ndarray) -> int:
        """Return the number of rows that one sequence gives."""
        return min(self.count(ids), 1) if self.pooled else self.count(ids)


def check_exclude_tokens(exclude_tokens: Any, n_vocabulary: int, tokenizer: Any, why_none: str) -> list[int]:
    """Return the ids of the tokens to exclude, sorted.

    Parameters
    ----------
    exclude_tokens : None, "special" or collection of int
        The tokens.
    n_vocabulary : int
        Number of tokens.
    tokenizer : PreTrainedTokenizerBase or None
        Tokenizer, for its special tokens.
    why_none : str
        Reason for an error message, where there is no tokenizer.

    Raises
    ------
    ValueError
        If it is something else, an id is outside the vocabulary, or there are no special tokens to be found.
    """
    if exclude_tokens is None:
        return []
    remedy = "give token ids, such as [0, 1], or 'special' for the tokenizer's special tokens"
    if isinstance(exclude_tokens, str):
        if exclude_tokens != "special":
            raise ValueError(f"exclude_tokens={shown(exclude_tokens)} is unknown; {remedy}.")
        found = getattr(tokenizer, "all_special_ids", None)
        if found is None:
            why = why_none if tokenizer is None else f"a {type(tokenizer).__name__} has no all_special_ids"
            raise ValueError(f"exclude_tokens='special' needs a tokenizer, and {why}; give the ids instead.")
        return sorted({int(each) for each in found if 0 <= each < n_vocabulary})
    values = sorted(exclude_tokens) if isinstance(exclude_tokens, Set) else exclude_tokens
    array = np.asarray(plain_array(values, "exclude_tokens"))
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"exclude_tokens={shown(exclude_tokens)} is no list of token ids; {remedy}.")
    return sorted({check_number("exclude_tokens", each, 0, n_vocabulary - 1, whole=True) for each in array.tolist()})


def tokens_to_exclude(exclude_tokens: Any, teacher: Any, model_kwargs: Any, n_vocabulary: int) -> list[int]:
    """Return the ids of the tokens to exclude, of a teacher given as an object or by name."""
    tokenizer, why = None, ""
    if isinstance(exclude_tokens, str) and exclude_tokens == "special":
        tokenizer, why = load_tokenizer(None, teacher, model_kwargs)
        why = "the teacher is an object, not a name" if why == "none was given" else why
    return check_exclude_tokens(exclude_tokens, n_vocabulary, tokenizer, why)
