"""Documents of numbers, texts and arrays in one file: JSON, or safetensors if the arrays are long."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from geofloor._files.atomic import atomic_path, read_json
from geofloor._files.schema import Field, fields
from geofloor._validation import check_path

_HEADER = "geofloor"  # entry of the header of safetensors, as in the files of autoencoders and students
_VERSION = 1
_FEW = 4096  # numbers in the arrays of a JSON file
_ENTRIES = {"kind", "version", "metadata"}


def write_table_file(path: str | os.PathLike[str], kind: str, content: Mapping[str, Any]) -> None:
    """Write a document of the given kind, atomically.

    Parameters
    ----------
    path : str or path
        The file.
    kind : str
        Name of the kind.
    content : mapping
        Mappings, lists, numbers, texts, None, and arrays of float64 or int64.

    Raises
    ------
    OSError
        If it can't be written, for example because the disk is full; an earlier file stays as it was.
    """
    arrays: dict[str, np.ndarray] = {}
    _walk(content, "", lambda name, array: arrays.update({name: array}))
    if sum(array.size for array in arrays.values()) <= _FEW:
        document = {"kind": kind, "version": _VERSION, "metadata": _walk(content, "", lambda _, array: _listed(array))}
        with atomic_path(path) as temporary:
            temporary.write_text(_indented({"sha256": checksum(canonical(document), {}), **document}) + "\n", "utf-8")
        return
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    document = {"kind": kind, "version": _VERSION, "metadata": _walk(content, "", lambda name, _: {"array": name})}
    stored = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    whole = canonical(document)
    header = {_HEADER: f'{{"sha256": "{checksum(whole, stored)}", {whole[1:]}'}
    with atomic_path(path) as temporary:
        try:
            save_file(stored, temporary, metadata=header)
        except SafetensorError as error:
            found = re.search(r"os error (\d+)", str(error))
            number = int(found[1]) if found else errno.EIO
            raise OSError(number, os.strerror(number), os.fspath(path)) from error


def read_table_file(path: str | os.PathLike[str], kind: str) -> Any:
    """Read a document of `write_table_file`, with arrays as arrays or, from JSON, as lists.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated, altered, foreign, of another kind or of a newer version; the message names it.
    """
    path = check_path("path", path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no {kind} file at '{path}'.")
    whole, arrays = _read(path)
    document = read_json(whole, path)
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str) or "version" not in document:
        raise ValueError(f"'{path}' was not written by geofloor: it names no kind and no version.")
    version, found = document["version"], document["kind"]
    known = found == kind
    if known and (type(version) is not int or version != _VERSION):
        raise ValueError(
            f"'{path}' has version {version!r:.20}, and this geofloor reads version {_VERSION}; use the geofloor that "
            "wrote it, or a newer one."
        )
    if not known:
        raise ValueError(f"'{path}' holds a {found:.60}, not a {kind}.")
    digest = document.pop("sha256", None)
    if document.keys() != _ENTRIES:
        raise ValueError(f"'{path}' was not written by geofloor: it has not the entries it should.")
    if digest != checksum(canonical(document), arrays):
        raise ValueError(f"'{path}' was altered after it was written: its checksum does not match its content.")
    left = dict(arrays)
    content = _filled(document["metadata"], left)
    if left:
        raise ValueError(f"'{path}' can't be used: it has the unknown arrays {sorted(left)!r:.80}; write it again.")
    return content


def _read(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Read the JSON of a file, and its arrays if it is safetensors."""
    with open(path, "rb") as stream:
        is_json = stream.read(1) == b"{"  # safetensors begins with the length of the header, a multiple of 8
        if is_json:
            stream.seek(0)
            try:
                return stream.read().decode(), {}
            except UnicodeDecodeError as error:
                raise ValueError(f"'{path}' holds no JSON that geofloor wrote ({error}); write it again.") from error
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            whole = (file.metadata() or {}).get(_HEADER)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
        raise ValueError(f"'{path}' is truncated or no file of geofloor ({error}); write it again.") from error
    if whole is None:
        raise ValueError(f"'{path}' was not written by geofloor: its header has no '{_HEADER}' entry.")
    return whole, arrays


def canonical(document: Mapping[str, Any]) -> str:
    """Write JSON in one order and spacing, for `checksum`."""
    return json.dumps(document, sort_keys=True, allow_nan=False)


def checksum(content: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of JSON and of every array's name, type, shape and bytes.

    It is that of `geofloor._training.checkpoints`, so that readers of either kind of file can name the other.
    """
    digest = hashlib.sha256(content.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}:torch.{array.dtype}:{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _walk(value: Any, name: str, replace: Callable[[str, np.ndarray], Any]) -> Any:
    """Copy a document, with its arrays replaced; their names are the places they stand at."""
    if isinstance(value, np.ndarray):
        return replace(name, value)
    if isinstance(value, Mapping):
        return {key: _walk(each, f"{name}.{key}" if name else key, replace) for key, each in value.items()}
    return value


def _listed(array: np.ndarray) -> Any:
    """Turn an array into lists, with null for NaN."""
    if array.dtype.kind == "f" and np.isnan(array).any():
        objects = array.astype(object)
        objects[np.isnan(array)] = None
        return objects.tolist()
    return array.tolist()


def _filled(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Put the arrays, each once, into their places."""
    if not isinstance(value, dict):
        return value
    if value.keys() == {"array"} and isinstance(value["array"], str) and value["array"] in arrays:
        return arrays.pop(value["array"])
    return {key: _filled(each, arrays) for key, each in value.items()}


def _indented(value: Any, indent: str = "") -> str:
    """Write JSON for people: mappings over several lines, lists on one."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value, allow_nan=False)
    inner = indent + "  "
    rows = (f"{inner}{json.dumps(key)}: {_indented(each, inner)}" for key, each in value.items())
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}"


# Checks of content, beside those of `geofloor._files.schema`


def array(dtype: str = "float64", ndim: int = 1, *, nan: bool = False) -> Field:
    """Allow an array, or lists of numbers, of a type and a number of dimensions, and without infinity.

    Parameters
    ----------
    dtype : {"float64", "int64"}, default="float64"
        The type.
    ndim : {1, 2}, default=1
        Number of dimensions; none may be empty.
    nan : bool, default=False
        Whether NaN is allowed, null in JSON.
    """
    kinds = (int, float) if dtype == "float64" else (int,)

    def read(name: str, value: Any, left: int) -> None:
        if not isinstance(value, list):
            raise ValueError(f"{name}={value!r:.40} is no list")
        for each in value:
            if left > 1:
                read(name, each, left - 1)
            elif type(each) not in kinds and not (nan and each is None):
                raise ValueError(f"{name} holds {each!r:.40}, which is no number of type {dtype}")

    def check(name: str, value: Any) -> np.ndarray:
        if isinstance(value, np.ndarray):
            found = value
        else:
            read(name, value, ndim)
            if ndim > 1 and len({len(row) for row in value}) != 1:
                raise ValueError(f"{name} has rows of different lengths")
            try:
                found = np.array(value, dtype=dtype)
            except OverflowError as error:
                raise ValueError(f"{name} holds numbers beyond {dtype}") from error
        if found.dtype != dtype or found.ndim != ndim or not found.size:
            raise ValueError(f"{name} is {found.dtype} of shape {found.shape}, not {dtype} of {ndim} dimension(s)")
        if np.isinf(found).any() or (np.isnan(found).any() and not nan):
            raise ValueError(f"{name} is not finite")
        return found

    return check


def frame(**columns: Field) -> Field:
    """Allow the columns of a DataFrame, by name; return the DataFrame."""
    check_columns = fields(**columns)

    def check(name: str, value: Any) -> Any:
        import pandas as pd

        found = check_columns(name, value)
        if len({len(column) for column in found.values()}) != 1:
            raise ValueError(f"{name} has columns of different lengths")
        return pd.DataFrame(found)

    return check


def number_or_nan(field: Field) -> Field:
    """Allow null for NaN, and all that `field` allows."""
    return lambda name, value: float("nan") if value is None else field(name, value)
