"""Limits of a forecast: the teacher's width, the range of the runs, and losses in another unit."""

from __future__ import annotations

from typing import Any

import numpy as np

from geofloor._validation import check_number, warn_caller

# Forecasts were confirmed up to this share of the teacher's width (docs/findings/distillation.rst). Wider students
# ended above them, because steps of the usual size lead away from the teacher.
_CONFIRMED = 0.75
_WIDEST = 2**20  # dimensions up to which a width is searched for
_SAME_FACTOR = 0.15  # relative distance at which a ratio of losses is taken for the factor T²


def teacher_end(forecaster: Any, law: Any) -> tuple[float, str]:
    """Return the teacher's width, or inf if it is unknown, and the name of the argument that tells it."""
    own = forecaster.teacher_width
    if own is not None:
        own = check_number("teacher_width", own, 1, 2**53)
    if own is not None and own <= law.end_width:
        return float(own), "teacher_width"
    return float(law.end_width), law._end_name


def check_below_teacher(widths: np.ndarray, end: float, name: str) -> None:
    """Refuse runs wider than the teacher.

    Raises
    ------
    ValueError
        Says what is likely wrong.
    """
    if widths.max() > end:
        raise ValueError(
            f"X holds the width {widths.max():g}, and the teacher has {name}={end:g}. A student is at most as wide as "
            f"its teacher: check {name}, and that X has the widths of the residual stream and not, say, of the MLP."
        )


def check_question(width: float, target: float, end: float, name: str) -> None:
    """Refuse a question about a width over the teacher's, or with width and target exchanged.

    Raises
    ------
    ValueError
        Says what is likely wrong.
    """
    if width != round(width) and target == round(target) >= 8:
        raise ValueError(f"width={width:g} and target={target:g} seem to be exchanged; the width comes first.")
    if width > end:
        raise ValueError(
            f"width={width:g} is over the teacher's, {name}={end:g}, where a student could be the teacher itself; ask "
            "for a narrower student."
        )


def warn_of_width(forecaster: Any, widths: np.ndarray) -> None:
    """Warn if a width is not below the end of the law, or over the teacher's.

    Warns
    -----
    UserWarning
        Names the width and the teacher's.
    """
    end, name = teacher_end(forecaster, forecaster.law_)
    if not widths.max() < forecaster.law_.end_width:
        warn_caller(
            f"widths holds the width {widths.max():g}, which is not below {name}={end:g}. From there on "
            "the law is 0, because a student can equal the teacher. A trained student ends above 0. Ask for narrower "
            "students.",
            UserWarning,
        )
    elif widths.max() > end:
        warn_caller(
            f"widths holds the width {widths.max():g}, which is over {name}={end:g}, where a student could be the "
            "teacher itself. Ask for narrower students.",
            UserWarning,
        )


def warn_of_factor(widths: np.ndarray, losses: np.ndarray, law: Any) -> None:
    """Warn if two runs of one width differ by about the factor T².

    Warns
    -----
    UserWarning
        Names the width and both losses.
    """
    factor = float(getattr(getattr(law, "bound", None), "temperature", 2.0)) ** 2
    for width in np.unique(widths):
        alike = losses[widths == width]
        if factor > 1.5 and abs(alike.max() / alike.min() / factor - 1.0) < _SAME_FACTOR:
            warn_caller(
                f"Two runs of width {width:g} have the losses {alike.min():.3g} and {alike.max():.3g}, which differ by "
                f"about T² = {factor:g}, the factor of the temperature. Leave it out of all losses.",
                UserWarning,
            )


def search_range(forecaster: Any) -> tuple[int, int]:
    """Return the first and the last width in which `LossForecaster.min_width` searches."""
    end, _ = teacher_end(forecaster, forecaster.law_)
    first, last = run_range(forecaster)
    last = min(max(forecaster.law_.reach, last), end, _WIDEST)
    return max(int(np.ceil(first)), 1), int(last)


def run_range(forecaster: Any) -> tuple[float, float]:
    """Return half the narrowest and twice the widest run. Forecasts outside are extrapolated."""
    return float(forecaster.widths_.min()) / 2.0, 2.0 * float(forecaster.widths_.max())


def limit_near_teacher(forecaster: Any, widths: np.ndarray, ends: np.ndarray, level: float) -> np.ndarray:
    """Keep upper ends (n_widths, 2) in range near the teacher's width, where no forecast was confirmed.

    There the upper end is at least the forecast, and at most the upper end, at three quarters of the teacher's width,
    or at the widest run if that is wider. Laws that end at the teacher's width would give 0 or infinity.
    """
    end, _ = teacher_end(forecaster, forecaster.law_)
    confirmed = max(_CONFIRMED * end, float(forecaster.widths_.max()))
    beyond = widths > confirmed
    if not beyond.any():
        return ends
    (last,), ((_, highest),) = forecaster._forecast(np.array([min(confirmed, np.nextafter(end, 0.0))]), level)
    kept = ends.copy()
    kept[beyond, 1] = np.maximum(np.minimum(ends[beyond, 1], highest), np.maximum(last, ends[beyond, 0]))
    return kept
