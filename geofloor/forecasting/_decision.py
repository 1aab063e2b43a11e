"""Decisions from forecasts: whether students of a width reach a loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from geofloor._validation import check_number
from geofloor.forecasting._limits import check_question, run_range, search_range, teacher_end
from geofloor.forecasting._steps import StepsNeeded, steps_needed

# Share by which a target must be below the bound to be impossible. The bound is the best found on a sample of
# positions, so it can be too high. That its error is at most this share is assumed.
MARGIN = 0.05


class Decision(NamedTuple):
    """Answer to whether students of a width reach a loss after a number of steps. As text it is a few sentences."""

    width: int
    target: float  # nats per token
    # "impossible", "not at this budget", "uncertain" or "go at this budget": see `LossForecaster.decide`. Without a
    # forecast, a plan answers "impossible" or "unknown".
    answer: str
    loss: float  # forecast, nats per token; NaN without one
    low: float  # its interval
    high: float
    level: float  # the probability of the interval
    min_width: int  # smallest width forecast to reach the target, or -1: see `LossForecaster.min_width`
    safe_width: int  # smallest width whose whole interval reaches the target, or -1
    least: float | None = None  # loss that no student of the width gets below, where the law knows it
    n_steps: float | None = None  # training steps that the answer is for, where the runs tell
    n_tokens: int | None = None  # tokens per step
    run_range: tuple[float, float] = (0.0, np.inf)  # half the narrowest run, twice the widest; outside: extrapolated
    searched: tuple[float, float] = (0, np.inf)  # widths that the smallest ones were searched among
    steps: StepsNeeded | None = None  # steps that the target needs, where runs of several budgets tell

    @property
    def extrapolated(self) -> bool:
        """Whether the width is below half the narrowest run or above twice the widest."""
        return not self.run_range[0] <= self.width <= self.run_range[1]

    @property
    def budget(self) -> str:
        """The budget in words."""
        if self.n_steps is None:
            return "when trained as these runs"
        if self.n_steps == np.inf:
            return "after any number of steps"
        return f"after {self.n_steps:,.0f} steps" + ("" if self.n_tokens is None else f" of {self.n_tokens:,} tokens")

    def __str__(self) -> str:
        return f"{self.answer}: " + " ".join(filter(None, (self._verdict(), *self._more(), self._smallest())))

    def _verdict(self) -> str:
        student, target = f"a student of width {self.width:g}", f"{self.target:.3g} nats per token"
        if self.answer == "impossible":
            return f"{student} can't reach {target}, however it is trained: none gets below {self.least:.3g}."
        if np.isnan(self.loss):
            return f"there is no forecast of whether {student} reaches {target}."
        verb = {"go at this budget": "is forecast to reach", "uncertain": "may or may not reach"}
        return f"{student} {verb.get(self.answer, 'is not forecast to reach')} {target} {self.budget}."

    def _more(self) -> tuple[str, ...]:
        again = f" {self.budget}" if self.answer == "impossible" else ""
        ends = f"({self.low:.3g} to {self.high:.3g} at {100 * self.level:g}%)"
        low, high = self.run_range
        outside = f"It is extrapolated: the runs tell about widths {low:g} to {high:g}." if self.extrapolated else ""
        least = steps = ""
        if self.answer != "impossible":
            least = "" if not self.least else f"No student of this width gets below {self.least:.3g}."
        if np.isnan(self.loss):
            return (least,)
        if self.answer in ("not at this budget", "uncertain"):
            steps = "" if self.steps is None else str(self.steps)
            if self.answer == "not at this budget" and self.steps is None:
                steps = "More steps may lower it; runs of several budgets tell by how much."
        return f"Its forecast{again} is {self.loss:.3g} {ends}.", outside, steps, least

    def _smallest(self) -> str:
        low, high = self.searched
        if np.isnan(self.loss):
            return ""
        if self.min_width < 0:
            return f"No width from {low:g} to {high:g} is forecast to reach it."
        safe = "none does" if self.safe_width < 0 else self._named(self.safe_width)
        smallest = self._named(self.min_width)
        return f"The smallest width forecast to reach it is {smallest}; with its whole interval, {safe}."

    def _named(self, width: int) -> str:
        """Name a smallest width, and say what is not known about it."""
        if width == self.searched[0] > 0:
            return f"{width} or less"
        return f"{width} (extrapolated)" if width > self.run_range[1] else f"{width}"


class Verdicts(NamedTuple):
    """Answers for several widths, without the smallest widths, which take longer."""

    losses: np.ndarray  # (n_widths,) forecasts, nats per token
    ends: np.ndarray  # (n_widths, 2) intervals
    least: np.ndarray | None  # (n_widths,) what no student gets below, where the law knows it
    answers: list[str]


def verdicts(
    forecaster: Any, widths: np.ndarray, target: float, *, n_steps: float | None = None, level: float = 0.9
) -> Verdicts:
    """Answer as `LossForecaster.decide`, for a fitted forecaster and several widths."""
    losses, ends = forecaster.predict(widths, n_steps=n_steps, return_interval=True, level=level)
    least = forecaster.law_.least(np.asarray(widths, dtype=np.float64))
    answers = []
    for place, width in enumerate(widths):
        low, high = ends[place]
        if least is not None and target < (1.0 - MARGIN) * least[place]:
            answers.append("impossible")
        elif high <= target and not _is_a_guess(forecaster, width, target, n_steps, level):
            answers.append("go at this budget")
        else:
            answers.append("not at this budget" if low > target else "uncertain")
    return Verdicts(losses, ends, least, answers)


def decide(forecaster: Any, width: int, target: float, *, n_steps: float | None = None, level: float = 0.9) -> Decision:
    """Answer as `LossForecaster.decide`, for a fitted forecaster."""
    number, target = check_number("width", width, 0, 2**53), check_number("target", target, 0)
    width = int(number) if number.is_integer() else number
    check_question(width, target, *teacher_end(forecaster, forecaster.law_))
    (loss,), ((low, high),), leasts, (answer,) = verdicts(
        forecaster, np.array([width]), target, n_steps=n_steps, level=level
    )
    level = float(level)
    smallest, safe = (forecaster.min_width(target, n_steps=n_steps, safe=each, level=level) for each in (False, True))
    steps = None
    if forecaster.budget_.several and answer in ("not at this budget", "uncertain"):
        steps = steps_needed(forecaster, width, target, level)
    return Decision(
        width,
        target,
        answer,
        float(loss),
        float(low),
        float(high),
        level,
        smallest,
        safe,
        None if leasts is None else float(leasts[0]),
        forecaster.budget_.longest if n_steps is None else float(n_steps),
        forecaster.budget_.n_tokens,
        run_range(forecaster),
        search_range(forecaster),
        steps,
    )


def _is_a_guess(forecaster: Any, width: float, target: float, n_steps: float | None, level: float) -> bool:
    """Tell whether a go would rest on extrapolation alone: of a law with no known loss at width 0, or by wider runs."""
    low, high = run_range(forecaster)
    zero = forecaster.law_.loss_at_zero
    if width < low:
        return zero is None or not np.isfinite(zero)
    if width > high:
        _, ends = forecaster.predict([forecaster.widths_.max()], n_steps=n_steps, return_interval=True, level=level)
        return bool(ends[0, 1] > target)
    return False
