"""Initialize a student by projecting its teacher on the principal directions of the residual stream."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from geofloor.language_models._hooks import evaluating, hooked
from geofloor.language_models._token_rows import TokenRows
from geofloor.students._families import (
    Affine,
    Attention,
    FeedForward,
    Norm,
    TransformerView,
    has_view,
    transformer_view,
)

_N_TOKENS = 16_384  # residual vectors per block from which principal directions are computed
_SEQUENCES_PER_PASS = 8


def has_principal_start(teacher: PreTrainedModel) -> bool:
    """Tell whether students of a teacher can start in its principal directions."""
    return has_view(teacher.config) and not _unsupported_biases(transformer_view(teacher.config, teacher))


def project(teacher: PreTrainedModel, student: PreTrainedModel, tokens: Any) -> None:
    """Set a student's weights, in place, to the teacher's projected on its principal directions.

    Every reader of the residual stream normalizes it first. If this subtracts the mean over dimensions, the stream may
    be centered: the student then reserves its own mean direction, and the other width − 1 directions carry the
    teacher's principal ones. Gains and biases of normalizations are absorbed by the weights that read their output.
    The student keeps the heads and feed-forward units with the largest outputs. Within a head, query-key and
    output-value products are truncated to their largest singular values, and rotated dimensions are matched by
    frequency. A tied unembedding can't absorb a gain, so the final normalization keeps the gain averaged over each
    direction. With the teacher's own width and sizes the student is the teacher.

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
    source, target = transformer_view(teacher.config, teacher), transformer_view(student.config, student)
    width = target.embeddings[0].shape[1]
    if reason := _unsupported_biases(source):
        raise ValueError(f"init='principal' needs {reason}; use init='random'.")
    sample = _token_sample(teacher, source, tokens)
    if [each.shape for each in student.parameters()] == [each.shape for each in teacher.parameters()]:
        student.load_state_dict(teacher.state_dict())
        return
    covariance, heads, units = _measure(source, teacher, sample)
    centered = source.norm.bias is not None
    stream = _Stream(_basis(covariance, width, centered), centered)
    for old, new in zip(source.embeddings, target.embeddings, strict=True):
        new.copy_(stream.written(_double(old).T).T)
    for (attention, feed_forward), (new_attention, new_feed_forward), head_moments, unit_moments in zip(
        source.blocks, target.blocks, heads, units, strict=True
    ):
        _project_attention(stream, attention, new_attention, head_moments)
        _project_feed_forward(stream, feed_forward, new_feed_forward, unit_moments)
    _project_logits(stream, source, target)


def _unsupported_biases(source: TransformerView) -> str:
    """Return the missing biases that the projection would have to write to, in words, or an empty string."""
    if any(attention.values.bias is not None and attention.out.bias is None for attention, _ in source.blocks):
        return "a bias in the output of attention, because its values have biases"
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


class _Moments:
    """Forward hook for the second moments of a module's input, averaged over positions."""

    def __init__(self, module: torch.nn.Module, *, full: bool, centered: bool = False) -> None:
        self.module = module
        self._full, self._centered = full, centered
        self._n = 0
        self._total: torch.Tensor | float = 0.0

    def __call__(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        rows = inputs[0].detach().flatten(0, -2).cpu().double()
        self._n += len(rows)
        if self._centered:
            rows = rows - rows.mean(dim=1, keepdim=True)
        self._total = self._total + (rows.T @ rows if self._full else rows.square().sum(dim=0))

    def mean(self) -> torch.Tensor:
        return torch.as_tensor(self._total / self._n)


def _measure(
    source: TransformerView, teacher: PreTrainedModel, tokens: np.ndarray
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Compute the covariance of the residual stream, and second moments of heads and units per block."""
    norms = [*(attention.norm for attention, _ in source.blocks), source.norm]
    centered = source.norm.bias is not None
    streams = [_Moments(norm.module, full=True, centered=centered) for norm in norms]
    heads = [_Moments(attention.module, full=False) for attention, _ in source.blocks]
    units = [_Moments(feed_forward.module, full=False) for _, feed_forward in source.blocks]
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(teacher))
        for moments in (*streams, *heads, *units):
            stack.enter_context(hooked(moments.module, moments, before=True))
        for part in np.array_split(tokens, max(len(tokens) // _SEQUENCES_PER_PASS, 1)):
            teacher.base_model(torch.from_numpy(part).to(teacher.device), use_cache=False)
    covariance = torch.stack([moments.mean() for moments in streams])
    # Normalizations divide by the norm, so the stream before each of them gets the same weight.
    covariance /= covariance.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
    return covariance.sum(dim=0), [each.mean() for each in heads], [each.mean() for each in units]


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

    def seen(self, reader: Affine, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
        """Project a reader and absorb the gain; return weight (..., d_student) and bias (...)."""
        weight = _double(reader.weight)
        bias = torch.zeros(weight.shape[:-1], dtype=weight.dtype) if reader.bias is None else _double(reader.bias)
        if norm.bias is not None:
            bias = bias + weight @ _double(norm.bias)
        return (weight * _double(norm.gain)) @ self.read, bias


def _project_logits(stream: _Stream, source: TransformerView, target: TransformerView) -> None:
    """Set the final normalization and, unless it is tied, the unembedding."""
    gain, unembedding = _double(source.norm.gain), _double(source.unembedding)
    if target.tied:
        target.norm.gain.copy_(stream.scale * (stream.basis.square() * gain[:, None]).sum(dim=0))
        projected = _double(target.unembedding)
    else:
        projected = (unembedding * gain) @ stream.read
        target.unembedding.copy_(projected)
    if source.norm.bias is not None and target.norm.bias is not None:
        # The unembedding has no bias to absorb the normalization's, so fit a bias that changes the logits alike.
        wanted = unembedding @ _double(source.norm.bias)
        target.norm.bias.copy_(torch.linalg.lstsq(projected, wanted[:, None], driver="gelsd").solution[:, 0])


def _set(target: Affine, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    target.weight.copy_(weight)
    if target.bias is not None and bias is not None:
        target.bias.copy_(bias)


def _largest(values: torch.Tensor, n: int) -> torch.Tensor:
    """Return the positions of the n largest values, in ascending order."""
    return torch.sort(torch.argsort(values, descending=True, stable=True)[:n])[0]


def _project_feed_forward(stream: _Stream, old: FeedForward, new: FeedForward, moments: torch.Tensor) -> None:
    """Keep the units with the largest outputs."""
    out = stream.written(_double(old.out.weight))
    kept = _largest(moments * out.square().sum(dim=0), new.out.weight.shape[1])
    for reader, new_reader in zip(old.readers, new.readers, strict=True):
        weight, bias = stream.seen(reader, old.norm)
        new_reader.weight[: len(kept)] = weight[kept]
        if new_reader.bias is not None:
            new_reader.bias[: len(kept)] = bias[kept]
    written = torch.zeros(new.out.weight.shape, dtype=out.dtype)  # units beyond the teacher's start without output
    written[:, : len(kept)] = out[:, kept]
    _set(new.out, written, None if old.out.bias is None else stream.written(_double(old.out.bias)))


def _project_attention(stream: _Stream, old: Attention, new: Attention, moments: torch.Tensor) -> None:
    """Keep the heads with the largest outputs, each truncated to the student's head size.

    Heads and dimensions beyond the teacher's keep random keys and values. Their queries and outputs start at zero, so
    they do nothing at first and can learn.
    """
    (queries, query_biases), (keys, key_biases), (values, value_biases) = (
        stream.seen(reader, old.norm) for reader in (old.queries, old.keys, old.values)
    )
    out = stream.written(_double(old.out.weight))
    size, new_size = queries.shape[1], new.queries.weight.shape[1]
    group, new_group = len(queries) // len(keys), len(new.queries.weight) // len(new.keys.weight)
    n_pairs, n_new_pairs = len(old.frequencies), len(new.frequencies)
    pairs = _match_frequencies(old.frequencies, new.frequencies)
    strength = (moments * out.flatten(1).square().sum(dim=0)).view(len(keys), group, size).sum(dim=2)

    # The last column multiplies 1: it is the bias.
    new_queries = torch.zeros((*new.queries.weight.shape[:2], queries.shape[2] + 1), dtype=out.dtype)
    new_keys = torch.cat([_double(new.keys.weight), torch.zeros(*new.keys.weight.shape[:2], 1, dtype=out.dtype)], dim=2)
    new_values, new_out = _double(new.values.weight), torch.zeros(new.out.weight.shape, dtype=out.dtype)
    for place, kept in enumerate(_largest(strength.sum(dim=1), len(new_keys)).tolist()):
        chosen = (kept * group + _largest(strength[kept], new_group)).tolist()
        places = slice(place * new_group, place * new_group + len(chosen))
        both = torch.cat([queries[chosen], query_biases[chosen, :, None]], dim=2)
        key = torch.cat([keys[kept], key_biases[kept, :, None]], dim=1)
        for i, k in pairs:
            for at, new_at in ((k, i), (k + n_pairs, i + n_new_pairs)):
                new_queries[places, new_at] = both[:, at]
                new_keys[place, new_at] = key[at]
        free, found = _truncate_product(
            both[:, 2 * n_pairs :].transpose(1, 2), key[2 * n_pairs :].T, new_size - 2 * n_new_pairs
        )
        new_queries[places, 2 * n_new_pairs : 2 * n_new_pairs + free.shape[2]] = free.transpose(1, 2)
        new_keys[place, 2 * n_new_pairs : 2 * n_new_pairs + found.shape[1]] = found.T
        written, value = _truncate_product(out[:, chosen].transpose(0, 1), values[kept].T, new_size)
        new_out[:, places, : written.shape[2]] = written.transpose(0, 1)
        new_values[place, : value.shape[1]] = value.T
    new_queries *= old.scaling / new.scaling
    _set(new.queries, new_queries[..., :-1], new_queries[..., -1])
    _set(new.keys, new_keys[..., :-1], new_keys[..., -1])
    _set(new.values, new_values, torch.zeros(new_values.shape[:2]))
    # Attention weights sum to one, so value biases add a constant, including those of heads that are dropped.
    constant = torch.einsum("dhs,hs->d", out, value_biases.repeat_interleave(group, dim=0))
    _set(new.out, new_out, constant if old.out.bias is None else constant + stream.written(_double(old.out.bias)))


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
