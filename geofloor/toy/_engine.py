r"""Training of many toy models at once, as pure functions of stacked arrays.

The models of a stack take their steps together; width, features, importances and target are their own.
All arrays are feature-major: the samples of a batch are the last, contiguous axis, because products of
such small, stacked matrices are several times faster this way.

A stack holds for M models of up to n features:

- ``parameters`` (M, 1 + d, n): the bias b in row 0, then the rows of W; rows and columns beyond a
  model's own width and features are zero, and stay zero because their gradients vanish;
- ``importances`` (M, n): the weights of the loss, zero beyond a model's own features;
- ``source`` (M,): the number of the stream of samples per model.

Samples without an active feature are not drawn. With probability p₀ the sample is empty and the model
answers ReLU(b), so the loss is, exactly,

.. math:: p_0 \sum_i I_i (\mathrm{ReLU}(b_i) - t_i)^2
          + (1 - p_0)\, \mathbb{E}\Big[\sum_i I_i (\hat x_i - t_i(x))^2 \Big| x \ne 0\Big],

where the target t is x itself, or a teacher's output. A batch of samples that are not empty thus gives
an unbiased estimate with a smaller variance than a batch with empty samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch

from geofloor._training.schedules import warmup_cosine
from geofloor.theory._distortion import AMPLITUDES
from geofloor.toy._features import SparseFeatures

BETAS = (0.9, 0.999)
EPSILON = 1e-8
EVALUATION_BATCH = 1024
NEGLIGIBLE = 1e-6  # share of the loss of answering 0: training towards a floor of zero ends there
# Purposes of draws from a stream; each has its own random numbers.
TRAINING, SELECTION, EVALUATION = 0, 1, 2


def training_scale(active_second_moment: float) -> float:
    """Return the unit of samples in training, so that one step size suits all data; it is 1 for U[0, 1]."""
    return math.sqrt(3.0 * active_second_moment)


class SampleStream(Protocol):
    """Source of batches of non-empty samples."""

    n_features: int
    empty_probability: float
    scale: float

    def batches(self, purpose: int, index: int, n_batches: int, batch_size: int) -> Iterator[np.ndarray]:
        """Yield `n_batches` batches of shape (batch_size, n_features), equal for equal arguments."""

    def evaluation(self, n_samples: int) -> Iterator[np.ndarray]:
        """Yield at least one batch of samples for evaluating a trained model."""


class DistributionStream:
    """Fresh samples of a distribution, on the scale of training."""

    def __init__(self, features: SparseFeatures, entropy: Sequence[int]) -> None:
        self.features, self.entropy = features, tuple(entropy)
        self.scale = training_scale(AMPLITUDES[features.amplitude][1])
        self.n_features, self.empty_probability = features.n_features, features.empty_probability

    def batches(self, purpose: int, index: int, n_batches: int, batch_size: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(np.random.SeedSequence(self.entropy, spawn_key=(purpose, index)))
        at_once = max(1, 2048 // batch_size)  # one call for several batches costs less than several calls
        for start in range(0, n_batches, at_once):
            n = min(at_once, n_batches - start)
            samples = self.features.sample_active(n * batch_size, rng)
            if self.scale != 1.0:
                samples /= np.float32(self.scale)
            yield from samples.reshape(n, batch_size, -1)

    def evaluation(self, n_samples: int) -> Iterator[np.ndarray]:
        return self.batches(EVALUATION, 0, math.ceil(n_samples / EVALUATION_BATCH), EVALUATION_BATCH)


class ArrayStream:
    """Given samples on the scale of training: drawn with replacement to train, each once to evaluate."""

    def __init__(self, X: np.ndarray, entropy: Sequence[int]) -> None:
        X = np.asarray(X, dtype=np.float64)
        active = X[X != 0.0]
        self.scale = training_scale(float(np.mean(active**2))) if active.size else 1.0
        X = (X / self.scale).astype(np.float32)
        self.rows = X[X.any(axis=1)]
        self.entropy, self.n_features = tuple(entropy), X.shape[1]
        self.empty_probability = 1.0 - len(self.rows) / len(X)
        if not len(self.rows):  # nothing to learn: keep one empty row for the shapes
            self.rows, self.empty_probability = X[:1], 0.0

    def batches(self, purpose: int, index: int, n_batches: int, batch_size: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(np.random.SeedSequence(self.entropy, spawn_key=(purpose, index)))
        for _ in range(n_batches):
            yield self.rows[rng.integers(len(self.rows), size=batch_size)]

    def evaluation(self, n_samples: int) -> Iterator[np.ndarray]:
        for start in range(0, len(self.rows), EVALUATION_BATCH):
            yield self.rows[start : start + EVALUATION_BATCH]


class Stack(NamedTuple):
    """Models trained together; for the shapes see the docstring of this module."""

    parameters: torch.Tensor
    importances: torch.Tensor
    source: torch.Tensor
    empty_probability: torch.Tensor  # (M,)
    teacher: torch.Tensor | None = None  # (M, 1 + d_T, n): parameters of each model's teacher

    def select(self, index: torch.Tensor) -> Stack:
        """Return the models at `index` as a new stack."""
        return Stack(
            self.parameters[index],
            self.importances[index],
            self.source[index],
            self.empty_probability[index],
            None if self.teacher is None else self.teacher[index],
        )


class Evaluation(NamedTuple):
    """Losses of trained models."""

    loss: np.ndarray  # (M,) expected loss
    standard_error: np.ndarray  # (M,) of the loss, from the spread over samples
    feature_errors: np.ndarray  # (M, n) expected squared error of each feature, without its importance


def initial_parameters(n_features: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draw parameters of shape (1 + width, n_features): bias 0, and W by Glorot and Bengio's normal law."""
    parameters = np.zeros((1 + width, n_features), dtype=np.float32)
    parameters[1:] = rng.standard_normal((width, n_features)) * math.sqrt(2.0 / (n_features + width))
    return parameters


def stacked(arrays: Sequence[np.ndarray], shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Stack arrays in one tensor, each padded with zeros to `shape`."""
    out = np.zeros((len(arrays), *shape), dtype=np.float32)
    for padded, array in zip(out, arrays, strict=True):
        padded[tuple(map(slice, array.shape))] = array
    return torch.from_numpy(out).to(device)


def reconstruct(parameters: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    """Compute the output (M, n, B) of each model for its samples `X` (M, n, B)."""
    hidden = torch.bmm(parameters, X)
    hidden[:, 0] = 1.0
    return torch.bmm(parameters.transpose(1, 2), hidden).clamp_(min=0.0)


def gradient(stack: Stack, X: torch.Tensor, target: torch.Tensor | None = None) -> torch.Tensor:
    """Compute the gradient of the expected loss from a batch of non-empty samples.

    Parameters
    ----------
    stack : Stack
        Models.
    X : Tensor of shape (M, n, B)
        Each model's samples.
    target : Tensor of shape (M, n, B), default=None
        Targets; by default `X`.

    Returns
    -------
    gradient : Tensor of shape (M, 1 + d, n)
        Gradient with respect to the parameters.
    """
    parameters, importances = stack.parameters, stack.importances
    p_empty = stack.empty_probability[:, None]
    weights = (2.0 / X.shape[2]) * (1.0 - p_empty) * importances
    weights = weights[:, None, :]
    # Row 0 of the parameters is the bias: the encoder ignores it, the decoder multiplies it by 1.
    hidden = torch.bmm(parameters, X)
    hidden[:, 0] = 1.0
    output = torch.bmm(parameters.transpose(1, 2), hidden)
    error = torch.sub(output, X if target is None else target)
    error = torch.ops.aten.threshold_backward(error, output, 0.0)  # zero where the ReLU is zero
    back = torch.bmm(parameters * weights, error)
    back[:, 0] = 0.0
    result = torch.bmm(hidden, error.transpose(1, 2)).mul_(weights)
    result.baddbmm_(back, X.transpose(1, 2))
    bias = parameters[:, 0]
    empty_error = bias if stack.teacher is None else bias - stack.teacher[:, 0].clamp(min=0.0)
    result[:, 0] += 2.0 * p_empty * importances * torch.where(bias > 0.0, empty_error, 0.0)
    return result


def train_round(
    stack: Stack,
    streams: Sequence[SampleStream],
    *,
    index: int,
    n_steps: int,
    batch_size: int,
    learning_rate: float,
) -> Iterator[int]:
    """Train the parameters in place for one round, and yield after every step.

    Adam starts anew with every round, and its step size falls to zero along a cosine: a round ends in a
    minimum, and the next begins with steps large enough to leave a poor one. Its five lines stand here
    because `torch.optim.Adam`, fused, takes up to a fifth longer per step of small stacks.
    """
    parameters = stack.parameters
    momentum, square = torch.zeros_like(parameters), torch.zeros_like(parameters)
    source = stack.source.tolist()
    used = sorted(set(source))
    draws = zip(*(streams[s].batches(TRAINING, index, n_steps, batch_size) for s in used), strict=True)
    for step, batches in enumerate(draws):
        X = _spread(batches, used, source, parameters)
        target = None if stack.teacher is None else reconstruct(stack.teacher, X)
        slope = gradient(stack, X, target)
        momentum.lerp_(slope, 1.0 - BETAS[0])
        square.mul_(BETAS[1]).addcmul_(slope, slope, value=1.0 - BETAS[1])
        scale = square.sqrt().mul_(1.0 / math.sqrt(1.0 - BETAS[1] ** (step + 1))).add_(EPSILON)
        size = learning_rate * warmup_cosine(step, n_steps=n_steps) / (1.0 - BETAS[0] ** (step + 1))
        parameters.addcdiv_(momentum, scale, value=-size)
        yield step + 1


def evaluate(
    stack: Stack, streams: Sequence[SampleStream], n_samples: int, *, selection: bool = False
) -> tuple[Evaluation, Evaluation | None]:
    """Measure each model on fresh samples: against its target and, with a teacher, against the data as well.

    With ``selection=True`` it takes other samples, reserved for deciding when training ends.
    """
    parameters, importances = stack.parameters, stack.importances
    source = stack.source.tolist()
    used = sorted(set(source))
    sums = [_Sums(stack) for _ in range(1 if stack.teacher is None else 2)]
    if selection:
        n_batches = math.ceil(n_samples / EVALUATION_BATCH)
        draws = [streams[s].batches(SELECTION, 0, n_batches, EVALUATION_BATCH) for s in used]
    else:
        draws = [streams[s].evaluation(n_samples) for s in used]
    for batches in zip(*draws, strict=True):
        X = _spread(batches, used, source, parameters)
        output = reconstruct(parameters, X)
        targets = [X] if stack.teacher is None else [reconstruct(stack.teacher, X), X]
        for total, target in zip(sums, targets, strict=True):
            total.add(output - target, importances)
    empty = parameters[:, 0].clamp(min=0.0)
    empties = [empty] if stack.teacher is None else [empty - stack.teacher[:, 0].clamp(min=0.0), empty]
    results = [total.result(stack, error) for total, error in zip(sums, empties, strict=True)]
    return results[0], results[1] if len(results) > 1 else None


class _Sums:
    """Sums of squared errors over batches, in double precision."""

    def __init__(self, stack: Stack) -> None:
        n_models, n_features = stack.importances.shape
        self.count = 0
        self.loss, self.square = np.zeros(n_models), np.zeros(n_models)
        self.features = np.zeros((n_models, n_features))

    def add(self, error: torch.Tensor, importances: torch.Tensor) -> None:
        squared = error.square_()
        losses = torch.bmm(importances[:, None, :], squared)[:, 0].double().cpu().numpy()
        self.count += losses.shape[1]
        self.loss += losses.sum(axis=1)
        self.square += (losses**2).sum(axis=1)
        self.features += torch.sum(squared, dim=2).double().cpu().numpy()

    def result(self, stack: Stack, empty_error: torch.Tensor) -> Evaluation:
        p_empty = stack.empty_probability.double().cpu().numpy()
        importances = stack.importances.double().cpu().numpy()
        empty = empty_error.double().square().cpu().numpy()
        mean = self.loss / self.count
        with np.errstate(invalid="ignore"):  # the caller reports losses that are not finite
            variance = np.maximum(self.square / self.count - mean**2, 0.0)
        return Evaluation(
            loss=(1.0 - p_empty) * mean + p_empty * (importances * empty).sum(axis=1),
            standard_error=(1.0 - p_empty) * np.sqrt(variance / self.count),
            feature_errors=(1.0 - p_empty)[:, None] * self.features / self.count + p_empty[:, None] * empty,
        )


def _spread(
    batches: Sequence[np.ndarray], used: Sequence[int], source: Sequence[int], like: torch.Tensor
) -> torch.Tensor:
    """Distribute one batch per stream in use to the models, (M, n, B)."""
    n = like.shape[2]
    drawn = np.zeros((len(batches), n, len(batches[0])), dtype=np.float32)
    for padded, batch in zip(drawn, batches, strict=True):
        padded[: batch.shape[1]] = batch.T
    X = torch.from_numpy(drawn).to(like.device)
    if len(used) == 1:
        return X.expand(len(source), -1, -1)
    place = {stream: position for position, stream in enumerate(used)}
    return X[torch.tensor([place[s] for s in source], device=like.device)]


class Trained(NamedTuple):
    """The best parameters of each model after a round, and the course of training so far."""

    parameters: torch.Tensor  # (M, 1 + d, n)
    selection_loss: np.ndarray  # (M,) loss of `parameters` on the selection samples
    n_steps: np.ndarray  # (M,) steps taken
    converged: np.ndarray  # (M,) whether the loss had stopped falling
    history: list[tuple[int, np.ndarray]]  # (step, loss of each model) on the selection samples
    is_stopped: bool = False  # by `on_round`


def train(
    stack: Stack,
    streams: Sequence[SampleStream],
    *,
    n_steps: int,
    max_rounds: int,
    tol: float,
    batch_size: int,
    learning_rate: float,
    n_selection_samples: int = 8192,
    history_steps: Sequence[int] = (),
    on_step: Callable[[], object] | None = None,
    on_round: Callable[[Trained], bool] | None = None,
) -> Trained:
    """Train every model of a stack until its loss has stopped falling.

    After each round of `n_steps` the models are evaluated on selection samples. A model leaves the stack if
    the round has lowered its best loss by no more than the share `tol`, or by no more than a millionth of
    the loss of answering 0. All training ends if `on_round` returns True after a round.

    Raises
    ------
    ValueError
        If a loss becomes non-finite.
    """
    n_models = len(stack.parameters)
    best = stack.parameters.clone()
    lowest = np.full(n_models, np.inf)
    steps = np.zeros(n_models, dtype=np.int64)
    converged = np.zeros(n_models, dtype=bool)
    history: list[tuple[int, np.ndarray]] = []
    record = frozenset(history_steps)

    def note(step: int, active: Stack, running: np.ndarray) -> np.ndarray:
        loss = evaluate(active, streams, n_selection_samples, selection=True)[0].loss
        if record:
            row = np.full(n_models, np.nan)
            row[running] = loss
            history.append((step, row))
        return loss

    nothing = stack._replace(parameters=torch.zeros_like(stack.parameters))
    negligible = NEGLIGIBLE * evaluate(nothing, streams, n_selection_samples, selection=True)[0].loss
    running = np.arange(n_models)
    if 0 in record:
        note(0, stack, running)
    for index in range(max_rounds):
        rows = torch.from_numpy(running).to(best.device)
        active = stack.select(rows)
        for step in train_round(
            active, streams, index=index, n_steps=n_steps, batch_size=batch_size, learning_rate=learning_rate
        ):
            if step < n_steps and index * n_steps + step in record:
                note(index * n_steps + step, active, running)
            if on_step is not None:
                on_step()
        loss = note((index + 1) * n_steps, active, running)
        if not np.isfinite(loss).all():
            raise ValueError(f"The loss became non-finite with learning_rate={learning_rate:g}; give a smaller one.")
        steps[running] += n_steps
        better = loss < lowest[running]
        fall = lowest[running] - loss
        converged[running] = fall <= np.maximum(tol * loss, negligible[running])
        chosen = torch.from_numpy(better).to(rows.device)
        best[rows[chosen]] = active.parameters[chosen]
        lowest[running] = np.minimum(loss, lowest[running])
        # A model goes on from its last parameters: they differ from its best by noise alone.
        stack.parameters[rows] = active.parameters
        running = running[~converged[running]]
        trained = Trained(best, lowest, steps, converged, history)
        if on_round is not None and on_round(trained):
            return trained._replace(is_stopped=True)
        if not len(running):
            break
    return trained
