"""Progress of long loops, written to standard error when `verbose` asks for it."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm


def progress_bar(description: str, *, total: int | None, initial: int = 0, unit: str = "step", verbose: int = 0) -> Any:
    """A tqdm bar; silent at ``verbose=0``."""
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        disable=not verbose,
        dynamic_ncols=True,
        mininterval=0.5,
    )
