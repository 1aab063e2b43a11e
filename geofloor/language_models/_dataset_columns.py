"""Read columns of Hugging Face datasets, without importing their library unless the caller has.

Whoever holds a dataset has imported the library.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any


def is_dataset(X: Any) -> bool:
    """Return whether `X` is a ``datasets.Dataset``, with rows in random access."""
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(X, datasets.Dataset)


def is_dataset_stream(X: Any) -> bool:
    """Return whether `X` is a ``datasets.IterableDataset``."""
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(X, datasets.IterableDataset)


def column_names(dataset: Any) -> list[str]:
    """Return the names of the columns; an empty stream without known columns has none."""
    return dataset.column_names or list(next(iter(dataset), {}))


def column_values(dataset: Any, name: str) -> Iterator[Any]:
    """Iterate over one column, row by row, without reading the other columns."""
    return (row[name] for row in dataset.select_columns([name]))
