"""Train a sparse autoencoder: learning rate, optimizer, dead latents, history, and the time of checkpoints.

The trainer knows frozen `Settings` and arrays, and neither estimators nor files. Codes, loss and gradients of a batch
come from `geofloor.features._sparse_step`; the order of the rows comes from `geofloor._training.rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from geofloor._training.callbacks import FitTasks
from geofloor._training.devices import keep_freed_memory, memory_advice, to_device
from geofloor._training.processes import ALONE, Processes
from geofloor._training.progress import progress_bar
from geofloor._training.seeds import step_generator, torch_generator
from geofloor.features._autoencoder_settings import THRESHOLDED, Settings, find_scale
from geofloor.features._auxiliary_loss import AuxiliaryLoss
from geofloor.features._cpu_step import SparseStep, compile_kernels, takes_sparse_step
from geofloor.features._distributed import divide
from geofloor.features._sparse_step import (
    Parameters,
    StepResult,
    initialize_parameters,
    normalize_decoder,
    project_decoder_gradient,
    reset_latents,
)
from geofloor.features._sparsity import (
    average_cutoff,
    find_bandwidth,
    find_spread,
    penalize_l0,
    steer_penalty,
)

# Function of a batch and of the mask of dead latents, or None, that updates the weights and returns the loss terms and
# the penalty.
_Update = Callable[[torch.Tensor, torch.Tensor | None], tuple[StepResult, torch.Tensor | float]]

_LARGEST_WEIGHT = 2.0**63  # float32 can square numbers below it
_READ_EVERY = 20  # steps between readings of the loss, because each reading waits for the device; a task of callbacks


@dataclass
class TrainingState:
    """Weights, optimizer and counters of a training.

    Attributes
    ----------
    parameters : Parameters
        Weights, on the scale of training.
    optimizer : torch.optim.Adam
        Optimizer of the weights.
    idle_tokens : Tensor of shape (n_latents,), int64
        Number of rows since each latent fired.
    scale : float
        Factor on the data during training.
    seed : int
        Seed of the order of the rows and of resets.
    threshold : Tensor of shape (n_latents,) or None
        Number above which a code is kept when single rows are encoded, on the scale of training; None for activations
        without thresholds.
    l1_coefficient : Tensor, scalar, or None
        Penalty λ that is steered toward the L0 asked for, on the scale of training; None if the settings fix it.
    step : int
        Steps taken.
    n_tokens : int
        Rows trained on.
    history : list of dict
        Measurements of each step, read from the device.
    unread : list of tuple
        Step, rows trained on, measurements and number of reset latents of the steps since the last reading.
    is_stopped : bool
        Whether a callback has stopped the fit before its last step.
    processes : Processes
        Processes that divide each batch. Each has the whole batch and the same state.
    """

    parameters: Parameters
    optimizer: torch.optim.Adam
    idle_tokens: torch.Tensor
    scale: float
    seed: int
    threshold: torch.Tensor | None = None
    l1_coefficient: torch.Tensor | None = None
    step: int = 0
    n_tokens: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    unread: list[tuple[int, int, torch.Tensor, int]] = field(default_factory=list)
    is_stopped: bool = False
    processes: Processes = ALONE

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.idle_tokens.device


def start_training(sample: np.ndarray, settings: Settings, seed: int, device: torch.device) -> TrainingState:
    """Initialize weights from a sample of the rows, (n_sampled, n_inputs), before the first step."""
    scale = find_scale(sample, settings.normalization)
    bias = torch.from_numpy((scale * sample.mean(axis=0, dtype=np.float64)).astype(np.float32))
    parameters = initialize_parameters(settings.n_latents, bias, torch_generator(seed))
    return wrap_weights(Parameters(*(each.to(device) for each in parameters)), settings, scale=scale, seed=seed)


def wrap_weights(
    parameters: Parameters,
    settings: Settings,
    *,
    scale: float,
    seed: int,
    threshold: torch.Tensor | None = None,
    l1_coefficient: torch.Tensor | None = None,
) -> TrainingState:
    """Wrap weights with a new optimizer and without counted steps or idle latents."""
    idle_tokens = torch.zeros_like(parameters.encoder_bias, dtype=torch.int64)
    if threshold is None and settings.activation in THRESHOLDED:
        threshold = torch.zeros_like(parameters.encoder_bias)
    if l1_coefficient is None and settings.is_steered:
        l1_coefficient = torch.zeros_like(idle_tokens[0], dtype=torch.float32)
    optimizer = make_optimizer(parameters, settings)
    return TrainingState(parameters, optimizer, idle_tokens, scale, seed, threshold, l1_coefficient)


def make_optimizer(parameters: Parameters, settings: Settings) -> torch.optim.Adam:
    """Make the optimizer of the weights and of steps of thresholds; `take_step` sets the weights' learning rate."""
    optimizer = torch.optim.Adam(list(parameters), betas=settings.betas, fused=True)
    if settings.activation == "jumprelu":
        # At a constant rate, or thresholds would no longer follow the codes at the end of the decay.
        steps = torch.zeros_like(parameters.encoder_bias)
        optimizer.add_param_group({"params": [steps], "lr": settings.learning_rate})
    return optimizer


def train(state: TrainingState, settings: Settings, batches: Iterable[np.ndarray], **options: Any) -> None:
    """Take a step on each batch, in place, with the options of `train_steps`."""
    for _ in train_steps(state, settings, batches, **options):
        pass


def train_steps(
    state: TrainingState,
    settings: Settings,
    batches: Iterable[np.ndarray],
    *,
    checkpoint_every: int | None = None,
    write_checkpoint: Callable[[TrainingState], None] | None = None,
    tasks: FitTasks | None = None,
    verbose: int = 0,
) -> Iterator[None]:
    """Take a step on each batch, in place, and yield after each, so that several fits can take turns.

    Parameters
    ----------
    state : TrainingState
        Start of the training, changed in place.
    settings : Settings
        Settings of the fit.
    batches : iterable of ndarray of shape (n_rows, n_inputs), float32
        Batches that are left.
    checkpoint_every : int or None, default=None
        Steps between checkpoints; None if `write_checkpoint` is None.
    write_checkpoint : callable or None, default=None
        Function of the state that writes a checkpoint; its history is complete then.
    tasks : FitTasks or None, default=None
        Fit as its callbacks see it, with a task per reading of the loss; a callback may stop it.
    verbose : int, default=0
        Whether to show a progress bar.

    Yields
    ------
    None
        After each step.

    Raises
    ------
    ValueError
        If the loss becomes non-finite, or a weight so large that float32 can't square it.
    MemoryError
        If a batch does not fit into memory.
    """
    keep_freed_memory(state.device)
    bar = progress_bar("sparse autoencoder", total=settings.n_steps, initial=state.step, verbose=verbose)
    advice = memory_advice(f"lower batch_size={settings.batch_size} or the latents, {settings.n_latents}")
    tasks = FitTasks() if tasks is None else tasks
    tasks.begin(_count_readings_left(state, settings), "steps")
    with bar, advice, _open_step(state, settings, bar) as update:
        for batch in () if state.is_stopped else batches:
            tasks.begin_task()
            take_step(state, settings, batch, update)
            bar.update()
            if write_checkpoint is not None and checkpoint_every is not None and state.step % checkpoint_every == 0:
                read_measurements(state, settings)
                write_checkpoint(state)
            if state.step % _READ_EVERY == 0:
                row = read_measurements(state, settings)
                bar.set_postfix(loss=f"{row['loss']:.4g}", l0=f"{row['l0']:.1f}", dead=f"{row['dead']:.0%}")
                state.is_stopped = tasks.end_task(row, state) and state.step != settings.n_steps
            yield
            if state.is_stopped:
                break
    tasks.end_task(read_measurements(state, settings), state)
    # The loss of a step is of the weights before it, so that nothing else sees the last step.
    largest = max(float(parameter.abs().max()) for parameter in state.parameters)
    if not largest < _LARGEST_WEIGHT:
        raise ValueError(
            f"The largest weight became {largest:g} at step {state.step}; lower "
            f"learning_rate={settings.learning_rate:g}."
        )


def _count_readings_left(state: TrainingState, settings: Settings) -> int | None:
    """Count the readings of the loss that are left; None for a stream of unknown length."""
    if settings.n_steps is None:
        return None
    return 0 if state.is_stopped else -(-settings.n_steps // _READ_EVERY) - state.step // _READ_EVERY


@contextmanager
def _open_step(state: TrainingState, settings: Settings, bar: Any) -> Iterator[_Update]:
    """Choose the step of a fit, dense or sparse, as a context that gives a function of a batch."""
    # The compiled step takes no gradients of other processes.
    if state.processes.n > 1 or not takes_sparse_step(settings, state.device):
        yield lambda inputs, dead: _update(state, settings, inputs, dead)
        return
    bar.set_postfix_str("compiling")
    compile_kernels(settings.activation, settings.precision)
    bar.set_postfix_str("")
    opened = SparseStep(
        state.parameters,
        state.optimizer,
        activation=settings.activation,
        l0=settings.l0,
        clip_norm=settings.clip_norm,
        auxk_coefficient=settings.auxk_coefficient,
        precision=settings.precision,
    )
    with opened as step:
        yield lambda inputs, dead: _update_sparsely(state, settings, step, inputs, dead)


def _update_sparsely(
    state: TrainingState, settings: Settings, step: SparseStep, inputs: torch.Tensor, dead: torch.Tensor | None
) -> tuple[StepResult, torch.Tensor | float]:
    """Update the weights by compiled kernels, or by dense gradients where ReLU has many codes."""
    l1_coefficient: torch.Tensor | float = settings.l1_coefficient
    if state.l1_coefficient is not None:
        if state.step == 0:
            state.l1_coefficient.copy_(settings.l1_coefficient * find_spread(state.parameters, inputs))
        l1_coefficient = state.l1_coefficient.clone()
    result = step.take(inputs, dead, l1_coefficient=float(l1_coefficient))
    if result is None:
        return _update(state, settings, inputs, dead)
    if state.l1_coefficient is not None and settings.l0 is not None:
        steer_penalty(state.l1_coefficient, result, len(inputs), settings.l0, settings.steering_gain)
    if state.threshold is not None:
        average_cutoff(state.threshold, step.cutoff, state.step + 1)
    return result, l1_coefficient * result.l1


def _update(
    state: TrainingState, settings: Settings, inputs: torch.Tensor, dead: torch.Tensor | None
) -> tuple[StepResult, torch.Tensor | float]:
    """Update the weights by dense gradients, and return the loss terms and the penalty."""
    parameters, optimizer = state.parameters, state.optimizer
    result, penalty, spread = _differentiate(state, settings, inputs, dead)
    project_decoder_gradient(parameters, result.gradients)
    for parameter, gradient in zip(parameters, result.gradients, strict=True):
        parameter.grad = gradient
    if settings.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
    optimizer.step()
    normalize_decoder(parameters)
    if spread is not None:
        _move_thresholds(state, spread)
    return result, penalty


def take_step(state: TrainingState, settings: Settings, batch: np.ndarray, update: _Update | None = None) -> None:
    """Take one step of Adam on a batch, in place, and leave its measurements on the device.

    The step is dense if `update` is None.
    """
    inputs = to_device(batch, state.device)
    if state.scale != 1.0:
        inputs = inputs * state.scale
    state.optimizer.param_groups[0]["lr"] = settings.learning_rate_at(state.step)
    dead = _find_dead_latents(state, settings)
    result, penalty = _update(state, settings, inputs, dead) if update is None else update(inputs, dead)

    state.step += 1
    n_tokens_before = state.n_tokens
    state.n_tokens += len(batch)
    state.idle_tokens += len(batch)
    state.idle_tokens.masked_fill_(result.firings > 0, 0)
    measured = torch.stack(
        [
            result.reconstruction + penalty,
            result.reconstruction,
            result.l1,
            result.firings.sum() / len(batch),
            (state.idle_tokens >= settings.dead_after).float().mean(),
        ]
    )
    n_reset = _reset_dead_latents(state, settings, inputs, n_tokens_before)
    state.unread.append((state.step, state.n_tokens, measured, n_reset))


def _find_dead_latents(state: TrainingState, settings: Settings) -> torch.Tensor | None:
    """Return the mask of the latents that the auxiliary loss trains; None if there is none."""
    if not settings.auxk_coefficient or state.n_tokens < settings.dead_after:
        return None  # without waiting for the device
    dead = state.idle_tokens >= settings.dead_after
    return dead if bool(dead.any()) else None


def _differentiate(
    state: TrainingState, settings: Settings, inputs: torch.Tensor, dead: torch.Tensor | None
) -> tuple[StepResult, torch.Tensor | float, torch.Tensor | None]:
    """Compute loss and gradients of a batch, its penalty and, for trained thresholds, the spread of its rows."""
    parameters, threshold, l0, precision = state.parameters, state.threshold, settings.l0, settings.precision
    divided, find_cutoff = divide(state.processes)
    auxiliary = None if dead is None else AuxiliaryLoss(parameters, dead, settings.auxk_coefficient)
    compute_gradients = partial(divided, auxiliary=auxiliary, precision=precision)
    if state.l1_coefficient is not None and l0 is not None:
        if state.step == 0:
            state.l1_coefficient.copy_(settings.l1_coefficient * find_spread(parameters, inputs))
        result = compute_gradients(parameters, inputs, state.l1_coefficient)
        penalty = state.l1_coefficient * result.l1
        steer_penalty(state.l1_coefficient, result, len(inputs), l0, settings.steering_gain)
        return result, penalty, None
    if threshold is None or l0 is None:
        result = compute_gradients(
            parameters, inputs, settings.l1_coefficient, settings.l0_per_row, groups=settings.groups
        )
        return result, settings.l1_coefficient * result.l1 + _of_prefixes(result), None
    if settings.activation == "batchtopk":
        cutoff = find_cutoff(parameters, inputs, l0, precision)
        average_cutoff(threshold, cutoff, state.step + 1)
        result = compute_gradients(parameters, inputs, 0.0, threshold=cutoff, groups=settings.groups)
        return result, _of_prefixes(result), None
    if state.step == 0:
        threshold.copy_(find_cutoff(parameters, inputs, l0, precision))
    spread = find_spread(parameters, inputs)
    bandwidth = find_bandwidth(spread, inputs.shape[1], l0)
    result = compute_gradients(parameters, inputs, 0.0, threshold=threshold, bandwidth=bandwidth)
    penalty, _threshold_steps(state).grad = penalize_l0(result, len(inputs), l0)
    return result, penalty, spread


def _of_prefixes(result: StepResult) -> torch.Tensor | float:
    return 0.0 if result.of_prefixes is None else result.of_prefixes


def _threshold_steps(state: TrainingState) -> torch.Tensor:
    """Return the tensor in which the optimizer leaves its step of the thresholds of JumpReLU."""
    steps: torch.Tensor = state.optimizer.param_groups[1]["params"][0]
    return steps


def _move_thresholds(state: TrainingState, spread: torch.Tensor) -> None:
    """Add the optimizer's step to the thresholds, in units of the spread, because they have the scale of the data."""
    if state.threshold is not None:
        steps = _threshold_steps(state)
        state.threshold.addcmul_(steps, spread).clamp_min_(0.0)
        steps.zero_()


def _reset_dead_latents(state: TrainingState, settings: Settings, inputs: torch.Tensor, n_tokens_before: int) -> int:
    """Reset latents without firings if the step has crossed a multiple of `resample_every` rows; return how many."""
    every, n_steps = settings.resample_every, settings.n_steps
    if every is None or n_tokens_before // every == state.n_tokens // every:
        return 0
    if n_steps is not None and (n_steps - state.step) * len(inputs) < every:
        return 0  # too few rows are left to train them
    # A latent that fired since the last multiple has been idle for less than the distance of multiples.
    dead = state.idle_tokens >= every
    of_latents = list(state.parameters[:3])
    if settings.activation == "jumprelu":
        of_latents.append(_threshold_steps(state))
    moments = [state.optimizer.state[parameter][name] for parameter in of_latents for name in ("exp_avg", "exp_avg_sq")]
    generator = torch_generator(int(step_generator(state.seed, state.step).integers(2**31)))
    reset_latents(state.parameters, moments, dead, inputs, generator, settings.l0_per_row, state.threshold)
    if settings.activation == "jumprelu" and state.threshold is not None:
        # A fifth of the mean, as reset_latents gives it to encoder weights.
        alive = state.threshold[~dead]
        state.threshold[dead] = 0.2 * alive.mean() if len(alive) else 0.0
    # A GPU may round differently each time, and the draws depend on it.
    state.processes.copy_from_main([*state.parameters, *([] if state.threshold is None else [state.threshold])])
    state.idle_tokens[dead] = 0
    return int(dead.sum())


def read_measurements(state: TrainingState, settings: Settings) -> dict[str, float]:
    """Move measurements from the device into the history, refuse a non-finite loss, and return the last row."""
    for step, n_tokens, measured, n_resampled in state.unread:
        loss, reconstruction, l1, l0, dead = measured.tolist()
        if not np.isfinite(loss):
            raise ValueError(
                f"The loss became {loss} at step {step}; lower learning_rate={settings.learning_rate:g}, "
                f"or set normalization (now {settings.normalization!r}) if activations are large."
            )
        state.history.append(
            {
                "step": step,
                "n_tokens": n_tokens,
                "loss": loss,
                "reconstruction": reconstruction,
                "l1": l1,
                "l0": l0,
                "dead": dead,
                "n_resampled": n_resampled,
            }
        )
    state.unread.clear()
    return state.history[-1]
