"""Judge students by their learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from sklearn.exceptions import ConvergenceWarning

from geofloor._validation import warn_caller

FEWEST_STEPS = 100  # learning curves of fewer steps tell nothing
_NEGLIGIBLE = 1e-3  # share of the zero-width loss; a student that loses no more has nothing left to learn
_CLEARLY_FALLING = 0.5
_ROSE = 0.05  # above the smallest loss of the history, relative to it


class Trained(Protocol):
    """Results of training, as attributes of a `DistilledStudent`."""

    width: int
    learning_rate_: float
    n_steps_: int
    floor_: float
    zero_width_loss_: float
    remaining_fall_: float
    history_: list[dict[str, Any]]


def remaining_fall(history: Sequence[dict[str, Any]], n_steps: int) -> float:
    """Compute the relative fall of the evaluation KL from a quarter to half of the steps.

    There the learning rate has hardly begun to decay, so the fall shows training and not the decay.

    Parameters
    ----------
    history : sequence of dict
        Evaluations; the first is before training.
    n_steps : int
        Training steps.

    Returns
    -------
    fall : float
        From 0 to 1; NaN if no evaluation is near a quarter, or half, of the steps.
    """
    rows = history[1:]
    early = [row for row in rows if n_steps / 8 <= row["step"] <= n_steps / 4]
    late = [row for row in rows if n_steps / 2 <= row["step"] <= 5 * n_steps / 8]
    if not early or not late:
        return float("nan")
    before, after = early[-1]["eval_kl"], late[0]["eval_kl"]
    return max(1.0 - after / before, 0.0) if before > 0 else 0.0


def has_converged(student: Trained, tol: float) -> bool:
    """Tell whether twice the steps are known to take at most a share `tol` off the floor."""
    if _find_fault(student) is not None:
        return False
    return student.floor_ <= _NEGLIGIBLE * student.zero_width_loss_ or student.remaining_fall_ <= tol


def warn_of_training(students: Sequence[Trained]) -> None:
    """Warn once about all students with unreliable floors."""
    found: dict[str, list[str]] = {}
    for student in students:
        problem = _find_problem(student)
        if problem is not None:
            found.setdefault(problem, []).append(str(student.width))
    if found:
        each = [
            f"{'student of width' if len(widths) == 1 else 'students of widths'} {', '.join(widths)}: {problem}"
            for problem, widths in found.items()
        ]
        message = "\n".join(each)
        warn_caller(message[0].upper() + message[1:], ConvergenceWarning)


def _find_problem(student: Trained) -> str | None:
    """Describe a fault of the training, or a loss still falling, with its remedy."""
    fault = _find_fault(student)
    if fault is None and student.remaining_fall_ > _CLEARLY_FALLING:
        return (
            f"the loss was still falling, by {student.remaining_fall_:.0%} from a quarter to half of the steps; floor_="
            f"{student.floor_:.4g} is the loss after n_steps={student.n_steps_}, not the floor. Set n_steps="
            f"{2 * student.n_steps_}."
        )
    return fault


def _find_fault(student: Trained) -> str | None:
    """Describe a fault of the training, with its remedy."""
    n_steps, rate = student.n_steps_, student.learning_rate_
    if n_steps < FEWEST_STEPS:
        return (
            f"n_steps={n_steps} are too few to learn from; floor_ is the loss after these, not the floor. Use "
            f"n_steps='auto', or at least {FEWEST_STEPS}."
        )
    if student.floor_ >= student.zero_width_loss_:
        return (
            f"floor_={student.floor_:.4g} is no better than one distribution for all positions, which loses "
            f"{student.zero_width_loss_:.4g} nats per token. Change learning_rate={rate:g}, raise "
            f"n_steps={n_steps}, or give more text."
        )
    best = _best_before_rise(student)
    if best is not None:
        remedy = (
            f"lower learning_rate={rate:g}"
            if best["step"] == 0
            else f"give more text, lower n_steps={n_steps}, or lower learning_rate={rate:g}"
        )
        return (
            f"the loss on held-out text was {best['eval_kl']:.4g} at step {best['step']} and rose to floor_="
            f"{student.floor_:.4g}; {remedy}."
        )
    return None


def _best_before_rise(student: Trained) -> dict[str, Any] | None:
    """Return the evaluation with the smallest loss if the floor is clearly above it."""
    best = min(student.history_, key=lambda row: row["eval_kl"])
    rise = student.floor_ - best["eval_kl"]
    return best if rise > max(_ROSE * best["eval_kl"], _NEGLIGIBLE * student.zero_width_loss_) else None
