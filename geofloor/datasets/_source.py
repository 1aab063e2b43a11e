"""Pieces of a Python source file: code, prose and remarks."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Sequence
from functools import cached_property

from geofloor.datasets._corpus import docstring_of, parse
from geofloor.datasets._text import SENTENCE_END, first_words, hash_of, is_prose, is_sentence, long_enough

Function = ast.FunctionDef | ast.AsyncFunctionDef

_TAG = re.compile(r"^(?:TODO|FIXME|XXX|NOTE|HACK)\b(?:\([^)]*\))?[:\s-]*", re.IGNORECASE)


class SourceFile:
    """A source file, parsed at most once for all concepts."""

    def __init__(self, name: str, source: str, max_characters: int) -> None:
        self.name, self.max_characters = name, max_characters
        self.package = name.split("/", 1)[0]
        self.source, self.lines = source, source.splitlines()
        self.is_test = _is_test(name)

    @cached_property
    def tree(self) -> ast.Module:
        return parse(self.source)

    @cached_property
    def functions(self) -> list[tuple[Function, bool]]:
        """Functions of the module and methods of its classes, each with True for a method."""
        return list(_functions(self.tree))

    @cached_property
    def docstrings(self) -> list[str]:
        return [text for node in ast.walk(self.tree) if (text := docstring_of(node))]

    def code(self, node: Function) -> list[str]:
        """Return the lines of a function's body without its docstring and without comment lines."""
        body = node.body[1:] if ast.get_docstring(node, clean=False) else node.body
        if not body:
            return []
        lines = self.lines[body[0].lineno - 1 : node.end_lineno]
        return textwrap.dedent(
            "\n".join(line for line in lines if line.strip() and not line.lstrip().startswith("#"))
        ).splitlines()

    def piece(self, lines: Sequence[str]) -> str:
        """Join the first lines up to the limit; return nothing if they are too short."""
        return long_enough(_first_lines(textwrap.dedent("\n".join(lines)).splitlines(), self.max_characters))

    def prose(self) -> Iterator[str]:
        """Yield paragraphs of sentences from docstrings."""
        for docstring in self.docstrings:
            for paragraph in re.split(r"\n\s*\n", docstring):
                text = " ".join(paragraph.split())
                if is_prose(text):
                    yield first_words(text, self.max_characters)

    def remarks(self) -> Iterator[str]:
        """Yield the sentences of comments, with their final mark and without tags such as TODO."""
        block: list[str] = []
        for line in [*self.lines, ""]:
            stripped = line.strip()
            if stripped.startswith("#"):
                block.append(stripped.lstrip("#!: "))
                continue
            for sentence in SENTENCE_END.split(" ".join(block)) if block else ():
                text = _TAG.sub("", " ".join(sentence.split()))
                if is_sentence(text) and len(text) <= self.max_characters:
                    yield text
            block = []


def from_some_line(lines: list[str], max_characters: int) -> list[str]:
    """Drop lines before a start chosen by a hash, if `max_characters` remain after it."""
    left = sum(map(len, lines)) + len(lines)
    starts = 1
    for line in lines:
        left -= len(line) + 1
        if left < max_characters:
            break
        starts += 1
    return lines[int(hash_of("\n".join(lines)), 16) % starts :]


def _first_lines(lines: Sequence[str], max_characters: int) -> str:
    kept: list[str] = []
    n_characters = -1
    for line in lines:
        n_characters += len(line) + 1
        if n_characters > max_characters:
            break
        kept.append(line)
    return "\n".join(kept)


def _functions(tree: ast.Module) -> Iterator[tuple[Function, bool]]:
    for node in tree.body:
        if isinstance(node, Function):
            yield node, False
        elif isinstance(node, ast.ClassDef):
            yield from ((inner, True) for inner in node.body if isinstance(inner, Function))


def _is_test(name: str) -> bool:
    *folders, base = name.split("/")
    return bool({"test", "tests", "testing"} & set(folders)) or base.startswith("test_") or base.endswith("_test.py")
