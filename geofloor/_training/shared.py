"""One pass over a stream for several training loops, without threads.

Each loop reads at its own pace, and a batch of the stream stays in memory until the last loop has read it. Whoever
drives the loops advances the one at the smallest `StreamReader.position`: then the memory does not grow with the
stream.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from geofloor._training.rows import StreamRows, checked_batch
from geofloor._validation import shown


def pick(batch: Any, keys: Collection[Hashable] | None) -> dict[Hashable, Any]:
    """Return the arrays of a batch by key; without keys, the batch is the array of the key None.

    Raises
    ------
    ValueError
        If the batch has no such arrays, or arrays of different numbers of rows.
    """
    if keys is None:
        if isinstance(batch, Mapping):
            raise ValueError(
                f"A batch of X is a dict with the keys {shown(list(batch))}; give autoencoders as a dict by key, too."
            )
        return {None: batch}
    if not isinstance(batch, Mapping):
        raise ValueError(
            f"autoencoders is a dict with the keys {shown(list(keys))}, but X has batches of the type "
            f"{type(batch).__name__}; give dicts with these keys, or autoencoders as a list."
        )
    missing = [key for key in keys if key not in batch]
    if missing:
        raise ValueError(f"X has no {shown(missing[0])}, a key of autoencoders; its keys are {shown(list(batch))}.")
    picked = {key: batch[key] for key in keys}
    if len({len(each) for each in picked.values()}) > 1:
        n_rows = {key: len(each) for key, each in picked.items()}
        raise ValueError(f"A batch of X has {n_rows} rows by key; give the same number of rows for each key.")
    return picked


class SharedStream:
    """One pass over a stream of batches, or of dicts of batches, for several readers.

    Parameters
    ----------
    stream : iterable of array-like of shape (n_rows, n_inputs), or of dicts of them
        The stream, read once. If it starts anew at a row (`seek`), it needs a method ``iter_from(row)``.
    keys : collection of hashable, or None
        Keys of the dicts to read; None for a stream of arrays.
    """

    def __init__(self, stream: Iterable[Any], keys: Collection[Hashable] | None = None) -> None:
        self._stream = stream
        self._keys = keys
        self._source = iter(stream)
        self._end = 0  # rows read from the source
        self._held: deque[tuple[int, dict[Hashable, np.ndarray]]] = deque()  # first row and arrays of each batch
        self._readers: list[StreamReader] = []

    def reader(self, key: Hashable = None) -> StreamReader:
        """Make a reader of one key from the first row on, before any row is dropped."""
        self._readers.append(StreamReader(self, key))
        return self._readers[-1]

    def seek(self) -> None:
        """Start anew at the first row that a reader still needs, if the stream can."""
        first = min((reader.position for reader in self._readers), default=0)
        if first > self._end and hasattr(self._stream, "iter_from"):
            self._held.clear()
            self._source, self._end = self._stream.iter_from(first), first

    @property
    def n_held(self) -> int:
        """Number of rows in memory."""
        return sum(self._length(arrays) for _, arrays in self._held)

    def batch_at(self, row: int) -> tuple[int, dict[Hashable, np.ndarray]] | None:
        """Return the batch that holds a row, with its first row; None after the end of the stream."""
        for first, arrays in self._held:
            if first <= row < first + self._length(arrays):
                return first, arrays
        while row >= self._end:
            batch = next(self._source, None)
            if batch is None:
                return None
            arrays = {key: checked_batch(each) for key, each in pick(batch, self._keys).items()}
            self._held.append((self._end, arrays))
            self._end += self._length(arrays)
            self.drop()
        return self._held[-1]

    def drop(self) -> None:
        """Forget the batches that all readers have passed."""
        needed = min((reader.position for reader in self._readers), default=self._end)
        while self._held and self._held[0][0] + self._length(self._held[0][1]) <= needed:
            self._held.popleft()

    def leave(self, reader: StreamReader) -> None:
        """Hold no more batches for a reader."""
        if reader in self._readers:
            self._readers.remove(reader)
            self.drop()

    @staticmethod
    def _length(arrays: dict[Hashable, np.ndarray]) -> int:
        return len(next(iter(arrays.values())))


class StreamReader:
    """Iterator over the arrays of one key of a `SharedStream`.

    Attributes
    ----------
    position : int
        First row that was not read yet.
    """

    def __init__(self, stream: SharedStream, key: Hashable) -> None:
        self._shared = stream
        self._key = key
        self.position = 0

    def __iter__(self) -> StreamReader:
        return self

    def __next__(self) -> np.ndarray:
        found = self._shared.batch_at(self.position)
        if found is None:
            raise StopIteration
        first, arrays = found
        rows = arrays[self._key][self.position - first :]
        self.position += len(rows)
        self._shared.drop()
        return rows

    def skip_to(self, row: int) -> None:
        """Go to a later row without reading the rows before it."""
        self.position = row
        self._shared.drop()

    def close(self) -> None:
        """Read no more."""
        self._shared.leave(self)


class SharedRows(StreamRows):
    """Rows of a `SharedStream` in their own order, for one training loop of one pass.

    Parameters
    ----------
    rows : StreamRows
        Sample of the first rows of the same key. It is shared, not copied.
    reader : StreamReader
        Reader of this loop.

    Attributes
    ----------
    reader : StreamReader
        The reader.
    """

    def __init__(self, rows: StreamRows, reader: StreamReader) -> None:
        self.__dict__.update(copy.copy(rows).__dict__)
        self.reader = reader
        self._stream = reader

    def batches(self, batch_size: int, n_epochs: int, first_step: int, seed: int) -> Iterator[np.ndarray]:
        # Not a generator, because the reader has to say before any step where it starts.
        self.reader.skip_to(self._first + first_step * batch_size)
        return self._cut(self.reader, batch_size, given=first_step > 0)
