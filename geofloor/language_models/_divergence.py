"""The loss of distillation and its gradient, a chunk of rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import xlogy

from geofloor._training.products import add_product, linear, product, zero_sum
from geofloor._validation import check_number, check_object

_KEPT_BYTES = 2**32  # of a teacher's probabilities, kept for several students


def distillation_kl(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float = 1.0,
    mask: torch.Tensor | None = None,
    student_weight: torch.Tensor | None = None,
    student_bias: torch.Tensor | None = None,
    teacher_weight: torch.Tensor | None = None,
    teacher_bias: torch.Tensor | None = None,
    chunk_rows: int | None = None,
) -> torch.Tensor:
    r"""Mean forward KL divergence of a student's next-token distributions from a teacher's, in nats a token.

    Logits are made, used and dropped a chunk of rows at a time, with the gradient beside them, so that
    memory holds neither model's logits whole.

    Parameters
    ----------
    student : Tensor of shape (..., d_student) or (..., n_vocabulary)
        Hidden states that `student_weight` turns into logits, or, without it, logits.
    teacher : Tensor of shape (..., d_teacher) or (..., n_vocabulary)
        The same of the teacher; no gradient reaches it.
    temperature : float, default=1.0
        T, by which both logits are divided.
    mask : Tensor of shape (...), bool, default=None
        Positions that count; by default all.
    student_weight, teacher_weight : Tensor of shape (n_vocabulary, d), default=None
        Unembedding.
    student_bias, teacher_bias : Tensor of shape (n_vocabulary,), default=None
        Its bias.
    chunk_rows : int, default=None
        Positions a chunk; by default what suits the device.

    Returns
    -------
    kl : Tensor, scalar
        Σ_v p_T(v) (log p_T(v) − log p_S(v)), averaged over the positions that count; float64 for float64
        inputs, else float32. Differentiable once in the student's tensors.

    Raises
    ------
    TypeError
        If an argument is no tensor.
    ValueError
        If shapes don't match, no position counts, or logits are NaN, +inf, or −inf for all tokens.

    Notes
    -----
    A token whose logit is −inf has probability 0. Where it is the teacher's, it adds nothing to the divergence; where
    it is the student's alone, the divergence is infinite.

    There is no factor :math:`T^2`: it is no part of the divergence. In training it makes the gradient's size
    independent of the temperature; `DistilledStudent` has it in its loss, not in what it reports.

    Examples
    --------
    >>> import torch
    >>> from geofloor.language_models import distillation_kl
    >>> teacher = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> round(float(distillation_kl(torch.zeros(2, 2), teacher)), 4)
    0.2194
    >>> float(distillation_kl(teacher, teacher, temperature=2.0))
    0.0

    A vocabulary that is masked in the teacher:

    >>> masked = torch.tensor([[2.0, 0.0, -torch.inf], [0.0, 1.0, -torch.inf]])
    >>> round(float(distillation_kl(torch.zeros(2, 3), masked)), 4)
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
    if sizes[0] != sizes[1]:
        raise ValueError(f"student has a vocabulary of {sizes[0]} tokens, teacher one of {sizes[1]}.")
    source = Rows(teacher.detach().reshape(-1, teacher.shape[-1]), teacher_weight, teacher_bias)
    targets = Targets(source, temperature, chunk_rows=chunk_rows)
    weights = None if mask is None else mask.reshape(-1).to(targets.dtype)
    total = len(source.rows) if weights is None else weights.sum()
    if not total:
        raise ValueError(f"No position counts, of {len(source.rows)} that student and teacher have; give some.")
    plan = Plan(targets, weights, 1.0 / total)
    loss, _ = ChunkedLoss.apply(student.reshape(-1, student.shape[-1]), student_weight, student_bias, plan)
    if bool(loss.isnan()):
        wrong = any(bool(targets.chunk(index)[0].isnan().any()) for index in range(len(targets.chunks)))
        raise ValueError(
            f"The {'teacher' if wrong else 'student'}'s logits are NaN, +inf, or −inf for all tokens of a position; "
            "check its weights, or give rows without such positions."
        )
    return loss


def _check_tensors(**tensors: Any) -> None:
    """Refuse what is no tensor of floats, or unembeddings that do not fit their rows."""
    for name, tensor in tensors.items():
        if tensor is None and name not in ("student", "teacher"):
            continue
        check_object(name, tensor, torch.Tensor, "give a torch tensor")
        n_dimensions = 1 if name.endswith("bias") else 2
        if name.endswith(("weight", "bias")) and tensor.ndim != n_dimensions:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; give {n_dimensions} dimension(s).")
        if not tensor.is_floating_point() or not tensor.ndim:
            raise ValueError(f"{name} has dtype {tensor.dtype} and {tensor.ndim} dimensions; give a tensor of floats.")
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


class Rows(NamedTuple):
    """What gives logits, a row a position: hidden states with an unembedding, or logits themselves."""

    rows: torch.Tensor  # (n_rows, d), or (n_rows, n_vocabulary) without a weight
    weight: torch.Tensor | None = None  # (n_vocabulary, d)
    bias: torch.Tensor | None = None

    @property
    def n_vocabulary(self) -> int:
        return self.rows.shape[1] if self.weight is None else self.weight.shape[0]

    @property
    def may_be_masked(self) -> bool:
        """Whether a logit can be −inf, with all weights finite but for the bias."""
        return self.weight is None or self.bias is not None

    def cast(self, dtype: torch.dtype | None) -> Rows:
        """The same with an unembedding in another precision, as autocast would run it."""
        if dtype is None or self.weight is None:
            return self
        return Rows(*(None if tensor is None else tensor.to(dtype) for tensor in self))  # type: ignore[arg-type]

    def logits(self, chunk: slice, factor: float) -> torch.Tensor:
        """Logits of some rows, times a factor; it is applied where there are fewer numbers."""
        rows = self.rows[chunk]
        if factor != 1.0:
            rows = rows * factor
        if self.weight is None:
            return rows
        return linear(rows, self.weight, None if self.bias is None else self.bias * factor)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Softmaxes are taken in float32 whatever a model runs in, or in float64 if it does."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _softmax(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of each row, and log Σ exp of its logits.

    The largest logit and the largest probability, which is no less than one over their number, tell the latter: an
    exponential a logit, where a log-softmax takes one and its probabilities another. It is as exact as the logits are.
    """
    probabilities = torch.softmax(logits, dim=1)
    return probabilities, logits.amax(dim=1) - probabilities.amax(dim=1).log()


def _expected(probabilities: torch.Tensor, logits: torch.Tensor, *, may_be_masked: bool) -> torch.Tensor:
    """Compute Σ p·logits of each row; a token of probability 0 adds nothing, even if its logit is −inf."""
    expected = torch.linalg.vecdot(probabilities, logits)
    if may_be_masked and bool(expected.isnan().any()):
        expected = torch.linalg.vecdot(probabilities, logits.masked_fill(probabilities == 0, 0.0))
    return expected


class Targets:
    """A teacher's distributions at a temperature, a chunk of rows at a time.

    Parameters
    ----------
    source : Rows
        The teacher's.
    temperature : float
        T.
    keep : bool
        Whether to keep the probabilities, for students to come.
    chunk_rows : int or None
        Rows a chunk.
    matmul_dtype : torch.dtype or None
        Precision of unembedding, here and in the students.
    """

    def __init__(
        self,
        source: Rows,
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
        self.chunk_rows = chunk_rows or rows_a_chunk(source.n_vocabulary, source.rows.device)
        self.chunks = [
            slice(start, min(start + self.chunk_rows, n_rows)) for start in range(0, n_rows, self.chunk_rows)
        ]
        keep = keep and n_rows * source.n_vocabulary * self.dtype.itemsize <= _KEPT_BYTES
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = {} if keep else None

    def chunk(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities (n, n_vocabulary) and Σ p log p (n,) of a chunk; not to be changed."""
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        logits = self.source.logits(self.chunks[index], 1.0 / self.temperature).to(self.dtype)
        probabilities, log_normalizers = _softmax(logits)
        expected = _expected(probabilities, logits, may_be_masked=self.source.may_be_masked)
        result = probabilities, expected - log_normalizers
        if self._kept is not None:
            self._kept[index] = result
        return result


class ZeroWidth:
    """Loss of a student of width 0, which gives every position one distribution: the teacher's mean.

    Parameters
    ----------
    n_vocabulary : int
        Tokens that the distributions are over.
    """

    def __init__(self, n_vocabulary: int) -> None:
        self.total = np.zeros(n_vocabulary)  # of the teacher's probabilities
        self.negative_entropy = 0.0
        self.n_positions = 0

    def add(self, targets: Targets) -> None:
        """Add a batch of positions."""
        for index in range(len(targets.chunks)):
            probabilities, negative_entropies = targets.chunk(index)
            self.total += probabilities.sum(dim=0).cpu().double().numpy()
            self.negative_entropy += float(negative_entropies.cpu().double().sum())
        self.n_positions += len(targets.source.rows)

    def loss(self) -> float:
        """Loss over all positions, in nats per token."""
        mean = self.total / self.n_positions
        return float(self.negative_entropy / self.n_positions - xlogy(mean, mean).sum())


def rows_a_chunk(n_vocabulary: int, device: torch.device) -> int:
    """Rows a chunk: logits that fit a cache on a CPU, a few launches a batch on an accelerator."""
    if device.type == "cpu":
        return max(2**20 // n_vocabulary, 128)
    return max(2**25 // n_vocabulary, 256)


@dataclass
class Plan:
    """What a student's rows are compared with, and how much each term counts."""

    targets: Targets
    weights: torch.Tensor | None  # (n_rows,) of the KL, 0 for padding; None where all count
    kl_scale: Any  # factor on Σ weights·KL in the loss and in what is reported: one over the positions that count
    kl_factor: float = 1.0  # further factor on the KL in the loss
    # Next tokens (n_rows,) and factors on each row's cross-entropy in the loss, where that counts.
    labels: tuple[torch.Tensor, torch.Tensor] | None = None


class ChunkedLoss(torch.autograd.Function):
    """Loss and gradients in one pass over chunks of rows; returns the loss and, apart, the KL."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: Any, bias: Any, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
        kl, cross_entropy, gradients = _loss_and_gradients(Rows(rows, weight, bias), plan, ctx.needs_input_grad[:3])
        ctx.gradients = gradients
        kl = kl * plan.kl_scale
        loss = kl * plan.kl_factor
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
    student: Rows, plan: Plan, needed: Sequence[bool]
) -> tuple[torch.Tensor, torch.Tensor | None, list[torch.Tensor | None]]:
    """Weighted sum of KLs, weighted cross-entropy, and the gradients of the loss on rows, weight and bias.

    With a = logits / T, the KL of a row is Σ p_T log p_T − Σ p_T a + log Σ exp(a), and its gradient on the
    logits (softmax(a) − p_T) / T. Factors that differ by row are applied to hidden states, which are
    narrower than logits.
    """
    targets, temperature = plan.targets, plan.targets.temperature
    cast = student.cast(targets.matmul_dtype)
    wide = targets.dtype
    with_gradient = any(needed)
    kl = torch.zeros((), dtype=wide, device=student.rows.device)
    cross_entropy: torch.Tensor | None = None
    on_rows = torch.empty_like(student.rows) if with_gradient else None
    on_weight = None if student.weight is None or not needed[1] else zero_sum(student.weight)
    on_bias: torch.Tensor | None = None
    coefficient = plan.kl_factor * plan.kl_scale / temperature

    for index, chunk in enumerate(targets.chunks):
        probabilities, negative_entropy = targets.chunk(index)
        scaled = cast.logits(chunk, 1.0 / temperature).to(wide)
        of_student, log_normalizers = _softmax(scaled)
        expected = _expected(probabilities, scaled, may_be_masked=cast.may_be_masked)
        row_kl = negative_entropy - (expected - log_normalizers)
        weights = None if plan.weights is None else plan.weights[chunk]
        kl += row_kl.sum() if weights is None else row_kl @ weights
        if not with_gradient and plan.labels is None:
            continue
        factors: Any = coefficient if weights is None else (coefficient * weights)[:, None]
        gradient = of_student.sub_(probabilities)  # on the logits, but for the factors
        if plan.labels is not None:
            gradient.mul_(factors)
            labels, label_weights = plan.labels
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


def row_kls(student: Rows, targets: Targets) -> torch.Tensor:
    """KL of each row, (n_rows,)."""
    cast = student.cast(targets.matmul_dtype)
    kls = []
    for index, chunk in enumerate(targets.chunks):
        probabilities, negative_entropy = targets.chunk(index)
        scaled = cast.logits(chunk, 1.0 / targets.temperature).to(targets.dtype)
        _, log_normalizers = _softmax(scaled)
        expected = _expected(probabilities, scaled, may_be_masked=cast.may_be_masked)
        kls.append(negative_entropy - (expected - log_normalizers))
    return torch.cat(kls)


def _add_cross_entropy(
    gradient: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Add the cross-entropy's gradient on the logits, in place; return its weighted sum."""
    log_probabilities = torch.log_softmax(logits, dim=1, dtype=gradient.dtype)
    value = -(log_probabilities.gather(1, labels[:, None])[:, 0] @ weights)
    gradient.add_(log_probabilities.exp_().mul_(weights[:, None]))
    gradient.scatter_add_(1, labels[:, None], -weights[:, None])
    return value


def chunks_of(rows: Rows) -> list[slice]:
    size = rows_a_chunk(rows.n_vocabulary, rows.rows.device)
    return [slice(start, start + size) for start in range(0, len(rows.rows), size)]


def mean_and_error(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Mean over all positions of sequences of several lengths, and its standard error over sequences."""
    mean = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return mean, float("nan")
    residual = sums - mean * counts
    return mean, float(np.sqrt(np.square(residual).sum() * len(sums) / (len(sums) - 1)) / counts.sum())
