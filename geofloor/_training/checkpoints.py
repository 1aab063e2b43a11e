"""Tensors and JSON in one safetensors file, written atomically and verified when read.

A reader sees either the previous file or the whole new one, whatever kills the writer. A file that was
truncated, altered or made by something else is refused by name. Loading runs no code, and the same
content gives the same bytes. What the content must be, each kind of file declares: see `schema`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from geofloor._training.muon import Muon
from geofloor._validation import check_path

if sys.platform != "win32":
    import fcntl

_HEADER = "geofloor"
_VERSION = 1  # of the layout of a file
_SIGNED = re.compile(r'\{"sha256": "([0-9a-f]{64})", ')
_UMASK = os.umask(0)  # it can only be read by setting it
os.umask(_UMASK)


def _digest(tensors: Mapping[str, torch.Tensor], content: str) -> str:
    """SHA-256 of the metadata and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(content.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# Writing


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Any:
    """Yield a path in a temporary folder beside `path`; on success it replaces `path`, on failure it goes.

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
            temporary.chmod(0o666 & ~_UMASK)  # a private temporary file becomes an ordinary one
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
            raise  # it names another file
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


@contextlib.contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`, locked while this process works on it; remove what killed ones left.

    A folder, since safetensors writes a temporary file of its own beside the one it was given.
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
    """Remove temporary folders beside `path` whose writers were killed, so that nobody holds their locks.

    Each new `atomic_path` does so. Call it for a file that is only read once it is there: its writer may have been
    killed just after the file got its name.
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
    """Refuse, before any work, a path that no file can be written to; try it with an empty file in a folder beside it.

    Parameters
    ----------
    name : str
        The argument.
    path : str, path or None
        None is fine.

    Raises
    ------
    ValueError
        If it is a folder or can't be written.
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


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], *, kind: str, metadata: Mapping[str, Any]
) -> None:
    """Write `tensors` and JSON-able `metadata` as one file of the given `kind`.

    Raises
    ------
    OSError
        If it can't be written, for example because the disk is full; an earlier file stays as it was.
    """
    stored = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    document = {"kind": kind, "version": _VERSION, "metadata": dict(metadata)}
    header = sign(stored, json.dumps(document, allow_nan=False, default=_plain))
    with atomic_path(path) as temporary:
        try:
            save_file(stored, temporary, metadata=header)
        except SafetensorError as error:
            found = re.search(r"os error (\d+)", str(error))
            number = int(found[1]) if found else errno.EIO
            raise OSError(number, os.strerror(number), os.fspath(path)) from error


def _plain(value: Any) -> Any:
    """A number of NumPy's as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r:.60} is a {type(value).__name__}, which JSON can't hold")


def sign(tensors: Mapping[str, torch.Tensor], content: str) -> dict[str, str]:
    """Put a checksum in front of a JSON object: one entry, since safetensors writes several in random order."""
    return {_HEADER: f'{{"sha256": "{_digest(tensors, content)}", {content[1:]}'}


# Reading


def read_tensors(path: str | os.PathLike[str], *, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated, altered, foreign or of another kind; the message names it.
    """
    path = check_path("path", path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no {kind} file at '{path}'.")
    try:
        with safe_open(path, framework="pt") as file:
            signed = (file.metadata() or {}).get(_HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        found = None if signed is None else _SIGNED.match(signed)
        content = "" if signed is None or found is None else "{" + signed[found.end() :]
        altered = found is not None and found[1] != _digest(tensors, content)
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise ValueError(f"'{path}' is truncated or no safetensors file ({error}); write it again.") from error
    if signed is None:
        raise ValueError(f"'{path}' was not written by geofloor: its header has no '{_HEADER}' entry.")
    if found is None:
        raise ValueError(f"'{path}' was written by an older version of geofloor; write it again.")
    if altered:
        raise ValueError(f"'{path}' was altered after it was written: its checksum does not match its content.")
    document = read_json(content, path)
    if not isinstance(document, dict) or document.keys() != {"kind", "version", "metadata"}:
        raise ValueError(f"'{path}' was not written by geofloor: its '{_HEADER}' entry has not the fields it should.")
    if document["kind"] != kind:
        raise ValueError(f"'{path}' holds a {document['kind']!s:.60}, not a {kind}.")
    if type(document["version"]) is not int or document["version"] != _VERSION:
        raise ValueError(
            f"'{path}' has version {document['version']!r:.20}, and this geofloor reads version {_VERSION}; use the "
            "geofloor that wrote it."
        )
    if not isinstance(document["metadata"], dict):
        raise ValueError(f"'{path}' was not written by geofloor: its metadata are no mapping.")
    return tensors, document["metadata"]


def read_json(text: str, path: str | os.PathLike[str]) -> Any:
    """Parse JSON whose numbers are all finite.

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


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str = "optimizer") -> dict[str, torch.Tensor]:
    """The state of a torch optimiser as named tensors: ``<prefix>.<parameter index>.<name>``."""
    return {
        f"{prefix}.{index}.{name}": torch.as_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def expected_optimizer_tensors(
    optimizer: torch.optim.Optimizer, prefix: str = "optimizer"
) -> dict[str, tuple[torch.dtype, tuple[int | str, ...]]]:
    """Types and shapes of what `optimizer_tensors` gives of an Adam or a Muon that has taken a step."""
    names = ("momentum",) if isinstance(optimizer, Muon) else ("step", "exp_avg", "exp_avg_sq")
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    return {
        f"{prefix}.{index}.{name}": (torch.float32, ()) if name == "step" else (each.dtype, tuple(each.shape))
        for index, each in enumerate(parameters)
        for name in names
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], prefix: str = "optimizer"
) -> None:
    """Put back what `optimizer_tensors` gave."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{prefix}."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def check_optimizer_tensors(tensors: Mapping[str, torch.Tensor], step: int, prefix: str = "optimizer") -> None:
    """Refuse the state of an Adam that has not taken `step` steps, or whose second moments are negative.

    Raises
    ------
    ValueError
        If it is such a state.
    """
    for name, tensor in tensors.items():
        if name.startswith(f"{prefix}."):
            if name.endswith(".step") and float(tensor) != step:
                raise ValueError(f"tensor {name} is {float(tensor):g}, and it was made after step {step}")
            if name.endswith(".exp_avg_sq") and bool((tensor < 0).any()):
                raise ValueError(f"tensor {name}, a mean of squares, is negative")
