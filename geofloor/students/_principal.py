"""Initialize a student by projecting its teacher on the principal directions of the residual stream."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from geofloor.language_models._hooks import evaluating, hooked
from geofloor.language_models._token_rows import TokenRows
from geofloor.students._views import (
    Affine,
    Attention,
    FeedForward,
    HeadNorm,
    Norm,
    TransformerView,
    transformer_view,
)

_N_TOKENS = 16_384  # residual vectors per block from which principal directions are computed
_SEQUENCES_PER_PASS = 8
_FLOAT32_NOISE = 1e-5  # of a singular value, as a share of the largest
_SMALLEST_GAIN = 1e-3  # of a normalization after a writer, as a share of its largest gain


def has_principal_start(teacher: PreTrainedModel) -> bool:
    """Tell whether students of a teacher can start in its principal directions."""
    try:
        check_principal_start(teacher)
    except ValueError:
        return False
    return True


def check_principal_start(teacher: PreTrainedModel) -> TransformerView:
    """Refuse teachers whose students can't start in their principal directions.

    Parameters
    ----------
    teacher : PreTrainedModel
        The teacher.

    Returns
    -------
    view : TransformerView
        Its weights.

    Raises
    ------
    ValueError
        If the teacher's family has no view, or its attention lacks biases.
    """
    view = transformer_view(teacher.config, teacher)
    if reason := _unsupported_biases(view):
        raise ValueError(f"init='principal' needs {reason}; use init='random'.")
    return view


def project(teacher: PreTrainedModel, student: PreTrainedModel, tokens: Any) -> None:
    """Set a student's weights, in place, to the teacher's projected on its principal directions.

    A student with the teacher's own sizes is the teacher.

    Parameters
    ----------
    teacher, student : PreTrainedModel
        Models of one family.
    tokens : int array-like of shape (n_sequences, seq_len)
        Text on which the teacher is measured.

    Raises
    ------
    ValueError
        If the teacher's family has no view, its attention lacks biases, or `tokens` are none of its own.
    """
    source = check_principal_start(teacher)
    sample = _token_sample(teacher, source, tokens)
    if [each.shape for each in student.parameters()] == [each.shape for each in teacher.parameters()]:
        student.load_state_dict(teacher.state_dict())
    else:
        project_weights(source, transformer_view(student.config, student), _measure(source, teacher, sample))


def project_weights(source: TransformerView, target: TransformerView, moments: Moments) -> None:
    """Set the student's weights to the teacher's, projected on its principal directions.

    A normalization before a reader divides by the norm of the stream. If it also subtracts the mean over dimensions,
    the stream may be centered: the student then reserves its own mean direction, and the other width − 1 directions
    carry the teacher's principal ones. Gains and biases of such normalizations are absorbed by the weights that read
    their output. A tied unembedding can't absorb a gain, so the final normalization keeps the gain averaged over each
    direction. If the stream is not centered, its directions are rotated so that the gain only acts along them.

    A normalization after a writer (Gemma 2 and 3, OLMo 2) has gains in the teacher's dimensions, and the student's are
    in its own. The writer absorbs the gain g, and the student's normalization gets the gains 1 / √(Bᵀ g⁻² B) of its
    directions B (the diagonal). What is added then keeps its direction at every token, and its length on average. The
    length is exact if the gains are equal, or if the directions are the teacher's dimensions.

    The student keeps the heads and feed-forward units with the largest outputs. Within a head, query-key and
    output-value products are truncated to their largest singular values, and rotated dimensions are matched by
    frequency. Heads with normalized queries and keys are kept as they are.

    Parameters
    ----------
    source, target : TransformerView
        Weights of the teacher and of the student.
    moments : Moments
        The teacher's, on a text.
    """
    centered = source.norm.bias is not None
    basis = _basis(moments.stream, target.embeddings[0].shape[1], centered)
    if target.tied and not centered:
        # Any rotation of the student's stream will do, and this one makes the final gain diagonal.
        basis = basis @ torch.linalg.eigh(basis.T @ (_double(source.norm.gain)[:, None] * basis)).eigenvectors
    stream = _Stream(basis, centered)
    scale = source.embedding_scale / target.embedding_scale
    for old, new in zip(source.embeddings, target.embeddings, strict=True):
        new.copy_(scale * stream.written(_double(old).T).T)
    for (attention, feed_forward), (new_attention, new_feed_forward), block in zip(
        source.blocks, target.blocks, moments.blocks, strict=True
    ):
        _project_attention(stream, attention, new_attention, block)
        _project_feed_forward(stream, feed_forward, new_feed_forward, block)
    _project_logits(stream, source, target, scale)


def _unsupported_biases(source: TransformerView) -> str:
    """Return the missing biases that the projection would have to write to, in words, or an empty string."""
    if source.norm.bias is None:
        return ""
    affine = [
        part
        for attention, feed_forward in source.blocks
        for part in (attention.queries, attention.out, *feed_forward.readers, feed_forward.out)
    ]
    if any(part.bias is None for part in affine):
        return "biases in the attention of a teacher whose normalizations have them (attention_bias=True)"
    return ""


# Measuring the teacher


def _token_sample(teacher: PreTrainedModel, source: TransformerView, tokens: Any) -> np.ndarray:
    """Check tokens, and take the first sequences of them."""
    if tokens is None:
        raise ValueError("init='principal' needs tokens of shape (n_sequences, seq_len) to measure the teacher on.")
    limit = getattr(teacher.config.get_text_config(), "max_position_embeddings", None)
    rows = TokenRows(tokens, "tokens", len(source.embeddings[0]), limit, None)
    n_sequences = max(_N_TOKENS // rows.length, 1)
    return rows.take(np.arange(min(n_sequences, len(rows)))).ids


class BlockMoments(NamedTuple):
    """Second moments of a block, averaged over positions; None without the normalization in question."""

    heads: torch.Tensor  # (n_heads × size,), of values averaged by attention
    units: torch.Tensor  # (n_units,)
    queries: torch.Tensor | None  # (n_heads × size,), of queries of norm 1
    keys: torch.Tensor | None  # (n_key_value_heads × size,), of keys of norm 1
    attention_out: torch.Tensor | None  # (d, d), of outputs of norm 1
    feed_forward_out: torch.Tensor | None  # (d, d), of outputs of norm 1


class Moments(NamedTuple):
    """Second moments of a teacher on a text."""

    stream: torch.Tensor  # (d, d), of the residual stream
    blocks: Sequence[BlockMoments]


class _Hook:
    """Forward hook for the second moments of a module's input, averaged over positions."""

    def __init__(
        self, module: torch.nn.Module, *, full: bool, centered: bool = False, normalized: bool = False
    ) -> None:
        self.module = module
        self._full, self._centered, self._normalized = full, centered, normalized
        self._n = 0
        self._total: torch.Tensor | float = 0.0

    def __call__(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        rows = inputs[0].detach().flatten(0, -2).cpu().double()
        self._n += len(rows)
        if self._centered:
            rows = rows - rows.mean(dim=1, keepdim=True)
        if self._normalized:
            rows = torch.nn.functional.normalize(rows, dim=1)
        self._total = self._total + (rows.T @ rows if self._full else rows.square().sum(dim=0))

    def mean(self) -> torch.Tensor:
        return torch.as_tensor(self._total / self._n)


def _measure(source: TransformerView, teacher: PreTrainedModel, tokens: np.ndarray) -> Moments:
    """Measure the residual stream, heads, units and normalized outputs of a teacher."""
    centered = source.norm.bias is not None
    entries = [*(attention.entry for attention, _ in source.blocks), source.norm.module]
    streams = [_Hook(entry, full=True, centered=centered) for entry in entries]

    def normalized(norm: Norm | HeadNorm | None, *, full: bool) -> _Hook | None:
        # Heads that are normalized one by one need no moments.
        together = norm is not None and (isinstance(norm, Norm) or norm.weight.ndim == 2)
        return _Hook(norm.module, full=full, normalized=True) if norm is not None and together else None

    blocks = [
        (
            _Hook(attention.module, full=False),
            _Hook(feed_forward.module, full=False),
            normalized(attention.query_norm, full=False),
            normalized(attention.key_norm, full=False),
            normalized(attention.out_norm, full=True),
            normalized(feed_forward.out_norm, full=True),
        )
        for attention, feed_forward in source.blocks
    ]
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(teacher))
        for hook in (*streams, *itertools.chain.from_iterable(blocks)):
            if hook is not None:
                stack.enter_context(hooked(hook.module, hook, before=True))
        for part in np.array_split(tokens, max(len(tokens) // _SEQUENCES_PER_PASS, 1)):
            teacher.base_model(torch.from_numpy(part).to(teacher.device), use_cache=False)
    covariance = torch.stack([hook.mean() for hook in streams])
    # Normalizations divide by the norm, so the stream before each of them gets the same weight.
    covariance /= covariance.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
    means = [
        BlockMoments(heads.mean(), units.mean(), *(None if each is None else each.mean() for each in others))
        for heads, units, *others in blocks
    ]
    return Moments(covariance.sum(dim=0), means)


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().double()


def _basis(covariance: torch.Tensor, width: int, centered: bool) -> torch.Tensor:
    """Compute an orthonormal basis (d_teacher, width) of the student's directions.

    These are the principal directions. A centered stream has width − 1 of them, and the teacher's mean direction
    becomes the student's.
    """
    if not centered:
        return torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :width]
    n = len(covariance)
    ones = torch.full((n, 1), n**-0.5, dtype=covariance.dtype)
    # Lower the eigenvalue of the mean direction below all others: at 0 it could tie with unused directions.
    below = covariance - (covariance.diagonal().sum() + 1.0) * ones @ ones.T
    directions = torch.linalg.eigh(below).eigenvectors.flip(1)[:, : width - 1]
    own = torch.full((width, 1), width**-0.5, dtype=covariance.dtype)
    complement = torch.linalg.qr(torch.cat([own, torch.eye(width, dtype=own.dtype)[:, : width - 1]], dim=1))[0][:, 1:]
    return directions @ complement.T + ones @ own.T


# Projecting the weights


class _Stream:
    """Map weights of the teacher's residual stream to the student's."""

    def __init__(self, basis: torch.Tensor, centered: bool) -> None:
        self.basis, self.centered = basis, centered
        # After normalization a stream has a length of the square root of its width.
        self.scale = (basis.shape[0] / basis.shape[1]) ** 0.5
        self.read = basis * self.scale

    def written(self, weight: torch.Tensor) -> torch.Tensor:
        """Project weights of a writer, from (d_teacher, ...) to (d_student, ...)."""
        if self.centered:
            weight = weight - weight.mean(dim=0, keepdim=True)
        return torch.tensordot(self.basis.T, weight, dims=1)

    def normalized(self, norm: Norm, moments: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the map (d_student, d_teacher) of a writer with a normalization after it, and the latter's gain."""
        gain = _double(norm.gain)
        sizes = gain.abs().clamp(min=_SMALLEST_GAIN * float(gain.abs().max()))
        own = (self.basis.square() / sizes.square()[:, None]).sum(dim=0).rsqrt()
        onto = self.basis.T * gain / own[:, None]
        length = torch.einsum("ij,jk,ik->", onto, torch.as_tensor(moments), onto).sqrt()
        return onto, own * self.scale * length

    def seen(self, reader: Affine, norm: Norm | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Project a reader and absorb the gain; return weight (..., d_student) and bias (...)."""
        weight = _double(reader.weight)
        bias = torch.zeros(weight.shape[:-1], dtype=weight.dtype) if reader.bias is None else _double(reader.bias)
        if norm is None:
            return weight @ self.basis, bias
        if norm.bias is not None:
            bias = bias + weight @ _double(norm.bias)
        return (weight * _double(norm.gain)) @ self.read, bias


def _project_logits(stream: _Stream, source: TransformerView, target: TransformerView, scale: float) -> None:
    """Set the final normalization and, unless it is tied, the unembedding."""
    gain, unembedding = _double(source.norm.gain), _double(source.unembedding)
    if target.tied:
        target.norm.set_gain(stream.scale / scale * (stream.basis.square() * gain[:, None]).sum(dim=0))
        projected = _double(target.unembedding)
    else:
        projected = (unembedding * gain) @ stream.read
        target.unembedding.copy_(projected)
    if source.norm.bias is not None and target.norm.bias is not None:
        # The unembedding has no bias to absorb the normalization's, so fit a bias that changes the logits alike.
        wanted = unembedding @ _double(source.norm.bias)
        target.norm.bias.copy_(_solve(projected, wanted))


def _solve(matrix: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the shortest solution of a linear problem by least squares."""
    # A centered, tied embedding has no mean over dimensions. Its rounding to float32 must not count as a direction.
    found = torch.linalg.lstsq(matrix, wanted[:, None], rcond=_FLOAT32_NOISE, driver="gelsd")
    return torch.as_tensor(found.solution[:, 0])


def _set(target: Affine, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    target.weight.copy_(weight)
    if target.bias is not None and bias is not None:
        target.bias.copy_(bias)


def _largest(values: torch.Tensor, n: int) -> torch.Tensor:
    """Return the positions of the n largest values, in ascending order."""
    return torch.sort(torch.argsort(values, descending=True, stable=True)[:n])[0]


def _written(
    stream: _Stream, out: Affine, norm: Norm | None, new_norm: Norm | None, moments: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Project a writer's weight and bias, and set the student's normalization after it."""
    weight, bias = _double(out.weight), None if out.bias is None else _double(out.bias)
    if norm is None or new_norm is None:
        return stream.written(weight), None if bias is None else stream.written(bias)
    onto, gain = stream.normalized(norm, moments)
    new_norm.set_gain(gain)
    return torch.tensordot(onto, weight, dims=1), None if bias is None else onto @ bias


def _project_feed_forward(stream: _Stream, old: FeedForward, new: FeedForward, moments: BlockMoments) -> None:
    """Keep the units with the largest outputs."""
    out, out_bias = _written(stream, old.out, old.out_norm, new.out_norm, moments.feed_forward_out)
    kept = _largest(moments.units * out.square().sum(dim=0), new.out.weight.shape[1])
    for reader, new_reader in zip(old.readers, new.readers, strict=True):
        weight, bias = stream.seen(reader, old.norm)
        new_reader.weight[: len(kept)] = weight[kept]
        if new_reader.bias is not None:
            new_reader.bias[: len(kept)] = bias[kept]
    written = torch.zeros(new.out.weight.shape, dtype=out.dtype)  # units beyond the teacher's start without output
    written[:, : len(kept)] = out[:, kept]
    _set(new.out, written, out_bias)


def _project_attention(stream: _Stream, old: Attention, new: Attention, moments: BlockMoments) -> None:
    """Keep the heads with the largest outputs, each truncated to the student's head size.

    Heads and dimensions beyond the teacher's keep random keys and values. Their queries and outputs start at zero, so
    they do nothing at first and can learn.
    """
    (queries, query_biases), (keys, key_biases), (values, value_biases) = (
        stream.seen(reader, old.norm) for reader in (old.queries, old.keys, old.values)
    )
    out, out_bias = _written(stream, old.out, old.out_norm, new.out_norm, moments.attention_out)
    size, new_size = queries.shape[1], new.queries.weight.shape[1]
    group, new_group = len(queries) // len(keys), len(new.queries.weight) // len(new.keys.weight)
    strength = (moments.heads * out.flatten(1).square().sum(dim=0)).view(len(keys), group, size).sum(dim=2)

    # The last column multiplies 1: it is the bias.
    new_queries = torch.zeros((*new.queries.weight.shape[:2], queries.shape[2] + 1), dtype=out.dtype)
    new_keys = torch.cat([_double(new.keys.weight), torch.zeros(*new.keys.weight.shape[:2], 1, dtype=out.dtype)], dim=2)
    new_values, new_out = _double(new.values.weight), torch.zeros(new.out.weight.shape, dtype=out.dtype)
    kept_queries: list[tuple[int, int]] = []
    kept_keys: list[tuple[int, int]] = []
    for place, kept in enumerate(_largest(strength.sum(dim=1), len(new_keys)).tolist()):
        chosen = (kept * group + _largest(strength[kept], new_group)).tolist()
        places = slice(place * new_group, place * new_group + len(chosen))
        both = torch.cat([queries[chosen], query_biases[chosen, :, None]], dim=2)
        key = torch.cat([keys[kept], key_biases[kept, :, None]], dim=1)
        if old.query_norm is None:
            _match_scores(old, new, both, key, new_queries[places], new_keys[place])
        else:
            new_queries[places], new_keys[place] = both, key
        kept_keys.append((place, kept))
        kept_queries += zip(range(places.start, places.stop), chosen, strict=True)
        written, value = _truncate_product(out[:, chosen].transpose(0, 1), values[kept].T, new_size)
        new_out[:, places, : written.shape[2]] = written.transpose(0, 1)
        new_values[place, : value.shape[1]] = value.T
    if old.query_norm is None:
        new_queries *= old.scaling / new.scaling
    _set_head_norm(old.query_norm, new.query_norm, kept_queries, moments.queries)
    _set_head_norm(old.key_norm, new.key_norm, kept_keys, moments.keys)
    _set(new.queries, new_queries[..., :-1], new_queries[..., -1])
    _set(new.keys, new_keys[..., :-1], new_keys[..., -1])
    # Attention weights sum to one, so value biases add a constant, including those of heads that are dropped.
    constant = torch.einsum("dhs,hs->d", out, value_biases.repeat_interleave(group, dim=0))
    new_value_biases = torch.zeros(new_values.shape[:2], dtype=out.dtype)
    if new.out.bias is None and new.values.bias is not None:
        # Only the student's value biases can add the constant (Qwen2).
        reached = new_out.unflatten(1, (-1, new_group)).sum(dim=2).flatten(1)
        new_value_biases = _solve(reached, constant).view(new_values.shape[:2])
    _set(new.values, new_values, new_value_biases)
    _set(new.out, new_out, constant if out_bias is None else constant + out_bias)


def _match_scores(
    old: Attention,
    new: Attention,
    queries: torch.Tensor,
    key: torch.Tensor,
    new_queries: torch.Tensor,
    new_key: torch.Tensor,
) -> None:
    """Set the queries of a group and their key so that their products are nearly the teacher's."""
    n_pairs, n_new_pairs = len(old.frequencies), len(new.frequencies)
    for i, k in _match_frequencies(old.frequencies, new.frequencies):
        for at, new_at in ((k, i), (k + n_pairs, i + n_new_pairs)):
            new_queries[:, new_at] = queries[:, at]
            new_key[new_at] = key[at]
    free, found = _truncate_product(
        queries[:, 2 * n_pairs :].transpose(1, 2), key[2 * n_pairs :].T, len(new_key) - 2 * n_new_pairs
    )
    new_queries[:, 2 * n_new_pairs : 2 * n_new_pairs + free.shape[2]] = free.transpose(1, 2)
    new_key[2 * n_new_pairs : 2 * n_new_pairs + found.shape[1]] = found.T


def _set_head_norm(
    old: HeadNorm | None, new: HeadNorm | None, kept: list[tuple[int, int]], moments: torch.Tensor | None
) -> None:
    """Set a normalization of queries or keys, given the places of the student's heads and of the teacher's."""
    if old is None or new is None:
        return
    if moments is None:  # each head is normalized by itself
        new.weight.copy_(old.weight)
        return
    # The norm over fewer heads is smaller.
    shares = moments.view(old.weight.shape).sum(dim=1)
    share = shares[[head for _, head in kept]].sum() * len(old.weight) / len(new.weight)
    for place, head in kept:
        new.weight[place] = _double(old.weight[head]) * share.sqrt()


def _match_frequencies(old: torch.Tensor, new: torch.Tensor) -> list[tuple[int, int]]:
    """Pair each of the student's rotation frequencies with the teacher's nearest one, using each at most once."""
    matched: dict[int, int] = {}
    for i, frequency in enumerate(_double(new)):
        matched.setdefault(int((_double(old).log() - frequency.log()).abs().argmin()), i)
    return [(i, k) for k, i in matched.items()]


def _truncate_product(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Truncate the products a bᵀ of matrices (n, rows, size) and one (columns, size) to a lower rank.

    Both factors are multiplied by the square roots of the singular values.
    """
    (q_a, r_a), (q_b, r_b) = torch.linalg.qr(a.flatten(0, 1)), torch.linalg.qr(b)
    u, values, vt = torch.linalg.svd(r_a @ r_b.T, full_matrices=False)
    root = values[:rank].sqrt()
    return (q_a @ u[:, :rank] * root).view(*a.shape[:2], -1), q_b @ vt[:rank].T * root
