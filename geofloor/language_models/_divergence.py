"""The distillation loss and its gradient, computed in chunks of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from geofloor._training.products import add_product, linear, product, zero_sum
from geofloor._validation import check_number, check_object

_KEPT_BYTES = 2**32  # limit on a teacher's probabilities kept for several students


def distillation_kl(
    *,
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float = 1.0,
    mask: torch.Tensor | None = None,
    student_weight: torch.Tensor | None = None,
    student_bias: torch.Tensor | None = None,
    teacher_weight: torch.Tensor | None = None,
    teacher_bias: torch.Tensor | None = None,
    n_vocabulary: int | None = None,
    chunk_rows: int | None = None,
) -> torch.Tensor:
    r"""Compute the mean forward KL divergence of a student from its teacher, in nats per token.

    Logits are computed and dropped in chunks of rows, each with its gradient, so that memory never holds all logits of
    either model.

    Parameters
    ----------
    student : Tensor of shape (..., d_student) or (..., n_vocabulary)
        Hidden states if `student_weight` is given, else logits.
    teacher : Tensor of shape (..., d_teacher) or (..., n_vocabulary)
        Hidden states or logits of the teacher. They get no gradient.
    temperature : float, default=1.0
        T, by which both logits are divided.
    mask : Tensor of shape (...), bool, default=None
        Positions that count; by default all.
    student_weight, teacher_weight : Tensor of shape (n_vocabulary, d), default=None
        Unembedding matrix.
    student_bias, teacher_bias : Tensor of shape (n_vocabulary,), default=None
        Bias of the unembedding.
    n_vocabulary : int, default=None
        Number of tokens that count, the first ones of either vocabulary; by default all. Further rows of an
        unembedding, as those added to round up its size, get no probability. The two may differ in their number.
    chunk_rows : int, default=None
        Positions per chunk; by default chosen for the device.

    Returns
    -------
    kl : Tensor, scalar
        Σ_v p_T(v) (log p_T(v) − log p_S(v)), averaged over the positions that count; float64 for float64
        inputs, else float32. Differentiable once in the student's tensors.

    Raises
    ------
    TypeError
        If an argument is not a tensor.
    ValueError
        If shapes don't match, no position counts, or logits are NaN, +inf, or −inf for all tokens.

    Notes
    -----
    A token with logit −inf has probability 0. In the teacher it adds nothing to the divergence, since p log p is 0 at
    p = 0, whatever the student's logit. In the student alone it makes the divergence infinite.

    The divergence has no factor :math:`T^2`. In training this factor makes the size of the gradient independent of the
    temperature: `DistilledStudent` has it in its training loss, not in the losses that it reports.

    Examples
    --------
    >>> import torch
    >>> from geofloor.language_models import distillation_kl
    >>> teacher = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> round(float(distillation_kl(student=torch.zeros(2, 2), teacher=teacher)), 4)
    0.2194
    >>> float(distillation_kl(student=teacher, teacher=teacher, temperature=2.0))
    0.0

    With a token that is masked in the teacher:

    >>> masked = torch.tensor([[2.0, 0.0, -torch.inf], [0.0, 1.0, -torch.inf]])
    >>> round(float(distillation_kl(student=torch.zeros(2, 3), teacher=masked)), 4)
    0.6248
    """
    temperature = check_number("temperature", temperature, 0, open_low=True)
    if chunk_rows is not None:
        chunk_rows = check_number("chunk_rows", chunk_rows, 1, whole=True)
    _check_tensors(
        student=student,
        teacher=teacher,
        student_weight=student_weight,
        student_bias=student_bias,
        teacher_weight=teacher_weight,
        teacher_bias=teacher_bias,
    )
    if mask is not None:
        check_object("mask", mask, torch.Tensor, "give a tensor of bools")
    shape = student.shape[:-1]
    if teacher.shape[:-1] != shape or (mask is not None and mask.shape != shape):
        raise ValueError(
            f"student has positions {tuple(shape)}, teacher {tuple(teacher.shape[:-1])}"
            f"{'' if mask is None else f', mask {tuple(mask.shape)}'}; they must be the same."
        )
    sizes = [
        rows.shape[-1] if weight is None else weight.shape[0]
        for rows, weight in ((student, student_weight), (teacher, teacher_weight))
    ]
    if n_vocabulary is not None:
        n_vocabulary = check_number("n_vocabulary", n_vocabulary, 1, min(sizes), whole=True)
    elif sizes[0] != sizes[1]:
        raise ValueError(
            f"student has a vocabulary of {sizes[0]} tokens, teacher one of {sizes[1]}; they must be the same. If one "
            f"is padded, set n_vocabulary to the number of real tokens."
        )
    source = LazyLogits(teacher.detach().reshape(-1, teacher.shape[-1]), teacher_weight, teacher_bias)
    source = source.first(n_vocabulary)
    targets = Targets(source, temperature, chunk_rows=chunk_rows)
    weights = None if mask is None else mask.reshape(-1).to(targets.dtype)
    total = len(source.rows) if weights is None else weights.sum()
    if not total:
        raise ValueError(
            f"No position counts, of {len(source.rows)} positions in student and teacher; select at least one."
        )
    terms = LossTerms(targets, weights, 1.0 / total)
    given = LazyLogits(student.reshape(-1, student.shape[-1]), student_weight, student_bias).first(n_vocabulary)
    loss, _ = ChunkedLoss.apply(*given, terms)
    if bool(loss.isnan()):
        wrong = any(bool(targets.chunk(index)[0].isnan().any()) for index in range(len(targets.chunks)))
        raise ValueError(
            f"The {'teacher' if wrong else 'student'}'s logits are NaN, +inf, or −inf for all tokens of a position; "
            "check its weights, or mask these positions."
        )
    return loss


def _check_tensors(**tensors: Any) -> None:
    """Refuse objects other than floating-point tensors, and unembeddings of another width than their rows."""
    for name, tensor in tensors.items():
        if tensor is None and name not in ("student", "teacher"):
            continue
        check_object(name, tensor, torch.Tensor, "give a torch tensor")
        n_dimensions = 1 if name.endswith("bias") else 2
        if name.endswith(("weight", "bias")) and tensor.ndim != n_dimensions:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; give {n_dimensions} dimension(s).")
        if not tensor.is_floating_point() or not tensor.ndim:
            raise ValueError(
                f"{name} has dtype {tensor.dtype} and {tensor.ndim} dimensions; give a floating-point tensor."
            )
    for name in ("student", "teacher"):
        rows, weight, bias = tensors[name], tensors[f"{name}_weight"], tensors[f"{name}_bias"]
        if weight is None and bias is not None:
            raise ValueError(f"{name}_bias is given without {name}_weight; add it to the logits, or give both.")
        if weight is not None and weight.shape[1] != rows.shape[-1]:
            raise ValueError(
                f"{name} has {rows.shape[-1]} dimensions, {name}_weight has {weight.shape[1]}; they must be the same."
            )
        if bias is not None and len(bias) != len(weight):
            raise ValueError(f"{name}_bias has {len(bias)} numbers, and {name}_weight is for {len(weight)} tokens.")


class LazyLogits(NamedTuple):
    """Logits, possibly unevaluated: hidden states with an unembedding matrix, or the logits themselves.

    There is one row per position.
    """

    rows: torch.Tensor  # (n_rows, d), or (n_rows, n_vocabulary) without a weight
    weight: torch.Tensor | None = None  # (n_vocabulary, d)
    bias: torch.Tensor | None = None

    @property
    def n_vocabulary(self) -> int:
        """Number of tokens."""
        return self.rows.shape[1] if self.weight is None else self.weight.shape[0]

    def first(self, n_vocabulary: int | None) -> LazyLogits:
        """Cut the vocabulary to its first tokens."""
        if n_vocabulary is None or n_vocabulary == self.n_vocabulary:
            return self
        if self.weight is None:
            return LazyLogits(self.rows[:, :n_vocabulary])
        bias = None if self.bias is None else self.bias[:n_vocabulary]
        return LazyLogits(self.rows, self.weight[:n_vocabulary], bias)

    @property
    def may_be_masked(self) -> bool:
        """Whether a logit can be −inf although hidden states and unembedding matrix are finite."""
        return self.weight is None or self.bias is not None

    def at(self, index: torch.Tensor) -> LazyLogits:
        """Select rows by a mask or by number."""
        return self._replace(rows=self.rows[index])

    def cast(self, dtype: torch.dtype | None) -> LazyLogits:
        """Convert an unembedding and its rows to another precision, as autocast would."""
        if dtype is None or self.weight is None:
            return self
        return LazyLogits(*(None if tensor is None else tensor.to(dtype) for tensor in self))  # type: ignore[arg-type]

    def compute(self, chunk: slice, factor: float) -> torch.Tensor:
        """Compute the logits of some rows, times a factor.

        The factor multiplies the hidden states, since they are narrower than logits.
        """
        rows = self.rows[chunk]
        if factor != 1.0:
            rows = rows * factor
        if self.weight is None:
            return rows
        return linear(rows, self.weight, None if self.bias is None else self.bias * factor)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the precision of softmaxes: float64 for a model in float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _softmax(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the probabilities of each row, and the log Σ exp of its logits.

    log Σ exp is the largest logit minus the log of the largest probability, which is never 0. This takes one
    exponential per logit, where log-softmax and softmax take two, and is as exact as the logits.
    """
    probabilities = torch.softmax(logits, dim=1)
    return probabilities, logits.amax(dim=1) - probabilities.amax(dim=1).log()


def _expected(probabilities: torch.Tensor, logits: torch.Tensor, *, may_be_masked: bool) -> torch.Tensor:
    """Compute Σ p·logits of each row, where a token of probability 0 adds nothing, even with logit −inf."""
    expected = torch.linalg.vecdot(probabilities, logits)
    if may_be_masked and bool(expected.isnan().any()):
        expected = torch.linalg.vecdot(probabilities, logits.masked_fill(probabilities == 0, 0.0))
    return expected


class Targets:
    """A teacher's next-token distributions at a temperature, in chunks of rows.

    Parameters
    ----------
    source : LazyLogits
        Logits of the teacher.
    temperature : float
        T.
    keep : bool
        Whether to keep the probabilities, for use by several students.
    chunk_rows : int or None
        LazyLogits per chunk.
    matmul_dtype : torch.dtype or None
        Precision of the unembedding, here and in the students.
    """

    def __init__(
        self,
        source: LazyLogits,
        temperature: float,
        *,
        keep: bool = False,
        chunk_rows: int | None = None,
        matmul_dtype: torch.dtype | None = None,
    ) -> None:
        self.dtype = _wide(source.rows.dtype)
        self.source = source.cast(matmul_dtype)
        self.temperature = temperature
        self.matmul_dtype = matmul_dtype
        n_rows = len(source.rows)
        self.chunk_rows = chunk_rows or default_chunk_rows(source.n_vocabulary, source.rows.device)
        self.chunks = [
            slice(start, min(start + self.chunk_rows, n_rows)) for start in range(0, n_rows, self.chunk_rows)
        ]
        keep = keep and n_rows * source.n_vocabulary * self.dtype.itemsize <= _KEPT_BYTES
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = {} if keep else None

    def chunk(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the probabilities (n, n_vocabulary) and Σ p log p (n,) of a chunk; callers must not change them."""
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        logits = self.source.compute(self.chunks[index], 1.0 / self.temperature).to(self.dtype)
        probabilities, log_normalizers = _softmax(logits)
        expected = _expected(probabilities, logits, may_be_masked=self.source.may_be_masked)
        result = probabilities, expected - log_normalizers
        if self._kept is not None:
            self._kept[index] = result
        return result


def default_chunk_rows(n_vocabulary: int, device: torch.device) -> int:
    """Return rows per chunk: few enough to fit a CPU cache, or for few kernel launches on an accelerator."""
    if device.type == "cpu":
        return max(2**20 // n_vocabulary, 128)
    return max(2**25 // n_vocabulary, 256)


@dataclass
class LossTerms:
    """Targets of a student's rows, and the weight of each term of the loss."""

    targets: Targets
    weights: torch.Tensor | None  # (n_rows,) weights of the KL, 0 for padding; None if all rows count
    kl_scale: Any  # factor on Σ weights·KL in the loss and in the reported KL: one over the positions that count
    kl_factor: float = 1.0  # further factor on the KL in the loss
    # Next tokens (n_rows,) and the weight of each row's cross-entropy, if the loss has one.
    labels: tuple[torch.Tensor, torch.Tensor] | None = None


class ChunkedLoss(torch.autograd.Function):
    """Loss and gradients in one pass over chunks of rows. The outputs are the loss and the KL."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, weight: Any, bias: Any, terms: LossTerms
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kl, cross_entropy, gradients = _loss_and_gradients(
            LazyLogits(rows, weight, bias), terms, ctx.needs_input_grad[:3]
        )
        ctx.gradients = gradients
        kl = kl * terms.kl_scale
        loss = kl * terms.kl_factor
        if cross_entropy is not None:
            loss = loss + cross_entropy
        ctx.mark_non_differentiable(kl)
        return loss, kl

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, _: Any) -> Any:
        gradients = ctx.gradients
        ctx.gradients = None
        if gradients is None:
            raise RuntimeError("The gradient of a distillation loss can be taken only once; compute the loss again.")
        return *(None if gradient is None else gradient.mul_(grad_loss) for gradient in gradients), None


def _loss_and_gradients(
    student: LazyLogits, terms: LossTerms, needed: Sequence[bool]
) -> tuple[torch.Tensor, torch.Tensor | None, list[torch.Tensor | None]]:
    """Compute the weighted sum of KLs, the weighted cross-entropy, and the gradients on rows, weight and bias.

    With a = logits / T, the KL of a row is Σ p_T log p_T − Σ p_T a + log Σ exp(a), and its gradient on the logits is
    (softmax(a) − p_T) / T. Factors that differ by row multiply hidden states, since they are narrower than logits.
    """
    targets, temperature = terms.targets, terms.targets.temperature
    cast = student.cast(targets.matmul_dtype)
    wide = targets.dtype
    with_gradient = any(needed)
    kl = torch.zeros((), dtype=wide, device=student.rows.device)
    cross_entropy: torch.Tensor | None = None
    on_rows = torch.empty_like(student.rows) if with_gradient else None
    on_weight = None if student.weight is None or not needed[1] else zero_sum(student.weight)
    on_bias: torch.Tensor | None = None
    coefficient = terms.kl_factor * terms.kl_scale / temperature

    for index, chunk in enumerate(targets.chunks):
        probabilities, negative_entropy = targets.chunk(index)
        scaled = cast.compute(chunk, 1.0 / temperature).to(wide)
        of_student, log_normalizers = _softmax(scaled)
        expected = _expected(probabilities, scaled, may_be_masked=cast.may_be_masked)
        row_kl = negative_entropy - (expected - log_normalizers)
        weights = None if terms.weights is None else terms.weights[chunk]
        kl += row_kl.sum() if weights is None else row_kl @ weights
        if not with_gradient and terms.labels is None:
            continue
        factors: Any = coefficient if weights is None else (coefficient * weights)[:, None]
        gradient = of_student.sub_(probabilities)  # on the logits, without the factors
        if terms.labels is not None:
            gradient.mul_(factors)
            labels, label_weights = terms.labels
            value = _add_cross_entropy(gradient, scaled * temperature, labels[chunk], label_weights[chunk])
            cross_entropy = value if cross_entropy is None else cross_entropy + value
            factors = 1.0
        if on_rows is None:
            continue
        if cast.weight is None:
            on_rows[chunk] = gradient.mul_(factors)
            continue
        gradient = gradient.to(cast.weight.dtype)
        on_rows[chunk] = product(gradient, cast.weight).mul_(factors)
        if on_weight is not None:
            add_product(on_weight, gradient, cast.rows[chunk] * factors)
        if needed[2]:
            on_this = (gradient * factors).sum(dim=0).to(student.bias.dtype)  # type: ignore[union-attr]
            on_bias = on_this if on_bias is None else on_bias + on_this
    return kl, cross_entropy, [on_rows if needed[0] else None, on_weight, on_bias]


def row_kls(student: LazyLogits, targets: Targets) -> torch.Tensor:
    """Compute the KL of each row, (n_rows,)."""
    cast = student.cast(targets.matmul_dtype)
    kls = []
    for index, chunk in enumerate(targets.chunks):
        probabilities, negative_entropy = targets.chunk(index)
        scaled = cast.compute(chunk, 1.0 / targets.temperature).to(targets.dtype)
        _, log_normalizers = _softmax(scaled)
        expected = _expected(probabilities, scaled, may_be_masked=cast.may_be_masked)
        kls.append(negative_entropy - (expected - log_normalizers))
    return torch.cat(kls)


def row_losses(student: LazyLogits, targets: Targets, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the KL of each row and its cross-entropy on the next token, both (n_rows,), at temperature 1.

    Parameters
    ----------
    student : LazyLogits
        Logits of the student.
    targets : Targets
        The teacher's distributions, at temperature 1.
    labels : Tensor of shape (n_rows,), int64
        Next token of each row.
    """
    cast = student.cast(targets.matmul_dtype)
    kls, cross_entropies = [], []
    for index, chunk in enumerate(targets.chunks):
        probabilities, negative_entropy = targets.chunk(index)
        logits = cast.compute(chunk, 1.0).to(targets.dtype)
        _, log_normalizers = _softmax(logits)
        expected = _expected(probabilities, logits, may_be_masked=cast.may_be_masked)
        kls.append(negative_entropy - (expected - log_normalizers))
        cross_entropies.append(log_normalizers - logits.gather(1, labels[chunk, None])[:, 0])
    return torch.cat(kls), torch.cat(cross_entropies)


def _add_cross_entropy(
    gradient: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Add the gradient of the cross-entropy on the logits, in place; return the weighted cross-entropy."""
    log_probabilities = torch.log_softmax(logits, dim=1, dtype=gradient.dtype)
    value = -(log_probabilities.gather(1, labels[:, None])[:, 0] @ weights)
    gradient.add_(log_probabilities.exp_().mul_(weights[:, None]))
    gradient.scatter_add_(1, labels[:, None], -weights[:, None])
    return value


def chunks_of(logits: LazyLogits) -> list[slice]:
    """Cut the rows into slices, of the default size for their device."""
    size = default_chunk_rows(logits.n_vocabulary, logits.rows.device)
    return [slice(start, start + size) for start in range(0, len(logits.rows), size)]


def why_not_finite(losses: np.ndarray) -> str:
    """Return the cause and the remedy of losses of a changed teacher that are not finite, for an error."""
    if np.isposinf(losses).any() and not np.isnan(losses).any():
        return (
            "with changed activations it gives logit −inf, probability 0, to tokens that the intact teacher gives a "
            "probability above 0; give a teacher whose logits are not masked by position, or set n_vocabulary if the "
            "tokens are padding of the vocabulary"
        )
    return "check the weights of teacher and autoencoder"
