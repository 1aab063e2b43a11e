"""Parameters of estimators in checkpoints: checked, converted to JSON, and compared on resuming."""

from __future__ import annotations

import numbers
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geofloor._files.atomic import check_writable
from geofloor._files.schema import Field, fields, mapping, number, plain, refusing, text
from geofloor._training.checkpoints import read_tensors
from geofloor._training.seeds import draw_seed
from geofloor._validation import check_array_of_numbers, check_number, plain_array, shown

# Not in files: the paths, devices and trackers of one run.
NOT_SAVED = frozenset({"teacher", "model_kwargs", "checkpoint_path", "device", "report_to"})


def plain_seed(random_state: Any) -> int | None:
    """Return an integer seed, or None for a generator, because its state is no parameter."""
    return int(random_state) if isinstance(random_state, numbers.Integral) else None


def plain_parameters(estimator: Any, *, without: Collection[str] = ()) -> dict[str, Any]:
    """Convert parameters of an estimator to JSON, sequences to lists, and leave out those named.

    Raises
    ------
    ValueError
        If a file can't hold a parameter; the message names it.
    """
    parameters = {name: value for name, value in estimator.get_params(deep=False).items() if name not in without}
    if "random_state" in parameters:
        parameters["random_state"] = plain_seed(parameters["random_state"])
    return {name: _plain(name, value) for name, value in parameters.items()}


def _plain(name: str, value: Any, *, inside: bool = False) -> Any:
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 0):
        value = value.item()
    elif isinstance(value, np.ndarray | torch.Tensor):
        value = plain_array(value, name).tolist()
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):  # not a Fraction: torch can't multiply by one
        return check_number(name, value, whole=isinstance(value, int))
    if isinstance(value, list | tuple) and not inside:
        return [_plain(name, each, inside=True) for each in value]
    raise ValueError(
        f"{name}={shown(value)} is a {type(value).__name__}, which no file can hold; give a plain number or text."
    )


def saved_parameters(metadata: Any, kind: Any) -> dict[str, Any]:
    """Check names and types of parameters from `plain_parameters`; return sequences as tuples.

    Raises
    ------
    ValueError
        If they are not parameters of the class.
    """
    names = [name for name in kind._get_param_names() if name not in NOT_SAVED]
    return fields(**dict.fromkeys(names, plain))("parameters", metadata)


def check_betas(name: str, value: Any) -> tuple[float, float]:
    """Check the two decay rates of Adam, from 0 to below 1.

    Raises
    ------
    ValueError
        If they are not two such numbers.
    """
    rates = check_array_of_numbers(value, name, column=False)
    if rates.shape != (2,) or not ((rates >= 0) & (rates < 1)).all():
        raise ValueError(f"{name}={shown(value)} must be two numbers of at least 0 and below 1.")
    return float(rates[0]), float(rates[1])


def check_files(estimator: Any) -> None:
    """Refuse, before any work, parameters and paths that could not be written later.

    Raises
    ------
    ValueError
        If a parameter can't be kept in a file, or no file can be written to ``checkpoint_path``.
    """
    plain_parameters(estimator, without=NOT_SAVED)
    check_writable("checkpoint_path", estimator.checkpoint_path)


def read_checkpoint(
    path: str | os.PathLike[str] | None,
    *,
    kind: str,
    settings: Mapping[str, Any],
    random_state: Any,
    made_with: Mapping[str, str],
    state: Mapping[str, Field],
) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Read tensors and metadata of a checkpoint, if there is one, and check them.

    The metadata hold the ``settings`` and the ``seed`` of the run, a digest per name in `made_with`, and the fields of
    `state`.

    Raises
    ------
    ValueError
        If it was made with other settings, another seed or anything else, or is damaged; the message names it.
    """
    if path is None or not Path(path).exists():
        return None
    tensors, metadata = read_tensors(path, kind=kind)
    digests = dict.fromkeys(made_with, text)
    with refusing(path):
        check = fields(settings=mapping, seed=number(0, 2**32 - 1, whole=True), **digests, **state)
        metadata = check("metadata", metadata)
    made, none = metadata["settings"], object()
    other = [name for name in {**settings, **made} if made.get(name, none) != settings.get(name, none)]
    seed = plain_seed(random_state)
    if seed is not None and draw_seed(seed) != metadata["seed"]:
        other.append("random_state")
    if other:
        raise ValueError(
            f"checkpoint_path='{os.fspath(path)}' was made with other values of {', '.join(other)}; "
            "use those, remove the file, or give another path."
        )
    for what, digest in made_with.items():
        if metadata[what] != digest:
            raise ValueError(
                f"checkpoint_path='{os.fspath(path)}' was made with other {what}, by a checksum of all of it; remove "
                "the file or give another path."
            )
    return tensors, metadata
