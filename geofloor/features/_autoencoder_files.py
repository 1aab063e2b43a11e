"""Read and write the files of a sparse autoencoder: a fitted one, and the checkpoint of a fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from geofloor._files.schema import choice, fields, mapping, number, optional, refusing, table, text
from geofloor._training.checkpoints import (
    Shape,
    check_optimizer_tensors,
    check_tensors,
    load_optimizer_tensors,
    optimizer_tensors,
    read_tensors,
    write_tensors,
)
from geofloor._training.settings import read_checkpoint
from geofloor.features._autoencoder_settings import THRESHOLDED, Settings, find_scale
from geofloor.features._encoding import CHOSEN, ENCODABLE
from geofloor.features._sparse_step import Parameters
from geofloor.features._trainer import TrainingState, wrap_weights

AUTOENCODER = "geofloor sparse autoencoder"
CHECKPOINT = "geofloor sparse autoencoder checkpoint"

_SHAPES: dict[str, Shape] = {
    "encoder_weight": ("n_latents", "n_inputs"),
    "encoder_bias": ("n_latents",),
    "decoder_weight": ("n_latents", "n_inputs"),
    "decoder_bias": ("n_inputs",),
}
_FITTED_TENSORS: dict[str, tuple[torch.dtype, Shape]] = {
    "encoder": (torch.float32, _SHAPES["encoder_weight"]),
    "encoder_bias": (torch.float32, _SHAPES["encoder_bias"]),
    "decoder": (torch.float32, _SHAPES["decoder_weight"]),
    "decoder_bias": (torch.float32, _SHAPES["decoder_bias"]),
}
_STATE_TENSORS: dict[str, tuple[torch.dtype, Shape]] = {
    **{f"parameters.{name}": (torch.float32, shape) for name, shape in _SHAPES.items()},
    "idle_tokens": (torch.int64, ("n_latents",)),
    **{
        f"optimizer.{index}.{name}": (torch.float32, () if name == "step" else shape)
        for index, shape in enumerate(_SHAPES.values())
        for name in ("step", "exp_avg", "exp_avg_sq")
    },
}
# Tensor of activations with thresholds, in both files.
_THRESHOLD: dict[str, tuple[torch.dtype, Shape]] = {"threshold": (torch.float32, ("n_latents",))}
_CODE_SCALE: dict[str, tuple[torch.dtype, Shape]] = {"code_scale": (torch.float32, ("n_latents",))}
# Tensor of a fit that a callback has stopped.
_STOPPED: dict[str, tuple[torch.dtype, Shape]] = {"stopped": (torch.bool, ())}
# State of the optimizer for the steps of thresholds.
_THRESHOLD_STEPS: dict[str, tuple[torch.dtype, Shape]] = {
    f"optimizer.{len(_SHAPES)}.{name}": (torch.float32, () if name == "step" else ("n_latents",))
    for name in ("step", "exp_avg", "exp_avg_sq")
}
_STEP = number(1, whole=True)
_HISTORY = table(
    step=_STEP,
    n_tokens=_STEP,
    loss=number(0),
    reconstruction=number(0),
    l1=number(0),
    l0=number(0),
    dead=number(0, 1),
    n_resampled=number(0, whole=True),
)
_FITTED = {
    "scale_": number(0, open_low=True),
    "history_": _HISTORY,
    "n_steps_": number(0, whole=True),  # 0 for weights from elsewhere
    "n_tokens_seen_": number(0, whole=True),
    "activation_": choice(*ENCODABLE),
    "l0_": optional(_STEP),
    "l1_coefficient_": number(0),
    "batch_size_": optional(_STEP),
    "learning_rate_": optional(number(0)),
    "source_": optional(fields(format=optional(text), model=optional(text), hook=optional(text))),
    "explained_variance_": optional(number(high=1)),
}
FITTED = tuple(_FITTED)  # attributes kept as JSON
_STATE = {"scale": _FITTED["scale_"], "step": _STEP, "n_tokens": _STEP, "history": _HISTORY}


def read_autoencoder(
    path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray | None], dict[str, Any], dict[str, Any]]:
    """Read the weights, the parameters and the fitted attributes of a saved autoencoder.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated, altered or of another kind, or its content is no autoencoder.
    """
    tensors, metadata = read_tensors(path, kind=AUTOENCODER)
    with refusing(path):
        content = fields(parameters=mapping, fitted=fields(**_FITTED))("metadata", metadata)
        fitted = content["fitted"]
        if fitted["n_steps_"]:
            _check_history(fitted["history_"], fitted["n_steps_"])
        thresholded = fitted["activation_"] in THRESHOLDED
        scaled = fitted["activation_"] in CHOSEN and "code_scale" in tensors
        check_tensors(tensors, _FITTED_TENSORS | (_THRESHOLD if thresholded else {}) | (_CODE_SCALE if scaled else {}))
        _check_directions(tensors["decoder"])
        _check_signs(tensors)
    weights: dict[str, Any] = {f"{name}_": tensor.numpy() for name, tensor in tensors.items()}
    for name in ("threshold_", "code_scale_"):
        weights.setdefault(name, None)
    return weights, content["parameters"], content["fitted"]


def write_autoencoder(
    path: str | os.PathLike[str],
    weights: dict[str, np.ndarray | None],
    parameters: dict[str, Any],
    fitted: dict[str, Any],
) -> None:
    """Write weights, parameters and fitted attributes for `read_autoencoder`."""
    tensors = {name.removesuffix("_"): torch.from_numpy(each) for name, each in weights.items() if each is not None}
    write_tensors(path, tensors, kind=AUTOENCODER, metadata={"parameters": parameters, "fitted": fitted})


@dataclass(frozen=True)
class CheckpointFile:
    """Checkpoint file of one fit.

    Attributes
    ----------
    path : str or path
        The file.
    parameters : dict
        Parameters that change the result; a checkpoint with others is refused.
    random_state : int, RandomState or None
        Seed of the fit.
    data : str
        Digest of the data.
    """

    path: str | os.PathLike[str]
    parameters: dict[str, Any]
    random_state: Any
    data: str

    def write(self, state: TrainingState) -> None:
        """Write a state with a complete history, atomically."""
        tensors, values = pack_state(state)
        metadata = {**values, "settings": self.parameters, "data": self.data}
        write_tensors(self.path, tensors, kind=CHECKPOINT, metadata=metadata)

    def read(self, settings: Settings, sample: np.ndarray, device: torch.device) -> TrainingState | None:
        """Read the state, or return None if there is no file.

        Raises
        ------
        ValueError
            If the checkpoint has other parameters, another seed or other data, or is damaged.
        """
        n_steps = settings.n_steps
        found = read_checkpoint(
            self.path,
            kind=CHECKPOINT,
            settings=self.parameters,
            random_state=self.random_state,
            made_with={"data": self.data},
            state={**_STATE, "step": number(1, np.inf if n_steps is None else n_steps, whole=True)},
        )
        if found is None:
            return None
        tensors, values = found
        with refusing(self.path):
            sizes = check_tensors(tensors, _state_tensors(settings) | (_STOPPED if "stopped" in tensors else {}))
            _check_directions(tensors["parameters.decoder_weight"])
            _check_signs(tensors)
            check_optimizer_tensors(tensors, values["step"])
            n_inputs = sample.shape[1]
            if (sizes["n_latents"], sizes["n_inputs"]) != (settings.n_latents, n_inputs):
                raise ValueError(
                    f"its dictionary has the sizes {sizes}, not {settings.n_latents} latents of {n_inputs} inputs"
                )
            if values["scale"] != find_scale(sample, settings.normalization):
                raise ValueError(f"its scale, {values['scale']:g}, is not that of the data")
            _check_history(values["history"], values["step"])
        return unpack_state(tensors, values, settings, device)


def pack_state(state: TrainingState) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Turn a state into tensors on the CPU and values for JSON."""
    tensors = {f"parameters.{name}": value for name, value in state.parameters._asdict().items()}
    tensors |= {"idle_tokens": state.idle_tokens, **optimizer_tensors(state.optimizer)}
    if state.threshold is not None:
        tensors["threshold"] = state.threshold
    if state.l1_coefficient is not None:
        tensors["l1_coefficient"] = state.l1_coefficient
    if state.is_stopped:
        tensors["stopped"] = torch.tensor(True)
    values = {"scale": state.scale, "seed": state.seed, "step": state.step, "n_tokens": state.n_tokens}
    return {name: tensor.cpu() for name, tensor in tensors.items()}, {**values, "history": state.history}


def unpack_state(
    tensors: dict[str, torch.Tensor], values: dict[str, Any], settings: Settings, device: torch.device
) -> TrainingState:
    """Turn the result of `pack_state` into a state on a device."""
    parameters = Parameters(*(tensors[f"parameters.{name}"].to(device) for name in Parameters._fields))
    steered = {name: tensors[name].to(device) for name in ("threshold", "l1_coefficient") if name in tensors}
    state = wrap_weights(parameters, settings, scale=values["scale"], seed=values["seed"], **steered)
    load_optimizer_tensors(state.optimizer, tensors)
    state.idle_tokens = tensors["idle_tokens"].to(device)
    state.step, state.n_tokens, state.history = values["step"], values["n_tokens"], list(values["history"])
    state.is_stopped = bool(tensors.get("stopped", False))
    return state


def _state_tensors(settings: Settings) -> dict[str, tuple[torch.dtype, Shape]]:
    """Return the types and shapes of the tensors of a checkpoint."""
    thresholds = _THRESHOLD if settings.activation in THRESHOLDED else {}
    steps = _THRESHOLD_STEPS if settings.activation == "jumprelu" else {}
    penalty = {"l1_coefficient": (torch.float32, ())} if settings.is_steered else {}
    return {**_STATE_TENSORS, **thresholds, **steps, **penalty}


def _check_history(history: list[dict[str, Any]], step: int) -> None:
    """Refuse a history without the last step at its end."""
    if not history or history[-1]["step"] != step:
        raise ValueError(f"its history does not end with step {step}")


def _check_signs(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse thresholds below zero, because no code is, and negative penalties."""
    for name in ("threshold", "l1_coefficient", "code_scale"):
        if name in tensors and bool((tensors[name] < 0).any()):
            raise ValueError(f"a number of the tensor {name} is negative")


def _check_directions(decoder: torch.Tensor) -> None:
    """Refuse a decoder without directions of unit norm, because every step normalizes them."""
    norms = torch.linalg.vector_norm(decoder.double(), dim=1)
    if not bool(((norms - 1).abs() < 1e-4).all()):
        raise ValueError("the directions of its decoder are not of unit norm")
