"""Activations on disk: the array, and its writer."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from geofloor._files.atomic import atomic_path, check_writable, remove_left_behind
from geofloor._files.npy import map_npy, npy_header
from geofloor._files.schema import Field, choice, fields, mapping, number, optional, text
from geofloor._files.sealed import count, lock_left, read_sealed, sha256, write_sealed
from geofloor._validation import check_number, check_path
from geofloor.language_models._hook_names import OUTPUTS
from geofloor.language_models._inputs import Window

STORE_DTYPES = ("float32", "float16")
MANIFEST, PARTIAL_MANIFEST = "manifest.json", "manifest.partial.json"
_FORMAT, _VERSION = "geofloor activations", 2
EXTRACT_AGAIN = "remove the folder and extract the activations again"
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
            begun = (path / PARTIAL_MANIFEST).is_file()
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
                "settings": _settings_entry,
                "input_sha256": sha256 if name == MANIFEST else optional(sha256),
                "shards": _shards_entry,
            },
            remedy=EXTRACT_AGAIN,
        )
        self.shape: tuple[int, int] = (self.manifest["shape"][0], self.manifest["shape"][1])
        self.dtype = np.dtype(self.manifest["dtype"])
        self._bounds = np.cumsum([0, *(shard["rows"] for shard in self.manifest["shards"])])
        if self._bounds[-1] != self.shape[0]:
            raise ValueError(
                f"'{path / name}' is inconsistent: its shards do not add up to {self.shape[0]} rows; {EXTRACT_AGAIN}."
            )
        for shard in self.manifest["shards"]:
            file, size = path / shard["file"], shard["bytes"]
            if not file.is_file():
                raise FileNotFoundError(f"The shard '{file}' is missing; extract the activations again.")
            if file.stat().st_size != size:
                raise _refused_shard(file, f"has {file.stat().st_size} bytes in place of {size}")
            if size < shard["rows"] * self.shape[1] * self.dtype.itemsize:
                raise _refused_shard(file, f"is too small for rows of {self.shape[1]} numbers")
        self._map = functools.lru_cache(_OPEN_SHARDS)(self._load)

    @classmethod
    def _partial(cls, path: Path) -> ActivationStore:
        store = cls.__new__(cls)
        store._open(path, PARTIAL_MANIFEST)
        return store

    def _load(self, index: int, *, again: bool = False) -> np.ndarray:
        return map_shard(self.path, self.manifest["shards"][index], self.shape[1], self.dtype, again=again)

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
        for shard in range(len(self.manifest["shards"])):
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
        for index in range(len(self.manifest["shards"])):
            self._load(index, again=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{self.path}', shape={self.shape}, dtype={self.dtype})"


def map_shard(
    path: Path, shard: Mapping[str, Any], width: int, dtype: np.dtype | str, *, again: bool = False
) -> np.ndarray:
    """Map a shard of the store at `path`, after comparing its content with its record."""
    file = path / shard["file"]
    return map_npy(
        file,
        shape=(shard["rows"], width),
        dtype=np.dtype(dtype),
        sha256=shard["sha256"],
        refused=functools.partial(_refused_shard, file),
        again=again,
    )


def _refused_shard(file: Path, reason: str) -> ValueError:
    return ValueError(f"The shard '{file}' {reason}; {EXTRACT_AGAIN}.")


def _shape_entry(name: str, value: Any) -> list[int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{name}={value!r:.40} is no shape of two dimensions")
    return [count(name, value[0]), number(1, 2**31, whole=True)(name, value[1])]


def _shards_entry(name: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is no list")
    return [shard_entry(index)(f"{name}[{index}]", shard) for index, shard in enumerate(value)]


def shard_entry(index: int) -> Field:
    """Make the check of the record of a shard, by its number."""

    def check(name: str, value: Any) -> dict[str, Any]:
        shard = _SHARD(name, value)
        choice(shard_name(index))(f"{name}.file", shard["file"])  # no file elsewhere, and none twice
        return shard

    return check


def shard_name(index: int) -> str:
    """Return the name of a shard's file."""
    return f"shard-{index:05d}.npy"


_NOTE_NAME = re.compile(r"shard-(\d{5,})\.json")
_LEFT_BEHIND = re.compile(r"\.(shard-\d{5,}\.(?:npy|json))\.\w{8}\.part")
_SHARD = fields(file=text, rows=number(1, 2**31, whole=True), bytes=count, sha256=sha256, input_sha256=sha256)


def _token_ids_entry(name: str, value: Any) -> list[int]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is no list")
    return [count(f"{name}[{index}]", each) for index, each in enumerate(value)]


_EXTRACTION = fields(
    model=text,
    model_sha256=sha256,
    layer=count,
    output=choice(*OUTPUTS),
    n_layers=count,
    skip_first=count,
    exclude_tokens=optional(_token_ids_entry),
    pooling=optional(choice("mean", "last")),
    max_length=optional(count),
    batch_size=count,
    shard_tokens=count,
)


def _settings_entry(name: str, value: Any) -> dict[str, Any]:
    """Check the settings of an extraction; those of old stores lack the settings added since."""
    return _EXTRACTION(name, {**_SETTINGS_OF_OLD, **mapping(name, value)})


_SETTINGS_OF_OLD = {"output": "residual", "exclude_tokens": None}


def check_folder(path: Any) -> tuple[Path, bool]:
    """Check a folder for write permission; return it, and whether it holds a finished store."""
    folder = check_path("path", path)
    finished = os.path.exists(folder / MANIFEST) and not os.path.exists(folder / PARTIAL_MANIFEST)
    finished = finished and not lock_left(folder / MANIFEST)
    if not finished:
        check_writable("path", folder / MANIFEST)
        remove_left_behind(folder / PARTIAL_MANIFEST)
    return folder, finished


def note_name(index: int) -> str:
    """Return the name of the file with the record of a shard, which stands for it until the manifest is written."""
    return f"shard-{index:05d}.json"


def noted_shards(path: Path) -> list[int]:
    """List the numbers of the shards with such a file in a folder, which several processes have written."""
    found = map(_NOTE_NAME.fullmatch, os.listdir(path))
    return sorted(int(name[1]) for name in found if name is not None)


def remove_progress(path: Path) -> None:
    """Remove from the folder of a finished store what only an unfinished one needs."""
    if not (path / PARTIAL_MANIFEST).exists():  # the folder may be read-only
        return
    remove_notes(path)
    (path / PARTIAL_MANIFEST).unlink(missing_ok=True)  # last, because it marks the folder as unfinished


def remove_notes(path: Path) -> None:
    """Remove the records of single shards, and temporary folders of killed writers of shards and records."""
    for name in os.listdir(path):
        left = _LEFT_BEHIND.fullmatch(name)
        if _NOTE_NAME.fullmatch(name):
            (path / name).unlink()
        elif left is not None:
            remove_left_behind(path / left[1])


class ShardWriter:
    """Base of the writers of a store: the place in the input, and the shard that is being filled.

    Parameters
    ----------
    path : Path
        Folder of the store.
    manifest : dict
        Manifest without the shards to come.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path = path
        self.manifest = manifest
        self.digest = hashlib.sha256()  # of all token ids so far
        self.window_sha256 = ""  # of the token ids up to the end of the window that is being added
        self.position = 0  # rows passed so far, stored or not
        self.buffer = np.empty((manifest["settings"]["shard_tokens"], manifest["shape"][1]), dtype=manifest["dtype"])
        self.filled = 0

    def needs(self, n_rows: int) -> bool:
        """Return whether to compute the next rows, within a window that is wanted; if not, `skip` them."""
        return n_rows > 0

    def skip(self, n_rows: int) -> None:
        """Pass the next rows."""
        self.position += n_rows

    def _hash(self, window: Window) -> None:
        """Add the token ids of a window to the digest."""
        for ids in window.sequences:
            self.digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i8").tobytes())

    def _refused(self, reason: str) -> ValueError:
        return ValueError(f"The activation store at '{self.path}' {reason}; remove that folder or use another path.")

    def _compare(self, rows: np.ndarray, stored: np.ndarray) -> None:
        """Refuse to continue if stored rows differ from those computed again."""
        known = stored.astype(np.float32)
        # Threads and devices round differently. Medians are used since a few dimensions can dwarf the others.
        if np.median(np.abs(rows - known)) > 0.01 * np.median(np.abs(known)):
            raise self._refused("was made by a model that computes something else with the same weights")

    def _hold(self, rows: np.ndarray, start: int) -> None:
        """Put rows into the buffer."""
        target = self.buffer[start : start + len(rows)]
        with np.errstate(over="ignore"):
            target[...] = rows
        if target.dtype == np.float16 and not np.isfinite(target).all():
            raise ValueError(
                f"dtype='float16' cannot hold activations as large as {np.abs(rows).max():.3g}; use 'float32'."
            )

    def _write_shard(self, index: int) -> dict[str, Any]:
        """Write the filled part of the buffer, and return the record of the shard."""
        values = self.buffer[: self.filled]
        header = npy_header(values.shape, values.dtype)
        file = self.path / shard_name(index)
        with atomic_path(file) as temporary, open(temporary, "wb") as stream:
            stream.write(header)
            stream.write(values.data)
        return {
            "file": file.name,
            "rows": self.filled,
            "bytes": len(header) + values.nbytes,
            "sha256": hashlib.sha256(values.data).hexdigest(),
            "input_sha256": self.window_sha256,
        }


class StoreWriter(ShardWriter):
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
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, width: int, dtype: str):
        start = {"format": _FORMAT, "version": _VERSION, "shape": [0, width], "dtype": dtype, "settings": settings}
        super().__init__(path, {**start, "input_sha256": None, "shards": []})
        self.complete = (path / MANIFEST).exists()
        self.stored: ActivationStore | None = None
        if self.complete:
            self.stored = ActivationStore(path)
        elif (path / PARTIAL_MANIFEST).exists():
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

    def wants(self, window: Window) -> bool:
        """Return whether to compute the rows of this window.

        A window is skipped if all its rows are stored and more stored rows follow. The last stored rows are computed
        again, to notice a changed input or model.
        """
        self._hash(window)
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
            self._compare(rows[:n_known], self.stored[self.position : self.position + n_known])
        self.position += len(rows)
        rows = rows[n_known:]
        if len(rows) and self.complete:
            raise self._refused("was made from another, shorter input")
        while len(rows):
            fitting = rows[: len(self.buffer) - self.filled]
            self._hold(fitting, self.filled)
            self.filled += len(fitting)
            rows = rows[len(fitting) :]
            if self.filled == len(self.buffer):
                self._write()

    def _write(self) -> None:
        shards = self.manifest["shards"]
        shards.append(self._write_shard(len(shards)))
        self.manifest["shape"][0] += self.filled
        self.filled = 0
        write_sealed(self.path / PARTIAL_MANIFEST, self.manifest)

    def finish(self) -> None:
        """Write the last shard and the manifest."""
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
        remove_progress(self.path)
