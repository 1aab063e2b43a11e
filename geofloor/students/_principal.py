"""A student as its teacher, seen through the principal directions of the teacher's residual stream."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig

from geofloor.language_models._hooks import evaluating, hooked
from geofloor.language_models._token_rows import TokenRows

_N_TOKENS = 16_384  # residual vectors a block that principal directions are taken from


# What a language model is made of: weights are views, so that those of a student can be set through them.


class _Norm(NamedTuple):
    module: torch.nn.Module
    gain: torch.Tensor  # (d,)
    bias: torch.Tensor | None  # (d,); None for a normalisation that leaves the mean over dimensions


class _Affine(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor | None


class _Attention(NamedTuple):
    module: torch.nn.Module  # takes what the heads give
    norm: _Norm
    queries: _Affine  # (n_heads, size, d)
    keys: _Affine  # (n_key_value_heads, size, d)
    values: _Affine  # (n_key_value_heads, size, d)
    out: _Affine  # (d, n_heads, size)
    scaling: float  # of scores
    frequencies: torch.Tensor  # (n,): dimensions i and i + n of a head are rotated with the i-th


class _FeedForward(NamedTuple):
    module: torch.nn.Module  # takes what the units give
    norm: _Norm
    readers: Sequence[_Affine]  # (n_units, d)
    out: _Affine  # (d, n_units)


class _Parts(NamedTuple):
    embeddings: Sequence[torch.Tensor]  # (n, d), the first of tokens
    blocks: Sequence[tuple[_Attention, _FeedForward]]
    norm: _Norm
    unembedding: torch.Tensor  # (n_vocabulary, d)

    @property
    def tied(self) -> bool:
        return self.unembedding.data_ptr() == self.embeddings[0].data_ptr()


@functools.singledispatch
def _parts(config: Any, model: Any) -> _Parts:
    raise ValueError(
        f"init='principal' is not there for a teacher of type {getattr(config, 'model_type', None)!r}, only for "
        "'gpt_neox', 'llama' and 'gpt2'; use init='random'."
    )


def _norm(module: Any) -> _Norm:
    return _Norm(module, module.weight, getattr(module, "bias", None))


def _affine(linear: Any, *shape: int) -> _Affine:
    """A reader's weight and bias, its outputs in a shape of their own."""
    bias = linear.bias
    return _Affine(linear.weight.unflatten(0, shape), None if bias is None else bias.unflatten(0, shape))


@_parts.register
def _(config: GPTNeoXConfig, model: Any) -> _Parts:
    base = model.gpt_neox
    frequencies = base.rotary_emb.inv_freq

    def block(layer: Any) -> tuple[_Attention, _FeedForward]:
        attention, mlp = layer.attention, layer.mlp
        weight, bias = _affine(attention.query_key_value, config.num_attention_heads, 3, attention.head_size)
        queries, keys, values = (_Affine(weight[:, i], None if bias is None else bias[:, i]) for i in range(3))
        out = _Affine(attention.dense.weight.unflatten(1, (-1, attention.head_size)), attention.dense.bias)
        return (
            _Attention(
                attention.dense,
                _norm(layer.input_layernorm),
                queries,
                keys,
                values,
                out,
                attention.scaling,
                frequencies,
            ),
            _FeedForward(
                mlp.dense_4h_to_h,
                _norm(layer.post_attention_layernorm),
                [_affine(mlp.dense_h_to_4h, len(mlp.dense_h_to_4h.weight))],
                _Affine(mlp.dense_4h_to_h.weight, mlp.dense_4h_to_h.bias),
            ),
        )

    embeddings = [base.embed_in.weight]
    return _Parts(embeddings, [block(x) for x in base.layers], _norm(base.final_layer_norm), _unembedding(model))


@_parts.register
def _(config: LlamaConfig, model: Any) -> _Parts:
    base = model.model
    frequencies = base.rotary_emb.inv_freq

    def block(layer: Any) -> tuple[_Attention, _FeedForward]:
        attention, mlp = layer.self_attn, layer.mlp
        size = attention.head_dim
        out = _Affine(attention.o_proj.weight.unflatten(1, (-1, size)), attention.o_proj.bias)
        return (
            _Attention(
                attention.o_proj,
                _norm(layer.input_layernorm),
                _affine(attention.q_proj, -1, size),
                _affine(attention.k_proj, -1, size),
                _affine(attention.v_proj, -1, size),
                out,
                attention.scaling,
                frequencies,
            ),
            _FeedForward(
                mlp.down_proj,
                _norm(layer.post_attention_layernorm),
                [_affine(each, len(each.weight)) for each in (mlp.gate_proj, mlp.up_proj)],
                _Affine(mlp.down_proj.weight, mlp.down_proj.bias),
            ),
        )

    return _Parts([base.embed_tokens.weight], [block(x) for x in base.layers], _norm(base.norm), _unembedding(model))


@_parts.register
def _(config: GPT2Config, model: Any) -> _Parts:
    base = model.transformer

    def block(layer: Any) -> tuple[_Attention, _FeedForward]:
        attention, mlp = layer.attn, layer.mlp
        # Weights of GPT-2 are transposed.
        weight = attention.c_attn.weight.unflatten(1, (3, config.n_head, -1)).permute(1, 2, 3, 0)
        bias = attention.c_attn.bias.view(3, config.n_head, -1)
        queries, keys, values = (_Affine(weight[i], bias[i]) for i in range(3))
        out = attention.c_proj.weight.unflatten(0, (config.n_head, -1)).permute(2, 0, 1)
        return (
            _Attention(
                attention.c_proj,
                _norm(layer.ln_1),
                queries,
                keys,
                values,
                _Affine(out, attention.c_proj.bias),
                attention.scaling,
                torch.empty(0),
            ),
            _FeedForward(
                mlp.c_proj,
                _norm(layer.ln_2),
                [_Affine(mlp.c_fc.weight.T, mlp.c_fc.bias)],
                _Affine(mlp.c_proj.weight.T, mlp.c_proj.bias),
            ),
        )

    embeddings = [base.wte.weight, base.wpe.weight]
    return _Parts(embeddings, [block(x) for x in base.h], _norm(base.ln_f), _unembedding(model))


def _unembedding(model: Any) -> torch.Tensor:
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(
            f"init='principal' needs a causal language model, not a {type(model).__name__}; use init='random'."
        )
    return head.weight


# The projection


def project(teacher: Any, student: Any, tokens: Any) -> None:
    """Set a student's weights, in place, to those of the teacher seen through its principal directions.

    Every reader of the residual stream normalises it first. Where that takes out the mean over dimensions, the stream
    may be centred, and the student keeps its mean direction for that: the other width − 1 carry the teacher's
    principal directions. Gains and biases of normalisations go into the weights that follow. Of feed-forward units and
    heads those are kept that write most; within heads, products of queries with keys and of outputs with values are
    cut to their largest singular values, and rotated dimensions are matched by frequency. An unembedding that is the
    embedding can take no gain: there the final normalisation keeps what of its gain falls on each direction. At the
    teacher's own width and sizes this is the teacher.
    """
    source, target = _parts(teacher.config, teacher), _parts(student.config, student)
    width = target.embeddings[0].shape[1]
    _check(source)
    sample = _token_sample(teacher, source, tokens)
    if [each.shape for each in student.parameters()] == [each.shape for each in teacher.parameters()]:
        student.load_state_dict(teacher.state_dict())
        return
    covariance, heads, units = _measured(source, teacher, sample)
    centres = source.norm.bias is not None
    basis = _basis(covariance, width, centres)
    stream = _Stream(basis, centres)
    for old, new in zip(source.embeddings, target.embeddings, strict=True):
        new.copy_(stream.written(_double(old).T).T)
    for (attention, feed_forward), (new_attention, new_feed_forward), on_heads, on_units in zip(
        source.blocks, target.blocks, heads, units, strict=True
    ):
        _project_attention(stream, attention, new_attention, on_heads)
        _project_feed_forward(stream, feed_forward, new_feed_forward, on_units)
    gain, unembedding = _double(source.norm.gain), _double(source.unembedding)
    if target.tied:
        target.norm.gain.copy_(stream.scale * (basis.square() * gain[:, None]).sum(dim=0))
        projected = _double(target.unembedding)
    else:
        projected = (unembedding * gain) @ stream.read
        target.unembedding.copy_(projected)
    if source.norm.bias is not None and target.norm.bias is not None:
        # The unembedding has no bias, so what the normalisation's bias does to logits is fitted by another.
        wanted = unembedding @ _double(source.norm.bias)
        target.norm.bias.copy_(torch.linalg.lstsq(projected, wanted[:, None], driver="gelsd").solution[:, 0])


def _check(source: _Parts) -> None:
    if _lacks_biases(source):
        raise ValueError(
            "init='principal' needs biases in the attention of a teacher whose normalisations have them "
            "(attention_bias=True); use init='random'."
        )


def _token_sample(teacher: Any, source: _Parts, tokens: Any) -> np.ndarray:
    """Token ids that the teacher is measured on."""
    if tokens is None:
        raise ValueError("init='principal' needs tokens of shape (n_sequences, seq_len) to measure the teacher on.")
    limit = getattr(teacher.config.get_text_config(), "max_position_embeddings", None)
    rows = TokenRows(tokens, "tokens", len(source.embeddings[0]), limit, None)
    n_sequences = max(_N_TOKENS // rows.length, 1)
    return rows.take(np.arange(min(n_sequences, len(rows)))).ids


def _lacks_biases(source: _Parts) -> bool:
    if source.norm.bias is None:
        return False
    affine = [
        part
        for attention, feed_forward in source.blocks
        for part in (attention.queries, attention.out, *feed_forward.readers, feed_forward.out)
    ]
    return any(part.bias is None for part in affine)


def is_known(teacher: Any) -> bool:
    """Whether students of a teacher can start in its principal directions."""
    config = teacher.config
    return _parts.dispatch(type(config)) is not _parts.dispatch(object) and not _lacks_biases(_parts(config, teacher))


class _Moments:
    """A hook that sums second moments, over positions, of what goes into a module."""

    def __init__(self, module: torch.nn.Module, *, full: bool, centred: bool = False) -> None:
        self.module = module
        self._full, self._centred = full, centred
        self._n = 0
        self._total: Any = 0.0

    def __call__(self, module: torch.nn.Module, inputs: Any) -> None:
        rows = inputs[0].detach().flatten(0, -2).cpu().double()
        self._n += len(rows)
        if self._centred:
            rows = rows - rows.mean(dim=1, keepdim=True)
        self._total = self._total + (rows.T @ rows if self._full else rows.square().sum(dim=0))

    def mean(self) -> torch.Tensor:
        return self._total / self._n


def _measured(
    source: _Parts, teacher: Any, tokens: np.ndarray
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Covariance of the residual stream over all blocks; of each block the second moments of heads and units."""
    norms = [*(attention.norm for attention, _ in source.blocks), source.norm]
    centred = source.norm.bias is not None
    streams = [_Moments(norm.module, full=True, centred=centred) for norm in norms]
    heads = [_Moments(attention.module, full=False) for attention, _ in source.blocks]
    units = [_Moments(feed_forward.module, full=False) for _, feed_forward in source.blocks]
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(teacher))
        for moments in (*streams, *heads, *units):
            stack.enter_context(hooked(moments.module, moments, before=True))
        for part in np.array_split(tokens, max(len(tokens) // 8, 1)):
            teacher.base_model(torch.from_numpy(part).to(teacher.device), use_cache=False)
    covariance = torch.stack([moments.mean() for moments in streams])
    # Every normalisation divides by the norm, so that streams count alike.
    covariance /= covariance.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
    return covariance.sum(dim=0), [each.mean() for each in heads], [each.mean() for each in units]


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().double()


def _basis(covariance: torch.Tensor, width: int, centred: bool) -> torch.Tensor:
    """Orthonormal columns (d_teacher, width): principal directions, and of a centred stream the mean one for itself."""
    if not centred:
        return torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :width]
    n = len(covariance)
    ones = torch.full((n, 1), n**-0.5, dtype=covariance.dtype)
    # The mean direction has no variance; it must come last among directions without any, too.
    below = covariance - (covariance.diagonal().sum() + 1.0) * ones @ ones.T
    directions = torch.linalg.eigh(below).eigenvectors.flip(1)[:, : width - 1]
    own = torch.full((width, 1), width**-0.5, dtype=covariance.dtype)
    complement = torch.linalg.qr(torch.cat([own, torch.eye(width, dtype=own.dtype)[:, : width - 1]], dim=1))[0][:, 1:]
    return directions @ complement.T + ones @ own.T


class _Stream:
    """How a student's residual stream is written and read in place of the teacher's."""

    def __init__(self, basis: torch.Tensor, centred: bool) -> None:
        self.basis, self.centred = basis, centred
        # A normalised stream has the length of the root of its dimensions.
        self.scale = (basis.shape[0] / basis.shape[1]) ** 0.5
        self.read = basis * self.scale

    def written(self, weight: torch.Tensor) -> torch.Tensor:
        """What is written, (d_teacher, ...), to (d_student, ...)."""
        if self.centred:
            weight = weight - weight.mean(dim=0, keepdim=True)
        return torch.tensordot(self.basis.T, weight, dims=1)

    def seen(self, reader: _Affine, norm: _Norm) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight (..., d_student) and bias (...) of a reader with its normalisation inside."""
        weight = _double(reader.weight)
        bias = torch.zeros(weight.shape[:-1], dtype=weight.dtype) if reader.bias is None else _double(reader.bias)
        if norm.bias is not None:
            bias = bias + weight @ _double(norm.bias)
        return (weight * _double(norm.gain)) @ self.read, bias


def _set(target: _Affine, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    target.weight.copy_(weight)
    if target.bias is not None and bias is not None:
        target.bias.copy_(bias)


def _largest(values: torch.Tensor, n: int) -> torch.Tensor:
    """Positions of the n largest values, in order of position."""
    return torch.sort(torch.argsort(values, descending=True, stable=True)[:n])[0]


def _project_feed_forward(stream: _Stream, old: _FeedForward, new: _FeedForward, moments: torch.Tensor) -> None:
    out = stream.written(_double(old.out.weight))
    kept = _largest(moments * out.square().sum(dim=0), new.out.weight.shape[1])
    for reader, new_reader in zip(old.readers, new.readers, strict=True):
        weight, bias = stream.seen(reader, old.norm)
        new_reader.weight[: len(kept)] = weight[kept]
        if new_reader.bias is not None:
            new_reader.bias[: len(kept)] = bias[kept]
    written = torch.zeros(new.out.weight.shape, dtype=out.dtype)  # units that the teacher lacks write nothing yet
    written[:, : len(kept)] = out[:, kept]
    _set(new.out, written, None if old.out.bias is None else stream.written(_double(old.out.bias)))


def _project_attention(stream: _Stream, old: _Attention, new: _Attention, moments: torch.Tensor) -> None:
    """Choose heads, and cut each to the student's size.

    What the teacher has nothing for keeps its random keys and values beside queries and outputs of zero, so that it
    does nothing yet and can learn.
    """
    (queries, on_queries), (keys, on_keys), (values, on_values) = (
        stream.seen(reader, old.norm) for reader in (old.queries, old.keys, old.values)
    )
    out = stream.written(_double(old.out.weight))
    size, new_size = queries.shape[1], new.queries.weight.shape[1]
    group, new_group = len(queries) // len(keys), len(new.queries.weight) // len(new.keys.weight)
    n_pairs, n_new_pairs = len(old.frequencies), len(new.frequencies)
    pairs = _matched(old.frequencies, new.frequencies)
    strength = (moments * out.flatten(1).square().sum(dim=0)).view(len(keys), group, size).sum(dim=2)

    new_queries = torch.zeros((*new.queries.weight.shape[:2], queries.shape[2] + 1), dtype=out.dtype)  # of (x, 1)
    new_keys = torch.cat([_double(new.keys.weight), torch.zeros(*new.keys.weight.shape[:2], 1, dtype=out.dtype)], dim=2)
    new_values, new_out = _double(new.values.weight), torch.zeros(new.out.weight.shape, dtype=out.dtype)
    for place, kept in enumerate(_largest(strength.sum(dim=1), len(new_keys)).tolist()):
        chosen = (kept * group + _largest(strength[kept], new_group)).tolist()
        places = slice(place * new_group, place * new_group + len(chosen))
        both = torch.cat([queries[chosen], on_queries[chosen, :, None]], dim=2)
        key = torch.cat([keys[kept], on_keys[kept, :, None]], dim=1)
        for i, k in pairs:
            for at, new_at in ((k, i), (k + n_pairs, i + n_new_pairs)):
                new_queries[places, new_at] = both[:, at]
                new_keys[place, new_at] = key[at]
        free, found = _cut(both[:, 2 * n_pairs :].transpose(1, 2), key[2 * n_pairs :].T, new_size - 2 * n_new_pairs)
        new_queries[places, 2 * n_new_pairs : 2 * n_new_pairs + free.shape[2]] = free.transpose(1, 2)
        new_keys[place, 2 * n_new_pairs : 2 * n_new_pairs + found.shape[1]] = found.T
        written, value = _cut(out[:, chosen].transpose(0, 1), values[kept].T, new_size)
        new_out[:, places, : written.shape[2]] = written.transpose(0, 1)
        new_values[place, : value.shape[1]] = value.T
    new_queries *= old.scaling / new.scaling
    _set(new.queries, new_queries[..., :-1], new_queries[..., -1])
    _set(new.keys, new_keys[..., :-1], new_keys[..., -1])
    _set(new.values, new_values, torch.zeros(new_values.shape[:2]))
    # Attention sums to one, so that a value's bias is a constant, of heads that are left out as well.
    constant = torch.einsum("dhs,hs->d", out, on_values.repeat_interleave(group, dim=0))
    _set(new.out, new_out, constant if old.out.bias is None else constant + stream.written(_double(old.out.bias)))


def _matched(old: torch.Tensor, new: torch.Tensor) -> list[tuple[int, int]]:
    """For pairs of rotated dimensions of the student those of the teacher nearest in frequency, each used once."""
    matched: dict[int, int] = {}
    for i, frequency in enumerate(_double(new)):
        matched.setdefault(int((_double(old).log() - frequency.log()).abs().argmin()), i)
    return [(i, k) for k, i in matched.items()]


def _cut(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Products a bᵀ of matrices (n, rows, size) and one (columns, size) at a lower rank.

    Singular values are shared between the factors.
    """
    (q_a, r_a), (q_b, r_b) = torch.linalg.qr(a.flatten(0, 1)), torch.linalg.qr(b)
    u, values, vt = torch.linalg.svd(r_a @ r_b.T, full_matrices=False)
    root = values[:rank].sqrt()
    return (q_a @ u[:, :rank] * root).view(*a.shape[:2], -1), q_b @ vt[:rank].T * root
