"""Progress of long loops, written to standard error when `verbose` asks for it."""

from __future__ import annotations

from typing import Any

import numpy as np
from tqdm.auto import tqdm

from geofloor._validation import check_number


def progress_bar(description: str, *, total: int | None, initial: int = 0, unit: str = "step", verbose: int = 0) -> Any:
    """Make a tqdm bar, silent at ``verbose=0``.

    Raises
    ------
    ValueError
        If `verbose` is neither a truth value nor a whole number of at least 0.
    """
    if not isinstance(verbose, bool | np.bool_):
        verbose = check_number("verbose", verbose, 0, whole=True)
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        disable=not verbose,
        dynamic_ncols=True,
        mininterval=0.5,
    )
