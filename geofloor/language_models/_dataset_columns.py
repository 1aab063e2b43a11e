"""Columns of Hugging Face datasets, without importing that library: whoever has a dataset has done so."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any


def is_dataset(X: Any) -> bool:
    """Whether `X` is a ``datasets.Dataset``, whose rows can be read in any order."""
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(X, datasets.Dataset)


def is_dataset_stream(X: Any) -> bool:
    """Whether `X` is a ``datasets.IterableDataset``."""
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(X, datasets.IterableDataset)


def column_names(dataset: Any) -> list[str]:
    """Names of the columns; none of an empty stream that doesn't know them."""
    return dataset.column_names or list(next(iter(dataset), {}))


def column_values(dataset: Any, name: str) -> Iterator[Any]:
    """Values of one column, row by row; the other columns aren't read."""
    return (row[name] for row in dataset.select_columns([name]))
