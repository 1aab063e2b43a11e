"""Files of fitted students."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from geofloor._files.schema import choice, fields, flag, mapping, number, optional, refusing, text
from geofloor._training.checkpoints import read_tensors, write_tensors
from geofloor.students._architecture import model_width
from geofloor.students._checkpoints import HISTORY
from geofloor.students._saved import build_model, plain_config

_KIND = "geofloor distilled student"
# Fitted attributes.
_FITTED = {
    "floor_": number(),
    "floor_error_": optional(number(0)),
    "zero_width_loss_": number(),
    "remaining_fall_": optional(number(0, 1)),
    "converged_": flag,
    "history_": HISTORY,
    "init_": choice("principal", "random"),
    "learning_rate_": number(0),
    "n_steps_": number(1, whole=True),
    "batch_size_": number(1, whole=True),
    "warmup_steps_": number(0, whole=True),
    "eval_every_": number(1, whole=True),
    "sequence_length_": optional(number(2, whole=True)),
}
_MAYBE_NAN = ("floor_error_", "remaining_fall_")  # JSON has no NaN, so files hold null


class StudentFile(NamedTuple):
    """Content of a file, checked for its fields and types."""

    parameters: dict[str, Any]  # of the estimator, as written
    teacher: str | None  # name or path of the teacher, if it had one
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    fitted: dict[str, Any]  # attributes by name


def write_student(
    path: str | os.PathLike[str],
    model: Any,
    width: int,
    *,
    parameters: Mapping[str, Any],
    teacher: str | None,
    attributes: Mapping[str, Any],
) -> None:
    """Write a fitted student.

    Parameters
    ----------
    path : str or path
        File to write, atomically.
    model : torch.nn.Module
        The student's model.
    width : int
        The student's width.
    parameters : mapping of str to object
        Parameters of the estimator as JSON holds them.
    teacher : str or None
        Name or path of the teacher, if it has one.
    attributes : mapping of str to object
        Fitted attributes, among others.

    Raises
    ------
    ValueError
        If the model can't be made again from a file alone.
    """
    try:
        if not isinstance(model, PreTrainedModel):
            raise ValueError("it is no model of transformers")
        config = plain_config(model)
        _check_same_width(model, width)
    except ValueError as error:
        raise ValueError(
            f"A student of type {type(model).__name__} can't be made again from a file alone: {error}; save "
            "its weights yourself."
        ) from error
    fitted = {name: attributes[name] for name in _FITTED}
    fitted |= {name: None for name in _MAYBE_NAN if np.isnan(fitted[name])}
    metadata = {"parameters": parameters, "teacher": teacher, "config": config, "fitted": fitted}
    write_tensors(path, model.state_dict(), kind=_KIND, metadata=metadata)


def read_student(path: str | os.PathLike[str]) -> StudentFile:
    """Read a file of `write_student`.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it is truncated, altered or no file of a student.
    """
    tensors, metadata = read_tensors(path, kind=_KIND)
    if isinstance(metadata.get("fitted"), dict):
        metadata["fitted"].setdefault("sequence_length_", None)  # missing in files of 0.1.0.dev0
    with refusing(path):
        check = fields(parameters=mapping, teacher=optional(text), config=mapping, fitted=fields(**_FITTED))
        content = check("metadata", metadata)
    fitted = {
        name: float("nan") if value is None and name in _MAYBE_NAN else value
        for name, value in content["fitted"].items()
    }
    return StudentFile(content["parameters"], content["teacher"], content["config"], tensors, fitted)


def build_student(content: StudentFile, width: int) -> PreTrainedModel:
    """Build the model in a file.

    Raises
    ------
    ValueError
        If configuration and weights make no model, or one of another width.
    """
    model = build_model(content.config, content.tensors)
    _check_same_width(model, width)
    return model


def _check_same_width(model: PreTrainedModel, width: int) -> None:
    found = model_width(model)
    if found not in (None, width):
        raise ValueError(f"its width={width} is not that of the model, {found}")
