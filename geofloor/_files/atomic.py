"""Write files atomically: a reader sees the previous file or the whole new one, even if the writer is killed."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from geofloor._validation import check_path

if sys.platform != "win32":
    import fcntl


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Any:
    """Yield a path in a temporary folder beside `path`; on success replace `path` by it, on failure remove it.

    Raises
    ------
    OSError
        If `path` can't be written, for example because the disk is full; the error has its number and `path`.
    """
    path = check_path("path", path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary_folder(path) as folder:
            temporary = folder / path.name
            yield temporary
            temporary.chmod(_ordinary_mode(folder))  # safetensors makes private files
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        if os.name == "posix":  # the rename itself must reach the disk
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
    except OSError as error:
        if error.filename is not None and not os.fspath(error.filename).startswith(f"{path.parent / '.'}{path.name}."):
            raise  # the error names another file
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


def _ordinary_mode(folder: Path) -> int:
    """Return the mode of new files; the umask itself can only be read by setting it, in all threads."""
    handle = os.open(folder / ".mode", os.O_CREAT | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a new locked folder beside `path`, after removing the folders of killed processes.

    It is a folder because safetensors writes a temporary file of its own beside the given one.
    """
    remove_left_behind(path)
    handle, folder = _locked_folder(path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _locked_folder(path: Path) -> tuple[int | None, Path]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        if sys.platform == "win32":
            return None, folder
        with contextlib.suppress(FileNotFoundError):  # another process took it for left behind before it was locked
            handle = os.open(folder, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a file system without locks: nobody will remove the folder either
                fcntl.flock(handle, fcntl.LOCK_EX)
            if folder.exists():
                return handle, folder
            os.close(handle)


def remove_left_behind(path: Path) -> None:
    """Remove temporary folders of killed writers beside `path`, recognized by their free locks.

    `atomic_path` does so before it writes. Call this for a finished file: its writer may have been killed just after
    the file got its name.
    """
    if sys.platform == "win32":
        return
    left = re.compile(re.escape(f".{path.name}.") + r"\w{8}\.part")
    for name in filter(left.fullmatch, os.listdir(path.parent)):
        with contextlib.suppress(OSError):  # it is locked, or gone
            handle = os.open(path.parent / name, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent / name, ignore_errors=True)
            finally:
                os.close(handle)


def check_writable(name: str, path: str | os.PathLike[str] | None) -> None:
    """Refuse an unwritable path before any work, by writing an empty file beside it.

    Parameters
    ----------
    name : str
        The argument.
    path : str, path or None
        The path; None passes.

    Raises
    ------
    ValueError
        If the path is a folder or can't be written.
    """
    if path is None:
        return
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"{name}={path!r:.60} must be a path or None.")
    path = Path(path)
    ordinary = True
    try:
        with contextlib.suppress(FileNotFoundError):
            ordinary = stat.S_ISREG(os.stat(path).st_mode)
        if ordinary:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _temporary_folder(path) as folder:
                (folder / path.name).touch()
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}='{path}' can't be written ({error}); give another path.") from error
    if not ordinary:
        raise ValueError(f"{name}='{path}' is a folder or a device; give the path of a file.")


def check_space(folders: Sequence[Path], n_bytes: int, remedy: str) -> None:
    """Refuse to fill a disk: compare the bytes left to write with the free space.

    Parameters
    ----------
    folders : sequence of Path
        Folders on one disk, which may be missing or hold a part already.
    n_bytes : int
        Size of each when finished.
    remedy : str
        What to do about too little space.

    Raises
    ------
    OSError
        If the disk has too little free space; the error has the number of a full disk.
    """
    if not folders:
        return
    existing = next(each for each in (folders[0], *folders[0].absolute().parents) if each.is_dir())
    written = sum(file.stat().st_size for folder in folders for file in folder.glob("*") if file.is_file())
    needed, free = n_bytes * len(folders) - written, shutil.disk_usage(existing).free
    if needed > free:
        message = f"{needed / 2**30:.3g} GiB are left to write, and {free / 2**30:.3g} GiB are free; {remedy}"
        raise OSError(errno.ENOSPC, message, os.fspath(existing))


def read_json(text: str, path: str | os.PathLike[str]) -> Any:
    """Parse JSON with finite numbers only.

    Raises
    ------
    ValueError
        If it is anything else; the message names `path`.
    """

    def finite(number: str) -> float:
        value = float(number)
        if not math.isfinite(value):
            raise ValueError(f"{number} is not finite")
        return value

    try:
        return json.loads(text, parse_constant=finite, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{os.fspath(path)}' holds no JSON that geofloor wrote ({error}); write it again.") from error


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON atomically, indented for people."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
