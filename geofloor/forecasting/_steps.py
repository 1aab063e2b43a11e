"""Runs of several budgets in a `LossForecaster`: forecasts after other numbers of steps, and the steps needed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm

from geofloor._validation import check_number
from geofloor.forecasting._budgets import MOST_STEPS, BudgetForecaster, read_steps
from geofloor.forecasting._limits import raise_near_teacher

_FARTHEST_STEPS = 1000.0  # of the longest run, up to which steps are looked at
_N_STEPS = 24


class StepsNeeded(NamedTuple):
    """Steps after which students of a width are forecast to reach a loss. As text it is a sentence."""

    width: int
    target: float  # nats per token
    n_steps: float  # inf if the target is not reached by any of the steps looked at
    low: float  # ends of the interval
    high: float
    level: float  # the probability of the interval
    limit: float  # forecast loss after any number of steps, nats per token
    fewest: float  # the range of steps looked at
    most: float

    def __str__(self) -> str:
        reached = f"a student of width {self.width:g} is forecast to reach {self.target:.3g} nats per token"
        if self.n_steps == np.inf:
            perhaps = f", or perhaps after {_about(self.low)} steps or more" if self.low < np.inf else ""
            return (
                f"Not by more steps{perhaps}: the forecast for a student of width {self.width:g} falls toward "
                f"{self.limit:.3g} nats per token, and is above {self.target:.3g} after {_about(self.most)} steps."
            )
        if self.n_steps <= self.fewest:
            return f"By the trend over the steps {reached} after {_about(self.fewest)} steps or fewer."
        upper = "or more, perhaps never," if self.high == np.inf else f"to {_about(self.high)}"
        ends = f"({_about(self.low)} {upper} at {100 * self.level:g}%)"
        return f"By the trend over the steps {reached} after about {_about(self.n_steps)} steps {ends}."


class Budget(NamedTuple):
    """Number of training steps of each run, and of tokens per step."""

    n_steps: np.ndarray | None  # (n_runs,)
    n_tokens: int | None

    @property
    def several(self) -> bool:
        """Whether there are runs of different numbers of steps."""
        return self.n_steps is not None and bool((self.n_steps != self.n_steps[0]).any())

    @property
    def longest(self) -> float | None:
        """The largest number of steps."""
        return None if self.n_steps is None else float(self.n_steps.max())


def read_budget(n_steps: Any, n_tokens: Any, n_runs: int) -> Budget:
    """Read the budget of runs.

    Raises
    ------
    ValueError
        As `read_steps`, or if the tokens per step are no whole number of at least 1.
    """
    tokens = None if n_tokens is None else check_number("n_tokens", n_tokens, 1, MOST_STEPS, whole=True)
    return Budget(None if n_steps is None else read_steps(n_steps, n_runs), tokens)


def reduce_runs(
    forecaster: Any, widths: np.ndarray, losses: np.ndarray, errors: np.ndarray, zero: float | None
) -> tuple[np.ndarray, ...]:
    """Turn the runs of a forecaster into runs of its longest budget.

    Returns
    -------
    widths, losses, errors : ndarray of shape (n_runs,)
        The runs themselves with the given errors if they have one budget, and otherwise one per width. Errors are
        standard errors beside the forecaster's run error, as shares of the losses.
    """
    forecaster.budgets_, forecaster._at = None, {}
    if not forecaster.budget_.several:
        return widths, losses, errors
    known = zero if zero is not None and np.isfinite(zero) else None
    forecaster.budgets_ = BudgetForecaster(known).fit(widths, losses, forecaster.budget_.n_steps)
    reduced = forecaster.budgets_._reduce(forecaster.budget_.longest)
    return forecaster.budgets_.widths_, reduced.losses, reduced.own_errors


def forecast(forecaster: Any, widths: np.ndarray, level: float, n_steps: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Forecast losses (n_widths,) after a number of steps, and ends of their intervals (n_widths, 2)."""
    at, moved = _forecasters_at(forecaster, n_steps)
    losses, ends = at._forecast(widths, level)
    if moved is not None:
        shift = _log_ratio(moved._forecast(widths, level)[0], losses)
        half = norm.ppf(0.5 + level / 2.0) * np.abs(shift)
        below, above = -_log_ratio(ends[:, 0], losses), _log_ratio(ends[:, 1], losses)
        with np.errstate(over="ignore"):
            widened = [losses * np.exp(-np.hypot(below, half)), losses * np.exp(np.hypot(above, half))]
        ends = np.column_stack([np.minimum(widened[0], ends[:, 0]), np.maximum(widened[1], ends[:, 1])])
        if (least := at.law_.least(widths)) is not None:
            ends = np.maximum(ends, least[:, np.newaxis])
    ends = raise_near_teacher(at, widths, ends, level)
    longest = forecaster.budget_.longest
    return (losses, ends) if n_steps in (None, longest) else _in_order(forecaster, widths, level, n_steps, losses, ends)


def _in_order(
    forecaster: Any, widths: np.ndarray, level: float, n_steps: float, losses: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Keep forecasts after more steps than the longest budget at most those after it, and after fewer at least those.

    Each number of steps has a fit of its own, and far from the runs these may cross.
    """
    known, known_ends = forecast(forecaster, widths, level, None)
    order = np.minimum if n_steps > forecaster.budget_.longest else np.maximum
    return order(losses, known), order(ends, known_ends)


def _log_ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute log a / b, and 0 where one of them is 0 or infinite."""
    known = (a > 0.0) & (b > 0.0) & np.isfinite(a) & np.isfinite(b)
    return np.log(np.where(known, a, 1.0) / np.where(known, b, 1.0))


def _forecasters_at(forecaster: Any, n_steps: float | None) -> tuple[Any, Any]:
    """Return a forecaster for a number of steps, and one of runs moved by their shared standard error or None."""
    budget = forecaster.budget_
    if n_steps is not None and n_steps != budget.longest and not budget.several:
        given = "no n_steps" if budget.n_steps is None else f"n_steps={budget.longest:g} in all runs"
        raise ValueError(
            f"n_steps={n_steps:g} can't be forecast, because fit was given {given}; give it runs of two budgets or "
            "more, with the steps of each, as distill_widths(..., budgets=...) trains them."
        )
    if not budget.several:
        return forecaster, None
    n_steps = budget.longest if n_steps is None else n_steps
    if n_steps not in forecaster._at:
        reduced = forecaster.budgets_._reduce(n_steps)
        shift = np.exp(reduced.shared_error)
        longest = n_steps == budget.longest
        forecaster._at[n_steps] = (
            forecaster if longest else forecaster._refit(reduced.losses, reduced.own_errors),
            forecaster._refit(reduced.losses * shift, reduced.own_errors),
        )
    found: tuple[Any, Any] = forecaster._at[n_steps]
    return found


def steps_needed(forecaster: Any, width: Any, target: float, level: float) -> StepsNeeded:
    """Answer as `LossForecaster.min_steps`, for runs of several budgets."""
    budget = forecaster.budget_
    if not budget.several:
        _forecasters_at(forecaster, np.inf)  # raises the error
    fewest = float(budget.n_steps.min())
    steps = np.geomspace(fewest, _FARTHEST_STEPS * budget.longest, _N_STEPS)
    at = np.array([width], dtype=np.float64)
    found = [forecast(forecaster, at, level, n) for n in [*steps, np.inf]]
    curves = np.array([[losses[0], *ends[0]] for losses, ends in found])
    n_steps, low, high = (_first_below(steps, curve[:-1], target) for curve in curves.T)
    return StepsNeeded(width, target, n_steps, low, high, level, float(curves[-1, 0]), fewest, float(steps[-1]))


def _first_below(steps: np.ndarray, losses: np.ndarray, target: float) -> float:
    """Find where a curve first reaches a target, between its points along straight lines of logarithms."""
    reached = losses <= target
    if not reached.any():
        return np.inf
    place = int(np.argmax(reached))
    if place == 0:
        return float(steps[0])
    (a, b), (high, low) = np.log(steps[place - 1 : place + 1]), losses[place - 1 : place + 1]
    share = np.log(high / target) / np.log(high / low) if low > 0.0 else 1.0
    return float(np.exp(a + share * (b - a)))


def _about(n_steps: float) -> str:
    """Round to two digits."""
    return f"{float(f'{n_steps:.2g}'):,.0f}"
