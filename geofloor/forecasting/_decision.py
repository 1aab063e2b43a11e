"""Decisions from forecasts: whether students of a width reach a loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from geofloor._validation import check_number


class Decision(NamedTuple):
    """Answer to whether students of a width reach a loss. As text it is a sentence."""

    width: int
    target: float  # nats per token
    answer: str  # "go", "no-go", or "uncertain" where the target is within the interval
    loss: float  # forecast, nats per token
    low: float  # its interval
    high: float
    level: float  # the probability of the interval
    min_width: int  # smallest width forecast to reach the target, or -1: see `LossForecaster.min_width`
    safe_width: int  # smallest width whose whole interval reaches the target, or -1
    least: float | None = None  # loss that no student of the width gets below, where the law knows it

    def __str__(self) -> str:
        student, target = f"a student of width {self.width:g}", f"{self.target:.3g} nats per token"
        least = "" if self.least is None else f"no student of this width gets below {self.least:.3g}"
        if self.least is not None and self.target < self.least:
            verdict = f"{student} can't reach {target}, however it is trained: {least}"
        else:
            verb = {
                "go": "is forecast to reach",
                "no-go": "is not forecast to reach",
                "uncertain": "may or may not reach",
            }[self.answer]
            verdict = f"{student} {verb} {target} when trained as these runs" + (f", and {least}" if least else "")
        smallest = "no width is forecast to reach it"
        if self.min_width >= 0:
            safe = "no width does so safely" if self.safe_width < 0 else f"{self.safe_width} does so safely"
            smallest = f"the smallest width forecast to reach it is {self.min_width}, and {safe}"
        return (
            f"{self.answer}: {verdict}. Its forecast is {self.loss:.3g}, {self.low:.3g} to {self.high:.3g} at "
            f"{100 * self.level:g}%; {smallest}."
        )


def decide(forecaster: Any, width: int, target: float, *, level: float = 0.9) -> Decision:
    """Answer as `LossForecaster.decide`, for a fitted forecaster."""
    number, target = check_number("width", width, 0, 2**53), check_number("target", target, 0)
    width = int(number) if number.is_integer() else number
    losses, interval = forecaster.predict([width], return_interval=True, level=level)
    level = float(level)
    low, high = interval[0]
    answer = "go" if high <= target else "no-go" if low > target else "uncertain"
    smallest, safe = (forecaster.min_width(target, safe=each, level=level) for each in (False, True))
    least = forecaster.law_.least(np.array([width], dtype=np.float64))
    limit = None if least is None else float(least[0])
    return Decision(width, target, answer, float(losses[0]), float(low), float(high), level, smallest, safe, limit)
