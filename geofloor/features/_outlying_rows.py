"""Rows without those whose norm is far above the others'."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from sklearn.utils import check_array, gen_batches

from geofloor._training.rows import checked_batch
from geofloor._validation import check_number, check_numeric, is_stream
from geofloor.features._autoencoder_settings import row_norms

_ROWS = 8192  # rows per read, and first rows of a stream whose norms give the median


def drop_outliers(X: Any, *, max_norm_ratio: float = 10.0) -> Any:
    r"""Leave out rows whose norm is above a multiple of the median norm.

    A few rows, such as attention sinks, can have hundreds of times the norm of others and dominate every second moment.
    Apply this to activations before `SparseAutoencoder.fit` and `SparseAutoencoder.transform
    <geofloor.SparseAutoencoder.transform>`, so that neither dictionary nor feature table sees these rows.

    Parameters
    ----------
    X : array-like of shape (n_rows, n_inputs), or iterable of such batches
        Activations: an array, a memory map, an `ActivationStore <geofloor.ActivationStore>`, or a stream.
    max_norm_ratio : float, default=10.0
        Rows with a norm above this many times the median norm are left out; at least 1.

    Returns
    -------
    rows : ndarray, view or iterable
        The other rows, in order. A copy of an array. Of a memory map or store a view that reads rows as they are
        needed, wherever stores are taken. Of a stream another stream, and of a list of batches a list.

    Raises
    ------
    ValueError
        If `X` is empty, not two-dimensional or not finite, the median norm is 0, or `max_norm_ratio` is below 1.

    See Also
    --------
    OutlierRowsWarning : Warning of such rows.
    ActivationExtractor : Leaves out sinks by their place, with `skip_first`, or by their token, with `exclude_tokens`.

    Notes
    -----
    The median is that of all rows, or of the first 8,192 rows of a stream. A memory map or store is read once for it.
    Sinks in known places are better left out by the extractor, since `AblationPredictor` and `dictionary_report` can
    leave out the same positions.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor.features import drop_outliers
    >>> activations = np.random.default_rng(0).normal(size=(1000, 16))
    >>> activations[7] *= 300
    >>> drop_outliers(activations).shape
    (999, 16)
    """
    ratio = check_number("max_norm_ratio", max_norm_ratio, 1.0)
    if is_stream(X):
        stream = _Stream(X, ratio)
        if isinstance(X, list | tuple):
            return list(stream)
        return iter(stream) if iter(X) is X else stream
    if isinstance(X, np.memmap) or hasattr(X, "iter_batches"):
        pieces = (_checked(X[part]) for part in gen_batches(_length(X), _ROWS))
        norms = np.concatenate([row_norms(piece) for piece in pieces])
        return RowView(X, np.flatnonzero(norms <= _limit(norms, ratio)))
    rows = check_array(check_numeric(X, "X"), dtype=(np.float64, np.float32), input_name="X")
    norms = row_norms(rows)
    return rows[norms <= _limit(norms, ratio)]


def _length(X: Any) -> int:
    if len(X.shape) != 2 or not len(X):
        raise ValueError(f"X has shape {tuple(X.shape)}; give two dimensions and at least one row.")
    return len(X)


def _checked(rows: Any) -> np.ndarray:
    return check_array(np.asarray(rows), dtype=(np.float64, np.float32), input_name="X")


def _limit(norms: np.ndarray, ratio: float) -> float:
    """Return the largest norm to keep."""
    median = float(np.median(norms))
    if median == 0.0:
        raise ValueError("X has a median norm of 0: half of its rows are zeros; leave them out first.")
    return ratio * median


class _Stream:
    """A stream without its outlying rows; it can be read as often as the stream that it is made of."""

    def __init__(self, stream: Iterable[Any], ratio: float) -> None:
        self._stream, self._ratio = stream, ratio

    def __iter__(self) -> Iterator[np.ndarray]:
        batches = (checked_batch(batch) for batch in self._stream)
        first: list[np.ndarray] = []
        while sum(map(len, first)) < _ROWS and (batch := next(batches, None)) is not None:
            first.append(batch)
        if not first:
            raise ValueError("X gave no batch; give an iterable of at least one, and a generator only once.")
        limit = _limit(np.concatenate([row_norms(batch) for batch in first])[:_ROWS], self._ratio)
        for batch in itertools.chain(first, batches):
            kept = batch[row_norms(batch) <= limit]
            if len(kept):
                yield kept


class RowView:
    """Some rows of an array on disk, indexed like an array; only the rows asked for are read.

    Parameters
    ----------
    X : memory map or ActivationStore
        The array.
    index : ndarray of int64
        Numbers of the rows.
    """

    def __init__(self, X: Any, index: np.ndarray) -> None:
        self._X, self.index = X, index
        self.shape, self.dtype, self.ndim = (len(index), X.shape[1]), np.dtype(X.dtype), 2

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Any) -> np.ndarray:
        rows, columns = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        found = np.asarray(self._X[self.index[rows]])
        return found[(..., *columns)] if columns else found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("rows on disk can't be an array without being copied.")
        return np.asarray(self[:], dtype=dtype)

    def iter_batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Read all rows in order, `batch_size` at a time."""
        batch_size = check_number("batch_size", batch_size, 1, whole=True)
        return (self[part] for part in gen_batches(len(self), batch_size))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._X!r}, {len(self)} of {len(self._X)} rows)"
