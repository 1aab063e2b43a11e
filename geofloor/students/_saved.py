"""Save the configuration of a model as plain values, and build the model again without running code of a file."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from geofloor._files.schema import text
from geofloor._training.checkpoints import check_tensors
from geofloor.language_models._loading import building

# Entries that do not change the model, or that tell where code and weights come from.
_LEFT_OUT = frozenset(
    {"_name_or_path", "architectures", "auto_map", "dtype", "id2label", "label2id", "problem_type", "torch_dtype"}
    | {"attn_implementation", "experts_implementation", "output_attentions", "quantization_config"}
    | {"per_layer_config", "transformers_version"}
)
_COUNTS = ("layer", "expert", "depth")  # parts of the names of entries that count modules with tensors of their own
_FEW = 1024  # a count up to here is tried, even if the file has fewer tensors
_SPARE_BYTES = 2**30  # allowed for buffers outside the file, such as masks and rotations


def plain_config(model: PreTrainedModel) -> dict[str, Any]:
    """Extract a configuration for `build_model`.

    Raises
    ------
    ValueError
        If no such configuration exists, as for classes that transformers does not ship.
    """
    whole = model.config.to_dict()
    names = _names(whole.get("model_type"))
    config = {name: value for name, value in whole.items() if name in names}
    tensors = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    blank = _blank(config, tensors)
    if type(blank) is not type(model):
        raise ValueError(f"it is a {type(model).__name__}, and a file would give a {type(blank).__name__}")
    extra = sorted(whole.keys() - names - _LEFT_OUT)
    if extra and not _have_same_logits(model, build_model(config, tensors)):
        raise ValueError(f"its configuration has {extra!r:.80}, which no file keeps and the model needs")
    return config


@torch.no_grad()
def _have_same_logits(model: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Compare the logits of two models on a few tokens."""
    ids = torch.arange(min(model.get_input_embeddings().weight.shape[0], 8))[None]
    given, found = model.eval()(ids.to(model.device)).logits, other.eval()(ids).logits
    return torch.allclose(given.cpu(), found, rtol=1e-3, atol=1e-4)


def build_model(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """Build a model from the configuration and weights of a file, after comparing shapes without allocating memory.

    Raises
    ------
    ValueError
        If transformers ships no such causal language model, or the weights do not belong to it.
    """
    unknown = sorted(config.keys() - _names(config.get("model_type")))
    if unknown:
        raise ValueError(f"its configuration has the unknown {unknown!r:.80}")
    _blank(config, tensors)
    with building():
        model = _from_config(config)
    model.load_state_dict(dict(tensors))
    other = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, tensors[name])]
    if other:
        raise ValueError(f"its tensors {other!r:.80} differ from others that the model shares them with")
    return model


def _blank(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """Make the model on the meta device, and check the tensors against it."""
    for name, value in config.items():
        if type(value) is int and value > max(len(tensors), _FEW) and any(count in name for count in _COUNTS):
            raise ValueError(f"its configuration has {name}={value}, with {len(tensors)} tensors")
    with torch.device("meta"):
        blank = _from_config(config)
    check_tensors(tensors, {name: (each.dtype, tuple(each.shape)) for name, each in blank.state_dict().items()})
    n_bytes = sum(buffer.numel() * buffer.element_size() for buffer in blank.buffers())
    if n_bytes > _SPARE_BYTES + 8 * sum(tensor.numel() for tensor in tensors.values()):
        raise ValueError(f"its configuration makes buffers of {n_bytes} bytes")
    return blank


def _from_config(config: Mapping[str, Any]) -> PreTrainedModel:
    try:
        made = CONFIG_MAPPING[config["model_type"]](**{k: v for k, v in config.items() if k != "model_type"})
        with building():
            return AutoModelForCausalLM.from_config(made, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # odd values in a configuration raise errors of any kind
        raise ValueError(
            f"transformers makes no model of its configuration ({type(error).__name__}: {str(error)[:200]})"
        ) from error


def _names(model_type: Any) -> frozenset[str]:
    """List the entries of configurations of a model type."""
    return _names_of(text("model_type", model_type))


@functools.cache
def _names_of(kind: str) -> frozenset[str]:
    shipped = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and CONFIG_MAPPING[kind].__module__.startswith("transformers.")
    if not shipped or CONFIG_MAPPING[kind].sub_configs:
        raise ValueError(f"model_type={kind!r:.40} is no causal language model of one part that transformers ships")
    return frozenset(CONFIG_MAPPING[kind]().to_dict()) - _LEFT_OUT
