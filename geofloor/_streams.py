"""Telling data that comes batch by batch from data that is there at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any


def is_stream(X: Any) -> bool:
    """Whether `X` is an iterable of two-dimensional batches, and not itself an array of rows."""
    if isinstance(X, list | tuple):
        return len(X) > 0 and getattr(X[0], "ndim", 0) == 2
    is_array = hasattr(X, "__array__") or hasattr(X, "shape") or isinstance(X, str | bytes | Mapping | Set)
    return isinstance(X, Iterable) and not is_array
