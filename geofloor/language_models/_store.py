"""Activations on disk: the array, and its writer."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from geofloor._files.atomic import atomic_path, check_writable, remove_left_behind
from geofloor._files.npy import map_npy, npy_header
from geofloor._files.schema import choice, fields, number, optional, text
from geofloor._files.sealed import count, lock_left, read_sealed, sha256, write_sealed
from geofloor._validation import check_number, check_path
from geofloor.language_models._inputs import Window

STORE_DTYPES = ("float32", "float16")
MANIFEST, _PARTIAL_MANIFEST = "manifest.json", "manifest.partial.json"
_FORMAT, _VERSION = "geofloor activations", 2
_EXTRACT_AGAIN = "remove the folder and extract the activations again"
_OPEN_SHARDS = 64  # each open memory map holds a file descriptor


class ActivationStore:
    """Activations on disk, indexed like an array; only the rows asked for are read.

    `ActivationExtractor.transform_to_store` writes it.

    Parameters
    ----------
    path : path-like
        Folder of the store.

    Attributes
    ----------
    path : Path
        The folder.
    shape : tuple of (int, int)
        Number of rows and d_model.
    dtype : numpy.dtype
        float32 or float16.
    manifest : dict
        Content and origin of the store: ``shape``, ``dtype``, ``settings`` of the extraction, ``input_sha256`` of the
        token ids, and ``shards``, each with its ``file``, ``rows``, ``bytes`` and the ``sha256`` of its values.

    Raises
    ------
    FileNotFoundError
        If there is no finished store at `path`, or a shard is missing.
    ValueError
        If the manifest is invalid or was altered, or a shard is truncated. An altered shard raises when its rows are
        first read.

    Notes
    -----
    Shards are ``.npy`` files, opened as memory maps and without pickle. ``manifest.json`` is written last, so that a
    folder with a manifest is complete. Opening checks the manifest and the size of every shard. The SHA-256 of a shard
    is compared once per process, when its rows are first read, which takes about a second per gigabyte. `verify`
    compares all of them at once.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from transformers import GPTNeoXConfig, GPTNeoXModel
    >>> from geofloor import ActivationExtractor
    >>> config = GPTNeoXConfig(
    ...     vocab_size=32, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    ... )
    >>> tokens = np.arange(60).reshape(4, 15) % 32
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = ActivationExtractor(GPTNeoXModel(config), layer=1).transform_to_store(tokens, folder)
    ...     store.shape, store[[5, 3]].shape, [len(rows) for rows in store.iter_batches(40)]
    ((56, 16), (2, 16), [40, 16])
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._open(check_path("path", path), MANIFEST)

    def _open(self, path: Path, name: str) -> None:
        self.path = path
        if not (path / name).is_file():
            begun = (path / _PARTIAL_MANIFEST).is_file()
            hint = " Its extraction was interrupted; call transform_to_store again." if begun else ""
            raise FileNotFoundError(f"There is no finished activation store at '{path}'.{hint}")
        self.manifest = read_sealed(
            path / name,
            what="the manifest of an activation store",
            kind=_FORMAT,
            version=_VERSION,
            entries={
                "shape": _shape_entry,
                "dtype": choice(*STORE_DTYPES),
                "settings": _SETTINGS,
                "input_sha256": sha256 if name == MANIFEST else optional(sha256),
                "shards": _shards_entry,
            },
            remedy=_EXTRACT_AGAIN,
        )
        self.shape: tuple[int, int] = (self.manifest["shape"][0], self.manifest["shape"][1])
        self.dtype = np.dtype(self.manifest["dtype"])
        self._shards = [
            (path / shard["file"], shard["rows"], shard["bytes"], shard["sha256"]) for shard in self.manifest["shards"]
        ]
        self._bounds = np.cumsum([0, *(rows for _, rows, _, _ in self._shards)])
        if self._bounds[-1] != self.shape[0]:
            raise ValueError(
                f"'{path / name}' is inconsistent: its shards do not add up to {self.shape[0]} rows; {_EXTRACT_AGAIN}."
            )
        for file, _, size, _ in self._shards:
            if not file.is_file():
                raise FileNotFoundError(f"The shard '{file}' is missing; extract the activations again.")
            if file.stat().st_size != size:
                raise _refused_shard(file, f"has {file.stat().st_size} bytes in place of {size}")
        self._map = functools.lru_cache(_OPEN_SHARDS)(self._load)

    @classmethod
    def _partial(cls, path: Path) -> ActivationStore:
        store = cls.__new__(cls)
        store._open(path, _PARTIAL_MANIFEST)
        return store

    def _load(self, index: int, *, again: bool = False) -> np.ndarray:
        file, rows, _, sha256 = self._shards[index]
        return map_npy(
            file,
            shape=(rows, self.shape[1]),
            dtype=self.dtype,
            sha256=sha256,
            refused=functools.partial(_refused_shard, file),
            again=again,
        )

    @property
    def ndim(self) -> int:
        """Number of dimensions, always 2."""
        return 2

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """Read rows, chosen by an integer, a slice, a mask or an array of integers."""
        if isinstance(key, tuple):  # store[rows, columns], columns no more than a slice
            rows, *columns = key
            if not all(column is Ellipsis or isinstance(column, slice) for column in columns):
                raise IndexError("columns of an ActivationStore can be chosen by a slice only.")
            if rows is Ellipsis or isinstance(rows, (int, np.integer)):
                return self[:][key] if rows is Ellipsis else self[rows][tuple(columns)]
            return self[rows][(slice(None), *columns)]
        if key is Ellipsis:
            key = slice(None)
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            return self._contiguous(start, stop) if step == 1 else self._gather(np.arange(start, stop, step))
        index = np.asarray(key)
        if index.dtype == bool:
            if index.shape != (len(self),):
                raise IndexError(f"a mask of shape {index.shape} does not fit {len(self)} rows.")
            return self._gather(np.flatnonzero(index))
        if index.size == 0 and index.ndim == 1:
            index = index.astype(np.int64)
        if index.dtype.kind not in "iu" or index.ndim > 1:
            raise IndexError(
                f"rows are chosen by an integer, a slice, or a 1-D array of integers or bools, not {key!r}."
            )
        outside = (index < -len(self)) | (index >= len(self))
        if outside.any():
            raise IndexError(f"row {index[outside].flat[0]} is out of bounds for {len(self)} rows.")
        index = index.astype(np.int64)
        rows = self._gather(np.atleast_1d(index) % max(len(self), 1))
        return rows[0] if index.ndim == 0 else rows

    def _contiguous(self, start: int, stop: int) -> np.ndarray:
        rows = np.empty((max(stop - start, 0), self.shape[1]), dtype=self.dtype)
        for shard in range(len(self._shards)):
            low, high = max(start, self._bounds[shard]), min(stop, self._bounds[shard + 1])
            if low < high:
                offset = self._bounds[shard]
                rows[low - start : high - start] = self._map(shard)[low - offset : high - offset]
        return rows

    def _gather(self, index: np.ndarray) -> np.ndarray:
        rows = np.empty((len(index), self.shape[1]), dtype=self.dtype)
        order = np.argsort(index, kind="stable")  # reads each shard from its beginning to its end
        bounds = np.searchsorted(index[order], self._bounds)
        for shard in np.flatnonzero(np.diff(bounds)):
            members = order[bounds[shard] : bounds[shard + 1]]
            rows[members] = self._map(int(shard))[index[members] - self._bounds[shard]]
        return rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("an ActivationStore lies on disk and can't be an array without being copied.")
        return np.asarray(self[:], dtype=dtype)

    def iter_batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Read all rows in order.

        Parameters
        ----------
        batch_size : int
            Rows per batch; the last batch may have fewer.

        Yields
        ------
        activations : ndarray of shape (batch_size, d_model)
            Rows, in memory.
        """
        batch_size = check_number("batch_size", batch_size, 1, whole=True)
        return (self[start : start + batch_size] for start in range(0, len(self), batch_size))

    def verify(self) -> None:
        """Read every shard and compare its SHA-256 with the manifest's.

        Raises
        ------
        ValueError
            If a shard was altered; the message names it.
        """
        for index in range(len(self._shards)):
            self._load(index, again=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{self.path}', shape={self.shape}, dtype={self.dtype})"


def _refused_shard(file: Path, reason: str) -> ValueError:
    return ValueError(f"The shard '{file}' {reason}; {_EXTRACT_AGAIN}.")


def _shape_entry(name: str, value: Any) -> list[int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{name}={value!r:.40} is no shape of two dimensions")
    return [count(name, value[0]), number(1, 2**31, whole=True)(name, value[1])]


def _shards_entry(name: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is no list")
    shards = [_SHARD(f"{name}[{index}]", shard) for index, shard in enumerate(value)]
    for index, shard in enumerate(shards):
        choice(_shard_name(index))(f"{name}[{index}].file", shard["file"])  # no file elsewhere, and none twice
    return shards


def _shard_name(index: int) -> str:
    return f"shard-{index:05d}.npy"


_SHARD = fields(file=text, rows=number(1, 2**31, whole=True), bytes=count, sha256=sha256, input_sha256=sha256)
_SETTINGS = fields(
    model=text,
    model_sha256=sha256,
    layer=count,
    n_layers=count,
    skip_first=count,
    pooling=optional(choice("mean", "last")),
    max_length=optional(count),
    batch_size=count,
    shard_tokens=count,
)


def check_folder(path: Any) -> tuple[Path, bool]:
    """Check a folder for write permission; return it, and whether it holds a finished store."""
    folder = check_path("path", path)
    finished = os.path.exists(folder / MANIFEST) and not os.path.exists(folder / _PARTIAL_MANIFEST)
    finished = finished and not lock_left(folder / MANIFEST)
    if not finished:
        check_writable("path", folder / MANIFEST)
        remove_left_behind(folder / _PARTIAL_MANIFEST)
    return folder, finished


class StoreWriter:
    """Write rows to shards, and skip those stored by an interrupted run.

    Parameters
    ----------
    path : Path
        Folder of the store.
    settings : dict
        Settings of the extraction.
    width : int
        d_model.
    dtype : str
        Stored precision.
    shard_tokens : int
        Rows per shard.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, width: int, dtype: str, shard_tokens: int):
        self.path = path
        self.digest = hashlib.sha256()  # of all token ids so far
        self.window_sha256 = ""  # of the token ids up to the end of the window that is being added
        self.position = 0  # rows passed so far, stored or not
        self.manifest: dict[str, Any] = {
            "format": _FORMAT,
            "version": _VERSION,
            "shape": [0, width],
            "dtype": dtype,
            "settings": settings,
            "input_sha256": None,
            "shards": [],
        }
        self.complete = (path / MANIFEST).exists()
        self.stored: ActivationStore | None = None
        if self.complete:
            self.stored = ActivationStore(path)
        elif (path / _PARTIAL_MANIFEST).exists():
            self.stored = ActivationStore._partial(path)
        if self.stored is not None:
            there = {
                **self.stored.manifest["settings"],
                "d_model": self.stored.shape[1],
                "dtype": str(self.stored.dtype),
            }
            here = {**settings, "d_model": width, "dtype": dtype}
            weights = here.pop("model_sha256")
            del here["model"]  # a folder may have moved; weights and activations are compared below
            other = [f"{key}={there.get(key)!r}, not {here[key]!r}" for key in here if there.get(key) != here[key]]
            if other:
                raise self._refused(f"was made with {'; '.join(other)}")
            if there["model_sha256"] != weights:
                raise self._refused("was made by a model with other weights or settings")
            for index in range(len(self.stored.manifest["shards"])):
                self.stored._load(index)  # verifies it
            self.manifest = self.stored.manifest
        self.n_stored = 0 if self.stored is None else len(self.stored)
        self.buffer = np.empty((shard_tokens, width), dtype=dtype)
        self.filled = 0

    def _refused(self, reason: str) -> ValueError:
        return ValueError(f"The activation store at '{self.path}' {reason}; remove that folder or use another path.")

    def wants(self, window: Window) -> bool:
        """Return whether to compute the rows of this window.

        A window is skipped if all its rows are stored and more stored rows follow. The last stored rows are computed
        again, to notice a changed input or model.
        """
        for ids in window.sequences:
            self.digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i8").tobytes())
        end = self.position + window.n_rows
        if not window.n_rows or end < self.n_stored:
            self.position = end
            return False
        self.window_sha256 = self.digest.hexdigest()
        if self.position < self.n_stored and self.window_sha256 != self.manifest["shards"][-1]["input_sha256"]:
            raise self._refused("was made from another input")
        return True

    def add(self, rows: np.ndarray) -> None:
        """Compare rows with those stored before, and store the rest."""
        n_known = min(max(self.n_stored - self.position, 0), len(rows))
        if n_known and self.stored is not None:
            known = self.stored[self.position : self.position + n_known].astype(np.float32)
            # Threads and devices round differently. Medians are used since a few dimensions can dwarf the others.
            if np.median(np.abs(rows[:n_known] - known)) > 0.01 * np.median(np.abs(known)):
                raise self._refused("was made by a model that computes something else with the same weights")
        self.position += len(rows)
        rows = rows[n_known:]
        if len(rows) and self.complete:
            raise self._refused("was made from another, shorter input")
        while len(rows):
            fitting = rows[: len(self.buffer) - self.filled]
            target = self.buffer[self.filled : self.filled + len(fitting)]
            with np.errstate(over="ignore"):
                target[...] = fitting
            if target.dtype == np.float16 and not np.isfinite(target).all():
                raise ValueError(
                    f"dtype='float16' cannot hold activations as large as {np.abs(fitting).max():.3g}; use 'float32'."
                )
            self.filled += len(fitting)
            rows = rows[len(fitting) :]
            if self.filled == len(self.buffer):
                self._write()

    def _write(self) -> None:
        shards = self.manifest["shards"]
        values = self.buffer[: self.filled]
        header = npy_header(values.shape, values.dtype)
        file = self.path / _shard_name(len(shards))
        with atomic_path(file) as temporary, open(temporary, "wb") as stream:
            stream.write(header)
            stream.write(values.data)
        shards.append(
            {
                "file": file.name,
                "rows": self.filled,
                "bytes": len(header) + values.nbytes,
                "sha256": hashlib.sha256(values.data).hexdigest(),
                "input_sha256": self.window_sha256,
            }
        )
        self.manifest["shape"][0] += self.filled
        self.filled = 0
        write_sealed(self.path / _PARTIAL_MANIFEST, self.manifest)

    def finish(self) -> ActivationStore:
        """Write the last shard and the manifest, and open the store."""
        if self.position < self.n_stored:
            raise self._refused("was made from another, longer input")
        if self.complete:
            if self.digest.hexdigest() != self.manifest["input_sha256"]:
                raise self._refused("was made from another input")
        else:
            if self.filled:
                self._write()
            self.manifest["input_sha256"] = self.digest.hexdigest()
            write_sealed(self.path / MANIFEST, self.manifest)
        if (self.path / _PARTIAL_MANIFEST).exists():  # the folder of a finished store may be read-only
            (self.path / _PARTIAL_MANIFEST).unlink(missing_ok=True)
        return ActivationStore(self.path)
