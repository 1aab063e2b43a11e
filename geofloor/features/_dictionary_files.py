"""Find and read the files of published dictionaries, without running code from them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from geofloor._files.atomic import read_json

CONFIGS = ("cfg.json", "config.json", "hyperparams.json")
_WEIGHTS = (".safetensors", ".npz", ".pt", ".pth")
# Beside the weights in a folder, and none themselves.
_OTHERS = ("sparsity.safetensors", "activations_store_state.safetensors", "activation_whitening.safetensors")
_OTHERS_OF_RUNS = ("trainer_state.pt", "optimizer.pt", "lr_scheduler.pt")
_LARGEST_CONFIG = 2**20  # bytes


def find_weights(path: Path, file: str | None) -> Path:
    """Return the one file of weights at a path: the file itself, or the only one in a folder or its subfolders.

    A file in the folder itself comes before those of subfolders, which may hold steps of its training.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If there are several, or `file` leaves the folder.
    """
    if path.is_file():
        if file is not None:
            raise ValueError(f"file={file!r} has no effect: path='{path}' is a file; leave it out.")
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"There is no file or folder at path='{path}'.")
    if file is not None:
        wanted = path / file
        if not wanted.resolve().is_relative_to(path.resolve()):
            raise ValueError(f"file={file!r} leaves the folder '{path}'; give a path inside it.")
        return find_weights(wanted, None)
    found: list[Path] = []
    for pattern in ("*", "**/*"):
        found = found or [each for each in sorted(path.glob(pattern)) if is_weights(each.name) and each.is_file()]
    if not found:
        raise FileNotFoundError(f"There are no weights in path='{path}': no file that ends in {', '.join(_WEIGHTS)}.")
    if len(found) > 1:
        names = [each.relative_to(path).as_posix() for each in found]
        shown = ", ".join(map(repr, names[:6])) + (", ..." if len(names) > 6 else "")
        raise ValueError(f"path='{path}' has {len(found)} files of weights: {shown}; choose one by file.")
    return found[0]


def is_weights(name: str) -> bool:
    """Tell whether a file can hold the weights of a dictionary, by its name."""
    return name.endswith(_WEIGHTS) and name not in _OTHERS + _OTHERS_OF_RUNS


def read_config(weights: Path) -> dict[str, Any]:
    """Read the configuration beside the weights or one folder above; empty if there is none.

    Raises
    ------
    ValueError
        If it is no JSON mapping.
    """
    for folder in (weights.parent, weights.parent.parent):
        for name in CONFIGS:
            path = folder / name
            if path.is_file():
                return _mapping(path)
        if weights.parent.name != "checkpoints":  # the folder above holds other dictionaries
            break
    return {}


def read_scaler(weights: Path) -> float | None:
    """Read SAELens's factor on inputs from beside the weights; None if there is none."""
    path = weights.parent / "activation_scaler.json"
    if not path.is_file():
        return None
    factor = _mapping(path).get("scaling_factor")
    if factor is None:
        return None
    if isinstance(factor, bool) or not isinstance(factor, int | float) or factor <= 0:
        raise ValueError(f"'{path}' has scaling_factor={factor!r:.40}, which is no number above 0.")
    return float(factor)


def _mapping(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _LARGEST_CONFIG:
        raise ValueError(f"'{path}' is no configuration: it has over a MiB.")
    try:
        content = read_json(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is no text in UTF-8.") from error
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' holds no JSON mapping.")
    return content


def read_weights(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the tensors of a file as float arrays, and what else it holds as a configuration.

    Raises
    ------
    ValueError
        If the file is truncated, foreign or a pickle of more than tensors, or holds numbers that are not finite.
    """
    try:
        content: dict[str, Any]
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                content = {name: file[name] for name in file.files}
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"'{path}' is damaged, or a pickle of more than tensors, which could run code; load it where it was made "
            "and save its state_dict as safetensors."
        ) from error
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, EOFError, KeyError, AttributeError,
            IndexError, MemoryError, zipfile.BadZipFile) as error:  # fmt: skip
        raise ValueError(f"'{path}' is truncated or no {path.suffix} file ({error!s:.200}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' holds a {type(content).__name__}, not tensors by name.")
    return _split(path, _unwrap(content))


def _unwrap(content: dict[str, Any]) -> dict[str, Any]:
    """Return the weights inside of a checkpoint of a run, under ``ae`` or ``sae``, with its ``norm_factor``."""
    for key in ("ae", "sae", "state_dict"):
        inner = content.get(key)
        if isinstance(inner, dict):
            extra = {"norm_factor": content["norm_factor"]} if "norm_factor" in content else {}
            return {**inner, **extra}
    return content


def _split(path: Path, content: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Split what a file holds into arrays and plain values."""
    tensors: dict[str, np.ndarray] = {}
    values: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            array = value.detach().float().numpy() if value.is_floating_point() else value.detach().numpy()
        elif isinstance(value, np.ndarray):
            array = value.astype(np.float32) if value.dtype.kind == "f" else value
        elif name == "norm_factor":
            array = np.asarray(value, dtype=np.float32)
        else:
            values[str(name)] = value
            continue
        if array.dtype.kind not in "fiub":
            raise ValueError(f"'{path}' has the tensor {name!r} of type {array.dtype}, not of numbers.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"'{path}' has numbers in {name!r} that are not finite.")
        tensors[str(name)] = array
    return tensors, values
