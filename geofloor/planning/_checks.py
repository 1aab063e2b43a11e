"""Checks of a plan: what each stage rests on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from geofloor.planning._settings import PlanSettings

OK, WARNING, FAILED = "ok", "warning", "failed"
_FEWEST_SHARE = 0.1  # of the tokens asked for, below which nothing that was measured counts
_FEWEST_HELD_OUT = 500, 4000  # positions: below the first a loss is no measurement, below the second it is a rough one
_UNTRAINED = 0.98  # share of the loss at width 0 above which a student is no better than none
_EXPLAINED = 0.5  # share of held-out variance below which a dictionary is not one of these activations


class Check(NamedTuple):
    """Outcome of one check."""

    stage: str  # "text", "students", "bottleneck", "runs" or "features": what it is about
    status: str  # "ok", "warning" or "failed"; what rests on a failed stage is withheld
    message: str  # one sentence, with the remedy if it is not ok


def failed(checks: Iterable[Check], *stages: str) -> str | None:
    """Return the message of the first failed check of some stages, or None."""
    return next((each.message for each in checks if each.stage in stages and each.status == FAILED), None)


def check_text(settings: PlanSettings, n_blocks: int, n_trained: int, n_held_out: int, length: int) -> list[Check]:
    """Compare the text that was found with the text that was asked for.

    Parameters
    ----------
    settings : PlanSettings
        What was asked for.
    n_blocks, n_trained, n_held_out : int
        Sequences to measure on, to train on, and held out.
    length : int
        Tokens per sequence.
    """
    found, wanted = n_blocks * length, settings.n_blocks * length
    held_out = n_held_out * (length - 1)
    few, enough = _FEWEST_HELD_OUT
    remedy = "Give more text"
    if found < _FEWEST_SHARE * wanted:
        message = f"The text gives {found:,} of {wanted:,} tokens. {remedy}, or ask for fewer tokens."
        return [Check("text", FAILED, message)]
    if held_out < few:
        return [Check("text", FAILED, f"{held_out:,} positions are held out, fewer than {few}. {remedy}.")]
    checks = []
    if found < wanted:
        checks.append(Check("text", WARNING, f"The text gives {found:,} of {wanted:,} tokens. {remedy} for it all."))
    if held_out < enough:
        message = f"Losses are measured on {held_out:,} held-out positions. {remedy} for smaller errors."
        checks.append(Check("text", WARNING, message))
    if n_trained < settings.n_trained:
        passes = settings.n_trained / n_trained
        message = f"Students see each sequence {passes:.1f} times, so that they may learn it by heart. {remedy}."
        checks.append(Check("text", WARNING, message))
    if not checks:
        checks.append(Check("text", OK, f"{found:,} tokens, {held_out:,} positions of them held out."))
    return checks


def check_runs(rows: Sequence[tuple[int, float, int]], zero_width_loss: float) -> tuple[list[Check], set[int]]:
    """Tell whether students are better than none.

    Parameters
    ----------
    rows : sequence of (int, float, int)
        Width, loss and steps of each, those of most steps last.
    zero_width_loss : float
        Loss of a student of width 0.

    Returns
    -------
    checks : list of Check
        One or two.
    untrained : set of int
        Budgets with a student that is no better than none.
    """
    poor = [(width, n) for width, loss, n in rows if loss > _UNTRAINED * zero_width_loss]
    untrained = {n for _, n in poor}
    if not poor:
        best = max(loss for _, loss, _ in rows) / zero_width_loss
        message = f"All students learned: they lose at most {best:.0%} of what a student of width 0 loses."
        return [Check("runs", OK, message)], untrained
    width, n_steps = poor[-1]
    what = (
        f"After {n_steps:,} steps the student of width {width} is no better than one of width 0 "
        f"({zero_width_loss:.3g} nats per token)."
    )
    if untrained >= {n for *_, n in rows}:
        return [Check("runs", FAILED, f"{what} Train for more steps.")], untrained
    return [Check("runs", WARNING, f"{what} Runs of {_listed(untrained)} steps are left out.")], untrained


def check_features(
    explained_variance: float | None, alpha: float, critical_width: float, own_width: int, warnings: Iterable[str]
) -> list[Check]:
    """Judge a dictionary of features.

    Parameters
    ----------
    explained_variance : float or None
        Share of held-out variance.
    alpha : float
        Sparsity. Eq. 1 holds from 1 − 1/e = 0.632 on.
    critical_width : float
        Width d* that keeps all features by Eq. 1, in dimensions.
    own_width : int
        The teacher's width.
    warnings : iterable of str
        What the stages warned of.
    """
    checks = [Check("features", FAILED, message) for message in warnings]
    if alpha < 1.0 - np.exp(-1.0):
        message = f"Sparsity alpha is {alpha:.3f}, below 0.632 where Eq. 1 holds. Train a sparser autoencoder."
        checks.append(Check("features", FAILED, message))
    if explained_variance is not None and explained_variance < _EXPLAINED:
        message = (
            f"The dictionary explains {explained_variance:.0%} of held-out variance, less than {_EXPLAINED:.0%}. Use "
            "one that was trained on the output of this block."
        )
        checks.append(Check("features", FAILED, message))
    if checks:
        return checks
    explained = "" if explained_variance is None else f"explains {explained_variance:.0%} of held-out variance, and "
    message = f"The dictionary {explained}has sparsity alpha = {alpha:.3f}."
    if critical_width <= own_width:
        return [Check("features", OK, message)]
    beyond = (
        f"By Eq. 2 all features need a width of {critical_width:.0f}, more than the teacher's {own_width}. Use its "
        "floors to rank widths only."
    )
    return [Check("features", OK, message), Check("features", WARNING, beyond)]


def _listed(numbers: Iterable[int]) -> str:
    return " and ".join(f"{each:,}" for each in sorted(numbers))
