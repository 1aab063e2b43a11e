"""Weights of language models as views: what a principal start reads from the teacher and writes into the student.

A family takes part by the class of its configuration: register a function with `transformer_view`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)


class Norm(NamedTuple):
    """A normalization over the dimensions of the residual stream."""

    module: torch.nn.Module
    weight: torch.Tensor  # (d,)
    bias: torch.Tensor | None  # (d,); None if the normalization does not subtract the mean over dimensions
    offset: float = 0.0  # the gain is the offset plus the weight

    @property
    def gain(self) -> torch.Tensor:
        """Factors (d,) on the normalized dimensions."""
        return self.weight + self.offset

    def set_gain(self, gain: torch.Tensor) -> None:
        """Set the gain, in place."""
        self.weight.copy_(gain - self.offset)


class HeadNorm(NamedTuple):
    """A normalization of queries or keys."""

    module: torch.nn.Module
    weight: torch.Tensor  # (size,) if each head is normalized by itself, (n_heads, size) if all are together


class Affine(NamedTuple):
    """An affine map."""

    weight: torch.Tensor
    bias: torch.Tensor | None


class Attention(NamedTuple):
    """The attention of a block."""

    entry: torch.nn.Module  # its input is the residual stream
    module: torch.nn.Module  # output projection
    norm: Norm | None  # before attention
    queries: Affine  # (n_heads, size, d)
    keys: Affine  # (n_key_value_heads, size, d)
    values: Affine  # (n_key_value_heads, size, d)
    out: Affine  # (d, n_heads, size)
    scaling: float  # of attention scores
    frequencies: torch.Tensor  # (n,): the i-th rotates dimensions i and i + n of a head
    query_norm: HeadNorm | None = None
    key_norm: HeadNorm | None = None
    out_norm: Norm | None = None  # of what attention adds to the stream


class FeedForward(NamedTuple):
    """The feed-forward part of a block."""

    module: torch.nn.Module  # output projection
    norm: Norm | None  # before the feed-forward part
    readers: Sequence[Affine]  # (n_units, d)
    out: Affine  # (d, n_units)
    out_norm: Norm | None = None  # of what the feed-forward part adds to the stream


class TransformerView(NamedTuple):
    """All readers and writers of the residual stream."""

    embeddings: Sequence[torch.Tensor]  # (n, d); token embeddings come first
    blocks: Sequence[tuple[Attention, FeedForward]]
    norm: Norm
    unembedding: torch.Tensor  # (n_vocabulary, d)
    embedding_scale: float = 1.0  # factor on the embeddings as they enter the stream

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
        If this class of configuration has no view, or the model's variant of the architecture has none.
    """
    known = sorted(each.model_type for each in transformer_view.registry if each is not object)
    raise ValueError(
        f"init='principal' is not available for a teacher of type {getattr(config, 'model_type', None)!r}, only for "
        f"{', '.join(map(repr, known))}; use init='random'."
    )


# GPT-NeoX


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
                layer.input_layernorm,
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
                [_rows(mlp.dense_h_to_4h)],
                Affine(mlp.dense_4h_to_h.weight, mlp.dense_4h_to_h.bias),
            ),
        )

    blocks = [block(layer) for layer in base.layers]
    return TransformerView([base.embed_in.weight], blocks, _norm(base.final_layer_norm), _unembedding(model))


# Llama and its relatives: rotary embeddings, gated feed-forward units, and normalizations that keep the mean


@transformer_view.register(LlamaConfig)
@transformer_view.register(MistralConfig)
@transformer_view.register(Qwen2Config)
@transformer_view.register(SmolLM3Config)
def _(config: Any, model: Any) -> TransformerView:
    frequencies = model.model.rotary_emb.inv_freq
    unrotated = torch.empty(0)
    # SmolLM3 rotates the heads of some blocks only.
    blocks = [
        _llama_block(
            layer,
            frequencies if getattr(layer.self_attn, "use_rope", True) else unrotated,
            _norm(layer.input_layernorm),
            _norm(layer.post_attention_layernorm),
        )
        for layer in model.model.layers
    ]
    return _llama_view(model, blocks)


@transformer_view.register
def _(config: Qwen3Config, model: Any) -> TransformerView:
    frequencies = model.model.rotary_emb.inv_freq
    blocks = []
    for layer in model.model.layers:
        attention, feed_forward = _llama_block(
            layer, frequencies, _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        )
        blocks.append((_with_head_norms(attention, layer.self_attn), feed_forward))
    return _llama_view(model, blocks)


@transformer_view.register
def _(config: Phi3Config, model: Any) -> TransformerView:
    frequencies = model.model.rotary_emb.inv_freq

    def block(layer: Any) -> tuple[Attention, FeedForward]:
        attention, mlp = layer.self_attn, layer.mlp
        size = attention.head_dim
        n_heads, n_shared = config.num_attention_heads, config.num_key_value_heads
        weight, _ = _reshaped(attention.qkv_proj, -1, size)
        queries, keys, values = (Affine(each, None) for each in weight.split([n_heads, n_shared, n_shared]))
        return (
            Attention(
                layer.input_layernorm,
                attention.o_proj,
                _norm(layer.input_layernorm),
                queries,
                keys,
                values,
                Affine(attention.o_proj.weight.unflatten(1, (-1, size)), None),
                attention.scaling,
                frequencies,
            ),
            FeedForward(
                mlp.down_proj,
                _norm(layer.post_attention_layernorm),
                [Affine(each, None) for each in mlp.gate_up_proj.weight.chunk(2)],
                Affine(mlp.down_proj.weight, None),
            ),
        )

    return _llama_view(model, [block(layer) for layer in model.model.layers])


@transformer_view.register
def _(config: Olmo2Config, model: Any) -> TransformerView:
    base = model.model
    blocks = []
    for layer in base.layers:
        attention, feed_forward = _llama_block(
            layer,
            base.rotary_emb.inv_freq,
            None,
            None,
            _norm(layer.post_attention_layernorm),
            _norm(layer.post_feedforward_layernorm),
        )
        blocks.append((_with_head_norms(attention, layer.self_attn, together=True), feed_forward))
    return _llama_view(model, blocks)


# Gemma: gains are 1 + weight, and embeddings are multiplied as they enter the stream


@transformer_view.register
def _(config: GemmaConfig, model: Any) -> TransformerView:
    base = model.model
    blocks = [
        _llama_block(
            layer,
            base.rotary_emb.inv_freq,
            _norm(layer.input_layernorm, offset=1.0),
            _norm(layer.post_attention_layernorm, offset=1.0),
        )
        for layer in base.layers
    ]
    return _gemma_view(model, blocks)


@transformer_view.register(Gemma2Config)
@transformer_view.register(Gemma3TextConfig)
def _(config: Any, model: Any) -> TransformerView:
    base = model.model
    blocks = []
    for layer, kind in zip(base.layers, config.layer_types, strict=False):
        rotary = base.rotary_emb
        frequencies = getattr(rotary, "inv_freq", None)  # Gemma 3 has other frequencies for sliding windows
        attention, feed_forward = _llama_block(
            layer,
            getattr(rotary, f"{kind}_inv_freq") if frequencies is None else frequencies,
            _norm(layer.input_layernorm, offset=1.0),
            _norm(layer.pre_feedforward_layernorm, offset=1.0),
            _norm(layer.post_attention_layernorm, offset=1.0),
            _norm(layer.post_feedforward_layernorm, offset=1.0),
        )
        if hasattr(layer.self_attn, "q_norm"):
            attention = _with_head_norms(attention, layer.self_attn)
        blocks.append((attention, feed_forward))
    return _gemma_view(model, blocks)


# GPT-2 and OPT: learned positions, and biases everywhere


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
                layer.ln_1,
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


@transformer_view.register
def _(config: OPTConfig, model: Any) -> TransformerView:
    decoder = model.model.decoder
    for present, what in (
        (config.do_layer_norm_before, "normalizations after each sublayer (do_layer_norm_before=False)"),
        (config.word_embed_proj_dim == config.hidden_size, "embeddings of another width (word_embed_proj_dim)"),
        (config.layer_norm_elementwise_affine, "normalizations without gains (layer_norm_elementwise_affine=False)"),
        (decoder.final_layer_norm is not None, "no final normalization"),
    ):
        if not present:
            raise ValueError(f"init='principal' is not available for an OPT with {what}; use init='random'.")

    def block(layer: Any) -> tuple[Attention, FeedForward]:
        attention = layer.self_attn
        size = attention.head_dim
        out = attention.out_proj
        return (
            Attention(
                layer.self_attn_layer_norm,
                out,
                _norm(layer.self_attn_layer_norm),
                _reshaped(attention.q_proj, -1, size),
                _reshaped(attention.k_proj, -1, size),
                _reshaped(attention.v_proj, -1, size),
                Affine(out.weight.unflatten(1, (-1, size)), out.bias),
                attention.scaling,
                torch.empty(0),
            ),
            FeedForward(
                layer.fc2,
                _norm(layer.final_layer_norm),
                [_rows(layer.fc1)],
                Affine(layer.fc2.weight, layer.fc2.bias),
            ),
        )

    return TransformerView(
        [decoder.embed_tokens.weight, decoder.embed_positions.weight],
        [block(layer) for layer in decoder.layers],
        _norm(decoder.final_layer_norm),
        _unembedding(model),
    )


# For all families


def _norm(module: Any, offset: float = 0.0) -> Norm:
    return Norm(module, module.weight, getattr(module, "bias", None), offset)


def _reshaped(linear: Any, *shape: int) -> Affine:
    """View a linear layer with its outputs arranged in a shape."""
    bias = linear.bias
    return Affine(linear.weight.unflatten(0, shape), None if bias is None else bias.unflatten(0, shape))


def _rows(linear: Any) -> Affine:
    return Affine(linear.weight, linear.bias)


def _llama_block(
    layer: Any,
    frequencies: torch.Tensor,
    attention_norm: Norm | None,
    feed_forward_norm: Norm | None,
    attention_out_norm: Norm | None = None,
    feed_forward_out_norm: Norm | None = None,
) -> tuple[Attention, FeedForward]:
    attention, mlp = layer.self_attn, layer.mlp
    size = attention.head_dim
    return (
        Attention(
            layer if attention_norm is None else attention_norm.module,
            attention.o_proj,
            attention_norm,
            _reshaped(attention.q_proj, -1, size),
            _reshaped(attention.k_proj, -1, size),
            _reshaped(attention.v_proj, -1, size),
            Affine(attention.o_proj.weight.unflatten(1, (-1, size)), attention.o_proj.bias),
            attention.scaling,
            frequencies,
            out_norm=attention_out_norm,
        ),
        FeedForward(
            mlp.down_proj,
            feed_forward_norm,
            [_rows(mlp.gate_proj), _rows(mlp.up_proj)],
            _rows(mlp.down_proj),
            feed_forward_out_norm,
        ),
    )


def _with_head_norms(attention: Attention, module: Any, *, together: bool = False) -> Attention:
    def head_norm(norm: Any, affine: Affine) -> HeadNorm:
        return HeadNorm(norm, norm.weight.view(affine.weight.shape[:2]) if together else norm.weight)

    return attention._replace(
        query_norm=head_norm(module.q_norm, attention.queries), key_norm=head_norm(module.k_norm, attention.keys)
    )


def _llama_view(model: Any, blocks: Sequence[tuple[Attention, FeedForward]]) -> TransformerView:
    base = model.model
    return TransformerView([base.embed_tokens.weight], blocks, _norm(base.norm), _unembedding(model))


def _gemma_view(model: Any, blocks: Sequence[tuple[Attention, FeedForward]]) -> TransformerView:
    base = model.model
    return TransformerView(
        [base.embed_tokens.weight],
        blocks,
        _norm(base.norm, offset=1.0),
        _unembedding(model),
        float(getattr(base.embed_tokens, "embed_scale", model.config.hidden_size**0.5)),
    )


def _unembedding(model: Any) -> torch.Tensor:
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(
            f"init='principal' needs a causal language model, not a {type(model).__name__}; use init='random'."
        )
    return head.weight
