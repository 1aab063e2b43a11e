"""Declare the fields of each kind of file, and check them on reading.

A checksum detects accidents only, because anybody can compute one. No entry of a file is used before these checks.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

Field = Callable[[str, Any], Any]  # takes a name and a JSON value; returns the value or raises ValueError
_LARGEST = sys.float_info.max


@contextlib.contextmanager
def refusing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in errors about its content."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"'{os.fspath(path)}' can't be used: {str(error).rstrip('.')}; write it again.") from error


def number(low: float = -_LARGEST, high: float = _LARGEST, *, whole: bool = False, open_low: bool = False) -> Field:
    """Allow a finite number in an interval; whole numbers have at most 64 bits."""
    if whole:
        high = min(high, 2**63 - 1)

    def check(name: str, value: Any) -> Any:
        kinds = (int,) if whole else (int, float)
        if type(value) in kinds and low <= value <= high and not (open_low and value == low):
            return value if whole else float(value)
        wanted = "a whole number" if whole else "a number"
        raise ValueError(f"{name}={value!r:.40} is not {wanted} {'above' if open_low else 'from'} {low:g} to {high:g}")

    return check


def flag(name: str, value: Any) -> bool:
    """Allow true and false."""
    if type(value) is not bool:
        raise ValueError(f"{name}={value!r:.40} is neither true nor false")
    return value


def text(name: str, value: Any) -> str:
    """Allow a text."""
    if type(value) is not str:
        raise ValueError(f"{name}={value!r:.40} is no text")
    return value


def choice(*allowed: str) -> Field:
    """Allow some texts."""

    def check(name: str, value: Any) -> str:
        if text(name, value) not in allowed:
            raise ValueError(f"{name}={value!r:.40} is none of {allowed}")
        return value

    return check


def texts(name: str, value: Any) -> list[str]:
    """Allow a list of texts."""
    if not isinstance(value, list):
        raise ValueError(f"{name}={value!r:.40} is no list")
    return [text(f"{name}[{index}]", each) for index, each in enumerate(value)]


def mapping(name: str, value: Any) -> dict[str, Any]:
    """Allow any mapping."""
    if not isinstance(value, dict):
        raise ValueError(f"{name}={value!r:.40} is no mapping")
    return value


def plain(name: str, value: Any) -> Any:
    """Allow a parameter of an estimator: null, truth value, number, text, or a list of these, returned as a tuple."""
    if isinstance(value, list) and not any(isinstance(each, list | dict) for each in value):
        return tuple(value)
    if isinstance(value, list | dict):
        raise ValueError(f"{name}={value!r:.40} is no number or text")
    return value


def optional(field: Field) -> Field:
    """Allow null, and all that `field` allows."""
    return lambda name, value: None if value is None else field(name, value)


def fields(**expected: Field) -> Field:
    """Allow a mapping with exactly these names; return it in their order."""

    def check(name: str, value: Any) -> dict[str, Any]:
        if mapping(name, value).keys() != expected.keys():
            unknown, missing = sorted(value.keys() - expected.keys()), sorted(expected.keys() - value.keys())
            raise ValueError(f"{name} has the unknown {unknown!r:.60} and lacks {missing!r:.60}")
        return {key: field(key, value[key]) for key, field in expected.items()}

    return check


def table(**expected: Field) -> Field:
    """Allow a list of mappings with exactly these names and growing ``step``."""
    row = fields(**expected)

    def check(name: str, value: Any) -> list[dict[str, Any]]:
        if not isinstance(value, list):
            raise ValueError(f"{name} is no list")
        checked = [row(f"{name}[{index}]", each) for index, each in enumerate(value)]
        if any(a["step"] >= b["step"] for a, b in itertools.pairwise(checked)):
            raise ValueError(f"{name} has steps that do not grow")
        return checked

    return check
