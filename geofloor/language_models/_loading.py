"""Load causal language models and tokenizers, and place models on devices."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from geofloor._training.devices import memory_advice, resolve_device
from geofloor._training.seeds import OwnDraws
from geofloor._validation import check_object, shown

_BUILDING = threading.RLock()
_LOADING_LOG = logging.getLogger("transformers.modeling_utils")
# Options of `from_pretrained` that models and tokenizers have in common.
_SHARED_OPTIONS = frozenset(
    {
        "cache_dir",
        "force_download",
        "gguf_file",
        "local_files_only",
        "proxies",
        "revision",
        "subfolder",
        "token",
        "trust_remote_code",
    }
)
_OPTIONS_OF_ONE_REPOSITORY = frozenset({"gguf_file", "revision", "subfolder"})


@contextlib.contextmanager
def naming(argument: str, value: Any) -> Iterator[None]:
    """Name the argument in errors about a file or repository without a model."""
    try:
        yield
    except (OSError, ValueError) as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{argument}={os.fspath(value)!r} can't be loaded: {error}") from error


@contextlib.contextmanager
def building(seed: int = 0) -> Iterator[None]:
    """Make, load or save transformers models in one thread at a time, with random weights from a seed.

    The progress bars of transformers stay out: they would show in logs and notebooks for models of any size.
    Loading changes torch's default dtype and some of its functions in all threads. A student made in another thread
    meanwhile would have other weights.
    """
    with _BUILDING, OwnDraws(seed):
        shows_bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            if shows_bars:
                transformers_logging.enable_progress_bar()


def new_language_model(config: PreTrainedConfig, seed: int = 0) -> Any:
    """Make a causal language model from a configuration, in float32 on the CPU."""
    with building(seed), torch.device("cpu"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def load_config(argument: str, name: str | os.PathLike[str], model_kwargs: Mapping[str, Any] | None) -> Any:
    """Load the configuration of a model given by name, or return None for a file that is slow to read.

    Parameters
    ----------
    argument : str
        Name of the argument in error messages.
    name : str or path-like
        Name or folder of the model.
    model_kwargs : dict or None
        Arguments of ``from_pretrained`` for the model.
    """
    options = {key: value for key, value in (model_kwargs or {}).items() if key in _SHARED_OPTIONS}
    if "gguf_file" in options:
        return None
    with naming(argument, name):
        return AutoConfig.from_pretrained(os.fspath(name), **options)


def model_options(model_kwargs: Mapping[str, Any] | None, dtype: str = "float32") -> dict[str, Any]:
    """Return the arguments of ``from_pretrained``: `model_kwargs`, and `dtype` unless they hold one."""
    options = dict(model_kwargs or {})
    if "torch_dtype" not in options:
        options.setdefault("dtype", dtype)
    return options


def check_model_kwargs(model_kwargs: Any, *, by_name: bool) -> None:
    """Check `model_kwargs`: a dict, and empty if the model is an object."""
    if model_kwargs is None:
        return
    check_object("model_kwargs", model_kwargs, Mapping, "give a dict of arguments for from_pretrained")
    if model_kwargs and not by_name:
        raise ValueError(f"model_kwargs={shown(model_kwargs)} are for a model given by name, not for an object.")


def is_name(source: Any) -> bool:
    """Return whether a model or tokenizer is given by name or path."""
    return isinstance(source, str | os.PathLike)


def load_base_model(name: str, **options: Any) -> Any:
    """Load a model without its head, and hold back the report of the head's unexpected weights.

    All other reports of transformers come through.
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


def load_tokenizer(tokenizer: Any, model: Any, model_kwargs: Mapping[str, Any] | None) -> tuple[Any, str]:
    """Load a tokenizer, by default the one of a model given by name.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase, str, path-like or None
        The tokenizer, its name or path, or None for the one of `model`.
    model : PreTrainedModel, str or path-like
        The model.
    model_kwargs : dict or None
        Arguments of ``from_pretrained``; the tokenizer gets those that it shares with models.

    Returns
    -------
    tokenizer : PreTrainedTokenizerBase or None
        None if there is none, which is no error: token ids need no tokenizer.
    why_none : str
        Reason for an error message about texts.
    """
    if tokenizer is not None and not is_name(tokenizer):
        if not (callable(tokenizer) and hasattr(tokenizer, "__len__")):
            raise TypeError(
                f"tokenizer={shown(tokenizer)} is a {type(tokenizer).__name__}; give a tokenizer of transformers, or "
                "its name or path."
            )
        return tokenizer, ""
    if tokenizer is None and not is_name(model):
        return None, "none was given"
    options = {key: value for key, value in (model_kwargs or {}).items() if key in _SHARED_OPTIONS}
    if tokenizer is not None:
        options = {key: value for key, value in options.items() if key not in _OPTIONS_OF_ONE_REPOSITORY}
        with naming("tokenizer", tokenizer):
            return AutoTokenizer.from_pretrained(os.fspath(tokenizer), **options), ""
    name = os.fspath(model)
    try:
        found = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        return None, f"none could be loaded from model={name!r} ({error})"
    # Where there are no files, transformers may make a tokenizer of special tokens alone.
    if len(found) - len(found.get_added_vocab()) < 2:
        return None, f"model={name!r} comes without a vocabulary"
    return found, ""


def load_language_model(
    source: Any, model_kwargs: Mapping[str, Any] | None, device: str | torch.device, *, argument: str = "teacher"
) -> tuple[torch.device, torch.nn.Module]:
    """Load a teacher or another model (object, name or path), given as `argument`, onto a device.

    With ``device="auto"``, an object that is on an accelerator stays there.
    """
    chosen = device if isinstance(device, torch.device) else exact_device(device)
    check_model_kwargs(model_kwargs, by_name=is_name(source))
    if is_name(source):
        with (
            naming(argument, source),
            building(),
            memory_advice("set model_kwargs={'dtype': 'bfloat16'} or device='cpu'"),
        ):
            module = AutoModelForCausalLM.from_pretrained(os.fspath(source), **model_options(model_kwargs))
            return chosen, module.to(chosen).eval().requires_grad_(False)
    remedy = "give a transformers model, its name or path, or a torch module that returns logits"
    if source is None:  # as after loading a student
        raise ValueError(f"{argument}=None must be set; {remedy}.")
    check_object(argument, source, torch.nn.Module, remedy)
    parameter = next(source.parameters(), None)
    there = torch.device("cpu") if parameter is None else parameter.device
    if device == "auto" and there.type != "cpu":
        chosen = there
    return chosen, on_device(source, chosen)


def on_device(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Return the module if it is on the device, else a copy on the device."""
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
    """Add the index to a CUDA device, because its tensors have one."""
    resolved = resolve_device(device)
    if resolved.type == "cuda" and resolved.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return resolved
