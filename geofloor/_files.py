"""Files that outlive a process: one writer at a time, and nothing is read before it is checked.

JSON carries the checksum of its own content, and arrays have theirs in such JSON. A checksum tells accidents and
not intent, so each entry is checked as well. Every refusal is a ValueError that names the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from geofloor._training.checkpoints import write_json
from geofloor._training.schema import Field, fields, number, text
from geofloor._validation import shown, warn_caller

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_CHECKSUM = "checksum"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems
_BYTES_AT_ONCE = 2**24
_SETTLED = 2 * 10**9  # nanoseconds after which a file that changes has another time of change on any file system
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?P<size>..)\{'descr': '(?P<dtype>[<>|=]\w{2,4})', 'fortran_order': False, "
    rb"'shape': \((?P<shape>\d{1,18}, \d{1,18})\), \} *\n",
    re.DOTALL,
)
_verified: dict[str, tuple[tuple[int, ...], str]] = {}


# One writer


@contextlib.contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Wait until no other process or thread writes to `path`, and keep them waiting meanwhile.

    The lock is a file beside `path` that goes when the writer is done. The system releases the lock of a killed
    process; its empty file stays, and the next writer takes it over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = _lock_of(path)
    lock = _locked(name)
    try:
        yield
    finally:
        if lock is not None and fcntl is not None:
            name.unlink(missing_ok=True)
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing would not do while a forked child has the file open
            os.close(lock)


def lock_left(path: Path) -> bool:
    """Return whether a writer's lock is beside `path` and can be removed, for a killed one may have left it."""
    return _lock_of(path).exists() and os.access(path.parent, os.W_OK)


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _locked(name: Path) -> int | None:
    if fcntl is None:
        return None
    told = int(os.environ.get("WORLD_SIZE") or 1) > 1  # processes started together expect to wait
    while True:
        lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    warn_caller(f"Another process writes to '{name.parent}'; waiting until it is done.", UserWarning)
                    told = True
                fcntl.flock(lock, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), os.stat(name)):  # and not one that its owner has removed
                    return lock
        except OSError as error:
            os.close(lock)
            if error.errno not in _NO_LOCKS:
                raise
            warn_caller(
                f"'{name.parent}' is on a file system without locks ({error.strerror}); let only one process write "
                "to it at a time.",
                UserWarning,
            )
            return None
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


# JSON


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically, with its own checksum."""
    write_json(path, {**content, _CHECKSUM: _checksum(content)})


def read_sealed(
    path: Path, *, what: str, kind: str, version: int, entries: Mapping[str, Field], remedy: str
) -> dict[str, Any]:
    """Read what `write_sealed` wrote, after checking all of it.

    Parameters
    ----------
    path : Path
        The file.
    what : str
        What messages call it.
    kind, version : str, int
        Its entries ``format`` and ``version``.
    entries : mapping of str to Field
        The others, none of which may be missing or be added.
    remedy : str
        What to do about a file that is refused.

    Raises
    ------
    ValueError
        If the file is no such JSON, was altered, is of another version, or an entry is not allowed.
    """

    def refused(reason: str) -> ValueError:
        return ValueError(f"'{path}' {reason}; {remedy}.")

    if leaves_folder(path):
        raise refused("is a link to a file in another folder")
    try:
        content = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
        known = isinstance(content, dict) and content.get("format") == kind
        checksum = content.pop(_CHECKSUM, None) if known else None
        unaltered = known and checksum == _checksum(content)
    except (OSError, ValueError, RecursionError) as error:
        raise refused(f"is not {what} ({error})") from error
    if not known:
        raise refused(f"is not {what}")
    if content.get("version") != version:
        raise refused(f"has version {shown(content.get('version'))}, and this geofloor reads version {version}")
    if not unaltered:
        raise refused("was altered after it was written: its checksum does not match its content")
    try:
        return fields(format=text, version=number(whole=True), **entries)("it", content)
    except ValueError as error:
        raise refused(f"is not {what}: {error}") from error


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def leaves_folder(path: Path) -> bool:
    """Whether a file is a link to one in another folder."""
    return os.path.dirname(os.path.realpath(path)) != os.path.realpath(path.parent)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


count = number(0, whole=True)


def sha256(name: str, value: Any) -> str:
    """Allow a SHA-256."""
    if re.fullmatch("[0-9a-f]{64}", text(name, value)) is None:
        raise ValueError(f"{name}={value!r:.40} is no SHA-256")
    return value


# Arrays


def npy_header(shape: tuple[int, int], dtype: np.dtype) -> bytes:
    """NumPy's header, which it pads so that its size is the same whatever the number of rows."""
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
        The file; it must lie in its folder, and be no link to one elsewhere.
    shape, dtype : tuple of (int, int), numpy.dtype
        What it must hold.
    sha256 : str
        Of the values, without the header.
    refused : callable
        Makes an error out of a reason.
    again : bool, default=False
        Whether to read a file that this process has read already.
    """
    if leaves_folder(path):
        raise refused("is a link to a file in another folder")
    with open(path, "rb") as stream:  # one open file throughout, so that what is mapped is what was read
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
    if time.time_ns() - status.st_mtime_ns > _SETTLED:  # else it may change once more within one tick of the clock
        _verified[key] = (identity, digest)
    return digest


def update_digest(digest: Any, stream: BinaryIO, start: int, stop: int) -> None:
    """Add the bytes from `start` to `stop` of a file to a digest; the file is at `stop` afterwards."""
    stream.seek(start)
    while start < stop:
        piece = stream.read(min(stop - start, _BYTES_AT_ONCE))
        if not piece:
            break
        digest.update(piece)
        start += len(piece)
