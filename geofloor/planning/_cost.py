"""Cost of a plan: seconds, memory and disk of each stage, before the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from geofloor.planning._settings import PlanSettings
from geofloor.planning._text import PlanTokens

if TYPE_CHECKING:
    from geofloor.planning._timing import Pieces, TeacherSeconds

# Numbers of the stages; a test compares them.
_POSITIONS, _FITTED = 2048, 20_480  # that each bound is measured on, that the unembedding is fitted to
_TESTED = 4  # positions in the sequences of the former, per position
_STARTED_FROM = 64, 16_384  # sequences and tokens, at most, that a principal start is measured on
_EVALUATED = 256  # held-out sequences at most, that students are evaluated on
_ABLATIONS = 26  # passes of the changed teacher and of the intact one
_KEPT_BYTES = 2**32  # the teacher's probabilities are kept if they take no more
_ROWS = 65_536  # activations that are encoded at a time

# Steps of conjugate gradients at the end of a bound's fit, on fitted and on other positions, and on fitted ones at the
# last width, one below the rank, where they are between 1 and 17. Measured on the embedded teacher and on SmolLM2.
_ROW_STEPS = 1, 5
_LAST_ROW_STEPS = 10
_TRANSIENT = 24  # numbers of a block at the peak of a forward pass alone, per token and dimension
_CHUNKS = 5  # of logits at the peak of a loss: those of both models, probabilities, gradients
_MUON = 5  # copies of its matrices during a step of Muon
_FREED = 2**26  # bytes that glibc keeps of freed memory while models train on a CPU
_FLOAT = 4  # bytes


class StageCost(NamedTuple):
    """Cost of one stage."""

    stage: str  # "bottleneck", "students" or "features"
    seconds: float  # estimated
    memory: float  # bytes at the peak, on the device
    disk: float  # bytes
    actual_seconds: float | None = None  # None until the stage has ended


def cost_table(costs: Iterable[StageCost]) -> pd.DataFrame:
    """Return a table with one row per stage and the fields of `StageCost` as columns."""
    return pd.DataFrame(list(costs), columns=list(StageCost._fields))


def estimate_cost(
    module: Any,
    text: PlanTokens,
    settings: PlanSettings,
    *,
    layer: int,
    trains_autoencoder: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> list[StageCost]:
    """Estimate the cost of each stage by timing short pieces of it on this machine.

    Seconds are those of the pieces times their number. Memory and disk follow from formulas.

    Parameters
    ----------
    module : torch.nn.Module
        The teacher, loaded on its device.
    text : PlanTokens
        Text of the plan.
    settings : PlanSettings
        With widths filled in.
    layer : int
        Block whose features are measured.
    trains_autoencoder : bool, default=True
        Whether the plan trains an autoencoder.
    clock : callable, default=time.perf_counter
        Seconds of a clock; `time.process_time` estimates CPU seconds.

    Returns
    -------
    costs : list of StageCost
        One per stage of the plan, in its order. Disk is that of a plan with a folder, at the peak. Without a folder,
        activations count as memory alone.

    Notes
    -----
    What an earlier call has left in the folder is not subtracted. Times are those under the machine's present load:
    where other processes come or go, they may be far off.
    """
    from geofloor.planning._stages import reason_for_no_students
    from geofloor.planning._timing import Pieces

    pieces = Pieces(module, text, settings, clock)
    teacher = pieces.teacher()
    costs = [_bottleneck(pieces, teacher)]
    if settings.run_widths and reason_for_no_students(module, settings) is None:
        costs.append(_students(pieces, teacher))
    if settings.features:
        costs.append(_features(pieces, teacher, layer, trains_autoencoder))
    return costs


# Bottleneck


def _bottleneck(pieces: Pieces, teacher: TeacherSeconds) -> StageCost:
    from geofloor.language_models._low_rank_fit import default_steps
    from geofloor.planning._stages import bottleneck_tokens

    settings, length, n_vocabulary = pieces.settings, pieces.length, pieces.model.n_vocabulary
    n_sequences = len(bottleneck_tokens(pieces.text))
    n_tested = min(-(-_TESTED * _POSITIONS // length), n_sequences // 2)
    n_others = min(_POSITIONS, n_tested * length)
    n_fitted = min(_FITTED, (n_sequences - n_tested) * length)
    rank = min(pieces.own_width, n_vocabulary)
    widths = sorted({min(each, rank - 1) for each in (*(settings.widths or ()), *(settings.run_widths or ()), rank)})
    widths = [width for width in widths if width > 0]
    keeps = n_fitted * n_vocabulary * _FLOAT <= _KEPT_BYTES
    per_position = teacher.probabilities / length
    per_step = pieces.step_positions(n_fitted)
    again = 0.0 if keeps else per_step * per_position
    first = pieces.bottleneck(widths[0], per_step)
    last = pieces.bottleneck(widths[-1], per_step) if len(widths) > 1 else first
    seconds = n_sequences * teacher.forward + (n_fitted + n_others) * per_position + pieces.bottleneck_start(per_step)
    for width in widths:
        share = (width - widths[0]) / max(widths[-1] - widths[0], 1)
        step, evaluation, projection = (a + share * (b - a) for a, b in zip(first, last, strict=True))
        # The losses at the start, then steps on the rows, each of which costs about two evaluations.
        of_fitted = _LAST_ROW_STEPS if width == widths[-1] else _ROW_STEPS[0]
        n_evaluations = min(_POSITIONS, n_fitted) * (2 + 2 * of_fitted) + n_others * (1 + 2 * _ROW_STEPS[1])
        seconds += n_evaluations / per_step * evaluation
        seconds += default_steps(n_vocabulary, width) * (step + again) + 1.5 * projection
    probabilities = (n_fitted if keeps else 0) + n_others
    numbers = (
        (n_fitted + n_others) * 4 * pieces.own_width  # hidden states, centered ones, singular vectors
        + probabilities * n_vocabulary
        + 6 * per_step * n_vocabulary  # buffers of both samples
        + n_vocabulary * (2 * pieces.own_width + 4 * widths[-1])  # unembeddings, gradient and moments
    )
    at_first = min(pieces.at_once, n_sequences) * length * _TRANSIENT * pieces.own_width
    return StageCost("bottleneck", seconds, pieces.n_bytes + _FLOAT * max(numbers, at_first), 0.0)


# Students


def evaluations(n_steps: int, eval_every: int) -> set[int]:
    """Return the steps after which a student is evaluated."""
    return {*range(0, n_steps + 1, eval_every), n_steps}


def _students(pieces: Pieces, teacher: TeacherSeconds) -> StageCost:
    settings, text = pieces.settings, pieces.text
    widths, budgets = settings.run_widths or (), settings.budgets
    n_budgets, n_runs = len(budgets), len(widths) * len(budgets)
    resolved = {n: pieces.resolved(widths[0], n) for n in budgets}
    evaluated = {n: evaluations(n, each.eval_every) for n, each in resolved.items()}
    n_evaluated = min(len(text.held_out), _EVALUATED)
    batch = min(settings.batch_size, len(text.trained))
    most, tokens = _STARTED_FROM
    principal = resolved[budgets[0]].init == "principal"
    n_measured = min(most, max(tokens // pieces.length, 1), len(text.trained)) if principal else 0
    kept = n_runs > 1 and batch * pieces.length * pieces.model.n_vocabulary * _FLOAT <= _KEPT_BYTES
    of_teacher = teacher.forward + teacher.probabilities * (1 if kept else n_runs)
    n_passes = max(budgets) * batch + (len(set().union(*evaluated.values())) + 1) * n_evaluated
    seconds = n_passes * of_teacher
    students = [pieces.student(width) for width in widths]
    for student in students:
        start = student.start + max(n_measured - 1, 0) * (teacher.forward + teacher.moments)
        for n_steps in budgets:
            seconds += start + n_steps * (batch * student.step + student.update)
            seconds += len(evaluated[n_steps]) * n_evaluated * student.evaluation
    n_tokens, n_vocabulary = batch * pieces.length, pieces.model.n_vocabulary
    # Weights, gradients and moments of all runs; then what one of them needs, for its backward pass or its update.
    numbers = n_budgets * sum(2 * each.n_parameters + each.n_moments for each in students)
    numbers += n_tokens * n_vocabulary if kept else 0
    numbers += max(
        max(
            batch * each.saved // _FLOAT + width * n_vocabulary + _CHUNKS * pieces.chunk_rows * n_vocabulary,
            _MUON * each.n_together,
        )
        for width, each in zip(widths, students, strict=True)
    )
    disk = _FLOAT * n_budgets * sum(each.n_parameters + each.n_moments for each in students)
    return StageCost("students", seconds, pieces.n_bytes + _freed(pieces) + _FLOAT * numbers, disk)


def _freed(pieces: Pieces) -> int:
    return _FREED if pieces.device.type == "cpu" else 0


# Features


def _features(pieces: Pieces, teacher: TeacherSeconds, layer: int, trains_autoencoder: bool) -> StageCost:
    text, width = pieces.text, pieces.own_width
    n_measured, n_held_out = len(text.measured), len(text.held_out)
    per_sequence = max(pieces.length - 1, 1)  # the first position is skipped
    n_rows = n_measured * per_sequence
    settings = pieces.autoencoder_settings(n_rows)
    found = pieces.features(layer, settings, teacher, trains=trains_autoencoder)
    seconds = (n_measured + n_held_out) * found.extraction + n_held_out * _ABLATIONS * found.ablation
    n_encoded = n_rows + n_held_out * per_sequence
    if trains_autoencoder:
        seconds += (settings.n_steps or 0) * found.step
        n_encoded += 2 * pieces.n_held_out_rows(n_rows)  # scored, and so is noise
    seconds += n_encoded * found.encoding
    weights = 2 * settings.n_latents * width
    stored = n_rows * width
    # Weights, gradients, Adam's two moments and the estimator's copy; codes of many rows at a time.
    trained = (5 if trains_autoencoder else 1) * weights + 2 * min(_ROWS, n_rows) * (settings.l0 or 0)
    extracted, ablated = (min(pieces.at_once, n) * pieces.length for n in (n_measured, n_held_out))
    kept = ablated * pieces.model.n_vocabulary
    changed = 2 * weights + ablated * _TRANSIENT * width + (kept if kept * _FLOAT <= _KEPT_BYTES else 0)
    changed += _CHUNKS * pieces.chunk_rows * pieces.model.n_vocabulary
    return StageCost(
        "features",
        seconds,
        pieces.n_bytes + _freed(pieces) + _FLOAT * (stored + max(extracted * _TRANSIENT * width, trained, changed)),
        _FLOAT * (stored + (4 if trains_autoencoder else 0) * weights),  # weights, and a checkpoint with moments
    )
