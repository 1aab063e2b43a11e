"""Tensors and JSON in one safetensors file, written atomically and verified when read.

A reader sees either the previous file or the whole new one, whatever kills the writer, and a file
that was truncated, altered or made by something else is refused by name. Loading runs no code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

_HEADER = "geofloor"
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


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Any:
    """Yield a temporary path beside `path`; on success it replaces `path`, on failure it goes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)  # a private temporary file becomes an ordinary one
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself must reach the disk
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], *, kind: str, metadata: Mapping[str, Any]
) -> None:
    """Write `tensors` and JSON-able `metadata` as one file of the given `kind`."""
    stored = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    content = json.dumps({"kind": kind, "metadata": dict(metadata)}, sort_keys=True)
    header = {_HEADER: content, "sha256": _digest(stored, content)}
    with atomic_path(path) as temporary:
        save_file(stored, temporary, metadata=header)


def read_tensors(path: str | os.PathLike[str], *, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated, altered, foreign or of another kind; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no {kind} file at '{path}'.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"'{path}' is truncated or no safetensors file ({error}); write it again.") from error
    if _HEADER not in header or "sha256" not in header:
        raise ValueError(f"'{path}' was not written by geofloor: its header has no '{_HEADER}' entry.")
    if header["sha256"] != _digest(tensors, header[_HEADER]):
        raise ValueError(f"'{path}' was altered after it was written: its checksum does not match its content.")
    content = json.loads(header[_HEADER])
    if content["kind"] != kind:
        raise ValueError(f"'{path}' holds a {content['kind']}, not a {kind}.")
    return tensors, content["metadata"]


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
