"""Locks for one writer at a time, and JSON with its own checksum.

The checksums of arrays stand in such JSON. A checksum detects accidents only, so that each entry is checked as well.
Every refusal is a ValueError with the name of the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from geofloor._files.atomic import write_json
from geofloor._files.npy import leaves_folder
from geofloor._files.schema import Field, fields, number, text
from geofloor._validation import shown, warn_caller

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_CHECKSUM = "checksum"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of file systems without locks


@contextlib.contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Lock `path` against other processes and threads, after waiting for them.

    The lock is a file beside `path`, removed when the writer is done. The system releases the lock of a killed
    process; its empty file stays until the next writer takes it over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = _lock_of(path)
    lock = _locked(name)
    try:
        yield
    finally:
        if lock is not None and fcntl is not None:
            name.unlink(missing_ok=True)
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing is not enough while a forked child has the file open
            os.close(lock)


def lock_left(path: Path) -> bool:
    """Return whether a lock is beside `path`, perhaps of a killed writer, in a writable folder."""
    return _lock_of(path).exists() and os.access(path.parent, os.W_OK)


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _locked(name: Path) -> int | None:
    if fcntl is None:
        return None
    told = int(os.environ.get("WORLD_SIZE") or 1) > 1  # processes started together wait without a warning
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
                if os.path.samestat(os.fstat(lock), os.stat(name)):  # unless its owner has removed it
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
    """Read a file of `write_sealed`, and check all of it.

    Parameters
    ----------
    path : Path
        The file.
    what : str
        Name of the kind of file, for messages.
    kind, version : str, int
        Expected entries ``format`` and ``version``.
    entries : mapping of str to Field
        Checks of all other entries.
    remedy : str
        Remedy for a refused file, for messages.

    Raises
    ------
    ValueError
        If the file is no such JSON, was altered, has another version, or holds a forbidden entry.
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


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


count = number(0, whole=True)


def sha256(name: str, value: Any) -> str:
    """Allow a SHA-256."""
    if re.fullmatch("[0-9a-f]{64}", text(name, value)) is None:
        raise ValueError(f"{name}={value!r:.40} is no SHA-256")
    return value


# Arrays
