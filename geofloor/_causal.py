"""Causal language models as rows that give logits."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from geofloor._divergence import Rows
from geofloor._token_rows import TokenRows, ending_ids
from geofloor._training.devices import memory_advice, resolve_device
from geofloor._training.products import faster_linear, largest_matrix
from geofloor._training.seeds import OwnDraws
from geofloor._training.weights import model_sha256
from geofloor._validation import check_number, check_object

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


def _logits(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.logits


_MODES = threading.Lock()
_EVALUATED: weakref.WeakKeyDictionary[torch.nn.Module, int] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Keep a module in evaluation mode; afterwards put back in training mode what was.

    Threads may share the module: of several at once, the last to leave puts back.
    """
    with _MODES:
        parts = [part for part in module.modules() if part.training or part in _EVALUATED]
        for part in parts:
            _EVALUATED[part] = _EVALUATED.get(part, 0) + 1
    try:
        if parts:
            module.eval()
        yield
    finally:
        with _MODES:
            for part in parts:
                _EVALUATED[part] -= 1
                if not _EVALUATED[part]:
                    del _EVALUATED[part]
                    part.training = True


@contextlib.contextmanager
def hooked(module: torch.nn.Module, hook: Callable[..., Any], *, before: bool = False) -> Iterator[None]:
    """Hook a module's forward passes in this thread; those of other threads that share the module stay untouched.

    Parameters
    ----------
    module : torch.nn.Module
    hook : callable
        What ``register_forward_hook`` takes, or ``register_forward_pre_hook`` if `before`.
    before : bool, default=False
    """
    owner = threading.get_ident()

    def in_this_thread(*arguments: Any) -> Any:
        return hook(*arguments) if threading.get_ident() == owner else None

    register = module.register_forward_pre_hook if before else module.register_forward_hook
    handle = register(in_this_thread)
    try:
        yield
    finally:
        handle.remove()


class LanguageModel:
    """A causal language model as rows that give logits: split off its unembedding where that is known to be exact.

    Parameters
    ----------
    module : torch.nn.Module
        Takes token ids (n, seq_len) and returns logits, or an object that has them.
    name : str
        What error messages call it.
    """

    def __init__(self, module: torch.nn.Module, name: str) -> None:
        self.module: Any = module
        parameter = next(module.parameters(), None)
        self.device = torch.device("cpu") if parameter is None else parameter.device
        self.head: torch.nn.Linear | None = None
        self._largest = largest_matrix(module)
        self._options: dict[str, Any] = {}
        probe = torch.zeros((1, 2), dtype=torch.int64, device=self.device)
        with evaluating(module), torch.no_grad():
            try:
                logits = _logits(module(probe))
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                raise ValueError(
                    f"{name} is a {type(module).__name__} that can't take token ids of shape (n_sequences, seq_len) "
                    f"({type(error).__name__}: {error})."
                ) from error
            if not isinstance(logits, torch.Tensor) or logits.ndim != 3:
                raise ValueError(
                    f"{name} is a {type(module).__name__} that gives no logits (n, seq_len, n_vocabulary)."
                )
            self.n_vocabulary = logits.shape[-1]
            if isinstance(module, PreTrainedModel):
                if "use_cache" in inspect.signature(module.base_model.forward).parameters:
                    self._options["use_cache"] = False
                self._split(probe, logits)

    def _split(self, probe: torch.Tensor, logits: torch.Tensor) -> None:
        """Use hidden states and unembedding, unless the model does more than multiply them."""
        head = self.module.get_output_embeddings()
        if type(head) is not torch.nn.Linear or self.module.base_model is self.module:
            return
        hidden = self.module.base_model(probe, **self._options)[0]
        if hidden.shape[-1] == head.in_features and torch.allclose(head(hidden), logits, rtol=1e-3, atol=1e-4):
            self.head = head

    @property
    def max_length(self) -> int | None:
        config = getattr(self.module, "config", None)
        if not isinstance(self.module, PreTrainedModel) or config is None:
            return None
        return getattr(config.get_text_config(), "max_position_embeddings", None)

    @property
    def n_tokens(self) -> int:
        """Token ids that it embeds."""
        if isinstance(self.module, PreTrainedModel):
            return min(self.module.get_input_embeddings().weight.shape[0], self.n_vocabulary)
        return self.n_vocabulary

    def check_layer(self, layer: Any) -> None:
        """Refuse a block that is not there, as far as the number of blocks is known."""
        layer = check_number("layer", layer, whole=True)
        config = getattr(self.module, "config", None)
        n = (
            getattr(config.get_text_config(), "num_hidden_layers", None)
            if isinstance(config, PreTrainedConfig)
            else None
        )
        if n is not None and not -n <= layer < n:
            raise ValueError(f"layer={layer} is not there: the model has {n} blocks, 0 to {n - 1} (or -{n} to -1).")

    @property
    def ending_ids(self) -> set[int]:
        """Token ids that may stand for padding."""
        config = getattr(self.module, "config", None)
        return ending_ids(config.get_text_config()) if isinstance(config, PreTrainedConfig) else set()

    def token_rows(self, tokens: Any, name: str, pad_token_id: int | None, **options: Any) -> TokenRows:
        """Token ids for this model, checked."""
        return TokenRows(
            tokens, name, self.n_tokens, self.max_length, pad_token_id, suspects=self.ending_ids, **options
        )

    def inner_matrices(self) -> list[torch.nn.Parameter]:
        """Weights of two dimensions that are neither embeddings nor give logits."""
        outer = {id(part.weight) for part in self.module.modules() if isinstance(part, torch.nn.Embedding)}
        matrices = [each for each in self.module.parameters() if each.ndim == 2 and id(each) not in outer]
        if self.head is not None:
            return [each for each in matrices if each is not self.head.weight]
        return [each for each in matrices if self.n_vocabulary not in each.shape]

    def rows(self, ids: torch.Tensor) -> Rows:
        with faster_linear(ids.numel(), self._largest, ids.device):
            if self.head is None:
                return Rows(_logits(self.module(ids, **self._options)).flatten(0, 1))
            hidden = self.module.base_model(ids, **self._options)[0]
        return Rows(hidden.flatten(0, 1), self.head.weight, self.head.bias)

    def digest(self) -> str:
        """SHA-256 of all weights and buffers, and of what else the configuration says: tells one model from another."""
        return model_sha256(self.module)


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
