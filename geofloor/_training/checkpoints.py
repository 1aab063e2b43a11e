"""Tensors and JSON in one safetensors file, written atomically and verified when read.

A reader sees either the previous file or the whole new one, even if the writer is killed. Truncated, altered and
foreign files are refused by name. Loading runs no code, and the same content gives the same bytes. Each kind of file
declares its content: see `geofloor._files.schema`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from geofloor._files.atomic import atomic_path, read_json
from geofloor._files.schema import number, refusing
from geofloor._training.muon import Muon
from geofloor._validation import check_path

_HEADER = "geofloor"
Shape = tuple[int | str, ...]  # a name stands for one size, the same in all tensors
_LARGEST_NUMBER = 2.0**63  # float32 can square numbers below it
_VERSION = 1  # of the file layout
_SIGNED = re.compile(r'\{"sha256": "([0-9a-f]{64})", ')


def _digest(tensors: Mapping[str, torch.Tensor], content: str) -> str:
    """Return the SHA-256 of the metadata and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(content.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# Writing


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
    """Convert a NumPy number to Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r:.60} is a {type(value).__name__}, which JSON can't hold")


def sign(tensors: Mapping[str, torch.Tensor], content: str) -> dict[str, str]:
    """Put a checksum in front of a JSON object, in one entry, because safetensors writes several in random order."""
    return {_HEADER: f'{{"sha256": "{_digest(tensors, content)}", {content[1:]}'}


# Reading


def read_tensors(path: str | os.PathLike[str], *, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a file of `write_tensors`.

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


def steps_done(path: str | os.PathLike[str], *, kind: str) -> int:
    """Read how many steps a checkpoint of the given `kind` has; 0 if there is no file.

    Raises
    ------
    ValueError
        If the file is damaged, foreign, of another kind or without steps; the message names it.
    """
    path = check_path("checkpoint_path", path)
    if not path.exists():
        return 0
    _, metadata = read_tensors(path, kind=kind)
    with refusing(path):
        return number(1, whole=True)("step", metadata.get("step"))


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str = "optimizer") -> dict[str, torch.Tensor]:
    """Return the state of a torch optimizer as named tensors: ``<prefix>.<parameter index>.<name>``."""
    return {
        f"{prefix}.{index}.{name}": torch.as_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def expected_optimizer_tensors(
    optimizer: torch.optim.Optimizer, prefix: str = "optimizer"
) -> dict[str, tuple[torch.dtype, tuple[int | str, ...]]]:
    """Return the types and shapes of `optimizer_tensors` for an Adam or a Muon after its first step."""
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
    """Restore the state of an optimizer from `optimizer_tensors`."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{prefix}."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def check_optimizer_tensors(tensors: Mapping[str, torch.Tensor], step: int, prefix: str = "optimizer") -> None:
    """Refuse an Adam state after another number of steps, or with negative second moments.

    Raises
    ------
    ValueError
        If the state is refused.
    """
    for name, tensor in tensors.items():
        if name.startswith(f"{prefix}."):
            if name.endswith(".step") and float(tensor) != step:
                raise ValueError(f"tensor {name} is {float(tensor):g}, and it was made after step {step}")
            if name.endswith(".exp_avg_sq") and bool((tensor < 0).any()):
                raise ValueError(f"tensor {name}, a mean of squares, is negative")


def check_tensors(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[torch.dtype, Shape]]
) -> dict[str, int]:
    """Check names, types, shapes and finiteness of tensors; return the named sizes of the shapes.

    Raises
    ------
    ValueError
        If one of them differs from `expected`.
    """
    if tensors.keys() != expected.keys():
        unknown, missing = sorted(tensors.keys() - expected.keys()), sorted(expected.keys() - tensors.keys())
        raise ValueError(f"it has the unknown tensors {unknown!r:.80} and lacks {missing!r:.80}")
    sizes: dict[str, int] = {}
    for name, (dtype, shape) in expected.items():
        tensor = tensors[name]
        found = tuple(tensor.shape)
        wanted = shape
        if len(found) == len(shape):
            wanted = tuple(
                sizes.setdefault(w, f) if isinstance(w, str) else w for w, f in zip(shape, found, strict=True)
            )
        if tensor.dtype != dtype or found != wanted:
            raise ValueError(f"tensor {name} is {tensor.dtype} of shape {found}, not {dtype} of shape {wanted}")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool((tensor.abs() < _LARGEST_NUMBER).all()):
            raise ValueError(f"tensor {name} is not finite, or has numbers that training leaves nowhere")
    return sizes
