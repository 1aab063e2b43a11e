"""Token ids as a checked matrix, one sequence per row, in memory or on disk."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from geofloor._validation import check_number, plain_array, warn_caller
from geofloor.language_models._dataset_columns import is_dataset, is_dataset_stream

_SCANNED_TOKENS = 2**28  # token ids checked before training starts; others are checked when they are read
_SCAN_ROWS = 4096
_PADDED_SHARE = 0.1  # share of sequences that look padded; in real text fewer end in two end tokens


class Batch(NamedTuple):
    """Token ids (n, seq_len), and a mask, False for padding, or None without padding."""

    ids: np.ndarray
    mask: np.ndarray | None

    @property
    def n_positions(self) -> int:
        """Number of positions other than padding."""
        return self.ids.size if self.mask is None else int(self.mask.sum())

    @property
    def n_labels(self) -> int:
        """Number of positions with a next token."""
        return self.ids[:, 1:].size if self.mask is None else int(self.mask[:, 1:].sum())

    def split(self, n_parts: int) -> list[Batch]:
        """Split into at most `n_parts` micro-batches of nearly equal size."""
        bounds = np.linspace(0, len(self.ids), min(n_parts, len(self.ids)) + 1).astype(int)
        return [
            Batch(self.ids[a:b], None if self.mask is None else self.mask[a:b]) for a, b in itertools.pairwise(bounds)
        ]

    def share(self, rows: slice) -> Batch:
        """Select rows.

        If none are selected, return one fully masked row so that backward still fills every gradient.
        """
        ids = self.ids[rows]
        if len(ids) == 0:
            return Batch(self.ids[:1], np.zeros(self.ids[:1].shape, dtype=bool))
        return Batch(ids, None if self.mask is None else self.mask[rows])


def ending_ids(*sources: Any) -> set[int]:
    """Collect the ids of padding and end tokens from configurations or tokenizers."""
    found: set[int] = set()
    for source in sources:
        for name in ("pad_token_id", "eos_token_id"):
            ids = getattr(source, name, None)
            found.update(each for each in (ids if isinstance(ids, list | tuple) else [ids]) if isinstance(each, int))
    return found


class PaddingWatch:
    """Notice undeclared padding: runs of a padding or end token at either end of many sequences.

    Parameters
    ----------
    suspects : set of int
        Tokens that may be padding.
    """

    def __init__(self, suspects: Set[int]) -> None:
        self._suspects = np.array(sorted(suspects), dtype=np.int64)
        self._n_sequences = 0
        self._n_padded: Counter[int] = Counter()  # by token
        self._n_positions: Counter[int] = Counter()

    def look(self, sequences: np.ndarray) -> None:
        """Count the runs in some sequences, (n, seq_len)."""
        self._n_sequences += len(sequences)
        if not len(self._suspects) or sequences.shape[1] < 3:
            return
        for outwards in (sequences[:, ::-1], sequences):  # tokenizers pad on either side
            first = outwards[:, 0]
            rows = outwards[(first == outwards[:, 1]) & np.isin(first, self._suspects)]
            others = rows != rows[:, :1]
            rows, others = (
                rows[others.any(axis=1)],
                others[others.any(axis=1)],
            )  # a row of one token alone is no padded text
            for token, run in zip(rows[:, 0].tolist(), others.argmax(axis=1).tolist(), strict=True):
                self._n_padded[token] += 1
                self._n_positions[token] += run

    def warn(self, name: str, remedy: str) -> bool:
        """Warn if more sequences have such runs than text would; return whether. `remedy` may hold ``{token}``."""
        for token, n_padded in self._n_padded.most_common(1):
            if n_padded >= max(_PADDED_SHARE * self._n_sequences, 2):
                warn_caller(
                    f"{name}: {n_padded} of {self._n_sequences} sequences begin or end with a run of token {token}, a "
                    f"padding or end token. These {self._n_positions[token]} positions look like padding and count as "
                    f"text; {remedy.format(token=token)}.",
                    UserWarning,
                )
                return True
        return False


class TokenRows:
    """Rows of token ids, checked when they are read; rows on disk are read as needed.

    Parameters
    ----------
    tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset
        Token ids.
    name : str
        Name of the argument in error messages.
    n_vocabulary : int
        Number of tokens in the teacher's vocabulary.
    max_length : int or None
        Number of positions of the teacher.
    pad_token_id : int or None
        Token that pads sequences at their end.
    suspects : set of int
        Tokens that may be padding if `pad_token_id` is None. A warning is given if many rows begin or end with them.
    remedy : str
        Remedy in that warning.
    source : str
        Remedy for token ids outside the vocabulary.
    """

    def __init__(
        self,
        tokens: Any,
        name: str,
        n_vocabulary: int,
        max_length: int | None,
        pad_token_id: int | None,
        *,
        suspects: Set[int] = frozenset(),
        remedy: str = "set pad_token_id={token}",
        source: str = "use the tokenizer that the teacher was trained with",
    ) -> None:
        if pad_token_id is not None:
            pad_token_id = check_number("pad_token_id", pad_token_id, whole=True)
        self._array = _token_array(tokens, name)
        self._name, self._n_vocabulary, self._pad, self._source = name, n_vocabulary, pad_token_id, source
        length = self._array.shape[1]
        if max_length is not None and length > max_length:
            raise ValueError(
                f"{name} has sequences of {length} tokens, and the teacher has {max_length} positions; cut them, for "
                f"example with geofloor.language_models.token_blocks(..., length={max_length})."
            )
        wanted = min(len(self), max(_SCANNED_TOKENS // length, 1))
        rows = np.unique(np.linspace(0, len(self) - 1, wanted).astype(np.int64))
        watch = PaddingWatch(suspects if pad_token_id is None else frozenset())
        for start in range(0, len(rows), _SCAN_ROWS):
            watch.look(self.take(rows[start : start + _SCAN_ROWS]).ids)
        watch.warn(name, remedy)

    def __len__(self) -> int:
        return self._array.shape[0]

    @property
    def length(self) -> int:
        """Tokens per sequence."""
        return self._array.shape[1]

    def take(self, rows: np.ndarray) -> Batch:
        """Read rows by number."""
        ids = np.asarray(self._array[rows])
        mask = None
        if self._pad is not None:
            mask = ids != self._pad
            mask = None if mask.all() else mask
        real = ids if mask is None else ids[mask]
        lowest, highest = (int(real.min()), int(real.max())) if real.size else (0, 0)
        if lowest < 0 or highest >= self._n_vocabulary:
            raise ValueError(
                f"{self._name} holds the token id {lowest if lowest < 0 else highest}, outside the teacher's "
                f"vocabulary of 0 to {self._n_vocabulary - 1}; {self._source}"
                f"{'' if self._pad is not None else ', or set pad_token_id if this is padding'}."
            )
        if mask is not None:
            if (mask[:, 1:] & ~mask[:, :-1]).any() or not mask[:, 0].all():
                raise ValueError(
                    f"{self._name} has padding (pad_token_id={self._pad}) before a token; pad sequences at their end."
                )
            ids = np.where(mask, ids, 0)
        return Batch(ids.astype(np.int64), mask)

    def fingerprint(self, n_rows: int | None = None) -> str:
        """Compute a SHA-256 of the first rows, by default of all, independent of their container and type."""
        n_rows = len(self) if n_rows is None else n_rows
        digest = hashlib.sha256(f"{n_rows}:{self._array.shape[1]}".encode())
        for start in range(0, n_rows, _SCAN_ROWS):
            rows = np.asarray(self._array[np.arange(start, min(start + _SCAN_ROWS, n_rows))])
            digest.update(np.ascontiguousarray(rows, dtype="<i8").data)
        return digest.hexdigest()


class _DatasetTokens:
    """The column ``input_ids`` of a ``datasets.Dataset``, indexed by rows like an array."""

    def __init__(self, dataset: Any, name: str) -> None:
        if "input_ids" not in dataset.column_names:
            raise ValueError(
                f"{name} has the columns {dataset.column_names}, and no 'input_ids' of token ids; make blocks of its "
                "text with geofloor.language_models.token_blocks(..., path=...) and give these."
            )
        self._dataset, self._name = dataset.select_columns(["input_ids"]).with_format("numpy"), name
        first = self._read(np.arange(1)) if len(dataset) else np.empty((0, 0), dtype=np.int64)
        self.shape, self.dtype = (len(dataset), *first.shape[1:]), first.dtype
        self.ndim = len(self.shape)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        return self._dataset[rows]["input_ids"]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        ids = self._read(rows)
        if ids.shape[1:] != self.shape[1:]:
            raise _ragged(self._name)
        if ids.dtype != self.dtype:
            raise ValueError(f"{self._name} has sequences with missing token ids; leave these sequences out.")
        return ids


def _ragged(name: str) -> ValueError:
    return ValueError(
        f"{name} has sequences of different lengths; cut them into blocks with "
        "geofloor.language_models.token_blocks, or pad them at their end and set pad_token_id."
    )


def _token_array(tokens: Any, name: str) -> np.ndarray | _DatasetTokens:
    """Check for integers of at least one row and two columns; memory maps and datasets are not read whole."""
    if is_dataset(tokens):
        tokens = _DatasetTokens(tokens, name)
    elif is_dataset_stream(tokens) or isinstance(tokens, Iterator):
        raise ValueError(
            f"{name} is a {type(tokens).__name__}, and its rows are needed in random order; write blocks to a file "
            "with geofloor.language_models.token_blocks(..., path=...) and give these."
        )
    elif isinstance(tokens, Mapping):
        raise ValueError(
            f"{name} is a {type(tokens).__name__}; choose one entry of the mapping, such as {name}['train'] or "
            f"{name}['input_ids']."
        )
    if sp.issparse(tokens):
        raise ValueError(f"{name} is a sparse matrix; token ids are a dense array of integers.")
    if not isinstance(tokens, _DatasetTokens):
        tokens = plain_array(tokens, name)
    if not isinstance(tokens, np.ndarray | _DatasetTokens):
        try:
            tokens = np.asarray(tokens)
        except ValueError as error:
            raise _ragged(name) from error
    if tokens.ndim != 2:
        raise ValueError(
            f"{name} has shape {tokens.shape}; token ids are integers of shape (n_sequences, seq_len). "
            "Reshape your data, or make blocks of text with geofloor.language_models.token_blocks."
        )
    if tokens.shape[0] == 0:
        raise ValueError(f"{name} is empty: 0 sequence(s) (shape={tokens.shape}) while a minimum of 1 is required.")
    if tokens.shape[1] < 2:
        raise ValueError(f"{name} has sequences of {tokens.shape[1]} token(s); a next token needs at least 2.")
    if tokens.dtype.kind not in "iu":
        raise ValueError(f"{name} has dtype {tokens.dtype}; token ids are integers.")
    return tokens
