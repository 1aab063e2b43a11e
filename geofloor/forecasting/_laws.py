"""Laws of the loss over student width, one class each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls
from sklearn.utils.validation import check_is_fitted

from geofloor._validation import check_array_of_numbers, check_choice, check_number, shown
from geofloor.forecasting._law import Law
from geofloor.forecasting._runs import LARGEST

_LARGEST_EXPONENT = 100.0
_SAMPLING = 3.0  # standard errors of the bound's sample by which a run may lie below it
_POSITIVE = (0.0, np.inf)
_ANY = (-np.inf, np.inf)


@dataclass(frozen=True)
class Exponential(Law):
    r"""Exponential decay, :math:`a\,e^{-b d}`.

    Its parameters are ``scale`` a, in nats per token, and ``decay`` b ≥ 0, per dimension. It was selected on students
    of the embedded teacher, with widths of 8 to 128. Measured there (``benchmarks/results/forecasts.txt``), its
    forecasts from two runs have a median error of 7.6%, where those of `PowerOfWidth` have 52%.
    """

    parameters = ("decay", "scale")
    bounds = (_POSITIVE, _ANY)  # of b and log a

    def design(self, widths: np.ndarray) -> np.ndarray:
        return np.column_stack([-widths, np.ones(len(widths))])

    def params(self, values: np.ndarray) -> dict[str, float]:
        return {"decay": float(values[0]), "scale": float(np.exp(values[1]))}

    def describe(self, params: Mapping[str, float]) -> str:
        return f"{params['scale']:.3f} exp(-{params['decay']:.4f} d)"


@dataclass(frozen=True)
class PowerOfWidth(Law):
    r"""Power of the width, :math:`a\,d^{-b}`; infinite at width 0.

    Its parameters are ``scale`` a, in nats per token, and ``exponent`` b ≥ 0. On the paper's Table 3, measured with
    `forecast_table`, its forecasts from two runs have a median error of 2.0%. Those of `Exponential` have 17.6%.
    """

    parameters = ("exponent", "scale")
    bounds = (_POSITIVE, _ANY)  # of b and log a

    @property
    def loss_at_zero(self) -> float:
        return np.inf

    def design(self, widths: np.ndarray) -> np.ndarray:
        return np.column_stack([-np.log(widths), np.ones(len(widths))])

    def params(self, values: np.ndarray) -> dict[str, float]:
        return {"exponent": float(values[0]), "scale": float(np.exp(values[1]))}

    def describe(self, params: Mapping[str, float]) -> str:
        return f"{params['scale']:.3f} d^-{params['exponent']:.3f}"


@dataclass(frozen=True)
class PowerOfWidthAboveBaseline(Law):
    r"""Power of the width above a baseline, :math:`a\,d^{-b} + c`; infinite at width 0.

    Its parameters are ``scale`` a and ``baseline`` c ≥ 0, in nats per token, and ``exponent`` b between 0 and 10. It
    needs runs of three widths. `PowerLawCalibrator` fits the same formula by least squares, without intervals.
    """

    parameters = ("exponent", "scale", "baseline")
    bounds = ((0.0, 10.0), _ANY, _POSITIVE)  # of b, log a and c

    @property
    def loss_at_zero(self) -> float:
        return np.inf

    def linearize(self, widths: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        exponent, log_scale, baseline = values
        logs = np.log(widths)
        power = log_scale - exponent * logs
        curve = np.logaddexp(power, np.log(baseline)) if baseline > 0.0 else power
        share = np.exp(power - curve)
        return curve, np.column_stack([-logs * share, share, np.exp(-curve)])

    def start(self, widths: np.ndarray, losses: np.ndarray) -> np.ndarray:
        logs = np.log(widths)
        best, least = np.array([0.0, np.log(losses).mean(), 0.0]), np.inf
        # At each exponent of a grid, a and c by least squares.
        for exponent in np.geomspace(1e-3, 10.0, 100):
            # Relative to the narrowest width the powers stay near 1. Errors are shares of the loss.
            powers = np.exp(-exponent * (logs - logs.min()))
            columns = np.column_stack([powers, np.ones(len(logs))]) / losses[:, np.newaxis]
            (scale, baseline), residual = nnls(columns, np.ones(len(logs)))
            if scale > 0.0 and residual < least:
                best, least = np.array([exponent, np.log(scale) + exponent * logs.min(), baseline]), residual
        return best

    def params(self, values: np.ndarray) -> dict[str, float]:
        with np.errstate(over="ignore"):
            return {"exponent": float(values[0]), "scale": float(np.exp(values[1])), "baseline": float(values[2])}

    def describe(self, params: Mapping[str, float]) -> str:
        return f"{params['scale']:.3f} d^-{params['exponent']:.3f} + {params['baseline']:.4f}"


@dataclass(frozen=True)
class EndsAtTeacher(Law):
    r"""Power that falls to 0 at the teacher's width, :math:`a\,(1 - \log(1 + d) / \log(1 + D))^p`.

    Its parameters are ``exponent`` p ≥ 0 and ``scale`` a, in nats per token, the loss extrapolated to width 0. It suits
    slices of a teacher along its principal directions, trained or not, where no loss at width 0 is known. Measured with
    `forecast_table` on ten sliced models [1]_, its forecasts from two runs have a median error of 2.8%.

    Parameters
    ----------
    teacher_width : float
        D, the teacher's own width in dimensions.

    References
    ----------
    .. [1] Ashkboos et al. (2024), "SliceGPT", arXiv:2401.15024, Table 1, as in
       `geofloor.datasets.load_published_losses`.
    """

    teacher_width: float

    parameters = ("exponent", "scale")
    bounds = (_POSITIVE, _ANY)  # of p and log a
    _end_name = "teacher_width"

    def __post_init__(self) -> None:
        _keep_number(self, "teacher_width")

    @property
    def end_width(self) -> float:
        return float(self.teacher_width)

    def design(self, widths: np.ndarray) -> np.ndarray:
        left = np.log1p(-np.log1p(widths) / np.log1p(self.teacher_width))
        return np.column_stack([left, np.ones(len(widths))])

    def params(self, values: np.ndarray) -> dict[str, float]:
        return {"exponent": float(values[0]), "scale": float(np.exp(values[1]))}

    def describe(self, params: Mapping[str, float]) -> str:
        return f"{params['scale']:.3f} (1 - log(1 + d) / log(1 + {self.teacher_width:.4g}))^{params['exponent']:.3f}"


@dataclass(frozen=True)
class Anchored(Law):
    r"""Decay from a known loss at width 0, :math:`L_0 (1 + d)^{-c} e^{-b d}`.

    Its parameters are ``exponent`` c ≥ 0 and ``decay`` b ≥ 0, per dimension.

    Parameters
    ----------
    zero_width_loss : float
        L₀, the loss of a student of width 0 in nats per token, as `geofloor.language_models.zero_width_kl` measures
        it on the teacher. Measure it at the temperature of the runs.
    """

    zero_width_loss: float

    parameters = ("decay", "exponent")
    bounds = (_POSITIVE, _POSITIVE)
    _zero_name = "zero_width_loss"

    def __post_init__(self) -> None:
        _keep_number(self, "zero_width_loss", LARGEST)

    @property
    def loss_at_zero(self) -> float:
        return self.zero_width_loss

    def known(self) -> float:
        return float(np.log(self.zero_width_loss))

    def design(self, widths: np.ndarray) -> np.ndarray:
        return np.column_stack([-widths, -np.log1p(widths)])

    def describe(self, params: Mapping[str, float]) -> str:
        return f"{self.zero_width_loss:.3f} (1 + d)^-{params['exponent']:.3f} exp(-{params['decay']:.4f} d)"


@dataclass(frozen=True)
class AnchoredBothEnds(Anchored):
    r"""Decay from a known loss at width 0 to 0 at the teacher's width.

    The formula is :math:`L_0 (1 - \log(1 + d) / \log(1 + D))^p e^{-b d}`, and 0 from width D on. Its parameters are
    ``exponent`` p ≥ 0 and ``decay`` b ≥ 0, per dimension. Use it for students that start from the teacher's principal
    directions (``DistilledStudent(init="principal")``): a student of width D then starts as the teacher itself.

    Parameters
    ----------
    zero_width_loss : float
        L₀, the loss of a student of width 0 in nats per token, as in `Anchored`.
    teacher_width : float
        D, the teacher's own width in dimensions.
    """

    teacher_width: float

    _end_name = "teacher_width"

    def __post_init__(self) -> None:
        super().__post_init__()
        _keep_number(self, "teacher_width")

    @property
    def end_width(self) -> float:
        return float(self.teacher_width)

    def design(self, widths: np.ndarray) -> np.ndarray:
        return np.column_stack([-widths, np.log1p(-np.log1p(widths) / np.log1p(self.teacher_width))])

    def describe(self, params: Mapping[str, float]) -> str:
        return (
            f"{self.zero_width_loss:.3f} (1 - log(1 + d) / log(1 + {self.teacher_width:g}))^{params['exponent']:.3f} "
            f"exp(-{params['decay']:.4f} d)"
        )


@dataclass(frozen=True)
class AboveBottleneck(Law):
    r"""Decay above the softmax bottleneck R(d), :math:`L_0 \exp(-k\,(\log(L_0 / R(d)))^m)`.

    Its only parameter is the ``coefficient`` k ≥ 0, so that one run is enough. No forecast is below the bound, and the
    loss is 0 where the bound is. Use it for students that start from the teacher's principal directions
    (``DistilledStudent(init="principal")``).

    Parameters
    ----------
    bound : BottleneckPredictor
        Fitted on the teacher, at the temperature of the runs. It is never changed, and shared by clones.
    exponent : float, default=1.25
        m. Fitted to students of three small language models it was between 1.13 and 1.39 for principal starts, and
        between 0.92 and 1.18 for random ones (``benchmarks/results/softmax_bottleneck.txt`` and ``_longer.txt``).
        ``LossForecaster(bound=bound)`` weighs the values by the runs.
    """

    bound: Any
    exponent: float = 1.25

    parameters = ("coefficient",)
    bounds = (_POSITIVE,)
    _zero_name = "bound.zero_width_loss_"
    _end_name = "bound.critical_width_"

    def __post_init__(self) -> None:
        if not (hasattr(self.bound, "fit") and hasattr(self.bound, "min_width")):
            raise TypeError(f"bound={shown(self.bound)} is no bound; give a fitted BottleneckPredictor.")
        check_is_fitted(self.bound)
        _keep_number(self, "exponent", _LARGEST_EXPONENT)

    @property
    def loss_at_zero(self) -> float:
        return float(self.bound.predict([0])[0])

    @property
    def end_width(self) -> float:
        return float(self.bound.critical_width_)

    def known(self) -> float:
        return float(np.log(self.loss_at_zero))

    def design(self, widths: np.ndarray) -> np.ndarray:
        reduction = self.known() - np.log(np.asarray(self.bound.predict(widths), dtype=np.float64))
        return -(np.maximum(reduction, 0.0)[:, np.newaxis] ** self.exponent)

    def describe(self, params: Mapping[str, float]) -> str:
        zero = self.loss_at_zero
        return f"{zero:.3f} exp(-{params['coefficient']:.3f} log({zero:.3f} / R(d))^{self.exponent:g})"

    def least(self, widths: np.ndarray) -> np.ndarray:
        return self.bound.predict(widths, return_bounds=True)[1][:, 0]

    def check_runs(self, widths: np.ndarray, losses: np.ndarray) -> None:
        super().check_runs(widths, losses)
        least, curve = self.least(widths), self.bound.curve_
        error = np.interp(widths, curve["width"], curve["standard_error"])
        below = np.flatnonzero(losses < least - _SAMPLING * error)
        if below.size:
            run = below[np.argmax(least[below] / losses[below])]
            raise ValueError(
                f"y holds the loss {losses[run]:.3g} at width {widths[run]:g}, where no student of this teacher gets "
                f"below {least[run]:.3g}. The bound is a KL divergence in nats per token at temperature="
                f"{getattr(self.bound, 'temperature', None)!r}: measure the runs at that temperature, as a divergence "
                "from the teacher and not as a cross-entropy with the text, not divided by T², and on text like the "
                "bound's."
            )


@dataclass(frozen=True)
class Calibrated(Law):
    r"""Predicted floor :math:`L^*(d)` turned into a loss, :math:`C\,L^*(d) + B`.

    Its parameters are ``slope`` C ≥ 0, in nats per unit of the floor, and ``baseline`` B, in nats per token, where it
    is fitted. It is the law to take for an `AblationPredictor` or a `FloorPredictor`.

    Parameters
    ----------
    predictor : estimator
        Fitted predictor of floors over widths, from 0 on. It is never changed, and shared by clones.
    baseline : float or None, default=None
        B. With None it is fitted with the slope, to runs of two widths. With a value, such as 0, one run is enough.
    """

    predictor: Any
    baseline: float | None = None

    logarithmic = False

    def __post_init__(self) -> None:
        if isinstance(self.predictor, type) or not hasattr(self.predictor, "predict"):
            raise TypeError(
                f"predictor={shown(self.predictor)} has no predict; give a fitted predictor of floors over widths."
            )
        if self.baseline is not None:
            object.__setattr__(self, "baseline", check_number("baseline", self.baseline, -LARGEST, LARGEST))

    @property
    def parameters(self) -> tuple[str, ...]:
        return ("slope", "baseline") if self.baseline is None else ("slope",)

    @property
    def bounds(self) -> tuple[tuple[float, float], ...]:
        return (_POSITIVE, _ANY)[: len(self.parameters)]

    @property
    def reach(self) -> float:
        return float(getattr(self.predictor, "critical_width_", 0.0))

    def known(self) -> float:
        return self.baseline or 0.0

    def design(self, widths: np.ndarray) -> np.ndarray:
        floors = check_array_of_numbers(self.predictor.predict(widths), "predictor.predict(widths)")
        return np.column_stack([floors, np.ones(len(floors))])[:, : len(self.parameters)]

    def params(self, values: np.ndarray) -> dict[str, float]:
        return {"slope": float(values[0]), "baseline": float(values[1] if self.baseline is None else self.baseline)}

    def describe(self, params: Mapping[str, float]) -> str:
        return f"{params['slope']:.3g} x floor {params['baseline']:+.3g}"


_NAMES = {"exponential": Exponential, "power": PowerOfWidth}


def read_law(law: Any) -> Law:
    """Return the law for an argument of `LossForecaster`: a law, or the name of one.

    Raises
    ------
    TypeError
        If it is anything else.
    ValueError
        If there is no law of that name.
    """
    if isinstance(law, str):
        return _NAMES[check_choice("law", law, ("auto", *_NAMES))]()
    if not isinstance(law, Law):
        wrapper = "a bound in AboveBottleneck(...)" if hasattr(law, "rank_") else "a predictor in Calibrated(...)"
        remedy = f"put {wrapper}" if hasattr(law, "predict") else "give one of geofloor.forecasting"
        raise TypeError(f"law={shown(law)} is no law; {remedy}, such as Exponential() or PowerOfWidth().")
    return law


def _keep_number(law: Law, name: str, high: float = np.inf) -> None:
    """Check that a field is above 0, and store it as a plain number."""
    object.__setattr__(law, name, check_number(name, getattr(law, name), 0, high, open_low=True))
