"""Python source and docstrings on this machine."""

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

# The standard library and the required packages, by import name.
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
        The whole source file, or its docstrings one after another.
    name : str
        Package and path with ``/`` as separator, such as ``"stdlib/json/decoder.py"``.
    kind : {"source", "docstrings"}
        Kind of the text.
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

    Nothing is downloaded. A hash of the name orders the files: the first of them mix all packages, and
    machines with the same versions read the same files. Below the top folder of a package, all files of a
    folder are in the same split, because neighboring modules share text.

    Parameters
    ----------
    split : {"train", "test"}, default="train"
        Training text, or the held-out text of about one folder in twenty.
    kinds : sequence of {"source", "docstrings"}, default=("source", "docstrings")
        Kinds of text to read from each file, in this order.
    packages : sequence of str, default=CORPUS_PACKAGES
        Import names of installed packages; ``"stdlib"`` is Python's standard library.
    max_characters_per_package : int or None, default=8_000_000
        Number of characters after which no further file of a package is read, so that no package dominates;
        None for no limit.

    Yields
    ------
    Document
        A text with its name and kind.

    Raises
    ------
    ValueError
        If a split, kind or package is unknown, or the limit is below 1.

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
    """Return a list of names as a tuple.

    Raises
    ------
    ValueError
        If it is empty or no list, or holds anything but text from `known`.
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
            continue  # test suites hold broken files on purpose
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
    # Modules in the top folder of a package are often unrelated and are split one by one.
    unit = name if folder.count("/") == 0 else folder
    return int(hashlib.sha256(f"split:{unit}".encode()).hexdigest(), 16) % 100 < _HELD_OUT_PERCENT


def _docstrings(source: str) -> str:
    return "\n\n".join(text for node in ast.walk(parse(source)) if (text := docstring_of(node)))


def docstring_of(node: ast.AST) -> str | None:
    """Return the docstring of a module, class or function; None for other nodes."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return ast.get_docstring(node) if isinstance(node, kinds) else None


def parse(source: str) -> ast.Module:
    """Parse source without warnings; return an empty module for broken source."""
    # Invalid escapes give warnings. The lock is needed because warning filters belong to the whole process: a thread
    # that restores them would otherwise undo the changes of another.
    with _PARSING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            return ast.Module([], [])
