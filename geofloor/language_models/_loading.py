"""Load causal language models, and place them on devices."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig

from geofloor._training.devices import memory_advice, resolve_device
from geofloor._training.seeds import OwnDraws
from geofloor._validation import check_object

_BUILDING = threading.RLock()


_LOADING_LOG = logging.getLogger("transformers.modeling_utils")


@contextlib.contextmanager
def naming(argument: str, value: Any) -> Iterator[None]:
    """Name the argument where a file or a repository is not there, or holds no model."""
    try:
        yield
    except (OSError, ValueError) as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{argument}={os.fspath(value)!r} can't be loaded: {error}") from error


@contextlib.contextmanager
def building(seed: int = 0) -> Iterator[None]:
    """Make or load models of transformers: one thread at a time, and with random weights that a seed gives.

    While it loads a model transformers changes torch's default dtype and some of its functions for all threads, so
    that a student made meanwhile would have other weights.
    """
    with _BUILDING, OwnDraws(seed):
        yield


def new_language_model(config: PreTrainedConfig, seed: int = 0) -> Any:
    """Make a causal language model of a configuration, in float32 on the CPU."""
    with building(seed), torch.device("cpu"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def load_base_model(name: str, **options: Any) -> Any:
    """Load a model without its head, and hold back the report that the head's weights are unexpected.

    Any other report of transformers comes through.
    """
    owner, held = threading.get_ident(), []

    def hold(record: logging.LogRecord) -> bool:
        report = record.thread == owner and "LOAD REPORT" in record.getMessage()
        if report:
            held.append(record)
        return not report

    head_only = False
    with building():
        _LOADING_LOG.addFilter(hold)
        try:
            model, found = AutoModel.from_pretrained(name, output_loading_info=True, **options)
            own = {model.base_model_prefix, *(child for child, _ in model.named_children())}
            unexpected = {key.partition(".")[0] for key in found["unexpected_keys"]}
            head_only = not (own & unexpected or found["missing_keys"] or found["mismatched_keys"])
        finally:
            _LOADING_LOG.removeFilter(hold)
            for record in [] if head_only else held:
                _LOADING_LOG.handle(record)
    return model


def load_language_model(
    source: Any, options: dict[str, Any] | None, device: str | torch.device
) -> tuple[torch.device, torch.nn.Module]:
    """A model, given as an object or by its name or path, on a device; ``"auto"`` is where an object on one is."""
    chosen = device if isinstance(device, torch.device) else exact_device(device)
    if options is not None:
        check_object("teacher_kwargs", options, Mapping, "give a dict of arguments for from_pretrained")
    if isinstance(source, str | os.PathLike):
        with (
            naming("teacher", source),
            building(),
            memory_advice("set teacher_kwargs={'dtype': 'bfloat16'} or device='cpu'"),
        ):
            module = AutoModelForCausalLM.from_pretrained(os.fspath(source), **{"dtype": "float32", **(options or {})})
            return chosen, module.to(chosen).eval().requires_grad_(False)
    if options:
        raise ValueError(f"teacher_kwargs={options!r} are for a teacher given by name, not an object.")
    remedy = "give a transformers model, its name or path, or a torch module that returns logits"
    if source is None:  # as after loading a student
        raise ValueError(f"teacher=None must be set; {remedy}.")
    check_object("teacher", source, torch.nn.Module, remedy)
    parameter = next(source.parameters(), None)
    there = torch.device("cpu") if parameter is None else parameter.device
    if device == "auto" and there.type != "cpu":
        chosen = there
    return chosen, on_device(source, chosen)


def on_device(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The module itself if it is there, else a copy that is; the caller's stays where it is."""
    tensors = [*module.parameters(), *module.buffers()]
    if all(tensor.device == device for tensor in tensors):
        return module
    moved: dict[int, Any] = {
        id(tensor): torch.nn.Parameter(tensor.detach().to(device), requires_grad=False)
        if isinstance(tensor, torch.nn.Parameter)
        else tensor.to(device)
        for tensor in tensors
    }
    return copy.deepcopy(module, moved)


def exact_device(device: str) -> torch.device:
    """A device with its index, as tensors have it."""
    resolved = resolve_device(device)
    if resolved.type == "cuda" and resolved.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return resolved
