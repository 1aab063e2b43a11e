"""Distilling students of given widths: how low they really get, in nats a token."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from geofloor._training.checkpoints import load_optimizer_tensors, optimizer_tensors, read_tensors, write_tensors
from geofloor._training.devices import resolve_device, to_device
from geofloor._training.progress import progress_bar
from geofloor._training.rows import fingerprint
from geofloor._training.sampling import epoch_rows
from geofloor._training.schedules import warmup_cosine
from geofloor._training.seeds import draw_seed, torch_generator
from geofloor._training.settings import check_range, plain_parameters, read_checkpoint
from geofloor.language_models import ActivationExtractor
from geofloor.students import make_student
from geofloor.toy import ToyModel

_FILE = "geofloor distilled student"
_CHECKPOINT = "geofloor distillation checkpoint"
_LOOK_EVERY = 50  # steps between looks at the loss, each of which waits for the device
_FINAL_SHARE = 0.1  # of the steps, whose evaluations make the floor
_SCANNED_TOKENS = 2**28  # token ids looked at before training starts; the rest when they are read
_SCAN_ROWS = 4096
_KEPT_BYTES = 2**32  # of a teacher's probabilities, kept for several students
# What does not change the result of a fit, and so may differ when it is resumed.
_INCIDENTAL = frozenset(
    {"teacher", "teacher_kwargs", "device", "verbose", "checkpoint_path", "checkpoint_every", "random_state"}
    | {"layer", "pooling", "convergence_tol"}
)


# The loss, a chunk of rows at a time


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
    ValueError
        If shapes don't match.

    Notes
    -----
    There is no factor :math:`T^2`: it is no part of the divergence. In training it makes the gradient's size
    independent of the temperature; `DistilledStudent` has it in its loss, not in what it reports.

    Examples
    --------
    >>> import torch
    >>> from geofloor.distillation import distillation_kl
    >>> teacher = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> round(float(distillation_kl(torch.zeros(2, 2), teacher)), 4)
    0.2194
    >>> float(distillation_kl(teacher, teacher, temperature=2.0))
    0.0
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature!r} must be above 0.")
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
    source = _Rows(teacher.detach().reshape(-1, teacher.shape[-1]), teacher_weight, teacher_bias)
    targets = _Targets(source, temperature, chunk_rows=chunk_rows)
    weights = None if mask is None else mask.reshape(-1).to(targets.dtype)
    total = len(source.rows) if weights is None else weights.sum()
    plan = _Plan(targets, weights, 1.0 / total)
    loss, _ = _ChunkedLoss.apply(student.reshape(-1, student.shape[-1]), student_weight, student_bias, plan)
    return loss


class _Rows(NamedTuple):
    """What gives logits, a row a position: hidden states with an unembedding, or logits themselves."""

    rows: torch.Tensor  # (n_rows, d), or (n_rows, n_vocabulary) without a weight
    weight: torch.Tensor | None = None  # (n_vocabulary, d)
    bias: torch.Tensor | None = None

    @property
    def n_vocabulary(self) -> int:
        return self.rows.shape[1] if self.weight is None else self.weight.shape[0]

    def cast(self, dtype: torch.dtype | None) -> _Rows:
        """The same with an unembedding in another precision, as autocast would run it."""
        if dtype is None or self.weight is None:
            return self
        return _Rows(*(None if tensor is None else tensor.to(dtype) for tensor in self))  # type: ignore[arg-type]

    def logits(self, chunk: slice, factor: float) -> torch.Tensor:
        """Logits of some rows, times a factor; it is applied where there are fewer numbers."""
        rows = self.rows[chunk]
        if factor != 1.0:
            rows = rows * factor
        if self.weight is None:
            return rows
        if self.bias is None:
            return rows @ self.weight.T
        return torch.addmm(self.bias * factor, rows, self.weight.T)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Softmaxes are taken in float32 whatever a model runs in, or in float64 if it does."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class _Targets:
    """A teacher's distributions at a temperature, a chunk of rows at a time.

    Parameters
    ----------
    source : _Rows
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
        source: _Rows,
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
        self.chunk_rows = chunk_rows or _chunk_rows(source.n_vocabulary, source.rows.device)
        self.chunks = [
            slice(start, min(start + self.chunk_rows, n_rows)) for start in range(0, n_rows, self.chunk_rows)
        ]
        keep = keep and n_rows * source.n_vocabulary * self.dtype.itemsize <= _KEPT_BYTES
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = {} if keep else None

    def chunk(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities (n, n_vocabulary) and Σ p log p (n,) of a chunk; not to be changed."""
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        logits = self.source.logits(self.chunks[index], 1.0 / self.temperature)
        log_probabilities = torch.log_softmax(logits, dim=1, dtype=self.dtype)
        probabilities = log_probabilities.exp()
        result = probabilities, torch.linalg.vecdot(probabilities, log_probabilities)
        if self._kept is not None:
            self._kept[index] = result
        return result


def _chunk_rows(n_vocabulary: int, device: torch.device) -> int:
    """Rows a chunk: logits that fit a cache on a CPU, a few launches a batch on an accelerator."""
    if device.type == "cpu":
        return max(2**19 // n_vocabulary, 128)
    return max(2**25 // n_vocabulary, 256)


@dataclass
class _Plan:
    """What a student's rows are compared with, and how much each term counts."""

    targets: _Targets
    weights: torch.Tensor | None  # (n_rows,) of the KL, 0 for padding; None where all count
    kl_scale: Any  # factor on Σ weights·KL in the loss and in what is reported: one over the positions that count
    kl_factor: float = 1.0  # further factor on the KL in the loss
    # Next tokens (n_rows,) and factors on each row's cross-entropy in the loss, where that counts.
    labels: tuple[torch.Tensor, torch.Tensor] | None = None


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradients in one pass over chunks of rows; returns the loss and, apart, the KL."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: Any, bias: Any, plan: _Plan) -> tuple[torch.Tensor, torch.Tensor]:
        kl, cross_entropy, gradients = _loss_and_gradients(_Rows(rows, weight, bias), plan, ctx.needs_input_grad[:3])
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
    student: _Rows, plan: _Plan, needed: Sequence[bool]
) -> tuple[torch.Tensor, torch.Tensor | None, list[torch.Tensor | None]]:
    """Weighted sum of KLs, weighted cross-entropy, and the gradients of the loss on rows, weight and bias.

    With a = logits / T, the KL of a row is Σ p_T log p_T − Σ p_T log softmax(a), and its gradient on the
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
    on_weight: torch.Tensor | None = None
    on_bias: torch.Tensor | None = None
    coefficient = plan.kl_factor * plan.kl_scale / temperature

    for index, chunk in enumerate(targets.chunks):
        probabilities, negative_entropy = targets.chunk(index)
        scaled = cast.logits(chunk, 1.0 / temperature)
        log_probabilities = torch.log_softmax(scaled, dim=1, dtype=wide)
        row_kl = negative_entropy - torch.linalg.vecdot(probabilities, log_probabilities)
        weights = None if plan.weights is None else plan.weights[chunk]
        kl += row_kl.sum() if weights is None else row_kl @ weights
        if not with_gradient and plan.labels is None:
            continue
        factors: Any = coefficient if weights is None else (coefficient * weights)[:, None]
        gradient = log_probabilities.exp_().sub_(probabilities)  # on the logits, but for the factors
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
        on_rows[chunk] = (gradient @ cast.weight).mul_(factors)
        if needed[1]:
            hidden = cast.rows[chunk] * factors
            if on_weight is None:
                on_weight = (gradient.T @ hidden).to(student.weight.dtype)  # type: ignore[union-attr]
            elif on_weight.dtype == gradient.dtype:
                on_weight.addmm_(gradient.T, hidden)
            else:
                on_weight += gradient.T @ hidden
        if needed[2]:
            on_this = (gradient * factors).sum(dim=0).to(student.bias.dtype)  # type: ignore[union-attr]
            on_bias = on_this if on_bias is None else on_bias + on_this
    return kl, cross_entropy, [on_rows if needed[0] else None, on_weight, on_bias]


def _row_kls(student: _Rows, targets: _Targets) -> torch.Tensor:
    """KL of each row, (n_rows,)."""
    cast = student.cast(targets.matmul_dtype)
    kls = []
    for index, chunk in enumerate(targets.chunks):
        probabilities, negative_entropy = targets.chunk(index)
        log_probabilities = torch.log_softmax(cast.logits(chunk, 1.0 / targets.temperature), dim=1, dtype=targets.dtype)
        kls.append(negative_entropy - torch.linalg.vecdot(probabilities, log_probabilities))
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


# Data


class _Batch(NamedTuple):
    """Token ids (n, seq_len), and which are no padding; None where all are."""

    ids: np.ndarray
    mask: np.ndarray | None

    @property
    def n_positions(self) -> int:
        return self.ids.size if self.mask is None else int(self.mask.sum())

    @property
    def n_labels(self) -> int:
        """Positions that have a next token."""
        return self.ids[:, 1:].size if self.mask is None else int(self.mask[:, 1:].sum())

    def split(self, n_parts: int) -> list[_Batch]:
        bounds = np.linspace(0, len(self.ids), min(n_parts, len(self.ids)) + 1).astype(int)
        return [
            _Batch(self.ids[a:b], None if self.mask is None else self.mask[a:b]) for a, b in itertools.pairwise(bounds)
        ]


class _Tokens:
    """Rows of token ids, checked when they are read and never read whole if they are a memory map.

    Parameters
    ----------
    tokens : int array-like of shape (n_sequences, seq_len)
    name : str
        What error messages call them.
    n_vocabulary : int
    max_length : int or None
        Positions that the teacher has.
    pad_token_id : int or None
    """

    def __init__(
        self, tokens: Any, name: str, n_vocabulary: int, max_length: int | None, pad_token_id: int | None
    ) -> None:
        self._array = _token_array(tokens, name)
        self._name, self._n_vocabulary, self._pad = name, n_vocabulary, pad_token_id
        length = self._array.shape[1]
        if max_length is not None and length > max_length:
            raise ValueError(
                f"{name} has sequences of {length} tokens, and the teacher has {max_length} positions; cut them, for "
                f"example with geofloor.language_models.token_blocks(..., length={max_length})."
            )
        wanted = min(len(self), max(_SCANNED_TOKENS // length, 1))
        rows = np.unique(np.linspace(0, len(self) - 1, wanted).astype(np.int64))
        for start in range(0, len(rows), _SCAN_ROWS):
            self.take(rows[start : start + _SCAN_ROWS])

    def __len__(self) -> int:
        return self._array.shape[0]

    def take(self, rows: np.ndarray) -> _Batch:
        """Rows by number."""
        ids = np.asarray(self._array[rows])
        mask = None
        if self._pad is not None:
            mask = ids != self._pad
            mask = None if mask.all() else mask
        real = ids if mask is None else ids[mask]
        lowest, highest = (int(real.min()), int(real.max())) if real.size else (0, 0)
        if lowest < 0 or highest >= self._n_vocabulary:
            raise ValueError(
                f"{self._name} holds the token id {lowest if lowest < 0 else highest}, outside the teacher's "
                f"vocabulary of 0 to {self._n_vocabulary - 1}; use the tokenizer that the teacher was trained with"
                f"{'' if self._pad is not None else ', or set pad_token_id if this is padding'}."
            )
        if mask is not None:
            if (mask[:, 1:] & ~mask[:, :-1]).any() or not mask[:, 0].all():
                raise ValueError(
                    f"{self._name} has padding (pad_token_id={self._pad}) before a token; pad sequences at their end."
                )
            ids = np.where(mask, ids, 0)
        return _Batch(ids.astype(np.int64), mask)

    def fingerprint(self) -> str:
        rows = np.unique(np.linspace(0, len(self) - 1, min(len(self), 256)).astype(np.int64))
        return fingerprint(np.asarray(self._array[rows]), len(self))


def _token_array(tokens: Any, name: str) -> np.ndarray:
    """An integer array of at least one row and two columns, memory maps as they are."""
    if isinstance(tokens, torch.Tensor):
        tokens = tokens.detach().cpu().numpy()
    if sp.issparse(tokens):
        raise ValueError(f"{name} is a sparse matrix; token ids are a dense array of integers.")
    if not isinstance(tokens, np.ndarray):
        try:
            tokens = np.asarray(tokens)
        except ValueError as error:  # ragged
            raise ValueError(
                f"{name} has sequences of different lengths; cut them into blocks with "
                "geofloor.language_models.token_blocks, or pad them at their end and set pad_token_id."
            ) from error
    if tokens.ndim != 2:
        raise ValueError(
            f"{name} has shape {tokens.shape}; token ids are integers of shape (n_sequences, seq_len). "
            "Reshape your data, or make blocks of text with geofloor.language_models.token_blocks."
        )
    if tokens.shape[0] == 0:
        raise ValueError(f"{name} is empty: 0 sequence(s) (shape={tokens.shape}) while a minimum of 1 is required.")
    if tokens.shape[1] < 2:
        raise ValueError(f"{name} has sequences of {tokens.shape[1]} token(s); a next token needs at least 2.")
    if tokens.dtype.kind not in "iu":
        raise ValueError(f"{name} has dtype {tokens.dtype}; token ids are integers.")
    return tokens


# Models


def _logits(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.logits


@contextlib.contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """A module in evaluation mode, and in training mode again afterwards where it was."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


class _LanguageModel:
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
        self._options: dict[str, Any] = {}
        probe = torch.zeros((1, 2), dtype=torch.int64, device=self.device)
        with _evaluating(module), torch.no_grad():
            try:
                logits = _logits(module(probe))
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

    def rows(self, ids: torch.Tensor) -> _Rows:
        if self.head is None:
            return _Rows(_logits(self.module(ids, **self._options)).flatten(0, 1))
        hidden = self.module.base_model(ids, **self._options)[0]
        return _Rows(hidden.flatten(0, 1), self.head.weight, self.head.bias)

    def digest(self) -> str:
        """Of a part of every weight: tells one model from another."""
        digest = hashlib.sha256()
        for name, parameter in self.module.named_parameters():
            digest.update(f"{name}:{tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().flatten()[:256].float().cpu().numpy().tobytes())
        return digest.hexdigest()


def _on_device(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
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


# Training


@dataclass
class _Run:
    """All that a training step of one student reads and writes."""

    estimator: DistilledStudent
    model: _LanguageModel
    projection: torch.nn.Linear | None  # onto the teacher's hidden states, where these are in the loss
    optimizer: torch.optim.AdamW
    seed: int
    kl_sum: torch.Tensor  # of the steps since the last evaluation
    final_sums: np.ndarray  # KL of each held-out sequence, summed over positions and over the final evaluations
    kl_steps: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def parameters(self) -> list[torch.nn.Parameter]:
        extra = [] if self.projection is None else list(self.projection.parameters())
        return [*self.model.module.parameters(), *extra]

    def loss(self, student: _Rows, teacher: _Rows, plan: _Plan, hidden_scale: torch.Tensor | None) -> torch.Tensor:
        """Loss of part of a batch; what it adds to the batch's KL goes into `kl_sum`."""
        loss, kl = _ChunkedLoss.apply(*student, plan)
        self.kl_sum += kl
        if self.projection is not None:
            error = (self.projection(student.rows).float() - teacher.rows.float()).square().mean(dim=1)
            error = error.mean() * len(error) if plan.weights is None else error @ plan.weights
            loss = loss + error * plan.kl_scale * hidden_scale
        return loss


class _Distillation:
    """One pass over the data that trains several students of one teacher, which differ in width and seed."""

    def __init__(self, estimators: list[DistilledStudent]) -> None:
        self.estimators = estimators
        self.settings = settings = estimators[0]
        self.device, module = settings._load_teacher()
        for estimator in estimators[1:]:
            estimator._loaded = settings._loaded
        self.teacher = _LanguageModel(module, f"teacher={type(module).__name__}")
        head = self.teacher.head
        if head is not None and not bool(torch.isfinite(head.weight).all()):
            raise ValueError("The teacher's unembedding is not finite, nor would its logits be; check its weights.")
        self.matmul_dtype = torch.bfloat16 if settings.precision == "bf16" else None
        self.teacher_finite = torch.ones((), dtype=torch.bool, device=self.device)

    def rows_of(self, tokens: Any, name: str) -> _Tokens:
        return _Tokens(
            tokens, name, self.teacher.n_tokens, self.teacher.max_length, pad_token_id=self.settings.pad_token_id
        )

    def open(self, tokens: Any, eval_tokens: Any) -> None:
        """Check the data and divide them."""
        self.tokens = self.rows_of(tokens, "tokens")
        if eval_tokens is not None:
            self.held_out = self.rows_of(eval_tokens, "eval_tokens")
            self.n_train, first = len(self.tokens), 0
        else:
            n_held_out = max(round(self.settings.validation_fraction * len(self.tokens)), 1)
            self.held_out, self.n_train = self.tokens, len(self.tokens) - n_held_out
            first = self.n_train
            if self.n_train < 1:
                raise ValueError(
                    f"tokens has {len(self.tokens)} sequence(s), of which validation_fraction="
                    f"{self.settings.validation_fraction:g} leaves none to train on; give more, or eval_tokens."
                )
        last = min(first + self.settings.eval_sequences, len(self.held_out))
        self.eval_rows = np.arange(first, last)
        self.data_fingerprint = f"{self.tokens.fingerprint()}:{self.held_out.fingerprint()}:{first}:{last}"

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.precision == "bf16")

    def to_device(self, array: np.ndarray, dtype: torch.dtype | None = None) -> torch.Tensor:
        tensor = to_device(array, self.device)
        return tensor if dtype is None else tensor.to(dtype)

    @torch.no_grad()
    def targets(self, ids: torch.Tensor, *, keep: bool) -> _Targets:
        with self.autocast():
            rows = self.teacher.rows(ids)
        self.teacher_finite &= torch.isfinite(rows.rows).all()
        return _Targets(rows, self.settings.temperature, keep=keep, matmul_dtype=self.matmul_dtype)

    def _hidden_scale(self) -> torch.Tensor | None:
        """Factor that makes the hidden-state loss a share of the teacher's variance, by the first held-out rows."""
        if not self.settings.hidden_weight:
            return None
        if self.teacher.head is None:
            raise ValueError(
                f"hidden_weight={self.settings.hidden_weight!r} needs a teacher whose hidden states are known, such as "
                "a transformers model with a linear unembedding; use hidden_weight=0."
            )
        ids = self.to_device(self.held_out.take(self.eval_rows[: self.settings.batch_size]).ids)
        rows = self.targets(ids, keep=False).source.rows.float()
        return self.settings.hidden_weight / rows.var(dim=0).mean()

    # States

    def start(self, estimator: DistilledStudent) -> _Run:
        """A run before its first step."""
        seed = draw_seed(estimator.random_state)
        sample = None
        if estimator.init == "principal":
            sample = self.tokens.take(np.arange(min(self.n_train, 64))).ids
        module = make_student(
            self.teacher.module, estimator.width, init=estimator.init, random_state=seed, tokens=sample
        )
        return self.run(estimator, module, seed)

    def run(self, estimator: DistilledStudent, module: torch.nn.Module, seed: int) -> _Run:
        module = module.to(self.device).eval().requires_grad_()
        model = _LanguageModel(module, "the student")
        if model.n_vocabulary != self.teacher.n_vocabulary:
            raise ValueError(
                f"the student has a vocabulary of {model.n_vocabulary} tokens, the teacher one of "
                f"{self.teacher.n_vocabulary}; make students with the teacher's vocabulary."
            )
        projection = None
        if self.settings.hidden_weight:
            if model.head is None or self.teacher.head is None:
                raise ValueError("hidden_weight needs a student whose hidden states are known; use hidden_weight=0.")
            projection = torch.nn.Linear(model.head.in_features, self.teacher.head.in_features, device="cpu")
            with torch.no_grad():
                generator = torch_generator(seed)
                for parameter in projection.parameters():
                    parameter.normal_(std=model.head.in_features**-0.5, generator=generator)
            projection = projection.to(self.device)
        parameters = [*module.parameters(), *([] if projection is None else projection.parameters())]
        optimizer = torch.optim.AdamW(
            parameters, lr=estimator.learning_rate, weight_decay=estimator.weight_decay, fused=True
        )
        return _Run(
            estimator,
            model,
            projection,
            optimizer,
            seed,
            kl_sum=torch.zeros((), device=self.device),
            final_sums=np.zeros(len(self.eval_rows)),
        )

    # The loop

    def train(self) -> None:
        self.teacher_digest = self.teacher.digest()
        self.hidden_scale = self._hidden_scale()
        runs = [self.resume(estimator) or self.start(estimator) for estimator in self.estimators]
        first = min(run.step for run in runs)
        n_steps, settings = self.settings.n_steps, self.settings
        new = [run for run in runs if not run.history]
        if new:
            self.evaluate(new)
        description = "distillation" if len(runs) == 1 else f"distillation of {len(runs)} students"
        with progress_bar(description, total=n_steps, initial=first, verbose=settings.verbose) as bar:
            for step in range(first, n_steps):
                # A run that was checkpointed later than the others waits for them.
                active = [run for run in runs if run.step == step]
                self.train_step(active, step)
                done = step + 1
                last = done == n_steps
                if done % settings.eval_every == 0 or last:
                    self.evaluate(active)
                    bar.set_postfix({str(run.estimator.width): f"{run.history[-1]['eval_kl']:.4f}" for run in runs})
                elif done % _LOOK_EVERY == 0:
                    self.look(active)
                if settings.checkpoint_path is not None and (done % settings.checkpoint_every == 0 or last):
                    self.look(active)
                    for run in active:
                        self.checkpoint(run)
                bar.update()
        counts = self.eval_counts()
        for run in runs:
            run.estimator._publish(run, counts)

    def train_step(self, runs: list[_Run], step: int) -> None:
        """One step of every run on the same batch, with one forward pass of the teacher."""
        settings = self.settings
        batch = self.tokens.take(epoch_rows(self.n_train, settings.batch_size, step, settings.data_seed))
        for part in batch.split(settings.gradient_accumulation):
            ids = self.to_device(part.ids)
            targets = self.targets(ids, keep=len(runs) > 1)
            plan = self.plan(targets, part, batch)
            for run in runs:
                with self.autocast():
                    student = run.model.rows(ids)
                run.loss(student, targets.source, plan, self.hidden_scale).backward()
        factor = warmup_cosine(step, n_steps=settings.n_steps, warmup_steps=settings.warmup)
        for run in runs:
            if settings.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(run.parameters(), settings.clip_norm)
            run.optimizer.param_groups[0]["lr"] = settings.learning_rate * factor
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=True)
            run.step += 1
            run.kl_steps += 1

    def plan(self, targets: _Targets, part: _Batch, batch: _Batch) -> _Plan:
        """Weights of the positions of a part, so that the parts of a batch add up to its mean."""
        weights = None if part.mask is None else self.to_device(part.mask.reshape(-1), targets.dtype)
        labels = None
        if self.settings.cross_entropy_weight:
            following = np.roll(part.ids, -1, axis=1)
            counted = np.ones(part.ids.shape) if part.mask is None else np.roll(part.mask, -1, axis=1).astype(float)
            counted[:, -1] = 0.0
            counted *= self.settings.cross_entropy_weight / max(batch.n_labels, 1)
            labels = self.to_device(following.reshape(-1)), self.to_device(counted.reshape(-1), targets.dtype)
        return _Plan(targets, weights, 1.0 / batch.n_positions, self.settings.temperature**2, labels)

    # Measuring

    def eval_counts(self) -> np.ndarray:
        """Positions of each held-out sequence."""
        batch = self.held_out.take(self.eval_rows)
        return np.full(len(batch.ids), batch.ids.shape[1]) if batch.mask is None else batch.mask.sum(axis=1)

    def evaluate(self, runs: list[_Run]) -> None:
        """Add a row to each run's history, of the KL on held-out text."""
        self.look(runs)
        sums, counts = self.held_out_kl([run.model for run in runs], self.held_out, self.eval_rows)
        settings = self.settings
        for run, row in zip(runs, sums, strict=True):
            eval_kl = float(row.sum() / counts.sum())
            if not np.isfinite(eval_kl):
                raise self.not_finite(run, eval_kl)
            factor = warmup_cosine(max(run.step - 1, 0), n_steps=settings.n_steps, warmup_steps=settings.warmup)
            train_kl = float(run.kl_sum) / run.kl_steps if run.kl_steps else None
            run.history.append(
                {
                    "step": run.step,
                    "train_kl": train_kl,
                    "eval_kl": eval_kl,
                    "learning_rate": settings.learning_rate * factor if run.step else 0.0,
                }
            )
            run.kl_sum.zero_()
            run.kl_steps = 0
            if _is_final(run.step, settings.n_steps):
                run.final_sums += row

    @torch.no_grad()
    def held_out_kl(
        self, students: list[_LanguageModel], tokens: _Tokens, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """KL of each student on each sequence, summed over positions (n_students, n_sequences), and the positions."""
        size = max(self.settings.batch_size // self.settings.gradient_accumulation, 1)
        sums, counts = [], []
        for start in range(0, len(rows), size):
            batch = tokens.take(rows[start : start + size])
            ids = self.to_device(batch.ids)
            targets = self.targets(ids, keep=len(students) > 1)
            mask = None if batch.mask is None else self.to_device(batch.mask, targets.dtype)
            found = []
            for student in students:
                with self.autocast():
                    student_rows = student.rows(ids)
                kls = _row_kls(student_rows, targets).view(ids.shape)
                found.append((kls if mask is None else kls * mask).sum(dim=1))
            sums.append(torch.stack(found))
            counts.append(np.full(len(ids), ids.shape[1]) if batch.mask is None else batch.mask.sum(axis=1))
        return torch.cat(sums, dim=1).double().cpu().numpy(), np.concatenate(counts)

    def look(self, runs: list[_Run]) -> None:
        """Refuse to go on with a loss that is not finite."""
        for run, kl in zip(runs, torch.stack([run.kl_sum for run in runs]).tolist(), strict=True):
            if not np.isfinite(kl):
                raise self.not_finite(run, kl)

    def not_finite(self, run: _Run, value: float) -> ValueError:
        if not bool(self.teacher_finite):
            return ValueError(
                f"The teacher's logits are not finite, by step {run.step} at the latest; check its weights, or load "
                "it in a dtype with more range, such as teacher_kwargs={'dtype': 'float32'}."
            )
        return ValueError(
            f"The KL of the student of width {run.estimator.width} became {value} by step {run.step}; lower "
            f"learning_rate={self.settings.learning_rate:g}, lengthen warmup={self.settings.warmup}, or set clip_norm."
        )

    # Checkpoints

    def checkpoint(self, run: _Run) -> None:
        tensors = {f"model.{name}": value for name, value in run.model.module.state_dict().items()}
        if run.projection is not None:
            tensors |= {f"projection.{name}": value for name, value in run.projection.state_dict().items()}
        tensors |= optimizer_tensors(run.optimizer)
        tensors |= {"kl_sum": run.kl_sum, "final_sums": torch.from_numpy(run.final_sums)}
        metadata = {
            "settings": run.estimator._settings(),
            "tokens": self.data_fingerprint,
            "teacher": self.teacher_digest,
            **{name: getattr(run, name) for name in ("seed", "step", "kl_steps", "history")},
        }
        write_tensors(run.estimator.checkpoint_path, tensors, kind=_CHECKPOINT, metadata=metadata)  # type: ignore[arg-type]

    def resume(self, estimator: DistilledStudent) -> _Run | None:
        """A run from its checkpoint, if there is one; refuse one of other settings, data or teacher."""
        found = read_checkpoint(
            estimator.checkpoint_path,
            kind=_CHECKPOINT,
            settings=estimator._settings(),
            random_state=estimator.random_state,
            made_with={"tokens": self.data_fingerprint, "teacher": self.teacher_digest},
        )
        if found is None:
            return None
        tensors, metadata = found
        module = make_student(self.teacher.module, estimator.width, random_state=metadata["seed"])
        module.load_state_dict(_part(tensors, "model."))
        run = self.run(estimator, module, metadata["seed"])
        if run.projection is not None:
            run.projection.load_state_dict(_part(tensors, "projection."))
        load_optimizer_tensors(run.optimizer, tensors)
        run.kl_sum += tensors["kl_sum"].to(self.device)
        run.final_sums += tensors["final_sums"].numpy()
        run.step, run.kl_steps, run.history = metadata["step"], metadata["kl_steps"], list(metadata["history"])
        return run


def _is_final(step: int, n_steps: int) -> bool:
    return step > (1.0 - _FINAL_SHARE) * n_steps


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


# Estimator


class DistilledStudent(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""A student of a given width, distilled from a language model: the floor, observed.

    Forward KL divergence between the next-token distributions of teacher and student at a temperature, over
    all positions, minimised by AdamW with linear warm-up and cosine decay. Defaults are the paper's.

    Parameters
    ----------
    teacher : PreTrainedModel, str, path-like, torch.nn.Module or ToyModel
        A causal language model of ``transformers``, its name on the hub or its folder, or a module that takes
        token ids and returns logits (its students come from ``make_student.register``). An object is left as it
        is: if it is not on the device, a copy is trained from. Or a fitted `ToyModel`: then `fit` takes
        what `ToyModel.fit` takes, and training is the toy model's, with its own settings.
    width : int
        Dimensions d of the student's residual stream. All else follows from the teacher: `student_config`.
    temperature : float, default=2.0
        T.
    n_steps : int, default=30_000
        Steps.
    batch_size : int, default=32
        Sequences a step.
    learning_rate : float, default=3e-4
        AdamW's step size after warm-up; it falls to zero along a cosine.
    weight_decay : float, default=0.01
        AdamW's, on all parameters.
    warmup : int, default=1000
        Steps over which the learning rate rises linearly; below `n_steps`.
    clip_norm : float or None, default=None
        Largest joint norm of the gradients; None leaves them.
    gradient_accumulation : int, default=1
        Parts that a batch is divided into, to save memory; the gradient stays that of the batch.
    precision : {None, "bf16"}, default=None
        ``"bf16"`` runs teacher and student under autocast to bfloat16; weights, softmaxes and losses stay
        float32.
    init : {"random", "principal"}, default="random"
        How the student starts: see `make_student`.
    cross_entropy_weight : float, default=0.0
        Weight in the loss of the cross-entropy of the text's own next tokens, in nats a token.
    hidden_weight : float, default=0.0
        Weight in the loss of the squared error of a linear map, learnt along the way, from the student's
        last hidden states to the teacher's, as a share of the latter's variance.
    validation_fraction : float, default=0.05
        Share of the sequences, the last ones, held out for evaluation where no `eval_tokens` are given.
    eval_sequences : int, default=256
        Held-out sequences evaluated, at most; the first ones.
    eval_every : int, default=500
        Steps between evaluations.
    convergence_tol : float, default=0.01
        Relative fall of the evaluation KL over the final tenth of the steps below which it counts as stopped.
    pad_token_id : int or None, default=None
        Token that stands for padding after the end of a sequence and counts nowhere.
    layer : int, default=-1
        Block whose output `transform` gives, from 0; negative indices count from the last.
    pooling : {"mean", "last", None}, default="mean"
        What `transform` makes of a sequence: see `ActivationExtractor`.
    data_seed : int, default=0
        Seed of the order of the sequences. It is apart from `random_state` so that students of several
        seeds can be trained in one pass.
    teacher_kwargs : dict or None, default=None
        More arguments for ``from_pretrained`` of a teacher given by name, such as ``{"revision": "step1000"}``
        or ``{"dtype": "bfloat16"}``; by default it is loaded in float32.
    checkpoint_path : str, path or None, default=None
        File that `fit` keeps its state in. If it exists, from the same settings, teacher and data, `fit`
        goes on from there to the result of a run never stopped.
    checkpoint_every : int, default=500
        Steps between checkpoints.
    random_state : int, RandomState or None, default=None
        Seed of the student's first weights.
    device : str, default="auto"
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:<index>"`` or ``"mps"``. ``"auto"`` is the device of a teacher
        given as an object on an accelerator, else the best there is.
    verbose : int, default=0
        Whether to show a progress bar.

    Attributes
    ----------
    floor_ : float
        Mean KL on held-out text over the evaluations of the final tenth of the steps, in nats a token, at
        the temperature and without the factor T².
    floor_error_ : float
        Its standard error over held-out sequences; NaN if there is but one.
    history_ : list of dict
        For each evaluation, the first before training: ``step``, ``train_kl`` (mean since the evaluation before;
        None at first), ``eval_kl`` and ``learning_rate``; in nats a token.
    n_parameters_ : int
        Parameters of the student.
    converged_ : bool
        Whether the mean evaluation KL of the final tenth of the steps is less than `convergence_tol`, relatively,
        below that of the tenth before. It is necessary, not sufficient: the learning rate is small by then, so
        what tells is another run with twice the steps.
    n_steps_ : int
        Steps taken.
    model_ : torch.nn.Module or ToyModel
        The student, on the device it was trained on.
    device_ : str
        That device.

    See Also
    --------
    distill_widths : Trains several students in one pass.
    AffineCalibrator : Relates floors to predictions.
    ToyModel : Its toy counterpart.

    Notes
    -----
    With logits t of the teacher and s of the student, the loss is

    .. math:: T^2 \, \frac{1}{N} \sum_{n=1}^N \mathrm{KL}\bigl(\mathrm{softmax}(t_n / T) \,\Vert\,
              \mathrm{softmax}(s_n / T)\bigr),

    and what is reported is without the :math:`T^2`. The paper's raw figures [1]_ are sums over 512 positions, times
    :math:`T^2`: 2,048 times what is reported here. For AdamW a factor on the loss changes nothing but the size
    of its epsilon, and weights of other losses count against :math:`T^2`.

    Dropout is off. On a CPU the same seeds, data and number of threads give the same bits.

    References
    ----------
    .. [1] Sarkar and Deka (2026), "Geometric Limits of Knowledge Distillation", arXiv:2604.04037, Appendix E.

    Examples
    --------
    >>> import numpy as np
    >>> from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    >>> from geofloor import DistilledStudent
    >>> config = GPTNeoXConfig(
    ...     vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    ...     initializer_range=0.2,
    ... )
    >>> teacher = GPTNeoXForCausalLM(config)
    >>> tokens = np.random.default_rng(0).integers(32, size=(64, 12))
    >>> student = DistilledStudent(
    ...     teacher, 8, n_steps=40, warmup=5, batch_size=8, learning_rate=1e-2, random_state=0
    ... ).fit(tokens)
    >>> student.floor_ < student.history_[0]["eval_kl"]
    True
    >>> student.predict(tokens[:3]).shape, student.transform(tokens[:3]).shape
    ((3, 12), (3, 8))
    """

    def __init__(
        self,
        teacher: Any,
        width: int,
        *,
        temperature: float = 2.0,
        n_steps: int = 30_000,
        batch_size: int = 32,
        learning_rate: float = 3e-4,
        weight_decay: float = 0.01,
        warmup: int = 1000,
        clip_norm: float | None = None,
        gradient_accumulation: int = 1,
        precision: str | None = None,
        init: str = "random",
        cross_entropy_weight: float = 0.0,
        hidden_weight: float = 0.0,
        validation_fraction: float = 0.05,
        eval_sequences: int = 256,
        eval_every: int = 500,
        convergence_tol: float = 0.01,
        pad_token_id: int | None = None,
        layer: int = -1,
        pooling: str | None = "mean",
        data_seed: int = 0,
        teacher_kwargs: dict[str, Any] | None = None,
        checkpoint_path: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 500,
        random_state: int | np.random.RandomState | None = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.teacher = teacher
        self.width = width
        self.temperature = temperature
        self.n_steps = n_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.clip_norm = clip_norm
        self.gradient_accumulation = gradient_accumulation
        self.precision = precision
        self.init = init
        self.cross_entropy_weight = cross_entropy_weight
        self.hidden_weight = hidden_weight
        self.validation_fraction = validation_fraction
        self.eval_sequences = eval_sequences
        self.eval_every = eval_every
        self.convergence_tol = convergence_tol
        self.pad_token_id = pad_token_id
        self.layer = layer
        self.pooling = pooling
        self.data_seed = data_seed
        self.teacher_kwargs = teacher_kwargs
        self.checkpoint_path = checkpoint_path
        self.checkpoint_every = checkpoint_every
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def fit(self, tokens: Any, y: Any = None, *, eval_tokens: Any = None) -> DistilledStudent:
        """Train the student.

        Parameters
        ----------
        tokens : int array-like of shape (n_sequences, seq_len)
            Token ids. A memory map is read batch by batch. Each epoch takes the sequences in a new order.
            Of a `ToyModel`: what `ToyModel.fit` takes.
        y : None
            Ignored; here by convention.
        eval_tokens : int array-like of shape (n_sequences, seq_len), default=None
            Token ids to evaluate on; by default the last sequences of `tokens`, which are not trained on.

        Returns
        -------
        self : DistilledStudent
            The fitted student.

        Raises
        ------
        ValueError
            If data, teacher or parameters don't fit each other, if `checkpoint_path` belongs to other settings,
            data or teacher or is damaged, or if the teacher's logits or the loss become non-finite.
        """
        if isinstance(self.teacher, ToyModel):
            return self._fit_toy(tokens)
        _fit_together([self], tokens, eval_tokens)
        return self

    def predict(self, tokens: Any) -> np.ndarray:
        """Most likely next token after each position; of a `ToyModel` its output.

        Parameters
        ----------
        tokens : int array-like of shape (n_sequences, seq_len)
            Token ids.

        Returns
        -------
        tokens : ndarray of shape (n_sequences, seq_len), int64
            Ids of the tokens that the student expects next.

        Raises
        ------
        ValueError
            If `tokens` holds no token ids of the vocabulary.
        """
        check_is_fitted(self)
        if isinstance(self.model_, ToyModel):
            return self.model_.predict(tokens)
        return self._by_position(tokens, lambda logits: logits.argmax(dim=1))

    def predict_log_proba(self, tokens: Any) -> np.ndarray:
        """Log-probabilities of the next token after each position, at temperature 1.

        Parameters
        ----------
        tokens : int array-like of shape (n_sequences, seq_len)
            Token ids.

        Returns
        -------
        log_probabilities : ndarray of shape (n_sequences, seq_len, n_vocabulary), float32
            Natural logarithms.

        Raises
        ------
        ValueError
            If `tokens` holds no token ids of the vocabulary, or the student is a toy model.
        """
        check_is_fitted(self)
        if isinstance(self.model_, ToyModel):
            raise ValueError("A ToyModel has no probabilities; use predict.")
        return self._by_position(tokens, lambda logits: torch.log_softmax(logits, dim=1, dtype=torch.float32))

    def transform(self, tokens: Any) -> np.ndarray:
        """Hidden states of the student after block `layer`, pooled by `pooling`.

        Parameters
        ----------
        tokens : int array-like of shape (n_sequences, seq_len)
            Token ids.

        Returns
        -------
        hidden : ndarray of shape (n_sequences, width), or (n_tokens, width) without pooling, float32
            As `ActivationExtractor` gives them: without the first position of each sequence.

        Raises
        ------
        ValueError
            If `tokens` holds no token ids of the vocabulary, or there is no such layer.
        """
        check_is_fitted(self)
        if isinstance(self.model_, ToyModel):
            return self.model_.transform(tokens)
        data = self._open(tokens)
        batch = data.take(np.arange(len(data)))
        rows = list(batch.ids)
        if batch.mask is not None:
            rows = [ids[mask] for ids, mask in zip(batch.ids, batch.mask, strict=True)]
        extractor = ActivationExtractor(
            self.model_, self.layer, pooling=self.pooling, max_length=None, batch_size=self.batch_size
        )
        return np.asarray(extractor.transform(rows))

    def score(self, tokens: Any, y: Any = None) -> float:
        """Minus the KL divergence from the teacher on given text, so that more is better.

        Parameters
        ----------
        tokens : int array-like of shape (n_sequences, seq_len)
            Token ids, preferably held out.
        y : None
            Ignored; here by convention.

        Returns
        -------
        score : float
            −KL at the temperature, in nats a token; of toy models, minus the importance-weighted squared
            difference between teacher's and student's outputs.

        Raises
        ------
        ValueError
            If `tokens` holds no token ids of the vocabulary, or there is no teacher.
        """
        check_is_fitted(self)
        if isinstance(self.model_, ToyModel):
            difference = self.teacher.predict(tokens) - self.model_.predict(tokens)
            return -float(np.mean(np.square(difference, dtype=np.float64) @ self.model_.importances_))
        distillation = _Distillation([self])
        data = distillation.rows_of(tokens, "tokens")
        student = _LanguageModel(_on_device(self.model_, distillation.device), "the student")
        with _evaluating(distillation.teacher.module), _evaluating(student.module):
            sums, counts = distillation.held_out_kl([student], data, np.arange(len(data)))
        return -float(sums.sum() / counts.sum())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted student as one safetensors file, its settings as JSON in the header.

        Parameters
        ----------
        path : str or path
            File to write, atomically. It holds the weights, their configuration and the history, but neither the
            teacher nor the optimiser's state: to continue a `fit` use `checkpoint_path`.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If it is not fitted.
        ValueError
            If the student is no model of ``transformers``, so that a file could not tell how to make it again.
        """
        check_is_fitted(self)
        if not isinstance(self.model_, PreTrainedModel):
            raise ValueError(
                f"A student of type {type(self.model_).__name__} can't be made again from a file alone; save its "
                "weights yourself."
            )
        metadata = {
            "parameters": self._jsonable(),
            "config": self.model_.config.to_dict(),
            "fitted": {name: getattr(self, name) for name in _FITTED},
        }
        write_tensors(path, self.model_.state_dict(), kind=_FILE, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, teacher: Any = None, device: str = "auto") -> DistilledStudent:
        """Read a student that `save` wrote. No code in the file is run.

        Parameters
        ----------
        path : str or path
            The file.
        teacher : PreTrainedModel, str, path-like or torch.nn.Module, default=None
            The teacher, which only `score` needs; by default its name or path, if it was given so.
        device : str, default="auto"
            Device to predict on.

        Returns
        -------
        student : DistilledStudent
            The fitted student.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is truncated, altered or not one of these.
        """
        tensors, metadata = read_tensors(path, kind=_FILE)
        parameters = {**metadata["parameters"], "device": device}
        if teacher is not None:
            parameters["teacher"] = teacher
        student = cls(**parameters)
        config = AutoConfig.for_model(**metadata["config"])
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(tensors)
        student._set_model(model.to(_resolved(device)))
        for name, value in metadata["fitted"].items():
            setattr(student, name, value)
        return student

    # Checks

    def _check_parameters(self) -> None:
        for name in ("n_steps", "batch_size", "gradient_accumulation", "eval_every", "eval_sequences"):
            check_range(name, getattr(self, name), 1, whole=True)
        check_range("checkpoint_every", self.checkpoint_every, 1, whole=True)
        check_range("width", self.width, 1, whole=True)
        check_range("warmup", self.warmup, 0, whole=True)
        check_range("data_seed", self.data_seed, 0, whole=True)
        for name in ("weight_decay", "cross_entropy_weight", "hidden_weight", "convergence_tol"):
            check_range(name, getattr(self, name), 0)
        for name in ("temperature", "learning_rate"):
            check_range(name, getattr(self, name), 0)
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r} must be above 0.")
        if self.clip_norm is not None:
            check_range("clip_norm", self.clip_norm, 0)
        check_range("validation_fraction", self.validation_fraction, 0, high=1)
        if self.warmup >= self.n_steps:
            raise ValueError(f"warmup={self.warmup} must be below n_steps={self.n_steps}; shorten it.")
        if self.gradient_accumulation > self.batch_size:
            raise ValueError(
                f"gradient_accumulation={self.gradient_accumulation} divides batches of batch_size={self.batch_size} "
                "sequences; it can't exceed that."
            )
        if self.precision not in (None, "bf16"):
            raise ValueError(f"precision={self.precision!r} must be None or 'bf16'.")

    # The teacher

    def _by_name(self) -> bool:
        return isinstance(self.teacher, str | os.PathLike)

    def _load_teacher(self) -> tuple[torch.device, torch.nn.Module]:
        """The teacher on the device; one given by name is loaded once."""
        if self._by_name():
            device = _resolved(self.device)
            source = (os.fspath(self.teacher), repr(self.teacher_kwargs), device)
            if getattr(self, "_loaded", None) is None or self._loaded[0] != source:
                options = {"dtype": "float32", **(self.teacher_kwargs or {})}
                module = AutoModelForCausalLM.from_pretrained(source[0], **options)
                self._loaded: Any = (source, module.to(device).eval().requires_grad_(False))
            return device, self._loaded[1]
        if self.teacher_kwargs:
            raise ValueError(f"teacher_kwargs={self.teacher_kwargs!r} are for a teacher given by name, not an object.")
        if not isinstance(self.teacher, torch.nn.Module):
            raise ValueError(
                f"teacher={self.teacher!r:.60} must be a transformers model, its name or path, a torch module that "
                "returns logits, or a ToyModel."
            )
        parameter = next(self.teacher.parameters(), None)
        there = torch.device("cpu") if parameter is None else parameter.device
        device = there if self.device == "auto" and there.type != "cpu" else _resolved(self.device)
        self._loaded = None
        return device, _on_device(self.teacher, device)

    # Results

    def _publish(self, run: _Run, counts: np.ndarray) -> None:
        self._set_model(run.model.module.requires_grad_(False))
        self.history_ = list(run.history)
        self.n_steps_ = run.step
        n_final = sum(_is_final(row["step"], self.n_steps) for row in run.history)
        self.floor_, self.floor_error_ = _ratio(run.final_sums / n_final, counts)
        self.converged_ = _has_stopped(run.history, self.n_steps, self.convergence_tol)

    def _set_model(self, model: torch.nn.Module) -> None:
        self.model_: Any = model.eval()
        student = _LanguageModel(model, "the student")
        self.n_parameters_ = sum(parameter.numel() for parameter in model.parameters())
        self.device_ = str(student.device)
        self._n_tokens, self._max_length = student.n_tokens, student.max_length
        self._n_features_out = int(self.width)

    def _fit_toy(self, samples: Any) -> DistilledStudent:
        toy = make_student(self.teacher, self.width, init=self.init, random_state=self.random_state)
        self.model_ = toy.set_params(device=self.device, verbose=self.verbose).fit(samples, teacher=self.teacher)
        self.floor_, self.floor_error_ = toy.floor_, toy.standard_error_
        self.history_, self.n_steps_, self.converged_ = toy.history_, toy.n_steps_, toy.converged_
        self.n_parameters_ = toy.components_.size + toy.intercept_.size
        self.device_ = str(_resolved(self.device))
        self._n_features_out = int(self.width)
        return self

    def _open(self, tokens: Any) -> _Tokens:
        return _Tokens(tokens, "tokens", self._n_tokens, self._max_length, self.pad_token_id)

    @torch.no_grad()
    def _by_position(self, tokens: Any, of_logits: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        """A function of the student's logits, batch by batch."""
        student = _LanguageModel(self.model_, "the student")
        data = self._open(tokens)
        pieces = []
        for start in range(0, len(data), self.batch_size):
            ids = torch.from_numpy(data.take(np.arange(start, min(start + self.batch_size, len(data)))).ids)
            rows = student.rows(ids.to(student.device))
            found = torch.cat([of_logits(rows.logits(chunk, 1.0)) for chunk in _chunks(rows)])
            pieces.append(found.view(*ids.shape, *found.shape[1:]).cpu().numpy())
        return np.concatenate(pieces)

    # Files

    def _jsonable(self) -> dict[str, Any]:
        return {**plain_parameters(self), "teacher": os.fspath(self.teacher) if self._by_name() else None}

    def _settings(self) -> dict[str, Any]:
        return {name: value for name, value in self._jsonable().items() if name not in _INCIDENTAL}

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__().copy()
        state.pop("_loaded", None)  # loaded again where it is needed
        return state

    def __sklearn_clone__(self) -> DistilledStudent:
        # The teacher is shared: it is never changed, and may be large.
        shell = copy.copy(self)
        shell.teacher = None
        return super(DistilledStudent, shell).__sklearn_clone__().set_params(teacher=self.teacher)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags


_FITTED = ("floor_", "floor_error_", "history_", "converged_", "n_steps_")


def _ratio(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Mean over all positions of sequences of several lengths, and its standard error over sequences."""
    mean = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return mean, float("nan")
    residual = sums - mean * counts
    return mean, float(np.sqrt(np.square(residual).sum() * len(sums) / (len(sums) - 1)) / counts.sum())


def _has_stopped(history: list[dict[str, Any]], n_steps: int, tol: float) -> bool:
    """Whether the KL of the final evaluations is hardly below that of the tenth of the steps before."""
    final = [row["eval_kl"] for row in history if _is_final(row["step"], n_steps)]
    earlier = [row for row in history if row["step"] > 0 and not _is_final(row["step"], n_steps)]
    before = [row["eval_kl"] for row in earlier if row["step"] > (1.0 - 2 * _FINAL_SHARE) * n_steps]
    before = before or [row["eval_kl"] for row in earlier[-1:]]
    return bool(before) and float(np.mean(before)) - float(np.mean(final)) < tol * float(np.mean(before))


def _chunks(rows: _Rows) -> list[slice]:
    size = _chunk_rows(rows.n_vocabulary, rows.rows.device)
    return [slice(start, start + size) for start in range(0, len(rows.rows), size)]


def _resolved(device: str) -> torch.device:
    """A device with its index, as tensors have it."""
    resolved = resolve_device(device)
    if resolved.type == "cuda" and resolved.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return resolved


def _fit_together(estimators: list[DistilledStudent], tokens: Any, eval_tokens: Any) -> None:
    for estimator in estimators:
        estimator._check_parameters()
    distillation = _Distillation(estimators)
    distillation.open(tokens, eval_tokens)
    with _evaluating(distillation.teacher.module):
        distillation.train()


def distill_widths(
    teacher: Any,
    tokens: Any,
    widths: Sequence[int | tuple[int, int]],
    *,
    random_state: int | None = 0,
    eval_tokens: Any = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> list[DistilledStudent]:
    """Distil students of several widths in one pass over the data, with one forward pass of the teacher a batch.

    Each student ends where `DistilledStudent.fit` with the same seed and settings would end; on a CPU, with the
    same bits.

    Parameters
    ----------
    teacher : PreTrainedModel, str, path-like, torch.nn.Module or ToyModel
        As in `DistilledStudent`. Students of a `ToyModel` are trained one after the other.
    tokens : int array-like of shape (n_sequences, seq_len)
        Token ids, or what `ToyModel.fit` takes.
    widths : sequence of int or of (int, int)
        Widths, or pairs of width and seed.
    random_state : int or None, default=0
        Seed of students whose seed `widths` does not give.
    eval_tokens : int array-like of shape (n_sequences, seq_len), default=None
        As in `DistilledStudent.fit`.
    checkpoint_path : str, path or None, default=None
        Folder for a checkpoint of each student. The same call resumes from there.
    **settings
        Other parameters of `DistilledStudent`.

    Returns
    -------
    students : list of DistilledStudent
        Fitted, in the order of `widths`.

    Raises
    ------
    ValueError
        As `DistilledStudent.fit`, or if `widths` is empty or holds the same student twice.

    Examples
    --------
    >>> import numpy as np
    >>> from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    >>> from geofloor.distillation import distill_widths
    >>> config = GPTNeoXConfig(
    ...     vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    ... )
    >>> tokens = np.random.default_rng(0).integers(32, size=(64, 12))
    >>> students = distill_widths(
    ...     GPTNeoXForCausalLM(config), tokens, [8, (8, 1), 16], n_steps=20, warmup=5, batch_size=8
    ... )
    >>> [(student.width, student.random_state, student.n_steps_) for student in students]
    [(8, 0, 20), (8, 1, 20), (16, 0, 20)]
    """
    pairs = [tuple(pair) if isinstance(pair, tuple | list) else (pair, random_state) for pair in widths]
    if not pairs or len(set(pairs)) < len(pairs):
        raise ValueError(f"widths={list(widths)!r} must hold at least one width and no student twice.")
    students = [
        DistilledStudent(
            teacher,
            width,
            random_state=seed,
            checkpoint_path=checkpoint_path and Path(checkpoint_path) / f"width-{width}-seed-{seed}.safetensors",
            **settings,
        )
        for width, seed in pairs
    ]
    if isinstance(teacher, ToyModel):
        return [student.fit(tokens) for student in students]
    _fit_together(students, tokens, eval_tokens)
    return students
