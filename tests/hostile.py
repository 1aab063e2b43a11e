"""Damage and forge files from a seed, and watch what a reader does with them.

*Damage* changes bytes and leaves checksums as they were. A *forgery* changes a field or a tensor and is signed anew,
so that only checks of its content can tell.
"""

import contextlib
import copy
import json
import os
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as pack_tensors

# Values that a field of JSON never holds where it matters, or only with another meaning.
ODD_VALUES = (
    None, True, False, 0, -1, 1, 2, 10**9, -(10**9), 2**63, 10**400, 0.0, -0.5, 1e-320, 1e308, float("nan"),
    float("inf"), float("-inf"), "", "x", "../../outside", "/etc/passwd", "\x00", "é" * 300, [], {}, [[]], [0], [None],
    {"a": 1}, ["a", "b"],
)  # fmt: skip
ODD_NAMES = ("__class__", "__dict__", "transform", "fit", "checkpoint_path", "auto_map", "extra", "", "../x")
ODD_DTYPES = (torch.bool, torch.int64, torch.float16, torch.bfloat16, torch.float64, torch.complex64)


def damaged(content, rng):
    """Return what was done to a file's bytes, and the bytes, which differ from those given."""
    size = len(content)
    changed = bytearray(content)
    where = int(rng.integers(max(size, 1)))
    length = int(rng.integers(1, 65))
    what = str(rng.choice(["flip", "flips", "truncate", "extend", "swap", "zero", "random", "repeat", "cut"]))
    if what == "flip":
        changed[where] ^= 1 << int(rng.integers(8))
    elif what == "flips":
        for index in rng.integers(size, size=length):
            changed[index] ^= int(rng.integers(1, 256))
    elif what == "truncate":
        del changed[where:]
    elif what == "extend":
        changed += rng.bytes(length)
    elif what == "swap":
        other = int(rng.integers(size))
        first, second = bytes(changed[where : where + length]), bytes(changed[other : other + length])
        changed[where : where + len(second)] = second
        changed[other : other + len(first)] = first
    elif what == "zero":
        changed[where : where + length] = bytes(len(changed[where : where + length]))
    elif what == "random":
        changed[where : where + length] = rng.bytes(len(changed[where : where + length]))
    elif what == "repeat":
        changed[where:where] = changed[where : where + length]
    else:
        del changed[where : where + length]
    return (f"{what} at {where}", bytes(changed)) if changed != content else damaged(content, rng)


def forged(document, rng):
    """Return what was done to a JSON value, and a changed copy of it: one place retyped, replaced, dropped or added."""
    original, document = document, copy.deepcopy(document)
    places = list(_places(document, ()))
    *path, last = places[int(rng.integers(len(places)))]
    parent = document
    for key in path:
        parent = parent[key]
    what = str(rng.choice(["replace", "replace", "nudge", "delete", "add", "deepen"]))
    before = parent[last]
    if what == "nudge" and type(before) in (int, float):
        parent[last] = before * float(rng.choice([-1, 0.5, 2, 1e12])) + int(rng.integers(2))
    elif what == "nudge" and isinstance(before, str):
        parent[last] = before[::-1] + "x"
    elif what == "delete":
        del parent[last]
    elif what == "add" and isinstance(parent, dict):
        parent[str(rng.choice(ODD_NAMES))] = _odd(rng)
    elif what == "add":
        parent.insert(int(rng.integers(len(parent) + 1)), _odd(rng))
    elif what == "deepen":
        nest = before
        for _ in range(int(rng.choice([1, 3, 50]))):
            nest = [nest]
        parent[last] = nest
    else:
        parent[last] = _odd(rng)
    if json.dumps(document) == json.dumps(original):
        return forged(original, rng)
    return f"{what} {'/'.join(map(str, (*path, last)))}", document


def _odd(rng):
    return copy.deepcopy(ODD_VALUES[int(rng.integers(len(ODD_VALUES)))])


def _places(value, path):
    """Keys that lead to every value inside a JSON value; of a long list to its ends only."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        if isinstance(value, list) and 3 <= key < len(value) - 1:
            continue
        yield (*path, key)
        yield from _places(each, (*path, key))


def forged_tensors(tensors, rng):
    """Return what was done to named tensors, and a changed copy of them."""
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    name = str(rng.choice(sorted(tensors)))
    tensor = tensors[name]
    what = str(
        rng.choice(
            ["drop", "add", "rename", "retype", "nan", "inf", "negate", "huge", "cut", "one", "transpose", "flat"]
        )
    )
    if what == "drop":
        del tensors[name]
    elif what == "add":
        tensors[str(rng.choice(["extra", "history", "transform", f"{name}.x"]))] = torch.zeros(2, 2)
    elif what == "rename":
        tensors[f"{name}x"] = tensors.pop(name)
    elif what == "retype":
        tensors[name] = tensor.to(ODD_DTYPES[int(rng.integers(len(ODD_DTYPES)))])
    elif what in ("nan", "inf", "huge") and tensor.is_floating_point() and tensor.numel():
        tensor.view(-1)[int(rng.integers(tensor.numel()))] = {"nan": np.nan, "inf": np.inf, "huge": 3e38}[what]
    elif what == "negate":
        tensors[name] = -1 - tensor if tensor.dtype != torch.bool else ~tensor
    elif what == "one":
        tensors[name] = torch.ones(1, dtype=tensor.dtype)
    elif what == "transpose" and tensor.ndim == 2:
        tensors[name] = tensor.T.contiguous()
    elif what == "flat":
        tensors[name] = tensor.reshape(-1, 1) if tensor.ndim != 2 else tensor.reshape(-1)
    else:
        tensors[name] = tensor[:-1].contiguous() if tensor.ndim else torch.zeros(2, dtype=tensor.dtype)
    return f"{what} {name}", tensors


def unpack(content):
    """Tensors of a safetensors file, and the texts of its header."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    return parse_tensors(content), header.get("__metadata__", {})


def forged_file(content, rng, sign):
    """Return what was done to one of geofloor's safetensors files, and the file, signed anew.

    Parameters
    ----------
    content : bytes
    rng : numpy.random.Generator
    sign : callable
        Of the tensors and the text of the header's content to the texts of the header.
    """
    tensors, header = unpack(content)
    document = json.loads(header["geofloor"])
    document.pop("sha256", None)
    if rng.random() < 0.35:
        what, tensors = forged_tensors(tensors, rng)
    else:
        what, document = forged(document, rng)
    return what, pack_tensors(tensors, sign(tensors, json.dumps(document)))


# Watching


class Watch:
    """What the process opened, ran or called while it was watched."""

    def __init__(self):
        self.folder = None
        self.seen = []
        roots = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), *(path for path in sys.path if path)}
        self._readable = tuple(os.path.realpath(root) for root in roots)

    def __call__(self, event, arguments):
        if self.folder is None:
            return
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            reads_code = not writes and path.startswith((*self._readable, "/proc/", "/sys/", "/dev/"))
            if not reads_code and path != "/dev/null" and Path(self.folder) not in (Path(path), *Path(path).parents):
                self.seen.append(f"{'write' if writes else 'read'} {path}")
        elif event in ("os.system", "subprocess.Popen", "os.exec", "socket.connect", "socket.getaddrinfo"):
            self.seen.append(f"{event} {arguments[0]!r}")


_WATCH = Watch()
sys.addaudithook(_WATCH)


@contextlib.contextmanager
def confined(folder):
    """Fail if anything outside `folder` but installed code is opened, or anything is run or called."""
    _WATCH.folder, _WATCH.seen = os.path.realpath(folder), []
    try:
        yield
    finally:
        _WATCH.folder = None
    assert not _WATCH.seen, f"outside {folder}: {_WATCH.seen}"


def read_or_refusal(read, path, *, label, or_says=()):
    """What a reader returns, or None if it refused the file properly: by an error that names it.

    Parameters
    ----------
    read : callable
        Without arguments.
    path : path
        A file or folder; its name, or that of a file in it, must be in the error.
    label : str
        What was done to the file, for the failure.
    or_says : sequence of str, default=()
        What an error may say in place of a name, where content that is allowed makes later work fail.
    """
    path = Path(path)
    try:
        with confined(path.parent):
            return read()
    except (ValueError, OSError) as error:
        refusal = error
    except Exception as error:
        pytest.fail(f"{label}: {type(error).__name__} in place of a ValueError: {error}")
    names = {path.name, *(file.name for file in path.rglob("*"))} if path.is_dir() else {path.name}
    assert any(name in str(refusal) for name in (*names, *or_says)), (
        f"{label}: the error does not name the file: {refusal!r}"
    )
    return None
