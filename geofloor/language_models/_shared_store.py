"""Write one activation store from several processes, each its own shards.

The shards are those of one process, with the same rows in each. Every process reads all of the input, and computes the
rows of its shards. Beside each shard it writes the record of the shard, so that any number of processes can resume.
The main process collects the records in the manifest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from geofloor._files.sealed import read_sealed, write_sealed
from geofloor._training.processes import Processes
from geofloor.language_models._inputs import Window
from geofloor.language_models._store import (
    EXTRACT_AGAIN,
    MANIFEST,
    PARTIAL_MANIFEST,
    ShardWriter,
    StoreWriter,
    map_shard,
    note_name,
    noted_shards,
    remove_notes,
    remove_progress,
    shard_entry,
)

SHARDS_AT_A_TIME = 4  # consecutive shards of one process; up to a window at each end is computed by two processes
_NOTE, _NOTE_VERSION = "geofloor activation shard", 1

_Progress = tuple[dict[str, Any], dict[int, dict[str, Any]]]  # manifest, and records of shards by number


def begin_sharing(writer: StoreWriter) -> _Progress:
    """Prepare an unfinished store, in the main process, for `SharedStoreWriter`.

    Returns
    -------
    manifest : dict
        Manifest of the store.
    shards : dict of int to dict
        Records of all stored shards, by number.
    """
    shards = dict(enumerate(writer.manifest["shards"]))
    if (writer.path / PARTIAL_MANIFEST).exists():
        shards |= {index: _read_note(writer.path, index) for index in noted_shards(writer.path)}
    else:
        remove_notes(writer.path)  # which belong to no manifest
        write_sealed(writer.path / PARTIAL_MANIFEST, writer.manifest)
    return writer.manifest, shards


class SharedStoreWriter(ShardWriter):
    """Write the shards of one of several processes, and skip those stored by interrupted runs.

    Parameters
    ----------
    path : Path
        Folder of the store.
    progress : tuple
        Result of `begin_sharing`, the same in each process.
    processes : Processes
        The processes.

    Raises
    ------
    ValueError
        If a stored shard was altered. Each process verifies some of them.
    """

    def __init__(self, path: Path, progress: _Progress, processes: Processes):
        manifest, self._stored = progress
        super().__init__(path, manifest)
        self._processes = processes
        self._size = len(self.buffer)
        for index in list(self._stored)[processes.rank :: processes.n]:
            self._map(index)
        # The main process computes the last stored row again, to notice a model that computes something else.
        last = max(self._stored, default=-1)
        self._compared_row = self._end_of(last) - 1 if processes.is_main and last >= 0 else -1

    def _map(self, index: int) -> np.ndarray:
        return map_shard(self.path, self._stored[index], self.manifest["shape"][1], self.manifest["dtype"])

    def _end_of(self, index: int) -> int:
        """Return the end of the rows of a stored shard."""
        return index * self._size + self._stored[index]["rows"]

    def _is_mine(self, index: int) -> bool:
        return index // SHARDS_AT_A_TIME % self._processes.n == self._processes.rank

    def wants(self, window: Window) -> bool:
        """Return whether to compute rows of this window; if not, pass it.

        Raises
        ------
        ValueError
            If stored shards were made from another input.
        """
        self._hash(window)
        if not window.n_rows:
            return False
        self.window_sha256 = self.digest.hexdigest()
        end = self.position + window.n_rows
        for index in range(self.position // self._size, -(-end // self._size)):
            if index not in self._stored:
                continue
            shard, last = self._stored[index], self._end_of(index)
            if self.position < last <= end and shard["input_sha256"] != self.window_sha256:
                raise self._refused("was made from another input")
            if shard["rows"] < self._size and last < end:
                raise self._refused("was made from another, shorter input")
        if self.needs(window.n_rows):
            return True
        self.skip(window.n_rows)
        return False

    def needs(self, n_rows: int) -> bool:
        """Return whether the next rows are part of a missing shard of this process, or are to be compared."""
        end = self.position + n_rows
        missing = (
            self._is_mine(index) and index not in self._stored
            for index in range(self.position // self._size, -(-end // self._size))
        )
        return any(missing) or self.position <= self._compared_row < end

    def add(self, rows: np.ndarray) -> None:
        """Compare rows with those stored before, store those of this process, and pass the others."""
        while len(rows):
            index, start = divmod(self.position, self._size)
            fitting = rows[: self._size - start]
            if index in self._stored:
                self._compare(fitting, self._map(index)[start : start + len(fitting)])
            elif self._is_mine(index):
                self._hold(fitting, start)
                self.filled = start + len(fitting)
                if self.filled == self._size:
                    self._write(index)
            self.position += len(fitting)
            rows = rows[len(fitting) :]

    def _write(self, index: int) -> None:
        content = {"format": _NOTE, "version": _NOTE_VERSION, "shard": self._write_shard(index)}
        write_sealed(self.path / note_name(index), content)
        self.filled = 0

    def finish_share(self) -> None:
        """Write the last shard, if it belongs to this process.

        Raises
        ------
        ValueError
            If stored shards were made from a longer input.
        """
        if any(self._end_of(index) > self.position for index in self._stored):
            raise self._refused("was made from another, longer input")
        if self.filled:
            self._write(self.position // self._size)

    def finish(self) -> None:
        """Write the manifest, in the main process after all have called `finish_share`.

        Raises
        ------
        ValueError
            If this process does not see the shards of another.
        """
        self.manifest["shards"] = [
            self._stored.get(index) or _read_note(self.path, index) for index in range(-(-self.position // self._size))
        ]
        self.manifest["shape"][0] = self.position
        self.manifest["input_sha256"] = self.digest.hexdigest()
        write_sealed(self.path / MANIFEST, self.manifest)
        remove_progress(self.path)


def _read_note(path: Path, index: int) -> dict[str, Any]:
    """Read the record of a shard."""
    note = path / note_name(index)
    if not note.exists():
        raise ValueError(f"'{note}' of another process is missing; give all processes a path that all of them see.")
    content = read_sealed(
        note,
        what="the record of a shard of activations",
        kind=_NOTE,
        version=_NOTE_VERSION,
        entries={"shard": shard_entry(index)},
        remedy=EXTRACT_AGAIN,
    )
    return content["shard"]
