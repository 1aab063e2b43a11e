"""Input of an extractor: texts or token ids, checked, cut and grouped into windows of sequences."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, NamedTuple

import numpy as np

from geofloor._training.progress import progress_bar
from geofloor._validation import plain_array
from geofloor.language_models._dataset_columns import column_names, column_values, is_dataset, is_dataset_stream
from geofloor.language_models._positions import Positions
from geofloor.language_models._token_rows import PaddingWatch

_LOOK_AHEAD = 64  # batches sorted by length together
_WINDOW_BYTES = 2**27  # limit on the activations of a window, which are held until they are in input order


class Window(NamedTuple):
    """Sequences to sort into batches together."""

    first: int  # index in X of the first sequence
    sequences: list[np.ndarray]
    n_rows: int  # rows of activations that they give
    counts: list[int] | None = None  # rows of each; by default all give as many


@dataclass(frozen=True)
class InputReader:
    """Read texts or token ids as windows of sequences.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase or None
        Tokenizer for texts.
    why_no_tokenizer : str
        Reason for an error message, where `tokenizer` is None.
    n_vocabulary : int
        Number of tokens that the model embeds.
    text_column : str
        Column of a dataset that holds the text.
    max_length : int or None
        Tokens that a sequence is cut to.
    positions : Positions
        Positions of each sequence that give activations.
    batch_size : int
        Sequences per forward pass. Windows hold whole batches.
    d_model : int
        Width of the activations.
    suspects : set of int
        Tokens that may be undeclared padding.
    verbose : int
        Whether to show a progress bar.
    """

    tokenizer: Any
    why_no_tokenizer: str
    n_vocabulary: int
    text_column: str
    max_length: int | None
    positions: Positions
    batch_size: int
    d_model: int
    suspects: Set[int]
    verbose: int

    def windows(self, X: Any) -> Iterator[Window]:
        """Check `X`, in memory to its end, and return an iterator over its windows."""
        items = _open_input(X, self.text_column)
        total = len(X) if hasattr(X, "__len__") else None
        if total == 0:
            raise ValueError("X is empty: it holds no sequence.")
        if isinstance(items, (list, tuple, np.ndarray)):
            deque(_checked(items, self.n_vocabulary), maxlen=0)
            if isinstance(items[0], str):
                self._need_tokenizer()
        return self._iter_windows(_checked(items, self.n_vocabulary), total)

    def _iter_windows(self, items: Iterator[str | np.ndarray], total: int | None) -> Iterator[Window]:
        budget = _WINDOW_BYTES // (4 * self.d_model)
        n_sequences = n_rows = 0
        watch = PaddingWatch(self.suspects)
        warned = False
        with progress_bar("activations", total=total, unit="sequence", verbose=self.verbose) as bar:
            while chunk := list(islice(items, _LOOK_AHEAD * self.batch_size)):
                window: list[np.ndarray] = []
                counts: list[int] = []
                n_window = 0
                if not warned and not isinstance(chunk[0], str):
                    for _, alike in groupby(sorted(chunk, key=len), key=len):
                        watch.look(np.stack(list(alike)))
                    warned = watch.warn("X", "leave them out, since sequences may have different lengths")
                for ids in self._cut(chunk, n_sequences):
                    kept = self.positions.n_rows(ids)
                    if self.positions.pooled and not kept:
                        raise ValueError(
                            f"X[{n_sequences + len(window)}] has {len(ids)} tokens and {self._left_out()} leaves none "
                            "to pool; leave the sequence out or lower skip_first."
                        )
                    if n_window >= budget and len(window) % self.batch_size == 0:
                        yield Window(n_sequences, window, n_window, counts)
                        bar.update(len(window))
                        n_sequences, n_rows = n_sequences + len(window), n_rows + n_window
                        window, counts, n_window = [], [], 0
                    window.append(ids)
                    counts.append(kept)
                    n_window += kept
                yield Window(n_sequences, window, n_window, counts)
                bar.update(len(window))
                n_sequences, n_rows = n_sequences + len(window), n_rows + n_window
        if not n_sequences:
            raise ValueError("X is empty: it holds no sequence.")
        if not n_rows:
            others = " beside those of exclude_tokens" if self.positions.excluded else ""
            raise ValueError(
                f"X leaves no activations: none of its {n_sequences} sequences has more than "
                f"skip_first={self.positions.skip_first} tokens{others}."
            )

    def _left_out(self) -> str:
        excluded = ", with exclude_tokens," if self.positions.excluded else ""
        return f"skip_first={self.positions.skip_first}{excluded}"

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ValueError(f"X holds texts and tokenizer=None: {self.why_no_tokenizer}; set tokenizer.")
        return self.tokenizer

    def _cut(self, chunk: list[Any], first: int) -> Iterable[np.ndarray]:
        """Return token ids of at most `max_length`, tokenizing texts; `first` is the index in X of the chunk."""
        if not isinstance(chunk[0], str):
            return (ids[: self.max_length] for ids in chunk)
        options: dict[str, Any] = {"return_attention_mask": False, "verbose": False}
        if self.max_length is not None:
            options |= {"truncation": True, "max_length": self.max_length}
        found = self._need_tokenizer()(chunk, **options)["input_ids"]
        return (_token_ids(ids, index, self.n_vocabulary) for index, ids in enumerate(found, start=first))


def _open_input(X: Any, text_column: str) -> Iterable[Any]:
    """Return an iterable over the texts or token-id sequences of `X`, still unchecked."""
    if is_dataset(X) or is_dataset_stream(X):
        columns = column_names(X)
        for column in ("input_ids", text_column):
            if column in columns:
                return column_values(X, column)
        if not columns:
            return ()
        raise ValueError(
            f"X has the columns {columns}, and neither 'input_ids' nor text_column={text_column!r}; set text_column."
        )
    if hasattr(X, "__array__"):
        array = np.asarray(plain_array(X, "X"))
        if (array.ndim == 2 and array.dtype.kind in "iu") or (array.ndim == 1 and array.dtype.kind in "OUT"):
            return array
        raise ValueError(
            f"X is an array of shape {array.shape} and dtype {array.dtype}; token ids are integers of shape "
            "(n_sequences, seq_len), texts are strings of shape (n_sequences,)."
        )
    if isinstance(X, Sequence) and not isinstance(X, (str, bytes)):
        return X
    remedy = ""
    if isinstance(X, (str, bytes)):
        remedy = " Put the text in a list."
    elif isinstance(X, Mapping):
        remedy = " Choose one entry of the mapping, such as X['train'] or X['input_ids']."
    elif isinstance(X, Iterator):
        remedy = " An iterator can be read only once: use list(X), or datasets.IterableDataset.from_generator."
    raise ValueError(
        f"X is a {type(X).__name__}; give a list, array or Series of texts, token ids (a 2-D integer array or a list "
        f"of 1-D integer sequences), or a datasets.Dataset or IterableDataset.{remedy}"
    )


def _checked(items: Iterable[Any], n_vocabulary: int) -> Iterator[str | np.ndarray]:
    """Yield the items, all texts or all int64 token ids of the vocabulary; an error names the item."""
    texts = None
    for index, item in enumerate(items):
        is_text = isinstance(item, str)
        texts = is_text if texts is None else texts
        if is_text != texts:
            kind = "a text" if texts else "a sequence of token ids"
            raise ValueError(f"X[{index}]={item!r:.60} is not {kind}, as X[0] is; leave it out or convert it.")
        yield item if is_text else _token_ids(item, index, n_vocabulary)


def _token_ids(item: Any, index: int, n_vocabulary: int) -> np.ndarray:
    """Return one sequence of token ids as int64, checked against the vocabulary."""
    plain = plain_array(item, f"X[{index}]")
    try:
        ids = np.asarray(plain)
    except ValueError:  # ragged
        ids = np.empty((0, 0))
    if ids.ndim == 1 and ids.size == 0:
        return np.empty(0, dtype=np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"X[{index}]={item!r:.60} is neither a text nor a 1-D sequence of integer token ids.")
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= n_vocabulary:
        raise ValueError(
            f"X[{index}] holds the token id {lowest if lowest < 0 else highest}, outside the model's vocabulary of "
            f"0 to {n_vocabulary - 1}; use the tokenizer that the model was trained with."
        )
    return ids.astype(np.int64)
