"""Map ``.npy`` files after checking their content."""

from __future__ import annotations

import hashlib
import io
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_BYTES_AT_ONCE = 2**24


_SETTLED = 2 * 10**9  # nanoseconds: the coarsest clock of a file system


_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?P<size>..)\{'descr': '(?P<dtype>[<>|=]\w{2,4})', 'fortran_order': False, "
    rb"'shape': \((?P<shape>\d{1,18}, \d{1,18})\), \} *\n",
    re.DOTALL,
)


_verified: dict[str, tuple[tuple[int, ...], str]] = {}


def leaves_folder(path: Path) -> bool:
    """Return whether a file is a link into another folder."""
    return os.path.dirname(os.path.realpath(path)) != os.path.realpath(path.parent)


def npy_header(shape: tuple[int, int], dtype: np.dtype) -> bytes:
    """Return the header of a ``.npy`` file; NumPy pads it to one size for any number of rows."""
    header = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


def map_npy(
    path: Path,
    *,
    shape: tuple[int, int],
    dtype: np.dtype,
    sha256: str,
    refused: Callable[[str], ValueError],
    again: bool = False,
) -> np.memmap:
    """Map a ``.npy`` file read-only, after comparing the SHA-256 of its values.

    A file is read once per process, and again if its size, inode or times change.

    Parameters
    ----------
    path : Path
        The file; a link into another folder is refused.
    shape, dtype : tuple of (int, int), numpy.dtype
        Expected content.
    sha256 : str
        Expected SHA-256 of the values, without the header.
    refused : callable
        Returns an error for a reason.
    again : bool, default=False
        Whether to read the file even if this process has read it already.
    """
    if leaves_folder(path):
        raise refused("is a link to a file in another folder")
    with open(path, "rb") as stream:  # one open file throughout: the bytes mapped are the bytes checked
        header = _HEADER.match(stream.read(512))
        if header is None or header.end() != 10 + int.from_bytes(header["size"], "little"):
            raise refused("is damaged: it has no header of a .npy file of two dimensions")
        found = tuple(map(int, header["shape"].split(b", ")))
        if found != shape or header["dtype"].decode() != dtype.str:
            raise refused(f"is damaged: it holds {header['dtype'].decode()} of shape {found}, not {dtype} of {shape}")
        size = header.end() + shape[0] * shape[1] * dtype.itemsize
        if os.fstat(stream.fileno()).st_size != size:
            raise refused(f"is damaged: it has {os.fstat(stream.fileno()).st_size} bytes in place of {size}")
        if _digest_once(path, stream, header.end(), again) != sha256:
            raise refused("was altered after it was written: its checksum does not match its content")
        return np.memmap(stream, dtype=dtype, mode="r", offset=header.end(), shape=shape)


def _digest_once(path: Path, stream: BinaryIO, start: int, again: bool) -> str:
    status = os.fstat(stream.fileno())
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    key = os.path.realpath(path)
    known = _verified.get(key)
    if known is not None and known[0] == identity and not again:
        return known[1]
    computed = hashlib.sha256()
    update_digest(computed, stream, start, status.st_size)
    digest = computed.hexdigest()
    if time.time_ns() - status.st_mtime_ns > _SETTLED:  # else it may change again within one tick of the clock
        _verified[key] = (identity, digest)
    return digest


def update_digest(digest: Any, stream: BinaryIO, start: int, stop: int) -> None:
    """Add the bytes from `start` to `stop` of a file to a digest, and leave the file at `stop`."""
    stream.seek(start)
    while start < stop:
        piece = stream.read(min(stop - start, _BYTES_AT_ONCE))
        if not piece:
            break
        digest.update(piece)
        start += len(piece)
