"""Families of language models: the configuration of a student, and the weights of a model as views.

A family takes part by the class of its configuration. Register a function with `student_config` to derive students;
they start from random weights. Register a second one with `transformer_view` to let them start from the teacher's
principal directions as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig

from geofloor._validation import check_number

_FFN_RATIO = 4  # Table 8: FFN = 4d
_SMALLEST_HEAD = 16  # Table 8 keeps the teacher's number of heads as long as heads have this size
_EVEN = ", with an even number of rotated dimensions each"
_SEARCHED = 128  # widths on either side of a width without a number of heads


@functools.singledispatch
def student_config(config: Any, width: int, *, n_heads: int | None = None) -> Any:
    """Derive a student's configuration from its teacher's.

    Width, heads and feed-forward units change. Depth, vocabulary, positions and everything else stay the teacher's
    (Table 8 of [1]_).

    Parameters
    ----------
    config : PreTrainedConfig
        Configuration of a ``transformers`` teacher: GPT-NeoX (Pythia), Llama (SmolLM2) or GPT-2. Register a function
        for other classes: see Examples.
    width : int
        Dimensions d of the student's residual stream.
    n_heads : int or None, default=None
        Attention heads of the student. They must divide `width`. By default the rule of Table 8 chooses them.

    Returns
    -------
    config : PreTrainedConfig
        A new configuration of the same class.

    Raises
    ------
    ValueError
        If this class of configuration has no rule, or no number of heads (or not `n_heads`) divides `width`.

    Notes
    -----
    *Heads.* The student has as many heads as the teacher, or the largest smaller number that fits. A number fits if it
    divides the width into heads of at least 16 dimensions (or of the teacher's head size, if that is smaller) and at
    most twice the teacher's head size. Narrower widths have one head. For Pythia-410M's 16 heads of 64 dimensions this
    gives the 8, 16, 16, 16 and 16 heads of Table 8. If the teacher rotates a share of each head, the student rotates
    the same share, rounded to an even number of dimensions. If several queries share keys and values, the rule prefers
    numbers of heads that keep the size of the teacher's groups.

    *Feed-forward.* GPT-NeoX and GPT-2 have 4d units. Llama has three feed-forward matrices instead of two and keeps
    the teacher's ratio of units to width. At the teacher's own width the student has the teacher's architecture, as in
    Table 8.

    References
    ----------
    .. [1] Sarkar and Deka (2026), "Geometric Limits of Knowledge Distillation", arXiv:2604.04037.

    Examples
    --------
    >>> from transformers import GPTNeoXConfig, MistralConfig
    >>> from geofloor.students import student_config
    >>> pythia_410m = GPTNeoXConfig(
    ...     vocab_size=50304, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    ... )
    >>> student = student_config(pythia_410m, 128)
    >>> student.num_hidden_layers, student.num_attention_heads, student.intermediate_size
    (24, 8, 512)

    Add another family by the class of its configuration:

    >>> @student_config.register
    ... def _(config: MistralConfig, width, *, n_heads=None):
    ...     return MistralConfig(**{**config.to_dict(), "hidden_size": width, "intermediate_size": 4 * width})
    """
    kind = getattr(config, "model_type", type(config).__name__)
    raise ValueError(
        f"config is of type {kind!r}, for which there is no rule; register a function of (config, width, *, n_heads) "
        f"for {type(config).__name__} with geofloor.students.student_config.register."
    )


# Views of weights: writing into them changes the model


class Norm(NamedTuple):
    """A normalization of the residual stream."""

    module: torch.nn.Module
    gain: torch.Tensor  # (d,)
    bias: torch.Tensor | None  # (d,); None if the normalization does not subtract the mean over dimensions


class Affine(NamedTuple):
    """An affine map."""

    weight: torch.Tensor
    bias: torch.Tensor | None


class Attention(NamedTuple):
    """The attention of a block."""

    module: torch.nn.Module  # output projection
    norm: Norm
    queries: Affine  # (n_heads, size, d)
    keys: Affine  # (n_key_value_heads, size, d)
    values: Affine  # (n_key_value_heads, size, d)
    out: Affine  # (d, n_heads, size)
    scaling: float  # of attention scores
    frequencies: torch.Tensor  # (n,): the i-th rotates dimensions i and i + n of a head


class FeedForward(NamedTuple):
    """The feed-forward part of a block."""

    module: torch.nn.Module  # output projection
    norm: Norm
    readers: Sequence[Affine]  # (n_units, d)
    out: Affine  # (d, n_units)


class TransformerView(NamedTuple):
    """All readers and writers of the residual stream."""

    embeddings: Sequence[torch.Tensor]  # (n, d); token embeddings come first
    blocks: Sequence[tuple[Attention, FeedForward]]
    norm: Norm
    unembedding: torch.Tensor  # (n_vocabulary, d)

    @property
    def tied(self) -> bool:
        """Whether the unembedding is the token embedding."""
        return self.unembedding.data_ptr() == self.embeddings[0].data_ptr()


@functools.singledispatch
def transformer_view(config: Any, model: Any) -> TransformerView:
    """View the weights of a model by the class of its configuration.

    Parameters
    ----------
    config : PreTrainedConfig
        Configuration of the model.
    model : PreTrainedModel
        A causal language model.

    Returns
    -------
    view : TransformerView
        Views of the model's parameters, without copies.

    Raises
    ------
    ValueError
        If this class of configuration has no view, or the model has no unembedding.
    """
    known = sorted(each.model_type for each in transformer_view.registry if each is not object)
    raise ValueError(
        f"init='principal' is not available for a teacher of type {getattr(config, 'model_type', None)!r}, only for "
        f"{', '.join(map(repr, known))}; use init='random'."
    )


def has_view(config: Any) -> bool:
    """Tell whether `transformer_view` knows a class of configuration."""
    return transformer_view.dispatch(type(config)) is not transformer_view.dispatch(object)


# GPT-NeoX


@student_config.register
def _(config: GPTNeoXConfig, width: int, *, n_heads: int | None = None) -> GPTNeoXConfig:
    rope = config.rope_parameters or {}
    share = rope.get("partial_rotary_factor", 1.0)
    n_heads, _ = _choose_heads(
        width,
        config.num_attention_heads,
        config.hidden_size,
        wanted=n_heads,
        can_rotate=lambda size: _rotated_dimensions(size, share) is not None,
    )
    size = int(width) // n_heads
    rotated = _rotated_dimensions(size, share)
    if rotated is not None and rotated != int(size * share):
        # The model truncates size × share to an integer; a larger share keeps rounding from lowering it.
        rope = {**rope, "partial_rotary_factor": float(np.nextafter(rotated / size, 1.0))}
    return _changed(
        config,
        hidden_size=int(width),
        num_attention_heads=n_heads,
        intermediate_size=_FFN_RATIO * int(width),
        rope_parameters=rope,
    )


@transformer_view.register
def _(config: GPTNeoXConfig, model: Any) -> TransformerView:
    base = model.gpt_neox
    frequencies = base.rotary_emb.inv_freq

    def block(layer: Any) -> tuple[Attention, FeedForward]:
        attention, mlp = layer.attention, layer.mlp
        weight, bias = _reshaped(attention.query_key_value, config.num_attention_heads, 3, attention.head_size)
        queries, keys, values = (Affine(weight[:, i], None if bias is None else bias[:, i]) for i in range(3))
        out = Affine(attention.dense.weight.unflatten(1, (-1, attention.head_size)), attention.dense.bias)
        return (
            Attention(
                attention.dense,
                _norm(layer.input_layernorm),
                queries,
                keys,
                values,
                out,
                attention.scaling,
                frequencies,
            ),
            FeedForward(
                mlp.dense_4h_to_h,
                _norm(layer.post_attention_layernorm),
                [_reshaped(mlp.dense_h_to_4h, len(mlp.dense_h_to_4h.weight))],
                Affine(mlp.dense_4h_to_h.weight, mlp.dense_4h_to_h.bias),
            ),
        )

    blocks = [block(layer) for layer in base.layers]
    return TransformerView([base.embed_in.weight], blocks, _norm(base.final_layer_norm), _unembedding(model))


# Llama


@student_config.register
def _(config: LlamaConfig, width: int, *, n_heads: int | None = None) -> LlamaConfig:
    n_heads, n_key_value_heads = _choose_heads(
        width,
        config.num_attention_heads,
        config.num_attention_heads * config.head_dim,
        n_key_value_heads=config.num_key_value_heads,
        wanted=n_heads,
        can_rotate=lambda size: size % 2 == 0,
    )
    return _changed(
        config,
        hidden_size=int(width),
        num_attention_heads=n_heads,
        num_key_value_heads=n_key_value_heads,
        head_dim=int(width) // n_heads,
        intermediate_size=max(round(config.intermediate_size / config.hidden_size * int(width)), 1),
    )


@transformer_view.register
def _(config: LlamaConfig, model: Any) -> TransformerView:
    base = model.model
    frequencies = base.rotary_emb.inv_freq

    def block(layer: Any) -> tuple[Attention, FeedForward]:
        attention, mlp = layer.self_attn, layer.mlp
        size = attention.head_dim
        out = Affine(attention.o_proj.weight.unflatten(1, (-1, size)), attention.o_proj.bias)
        return (
            Attention(
                attention.o_proj,
                _norm(layer.input_layernorm),
                _reshaped(attention.q_proj, -1, size),
                _reshaped(attention.k_proj, -1, size),
                _reshaped(attention.v_proj, -1, size),
                out,
                attention.scaling,
                frequencies,
            ),
            FeedForward(
                mlp.down_proj,
                _norm(layer.post_attention_layernorm),
                [_reshaped(each, len(each.weight)) for each in (mlp.gate_proj, mlp.up_proj)],
                Affine(mlp.down_proj.weight, mlp.down_proj.bias),
            ),
        )

    blocks = [block(layer) for layer in base.layers]
    return TransformerView([base.embed_tokens.weight], blocks, _norm(base.norm), _unembedding(model))


# GPT-2


@student_config.register
def _(config: GPT2Config, width: int, *, n_heads: int | None = None) -> GPT2Config:
    n_heads, _ = _choose_heads(width, config.n_head, config.n_embd, wanted=n_heads)
    return _changed(config, n_embd=int(width), n_head=n_heads, n_inner=_FFN_RATIO * int(width))


@transformer_view.register
def _(config: GPT2Config, model: Any) -> TransformerView:
    base = model.transformer

    def block(layer: Any) -> tuple[Attention, FeedForward]:
        attention, mlp = layer.attn, layer.mlp
        # GPT-2 stores weights transposed.
        weight = attention.c_attn.weight.unflatten(1, (3, config.n_head, -1)).permute(1, 2, 3, 0)
        bias = attention.c_attn.bias.view(3, config.n_head, -1)
        queries, keys, values = (Affine(weight[i], bias[i]) for i in range(3))
        out = attention.c_proj.weight.unflatten(0, (config.n_head, -1)).permute(2, 0, 1)
        return (
            Attention(
                attention.c_proj,
                _norm(layer.ln_1),
                queries,
                keys,
                values,
                Affine(out, attention.c_proj.bias),
                attention.scaling,
                torch.empty(0),
            ),
            FeedForward(
                mlp.c_proj,
                _norm(layer.ln_2),
                [Affine(mlp.c_fc.weight.T, mlp.c_fc.bias)],
                Affine(mlp.c_proj.weight.T, mlp.c_proj.bias),
            ),
        )

    blocks = [block(layer) for layer in base.h]
    return TransformerView([base.wte.weight, base.wpe.weight], blocks, _norm(base.ln_f), _unembedding(model))


# For all families


def check_positive_width(name: str, width: Any) -> int:
    """Return a student's width as an ``int``.

    Raises
    ------
    ValueError
        If it is no whole number of at least 1; for width 0 the message names `zero_width_kl`.
    """
    if check_number(name, width, whole=True) == 0:
        raise ValueError(
            f"{name}=0 leaves a student no dimensions to train; geofloor.language_models.zero_width_kl(teacher, "
            "tokens) computes the loss of width 0."
        )
    return check_number(name, width, 1, whole=True)


def _changed(config: Any, **changes: Any) -> Any:
    return type(config).from_dict({**config.to_dict(), "dtype": "float32", **changes})


def _rotated_dimensions(size: int, share: float) -> int | None:
    """Round the rotated share of a head to an even number of dimensions; None if fewer than 2 would remain."""
    if share == 1.0:
        return size if size % 2 == 0 else None
    return max(2 * round(size * share / 2), 2) if size >= 2 else None


def _choose_heads(
    width: int,
    n_heads: int,
    teacher_width: int,
    *,
    n_key_value_heads: int | None = None,
    wanted: int | None = None,
    can_rotate: Callable[[int], bool] | None = None,
) -> tuple[int, int]:
    """Choose the student's numbers of query heads and of key and value heads.

    Parameters
    ----------
    width : int
        Of the student.
    n_heads, teacher_width, n_key_value_heads : int
        Of the teacher.
    wanted : int or None
        Query heads of the student, if the caller has chosen them.
    can_rotate : callable or None
        Tells whether rotary embeddings can be applied to heads of a given size; None without rotary embeddings.

    Raises
    ------
    ValueError
        If no number of heads fits; the message names widths or numbers that do.
    """
    width = check_positive_width("width", width)
    if wanted is not None:
        wanted = check_number("n_heads", wanted, 1, whole=True)
    head_size = teacher_width // n_heads
    group = n_heads // (n_key_value_heads or n_heads)
    smallest = min(_SMALLEST_HEAD, head_size)

    def fitting(width: int) -> list[int]:
        sizes = {n: width // n for n in range(1, n_heads + 1) if width % n == 0}
        return [
            n
            for n, size in sizes.items()
            if (size >= smallest or n == 1) and size <= 2 * head_size and (can_rotate is None or can_rotate(size))
        ]

    if wanted is not None:
        possible = [n for n in range(1, width + 1) if width % n == 0 and (can_rotate is None or can_rotate(width // n))]
        if wanted not in possible:
            raise ValueError(
                f"n_heads={wanted!r} can't divide width={width}{_EVEN if can_rotate else ''}; use one of {possible}."
            )
    found = fitting(width) if wanted is None else [wanted]
    if not found:
        distances = range(1, _SEARCHED + 1)
        near = [w for distance in distances for w in (width - distance, width + distance) if w > 0 and fitting(w)]
        raise ValueError(
            f"width={width} can't be divided into at most {n_heads} heads of {smallest} to {2 * head_size} "
            f"dimensions{_EVEN if can_rotate else ''}; use {' or '.join(map(str, sorted(near[:2])))}."
        )
    n = max(found, key=lambda n: (n % group == 0, n))
    if n % group == 0:
        return n, n // group
    return n, max(k for k in range(1, n + 1) if n % k == 0 and k <= (n_key_value_heads or n))


def _norm(module: Any) -> Norm:
    return Norm(module, module.weight, getattr(module, "bias", None))


def _reshaped(linear: Any, *shape: int) -> Affine:
    """View a linear layer with its outputs arranged in a shape."""
    bias = linear.bias
    return Affine(linear.weight.unflatten(0, shape), None if bias is None else bias.unflatten(0, shape))


def _unembedding(model: Any) -> torch.Tensor:
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(
            f"init='principal' needs a causal language model, not a {type(model).__name__}; use init='random'."
        )
    return head.weight
