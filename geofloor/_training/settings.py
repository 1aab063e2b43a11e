"""Parameters of estimators as a checkpoint keeps them: checked, made plain, and compared when a run goes on."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geofloor._training.checkpoints import read_tensors
from geofloor._training.seeds import draw_seed


def check_range(name: str, value: Any, low: float, *, high: float = np.inf, whole: bool = False) -> None:
    """Refuse a parameter that is no finite number from `low` to `high`."""
    kind: Any = numbers.Integral if whole else numbers.Real
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high or value == np.inf:
        number = "a whole number" if whole else "a finite number"
        limits = f"of at least {low:g}" if high == np.inf else f"between {low:g} and {high:g}"
        raise ValueError(f"{name}={value!r} must be {number} {limits}.")


def plain_seed(random_state: Any) -> int | None:
    """The seed itself; None for a generator, whose state is no parameter."""
    return int(random_state) if isinstance(random_state, numbers.Integral) else None


def plain_parameters(estimator: Any) -> dict[str, Any]:
    """An estimator's parameters as JSON can hold them, its own seed and path among them."""
    parameters = estimator.get_params(deep=False)
    parameters["random_state"] = plain_seed(estimator.random_state)
    path = estimator.checkpoint_path
    parameters["checkpoint_path"] = None if path is None else os.fspath(path)
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in parameters.items()}


def read_checkpoint(
    path: str | os.PathLike[str] | None,
    *,
    kind: str,
    settings: Mapping[str, Any],
    random_state: Any,
    made_with: Mapping[str, str],
) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Tensors and metadata of a checkpoint, if there is one.

    The metadata have the ``settings`` and the ``seed`` it was made with, and a digest for each name in `made_with`.

    Raises
    ------
    ValueError
        If it was made with other settings, another seed or anything else; the message names it.
    """
    if path is None or not Path(path).exists():
        return None
    tensors, metadata = read_tensors(path, kind=kind)
    other = [name for name, value in settings.items() if metadata["settings"].get(name) != value]
    seed = plain_seed(random_state)
    if seed is not None and draw_seed(seed) != metadata["seed"]:
        other.append("random_state")
    if other:
        raise ValueError(
            f"checkpoint_path='{os.fspath(path)}' was made with other values of {', '.join(other)}; "
            "use those, remove the file, or give another path."
        )
    for what, digest in made_with.items():
        if metadata.get(what) != digest:
            raise ValueError(
                f"checkpoint_path='{os.fspath(path)}' was made with other {what}; remove the file or give another path."
            )
    return tensors, metadata
