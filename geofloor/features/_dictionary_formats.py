"""Understand the tensors and the configuration of published dictionaries, one function per format.

A function gets plain arrays and parsed JSON, never a file. It returns a `RawDictionary`, or raises a ValueError that
says which part of the dictionary can't be expressed exactly.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from geofloor.features._folding import RawDictionary

Tensors = Mapping[str, np.ndarray]
Config = Mapping[str, Any]


class Given(NamedTuple):
    """Facts that the caller knows and that files may lack.

    Attributes
    ----------
    k : int or None
        Codes kept of each row.
    scaling_factor : float or None
        Factor on inputs before the weights apply.
    name : str
        Path or name of the file, for messages and for what only a name tells.
    """

    k: int | None
    scaling_factor: float | None
    name: str


def read_saelens(tensors: Tensors, config: Config, given: Given) -> RawDictionary:
    """Understand a dictionary of SAELens, of its configurations before and since version 6."""
    metadata = _mapping(config, "metadata")
    architecture = config.get("architecture", "standard")
    k = config.get("k", _mapping(config, "activation_fn_kwargs").get("k"))
    if config.get("activation_fn_str", config.get("activation_fn")) == "topk":
        architecture = "topk"
    if ("d_out" in config and config["d_out"] != config.get("d_in")) or "W_skip" in tensors:
        raise ValueError("is a transcoder, whose output is not its input")
    readers = ("standard", "topk", "abstopk", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk")
    if architecture not in readers:
        raise ValueError(f"has architecture={architecture!r}; only {readers} can be expressed exactly")
    by_norm = bool(config.get("rescale_acts_by_decoder_norm", False)) and architecture not in ("standard", "gated")
    common: dict[str, Any] = {
        "decoder": _tensor(tensors, "W_dec"),
        "decoder_bias": _tensor(tensors, "b_dec"),
        "is_centered": bool(config.get("apply_b_dec_to_input", True)),
        "input_scale": _saelens_scale(config, given),
        "source": {
            "format": "saelens",
            "model": metadata.get("model_name", config.get("model_name")),
            "hook": metadata.get("hook_name", config.get("hook_name", config.get("hook_point"))),
        },
    }
    common["decoder"] = common["decoder"] * _saelens_finetuning(tensors, config)[:, None]
    encoder = _tensor(tensors, "W_enc").T
    if architecture == "gated":
        return RawDictionary(
            **_as_jumprelu(encoder, *(_tensor(tensors, n) for n in ("r_mag", "b_gate", "b_mag"))), **common
        )
    common |= {"encoder": encoder, "encoder_bias": _tensor(tensors, "b_enc")}
    if architecture in ("topk", "abstopk"):
        return RawDictionary(activation=architecture, k=_whole("k", given.k or k), selects_by_norm=by_norm, **common)
    if architecture == "standard":
        return RawDictionary(activation="relu", **common)
    if "log_threshold" in tensors:
        threshold = np.exp(_tensor(tensors, "log_threshold").astype(np.float64))
    else:
        threshold = _tensor(tensors, "threshold" if "threshold" in tensors else "topk_threshold")
    threshold = _per_latent(threshold, len(encoder))
    if by_norm and common["input_scale"] != 1.0:
        warnings.warn(
            f"{given.name} is a BatchTopK file with normalized inputs and codes scaled by norms. SAELens wrote its "
            "threshold too large before 2026; compare the L0 of its codes with k.",
            UserWarning,
            stacklevel=4,
        )
    return RawDictionary(activation="jumprelu", threshold=threshold, selects_by_norm=by_norm, **common)


def _saelens_scale(config: Config, given: Given) -> float:
    """Return the factor on inputs, or refuse a normalization of single rows."""
    kind = config.get("normalize_activations", "none")
    if kind in ("none", None, False):
        return 1.0
    if kind in ("expected_average_only_in", True):
        factor = config.get("scaling_factor") if given.scaling_factor is None else given.scaling_factor
        if factor is None:
            raise ValueError(
                f"has normalize_activations={kind!r}, but not its factor √d / E‖x‖; give scaling_factor, or the file "
                "activation_scaler.json beside it"
            )
        return _number("scaling_factor", factor)
    if kind == "covariance_whitening":
        raise ValueError("is an intermediate file with whitened inputs; use the final file, in which they are folded")
    raise ValueError(f"has normalize_activations={kind!r}, which scales each row by its own norm and can't be folded")


def _saelens_finetuning(tensors: Tensors, config: Config) -> np.ndarray:
    """Return the factors on codes at decoding."""
    ones = np.ones(len(_tensor(tensors, "W_dec")))
    if "scaling_factor" not in tensors:
        return ones
    factor = _tensor(tensors, "scaling_factor")
    if np.array_equal(factor, np.ones_like(factor)):
        return ones
    if factor.shape not in ((), (1,), ones.shape):
        raise ValueError(f"has the tensor 'scaling_factor' of shape {factor.shape}, not {ones.shape}")
    if not config.get("finetuning_scaling_factor", False):
        raise ValueError(
            "holds a scaling_factor other than 1, but its configuration says finetuning_scaling_factor=false"
        )
    return ones * factor.astype(np.float64)


def read_sparsify(tensors: Tensors, config: Config, given: Given) -> RawDictionary:
    """Understand a dictionary of EleutherAI's sparsify, which always centers its inputs."""
    if config.get("transcode") or "W_skip" in tensors or config.get("skip_connection"):
        raise ValueError("is a transcoder, whose output is not its input")
    encoder = _tensor(tensors, "encoder.weight")
    activation = config.get("activation", "topk")
    if activation not in ("topk", "groupmax"):
        raise ValueError(f"has activation={activation!r}; only 'topk' and 'groupmax' are known")
    if config.get("signed"):  # of old files
        activation = "abstopk"
    k = _whole("k", given.k or config.get("k"))
    if activation == "groupmax" and len(encoder) % k:
        raise ValueError(f"has {len(encoder)} latents, which can't be cut into k={k} equal groups")
    return RawDictionary(
        encoder=encoder,
        encoder_bias=_tensor(tensors, "encoder.bias"),
        decoder=_tensor(tensors, "W_dec"),
        decoder_bias=_tensor(tensors, "b_dec"),
        activation=activation,
        k=k,
        is_centered=True,
        source={"format": "sparsify", "model": None, "hook": _folder_name(given.name)},
    )


def read_dictionary_learning(tensors: Tensors, config: Config, given: Given) -> RawDictionary:
    """Understand a dictionary of dictionary_learning, by the class that its configuration names."""
    trainer = _mapping(config, "trainer")
    kind = trainer.get("dict_class")
    scale = 1.0
    if "norm_factor" in tensors:  # an interrupted run, whose biases are on the scale of training
        scale = _number("norm_factor", _scalar("norm_factor", tensors["norm_factor"]))
    source = {
        "format": "dictionary_learning",
        "model": trainer.get("lm_name"),
        "hook": trainer.get("submodule_name") or (None if "layer" not in trainer else f"layer {trainer['layer']}"),
    }

    def get(*names: str) -> np.ndarray:
        found = next((name for name in names if name in tensors), names[0])
        return _tensor(tensors, found)

    if kind in ("AutoEncoder", "AutoEncoderNew"):
        is_new = kind == "AutoEncoderNew"
        return RawDictionary(
            encoder=get("encoder.weight"),
            encoder_bias=scale * get("encoder.bias"),
            decoder=get("decoder.weight").T,
            decoder_bias=scale * get("decoder.bias" if is_new else "bias"),
            activation="relu",
            is_centered=not is_new,
            source=source,
        )
    if kind == "GatedAutoEncoder":
        gate, magnitude = scale * get("gate_bias"), scale * get("mag_bias")
        return RawDictionary(
            **_as_jumprelu(get("encoder.weight"), get("r_mag"), gate, magnitude),
            decoder=get("decoder.weight").T,
            decoder_bias=scale * get("decoder_bias"),
            is_centered=True,
            source=source,
        )
    if kind in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        encoder, decoder = get("W_enc").T, get("W_dec")
        bias = get("b_enc")
    elif kind in ("AutoEncoderTopK", "BatchTopKSAE"):
        encoder, decoder, bias = get("encoder.weight"), get("decoder.weight").T, get("encoder.bias")
    else:
        raise ValueError(f"has dict_class={kind!r}, which is no class of dictionary_learning with an exact form here")
    common: dict[str, Any] = {
        "encoder": encoder,
        "encoder_bias": scale * bias,
        "decoder": decoder,
        "decoder_bias": scale * get("b_dec"),
        "is_centered": kind != "JumpReluAutoEncoder",
        "source": source,
    }
    if kind == "AutoEncoderTopK":
        stored = tensors.get("k")
        k = given.k or (trainer.get("k") if stored is None else int(_scalar("k", stored)))
        return RawDictionary(activation="topk", k=_whole("k", k), **common)
    threshold = scale * get("threshold")
    if kind != "JumpReluAutoEncoder" and _scalar("threshold", threshold) < 0:
        warnings.warn(
            f"{given.name} has a threshold below 0, as before it is first set in training; all codes above 0 are kept.",
            UserWarning,
            stacklevel=4,
        )
    return RawDictionary(activation="jumprelu", threshold=_per_latent(threshold, len(encoder)), **common)


def read_gemma_scope(tensors: Tensors, config: Config, given: Given) -> RawDictionary:
    """Understand a dictionary of Gemma Scope 1 or 2: JumpReLU on inputs as they are, neither centered nor scaled."""
    if "affine_skip_connection" in tensors or config.get("affine_connection"):
        raise ValueError("is a transcoder, whose output is not its input")
    if config.get("hf_hook_point_out") not in (None, config.get("hf_hook_point_in")):
        raise ValueError("is a transcoder, whose output is not its input")
    named = {name.lower(): array for name, array in tensors.items()}
    if named.get("w_dec", np.empty(0)).ndim == 3:
        raise ValueError("is a cross-layer transcoder, which writes to several layers")
    if "embedding" in given.name:
        raise ValueError("is of token embeddings, which no block gives out")
    return RawDictionary(
        encoder=_tensor(named, "w_enc").T,
        encoder_bias=_tensor(named, "b_enc"),
        decoder=_tensor(named, "w_dec"),
        decoder_bias=_tensor(named, "b_dec"),
        activation="jumprelu",
        threshold=_tensor(named, "threshold"),
        is_centered=False,
        source={
            "format": "gemma_scope",
            "model": config.get("model_name"),
            "hook": config.get("hf_hook_point_in", _gemma_hook(given.name)),
        },
    )


def read_qwen_scope(tensors: Tensors, config: Config, given: Given) -> RawDictionary:
    """Understand a dictionary of Qwen-Scope: TopK without ReLU; only the repository's name tells k."""
    found = re.search(r"L0_(\d+)", given.name)
    k = given.k or (None if found is None else int(found[1]))
    model = re.search(r"SAE-Res-([^/]+)-W\d+K", given.name)
    layer = re.search(r"layer(\d+)\.sae\.pt", given.name)
    return RawDictionary(
        encoder=_tensor(tensors, "W_enc"),
        encoder_bias=_tensor(tensors, "b_enc"),
        decoder=_tensor(tensors, "W_dec").T,
        decoder_bias=_tensor(tensors, "b_dec"),
        activation="linear_topk",
        k=_whole("k", k),
        is_centered=False,
        source={
            "format": "qwen_scope",
            "model": None if model is None else f"Qwen/{model[1]}",
            "hook": None if layer is None else f"model.layers.{layer[1]}.output",
        },
    )


def read_llama_scope(tensors: Tensors, config: Config, given: Given) -> RawDictionary:
    """Understand a dictionary of Llama Scope, of 2024 or of R1-Distill, or of Llamascopium 2."""
    if config.get("use_glu_encoder"):
        raise ValueError("has a GLU encoder, whose codes are products of two linear maps")
    if config.get("hook_point_out") not in (None, config.get("hook_point_in")):
        raise ValueError("is a transcoder, whose output is not its input")
    if config.get("sae_type", "sae") != "sae":
        raise ValueError(f"has sae_type={config['sae_type']!r}, which is no autoencoder of single positions")
    is_new = "W_E" in tensors
    if is_new:
        encoder, decoder = _tensor(tensors, "W_E").T, _tensor(tensors, "W_D")
        bias, offset = _tensor(tensors, "b_E"), "b_D"
    else:
        encoder, decoder = _tensor(tensors, "encoder.weight"), _tensor(tensors, "decoder.weight").T
        bias, offset = _tensor(tensors, "encoder.bias"), "decoder.bias"
    kind = config.get("norm_activation", "dataset-wise")
    if kind in ("token-wise", "batch-wise"):
        raise ValueError(f"has norm_activation={kind!r}, which scales rows by their own norms and can't be folded")
    scale = 1.0 if kind == "inference" else _llama_scale(tensors, config, given, decoder.shape[1])
    activation, k, threshold = str(config.get("act_fn", "jumprelu")).lower(), None, None
    log_threshold = next((name for name in tensors if name.endswith("log_jumprelu_threshold")), None)
    if activation in ("topk", "relu"):
        k = _whole("k", given.k or config.get("top_k", config.get("k"))) if activation == "topk" else None
    elif activation != "jumprelu":
        raise ValueError(f"has act_fn={activation!r}; only 'relu', 'jumprelu' and 'topk' can be expressed exactly")
    elif log_threshold is not None:
        threshold = np.exp(_tensor(tensors, log_threshold).astype(np.float64))
    else:  # a number in the units of raw inputs
        threshold = np.array(scale * _number("jump_relu_threshold", config.get("jump_relu_threshold")))
    return RawDictionary(
        encoder=encoder,
        encoder_bias=bias,
        decoder=decoder,
        decoder_bias=_tensor(tensors, offset) if offset in tensors else np.zeros(decoder.shape[1]),
        activation=activation,
        k=k,
        threshold=None if threshold is None else _per_latent(threshold, len(encoder)),
        is_centered=False,
        selects_by_norm=bool(config.get("sparsity_include_decoder_norm", is_new)),
        input_scale=scale,
        source={"format": "llama_scope", "model": config.get("model_name"), "hook": config.get("hook_point_in")},
    )


def _llama_scale(tensors: Tensors, config: Config, given: Given, n_inputs: int) -> float:
    """Return √d over the mean norm of inputs."""
    if given.scaling_factor is not None:
        return given.scaling_factor
    norms = config.get("dataset_average_activation_norm")
    norm = norms.get("in") if isinstance(norms, dict) else norms
    if norm is None:
        hook = config.get("hook_point_in")
        name = f"dataset_average_activation_norm.{hook}"
        norm = _scalar(name, tensors[name]) if name in tensors else None
    if norm is None:
        raise ValueError("lacks dataset_average_activation_norm, the mean norm of its inputs; give scaling_factor")
    return math.sqrt(n_inputs) / _number("dataset_average_activation_norm", norm)


def read_openai(tensors: Tensors, config: Config, given: Given) -> RawDictionary:
    """Understand a dictionary of OpenAI's sparse_autoencoder without normalization of single rows."""
    activation = str(config.get("activation", "ReLU")).lower()
    state = config.get("activation_state_dict")
    k = given.k or (state.get("k") if isinstance(state, dict) else None)
    if activation == "topk":
        raise ValueError("normalizes each row by its own mean and deviation (layer norm), which can't be folded")
    if activation != "relu":
        raise ValueError(f"has activation={activation!r}; only 'ReLU' can be expressed exactly")
    if k is not None and given.k is not None:
        raise ValueError("has ReLU codes, for which k has no effect; leave it out")
    return RawDictionary(
        encoder=_tensor(tensors, "encoder.weight"),
        encoder_bias=_tensor(tensors, "latent_bias"),
        decoder=_tensor(tensors, "decoder.weight").T,
        decoder_bias=_tensor(tensors, "pre_bias"),
        activation="relu",
        is_centered=True,
        source={"format": "openai", "model": None, "hook": None},
    )


def read_linear(tensors: Tensors, config: Config, given: Given) -> RawDictionary:
    """Understand a pair of linear layers with a ReLU between them, as of Goodfire and DeepSeek-R1-Distill."""
    suffix = "_linear" if "encoder_linear.weight" in tensors else ""
    return RawDictionary(
        encoder=_tensor(tensors, f"encoder{suffix}.weight"),
        encoder_bias=_tensor(tensors, f"encoder{suffix}.bias"),
        decoder=_tensor(tensors, f"decoder{suffix}.weight").T,
        decoder_bias=_tensor(tensors, f"decoder{suffix}.bias"),
        activation="relu",
        is_centered=False,
        source={"format": "goodfire" if suffix else "linear", "model": None, "hook": None},
    )


FORMATS: dict[str, Callable[[Tensors, Config, Given], RawDictionary]] = {
    "saelens": read_saelens,
    "sparsify": read_sparsify,
    "dictionary_learning": read_dictionary_learning,
    "gemma_scope": read_gemma_scope,
    "qwen_scope": read_qwen_scope,
    "llama_scope": read_llama_scope,
    "openai": read_openai,
    "goodfire": read_linear,
    "linear": read_linear,
}


def detect(tensors: Tensors, config: Config, name: str) -> str:
    """Tell the format from the names of tensors, the configuration and the name of the file.

    Raises
    ------
    ValueError
        If they fit no format, or several.
    """
    names = set(tensors)
    if isinstance(config.get("trainer"), dict):
        return "dictionary_learning"
    if {"pre_bias", "latent_bias"} <= names:
        return "openai"
    if "encoder_linear.weight" in names:
        return "goodfire"
    if "W_E" in names or "jump_relu_threshold" in config or any("log_jumprelu_threshold" in each for each in names):
        return "llama_scope"
    if {"encoder.weight", "W_dec"} <= names:
        return "sparsify"
    if {"W_enc", "W_dec"} <= names and ("d_sae" in config or "d_in" in config):
        return "saelens"
    if {"attn_layers.0", "D", "E"} & names == {"D", "E"} or any(each.startswith("attn_layers.") for each in names):
        raise ValueError("is a temporal autoencoder, whose codes depend on other positions")
    if {"w_enc", "w_dec"} <= names or ({"W_enc", "W_dec", "threshold"} <= names and name.endswith(".npz")):
        return "gemma_scope"
    if {"W_enc", "W_dec", "b_enc", "b_dec"} == names and name.endswith(".sae.pt"):
        return "qwen_scope"
    if {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"} == names:
        return "linear"
    raise ValueError(
        f"has the tensors {sorted(names)!r:.200}, and no configuration that tells their format; give "
        f"format, one of {tuple(FORMATS)}"
    )


def _as_jumprelu(
    encoder: np.ndarray, log_scale: np.ndarray, gate_bias: np.ndarray, magnitude_bias: np.ndarray
) -> dict[str, Any]:
    """Express a gated encoder as JumpReLU, exactly.

    The gate 1[π + b_gate > 0] and the magnitude ReLU(e^r π + b_mag) share π, so that the gate is open where the
    magnitude's pre-activation exceeds b_mag − e^r b_gate.
    """
    factor = np.exp(log_scale.astype(np.float64))
    return {
        "encoder": encoder * factor[:, None],
        "encoder_bias": magnitude_bias,
        "activation": "jumprelu",
        "threshold": magnitude_bias - factor * gate_bias,
    }


def _mapping(config: Config, name: str) -> Config:
    """Return a mapping inside of a configuration, empty if there is none."""
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def _tensor(tensors: Tensors, name: str) -> np.ndarray:
    if name not in tensors:
        raise ValueError(f"lacks the tensor {name!r}; it has {sorted(tensors)!r:.200}")
    array = tensors[name]
    n_axes = 2 if re.search(r"(^|\.)(weight$|[Ww]_)", name) else 1
    if array.ndim > n_axes or (n_axes == 2 and array.ndim < 2):
        raise ValueError(f"has the tensor {name!r} of shape {array.shape}, not of {n_axes} dimensions")
    return array


def _scalar(name: str, array: np.ndarray) -> float:
    if array.size != 1:
        raise ValueError(f"has the tensor {name!r} of shape {array.shape}, not a single number")
    return float(array.reshape(()))


def _per_latent(threshold: np.ndarray, n_latents: int) -> np.ndarray:
    """Repeat a threshold of all latents; leave one per latent as it is."""
    return np.broadcast_to(threshold.reshape(()), n_latents) if threshold.size == 1 else threshold


def _whole(name: str, value: Any) -> int:
    if value is None:
        raise ValueError(f"does not tell {name}, the codes kept of each row; give {name}")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"has {name}={value!r:.40}, which is no count")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"has {name}={value!r:.40}, which is no number above 0")
    return float(value)


def _folder_name(name: str) -> str | None:
    """Return the last folder of a path, such as ``layers.10``, if it names a hook."""
    folder = name.replace("\\", "/").split("/")[-2:-1]
    return folder[0] if folder and re.match(r"layers\.\d+|embed_tokens", folder[0]) else None


def _gemma_hook(name: str) -> str | None:
    """Return the hook that the folders of Gemma Scope tell: ``layer_20``, in a repository named for its place."""
    found = re.search(r"layer_(\d+)", name)
    if found is None:
        return None
    place = next((place for place in ("mlp", "att") if re.search(rf"[-_/]{place}([-_/]|$)", name)), "res")
    outputs = {"res": "output", "mlp": "post_feedforward_layernorm.output", "att": "self_attn.o_proj.input"}
    return f"model.layers.{found[1]}.{outputs[place]}"
