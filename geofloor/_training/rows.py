"""Rows of data, from arrays, memory maps, stores or streams, cut into batches for a training loop."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
from sklearn.utils import check_array

from geofloor._training.sampling import epoch_rows, steps_per_epoch
from geofloor._validation import check_numeric

_SAMPLE_ROWS = 65_536
_SAMPLE_BYTES = 2**27
_READ_ROWS = 8192  # rows per read


def open_rows(X: Any, *, stream: bool) -> ArrayRows | StreamRows:
    """Wrap data for a training loop; turn a stream that fits the sample into an array.

    Parameters
    ----------
    X : array-like of shape (n_rows, n_inputs), or iterable of such batches
        The data.
    stream : bool
        Whether the data come batch by batch.

    Raises
    ------
    ValueError
        If a stream gives no batch, or batches that are not finite or differ in their number of inputs.
    """
    if not stream:
        return ArrayRows(X)
    rows = StreamRows(X)
    return ArrayRows(rows.sample) if rows.is_read else rows


def digest_sample(rows: Any) -> str:
    """Compute a digest of the sample of rows and of their number, without reading all of them."""
    digest = hashlib.sha256(f"{rows.n_rows} {rows.sample.shape}".encode())
    digest.update(np.ascontiguousarray(rows.sample).data)
    return digest.hexdigest()


def checked_batch(batch: Any) -> np.ndarray:
    """Return a batch of a stream as finite float32 numbers in two dimensions."""
    return check_array(check_numeric(batch, "X"), dtype=np.float32, order="C", input_name="X")


class ArrayRows:
    """Rows in random access; each epoch permutes them anew.

    Attributes
    ----------
    n_rows : int
        Rows to train on.
    sample : ndarray of shape (n_sampled, n_inputs), float32
        Evenly spaced rows.
    fingerprint : str
        Digest of the shape and of all rows, computed on first use.
    """

    def __init__(self, X: Any) -> None:
        self._X = X
        self._first = 0
        self.n_rows: int = len(X)
        self.sample = self._take(_evenly(len(X), _sample_rows(X.shape[1])))

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self._X.shape}".encode())
        for start in range(0, len(self._X), _READ_ROWS):
            rows = np.arange(start, min(start + _READ_ROWS, len(self._X)))
            digest.update(np.ascontiguousarray(self._take(rows)).data)
        return digest.hexdigest()

    def hold_out(self, n_rows: int) -> np.ndarray:
        """Return the first rows, and leave them out of training."""
        self._first, self.n_rows = n_rows, len(self._X) - n_rows
        return self._take(np.arange(n_rows))

    def steps_per_epoch(self, batch_size: int) -> int:
        return steps_per_epoch(self.n_rows, batch_size)

    def batches(self, batch_size: int, n_epochs: int, first_step: int, seed: int) -> Iterator[np.ndarray]:
        for step in range(first_step, n_epochs * self.steps_per_epoch(batch_size)):
            yield self._take(self._first + epoch_rows(self.n_rows, batch_size, step, seed))

    def _take(self, rows: np.ndarray) -> np.ndarray:
        batch = np.asarray(self._X[rows], dtype=np.float32)
        if not np.isfinite(batch).all():
            wrong = rows[~np.isfinite(batch).all(axis=1)][0]
            raise ValueError(f"X contains NaN or infinity, first in row {wrong}.")
        return batch


class StreamRows:
    """Rows of a stream in their own order, cut into batches.

    Results do not depend on the cuts of the stream. An incomplete last batch of an epoch is dropped, unless it is
    the only one. Over a single epoch, training resumes at its row of the stream, if the stream has a method
    ``iter_from(row)``.

    Attributes
    ----------
    n_rows : int or None
        Rows to train on in one pass, if known beforehand.
    sample : ndarray of shape (n_sampled, n_inputs), float32
        The first rows.
    is_read : bool
        Whether the sample holds all rows.
    fingerprint : str
        Digest of the sample, because the other rows can be read only once.
    """

    def __init__(self, stream: Iterable[Any]) -> None:
        self._stream = stream
        self._one_shot = iter(stream) is stream
        self._first = 0
        iterator = iter(stream)
        read: list[np.ndarray] = []
        n_read, wanted, self.is_read = 0, 1, False
        while n_read < wanted:
            batch = next(iterator, None)
            if batch is None:
                self.is_read = True
                break
            read.append(self._check(batch, read[0].shape[1] if read else None))
            n_read += len(read[-1])
            wanted = _sample_rows(read[0].shape[1]) + 1  # one more row shows whether the stream goes on
        if not read:
            raise ValueError("X is an empty iterable: Found array with 0 sample(s) while a minimum of 1 is required.")
        joined = np.concatenate(read)
        self.sample = joined[: wanted - 1]
        if self._one_shot:  # the rows of the sample are trained on as well
            self._stream = itertools.chain([joined], iterator)
        self.n_rows: int | None = sum(map(len, stream)) if isinstance(stream, list | tuple) else None
        self.fingerprint = hashlib.sha256(np.ascontiguousarray(self.sample).data).hexdigest()

    def hold_out(self, n_rows: int) -> np.ndarray:
        """Return the first rows, and leave them out of training."""
        self._first = n_rows
        if self.n_rows is not None:
            self.n_rows -= n_rows
        return self.sample[:n_rows]

    def steps_per_epoch(self, batch_size: int) -> int | None:
        return None if self.n_rows is None else max(self.n_rows // batch_size, 1)

    def batches(self, batch_size: int, n_epochs: int, first_step: int, seed: int) -> Iterator[np.ndarray]:
        if self._one_shot and n_epochs > 1:
            raise ValueError(f"n_epochs={n_epochs} passes need data that can be read again; X is a one-time iterator.")
        if first_step > 0 and n_epochs == 1 and hasattr(self._stream, "iter_from"):
            first_row = self._first + first_step * batch_size
            yield from self._cut(self._stream.iter_from(first_row), batch_size, given=True)
            return
        step = 0
        for _ in range(n_epochs):
            for batch in self._cut(self._stream, batch_size, skip=self._first):
                if step >= first_step:
                    yield batch
                step += 1

    def _cut(
        self, pieces: Iterable[Any], batch_size: int, *, skip: int = 0, given: bool = False
    ) -> Iterator[np.ndarray]:
        """Cut pieces into batches after the first `skip` rows; `given` tells of earlier batches."""
        rest: list[np.ndarray] = []
        held = 0
        for piece in pieces:
            checked = self._check(piece, self.sample.shape[1])
            skipped = min(skip, len(checked))
            skip -= skipped
            rest.append(checked[skipped:])
            held += len(rest[-1])
            if held < batch_size:
                continue
            joined = np.concatenate(rest)
            for start in range(0, held - batch_size + 1, batch_size):
                yield joined[start : start + batch_size]
                given = True
            rest = [joined[held - held % batch_size :]]
            held %= batch_size
        if held and not given:
            yield np.concatenate(rest)

    @staticmethod
    def _check(batch: Any, n_inputs: int | None) -> np.ndarray:
        batch = checked_batch(batch)
        if n_inputs is not None and batch.shape[1] != n_inputs:
            raise ValueError(f"A batch of X has {batch.shape[1]} inputs, the first had {n_inputs}.")
        return batch


def _sample_rows(n_inputs: int) -> int:
    return max(min(_SAMPLE_ROWS, _SAMPLE_BYTES // (4 * max(n_inputs, 1))), 1)


def _evenly(n_rows: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, n_rows - 1, min(n_rows, most)).astype(np.int64))
