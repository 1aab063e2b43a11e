"""Text that every installation has: the Python source and docstrings on this machine."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sysconfig
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from geofloor._validation import check_choice, check_number, shown

# The required packages, by import name; the standard library comes first, under its own name.
CORPUS_PACKAGES = (
    "stdlib",
    "numpy",
    "scipy",
    "sklearn",
    "pandas",
    "statsmodels",
    "joblib",
    "torch",
    "transformers",
    "datasets",
)
_HELD_OUT_PERCENT = 5
_MAX_FILE_BYTES = 200_000  # larger files are tables and generated code
_MIN_CHARACTERS = 200
_PARSING = threading.Lock()


class Document(NamedTuple):
    """One text of the local corpus.

    Attributes
    ----------
    text : str
        The text.
    name : str
        Package and path, with ``/`` as separator, such as ``"stdlib/json/decoder.py"``.
    kind : {"source", "docstrings"}
        The file as it stands, or the docstrings in it, one after another.
    """

    text: str
    name: str
    kind: str


def load_local_corpus(
    split: str = "train",
    *,
    kinds: Sequence[str] = ("source", "docstrings"),
    packages: Sequence[str] = CORPUS_PACKAGES,
    max_characters_per_package: int | None = 8_000_000,
) -> Iterator[Document]:
    """Read the source and docstrings of Python's standard library and of installed packages.

    Nothing is downloaded. Files come in an order given by a hash of their name, so that any prefix
    is a mixture of all packages, and the same one on every machine with the same versions. A whole
    folder is either training or held-out text, since neighbouring modules copy from each other.

    Parameters
    ----------
    split : {"train", "test"}, default="train"
        About one folder in twenty is held out as ``"test"``.
    kinds : sequence of {"source", "docstrings"}, default=("source", "docstrings")
        What to make of each file; with both, a file gives its source first.
    packages : sequence of str, default=CORPUS_PACKAGES
        Import names; ``"stdlib"`` is Python's standard library. One that is not installed is an
        error.
    max_characters_per_package : int or None, default=8_000_000
        Stop reading a package after this many characters, so that none dominates.

    Yields
    ------
    Document
        Text, name and kind.

    Raises
    ------
    ValueError
        If `split`, `kinds` or `packages` holds an unknown name.

    Examples
    --------
    >>> from geofloor.datasets import load_local_corpus
    >>> document = next(load_local_corpus("test", packages=["stdlib"]))
    >>> document.name.startswith("stdlib/"), document.kind
    (True, 'source')
    """
    check_choice("split", split, ("train", "test"))
    kinds = check_names("kinds", kinds, ("source", "docstrings"))
    packages = check_names("packages", packages)
    if max_characters_per_package is not None:
        max_characters_per_package = check_number(
            "max_characters_per_package", max_characters_per_package, 1, whole=True
        )
    files = [
        (hashlib.sha256(name.encode()).hexdigest(), name, path, package)
        for package in packages
        for name, path in _python_files(package)
        if _is_held_out(name) == (split == "test")
    ]
    return _documents(sorted(files), kinds, max_characters_per_package)


def check_names(name: str, values: Any, known: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return names in the order given, if all are text and known.

    Raises
    ------
    ValueError
        If they are anything else, or none.
    """
    plain = values if isinstance(values, list | tuple) else ()
    if not plain or not all(isinstance(each, str) and (known is None or each in known) for each in plain):
        of = "names" if known is None else f"some of {', '.join(map(repr, known))}"
        raise ValueError(f"{name}={shown(values)} must be a list of {of}.")
    return tuple(plain)


def _documents(
    files: list[tuple[str, str, Path, str]], kinds: tuple[str, ...], limit: int | None
) -> Iterator[Document]:
    read: dict[str, int] = {}
    for _, name, path, package in files:
        if limit is not None and read.get(package, 0) >= limit:
            continue
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # deliberately broken files live in test suites
        for kind in kinds:
            text = source if kind == "source" else _docstrings(source)
            if len(text) >= _MIN_CHARACTERS:
                read[package] = read.get(package, 0) + len(text)
                yield Document(text, name, kind)


def _root(package: str) -> Path:
    if package == "stdlib":
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(package) if "." not in package else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"packages: {package!r} is not installed as a package here; install it or leave it out.")
    return Path(next(iter(spec.submodule_search_locations)))


def _python_files(package: str) -> Iterator[tuple[str, Path]]:
    root = _root(package)
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if "site-packages" in relative.parts or "dist-packages" in relative.parts:
            continue
        if path.stat().st_size <= _MAX_FILE_BYTES:
            yield f"{package}/{relative.as_posix()}", path


def _is_held_out(name: str) -> bool:
    folder = name.rsplit("/", 1)[0]
    # A package's top folder holds many unrelated modules: those are split one by one.
    unit = name if folder.count("/") == 0 else folder
    return int(hashlib.sha256(f"split:{unit}".encode()).hexdigest(), 16) % 100 < _HELD_OUT_PERCENT


def _docstrings(source: str) -> str:
    tree = parse(source)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return "\n\n".join(text for text in found if text)


def parse(source: str) -> ast.Module:
    """Syntax tree of other people's code; an empty one where that is broken, as some of it in test suites is."""
    # Invalid escapes give warnings. Filters are those of the process: of two threads that changed them, the later
    # one to end would put back what the other had set.
    with _PARSING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            return ast.Module([], [])
