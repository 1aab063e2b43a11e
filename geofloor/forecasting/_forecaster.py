"""From a few distilled students to a decision: losses of other widths with intervals, and the smallest that does."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import lsq_linear
from scipy.stats import norm
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from geofloor._estimators import SharedParametersMixin, WidthInputMixin
from geofloor._validation import check_array_of_numbers, check_flag, check_number, shown, warn_caller
from geofloor.forecasting._runs import LARGEST, read_runs, read_widths, warn_of_rise

_RANGE = 3.0  # octaves of width over which a calibrated predictor's error stays alike
_WIDEST = 2**20  # dimensions up to which a width is looked for
_LARGEST_ERROR = 100.0  # as a share of the loss; squares of it must not overflow
_SAMPLING = 3.0  # standard errors that a run may lie below the bound, which is measured on a sample


class Decision(NamedTuple):
    """Whether students of a width reach a loss. As text it is a sentence."""

    width: int
    target: float  # nats per token
    answer: str  # "go", "no-go", or "uncertain" where the target is within the interval
    loss: float  # forecast, nats per token
    low: float  # its interval
    high: float
    level: float  # the probability of the interval
    min_width: int | None  # smallest width forecast to reach the target; None if there is none: see `min_width`
    safe_width: int | None  # smallest width whose whole interval does
    least: float | None = None  # what no student of the width gets below; None where it wasn't measured

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
        if self.min_width is not None:
            safe = "no width does so safely" if self.safe_width is None else f"{self.safe_width} does so safely"
            smallest = f"the smallest width forecast to reach it is {self.min_width}, and {safe}"
        return (
            f"{self.answer}: {verdict}. Its forecast is {self.loss:.3g}, {self.low:.3g} to {self.high:.3g} at "
            f"{100 * self.level:g}%; {smallest}."
        )


class LossForecaster(SharedParametersMixin, WidthInputMixin, RegressorMixin, BaseEstimator):
    r"""Forecast the loss of students of any width from a few distilled ones, with intervals.

    Fits a law of the width, or calibrates a predictor of floors, observed = C · floor + B with C ≥ 0, and then corrects
    it by what the runs say beyond that: where they lie on one side of the curve, so, probably, do their neighbours.

    Parameters
    ----------
    predictor : estimator, default=None
        Fitted predictor of floors over widths, such as an `AblationPredictor` or a `FloorPredictor`. It is
        never changed, and shared by clones. With None the curve is a law, which from two runs was mostly better than
        any predictor of features on students of small language models (see :doc:`/distillation`).
    bound : BottleneckPredictor, default=None
        Fitted on the teacher, at the runs' temperature: the least loss R(d) that a student of each width can have. It
        is never changed, and shared by clones. The law is then :math:`L_0 \exp(-k\,(\log(L_0 / R(d)))^m)` with k ≥ 0
        and the `bound_exponent` m, so that one run is enough, no forecast is below the bound, and 0 where R is. For
        students that start as the teacher does in fewer dimensions (``DistilledStudent(init="principal")``). Not
        with a predictor, a `zero_width_loss` or a `teacher_width`, which it has in it.
    bound_exponent : float, default=1.25
        m. Over seven sets of students of three small language models it was between 1.19 and 1.26 where it was fitted.
    zero_width_loss : float, default=None
        L₀, the loss of a student of width 0 in nats per token, as `geofloor.language_models.zero_width_kl` measures
        it on the teacher, at the runs' temperature. The law is then :math:`L_0 (1 + d)^{-c} e^{-b d}` with b, c ≥ 0,
        and without it :math:`a\,e^{-b d}` with b ≥ 0, which mostly did worse where both were tried. Not
        with a predictor.
    teacher_width : int, default=None
        D, the teacher's own width in dimensions, for students that start as the teacher does in fewer dimensions
        (``DistilledStudent(init="principal")``): one of width D loses nothing. The law is then
        :math:`L_0 (1 - \log(1 + d) / \log(1 + D))^p e^{-b d}` with b, p ≥ 0, and 0 from width D on. Goes with a
        `zero_width_loss`.
    baseline : float or None, default=None
        B, in nats per token. With None it is fitted with the slope and takes two runs; with a value, such as 0, one
        is enough.
    run_error : float, default=0.03
        Standard deviation of a run's loss from one seed to another, as a share of it.
    form_error : float, default=0.15
        Standard deviation of the calibrated predictor's error far from any run, as a share of the loss: how
        far its shape is trusted. See Notes for where the default comes from.

    Attributes
    ----------
    slope_ : float
        C, in nats per unit of the floor; without a predictor a or L₀, in nats per token.
    decay_ : float
        b, per dimension, or k with a `bound`; only without a predictor.
    exponent_ : float
        c, or p with a `teacher_width`, or m with a `bound`; only with one of these and a `zero_width_loss`.
    baseline_ : float
        B, in nats per token; 0 without a predictor.
    form_error_ : float
        The form error in use: `form_error`, moved by what three runs or more say about it.
    widths_, losses_ : ndarray of shape (n_runs,)
        The runs.

    See Also
    --------
    BottleneckPredictor : The bound.
    AblationPredictor : The best of the predictors made of features, for language models.
    forecast_table : Compares predictors on runs at hand.

    Notes
    -----
    The model is universal kriging [1]_ over the logarithm of the width,

    .. math:: y(d) = (C\,L^*(d) + B)\,(1 + e(d) + \epsilon), \qquad
              \operatorname{cov}(e(d), e(d')) = \tau^2 \exp(-|\log_2 (d/d')| / 3),

    and without a predictor :math:`\log y(d) = \log L(d) + e(d) + \epsilon` for the law L,
    with ε the `run_error` and τ the `form_error`: parameters by generalised least squares within their bounds, the
    forecast the best linear unbiased one, its variance that of a single new run, with the parameters' uncertainty.
    Without runs nearby an interval is as wide as the predictor's form is doubtful; between two near runs it is
    hardly wider than `run_error`. With n runs and p parameters fitted, τ² is the weighted mean of its default, with
    weight 4, and the n − p squared standardised residuals. The default of τ was chosen for `AblationPredictor` on
    students of the embedded teacher. :doc:`/distillation` and :doc:`/random_starts` say how often such intervals hold,
    there and on students of other teachers; for other predictors set what `forecast_table` shows.

    Intervals are for students trained as those given were. Longer training lowers losses, and wide students' most.

    References
    ----------
    .. [1] Cressie (1993), "Statistics for Spatial Data", Section 3.4.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import FloorPredictor
    >>> from geofloor import LossForecaster
    >>> floor = FloorPredictor(alpha=0.992).fit(np.exp(-np.arange(30_000) / 6_000))
    >>> forecast = LossForecaster(floor).fit([128, 1024], [1.32, 0.586])
    >>> loss, interval = forecast.predict([256, 512], return_interval=True)
    >>> loss.round(2), interval.round(2)
    (array([1.  , 0.71]), array([[0.83, 1.18],
           [0.59, 0.84]]))
    >>> LossForecaster().fit([128, 1024], [1.32, 0.586]).predict([256, 512]).round(2)
    array([1.18, 0.93])
    >>> LossForecaster(zero_width_loss=4.0).fit([128, 1024], [1.32, 0.586]).predict([256, 512]).round(2)
    array([1.08, 0.84])
    >>> both_ends = LossForecaster(zero_width_loss=1.38, teacher_width=128).fit([32, 96], [0.381, 0.05])
    >>> both_ends.predict([16, 64]).round(2)
    array([0.63, 0.15])
    >>> decision = forecast.decide(256, 0.7)
    >>> decision.answer, decision.min_width, decision.safe_width
    ('no-go', 535, 775)
    """

    _shared_parameters = ("predictor", "bound")

    def __init__(
        self,
        predictor: Any = None,
        *,
        bound: Any = None,
        bound_exponent: float = 1.25,
        zero_width_loss: float | None = None,
        teacher_width: int | None = None,
        baseline: float | None = None,
        run_error: float = 0.03,
        form_error: float = 0.15,
    ) -> None:
        self.predictor = predictor
        self.bound = bound
        self.bound_exponent = bound_exponent
        self.zero_width_loss = zero_width_loss
        self.teacher_width = teacher_width
        self.baseline = baseline
        self.run_error = run_error
        self.form_error = form_error

    def fit(self, X: ArrayLike, y: ArrayLike) -> LossForecaster:
        """Calibrate the predictor on distilled students, from here or from elsewhere.

        Parameters
        ----------
        X : array-like of shape (n_runs,) or (n_runs, 1)
            Their widths, in dimensions. A width may stand more than once.
        y : array-like of shape (n_runs,)
            Their losses, in nats per token, above 0.

        Returns
        -------
        self : LossForecaster
            The fitted forecaster.

        Raises
        ------
        ValueError
            If values are not finite, a width or loss is not above 0, an error is not a share above 0, a loss is
            not below that of width 0 or is below the bound, a width is not below the teacher's, widths and losses
            are exchanged, there are fewer different widths than parameters, or parameters don't go together.

        Warns
        -----
        UserWarning
            If a run has a higher loss than a narrower one, by more than two runs of one width differ.
        """
        self._check_parameters()
        widths, losses = read_runs(self, X, y)
        if not losses.min() > 0:
            raise ValueError(f"y holds the loss {losses.min():g}; losses must be above 0, in nats per token.")
        anchor = self._anchor()
        if anchor is not None and not losses.max() < anchor:
            raise ValueError(
                f"y holds the loss {losses.max():g}, which is not below {self._name_of_anchor()}={anchor:g}, that "
                "of one distribution for all positions; measure both at one temperature, or train for longer."
            )
        if not widths.max() < self._end():
            name, parameter = ("teacher_width",) * 2 if self.bound is None else ("bound.critical_width_", "bound")
            raise ValueError(
                f"X holds the width {widths.max():g}, which is not below {name}={self._end():g}, where a "
                f"student can be the teacher and lose nothing; leave it out, or give no {parameter}."
            )
        if self.bound is not None:
            self._check_above_bound(widths, losses)
        n_parameters = 2 if self.baseline is None and self.bound is None else 1
        if len(np.unique(widths)) < n_parameters:
            raise ValueError(
                "baseline=None is fitted with the slope and needs runs of two widths, and X has one (n_samples = "
                f"{len(widths)}); give another run, or a predictor with a baseline such as 0."
            )
        warn_of_rise(widths, losses, 2.0**0.5 * self._run_error)
        self.widths_, self.losses_ = widths, losses
        self.form_error_ = float(self.form_error)
        residuals = self._solve()
        free = len(losses) - n_parameters
        if free > 0:
            expected = 4.0 * self.form_error_**2
            self.form_error_ = float(np.sqrt((expected + self.form_error_**2 * residuals @ residuals) / (4.0 + free)))
            self._solve()
        return self

    def _check_parameters(self) -> None:
        for name in ("run_error", "form_error"):
            check_number(name, getattr(self, name), 0, _LARGEST_ERROR, open_low=True)
        self._run_error = float(self.run_error)
        if self.baseline is not None:
            check_number("baseline", self.baseline, -LARGEST, LARGEST)
        if self.bound is not None:
            self._check_bound()
        if self.predictor is not None and not hasattr(self.predictor, "predict"):
            raise TypeError(
                f"predictor={shown(self.predictor)} has no predict; give a fitted predictor of floors over widths."
            )
        if self.predictor is None and self.baseline is not None:
            raise ValueError(
                f"baseline={self.baseline!r} is that of a predictor's floors, and predictor=None; give both."
            )
        anchor = self.zero_width_loss
        if anchor is not None and self.predictor is not None:
            raise ValueError(f"zero_width_loss={anchor!r} is for the law of the width; give it or a predictor.")
        if anchor is not None:
            check_number("zero_width_loss", anchor, 0, LARGEST, open_low=True)
        if self.teacher_width is not None and anchor is None:
            raise ValueError(f"teacher_width={self.teacher_width!r} is for a law with a zero_width_loss; give both.")
        if self.teacher_width is not None:
            check_number("teacher_width", self.teacher_width, 0, open_low=True)

    def _check_bound(self) -> None:
        for name in ("predictor", "zero_width_loss", "teacher_width"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}={shown(getattr(self, name))} does not go with a bound; give one of the two.")
        if not (hasattr(self.bound, "fit") and hasattr(self.bound, "min_width")):
            raise TypeError(f"bound={shown(self.bound)} is no bound; give a fitted BottleneckPredictor.")
        check_is_fitted(self.bound)
        check_number("bound_exponent", self.bound_exponent, 0, _LARGEST_ERROR, open_low=True)

    def _check_above_bound(self, widths: np.ndarray, losses: np.ndarray) -> None:
        least, curve = self._least(widths), self.bound.curve_
        error = np.interp(widths, curve["width"], curve["standard_error"])
        below = np.flatnonzero(losses < least - _SAMPLING * error)
        if below.size:
            run = below[np.argmax(least[below] / losses[below])]
            raise ValueError(
                f"y holds the loss {losses[run]:.3g} at width {widths[run]:g}, where no student of this teacher gets "
                f"below {least[run]:.3g}. The bound is a KL divergence in nats per token at temperature="
                f"{getattr(self.bound, 'temperature', None)!r}: measure the runs at that temperature, as a divergence "
                "from the teacher and not as a cross-entropy with the text, and on text like the bound's."
            )

    def _anchor(self) -> float | None:
        """Loss of width 0, if it is known."""
        return self.zero_width_loss if self.bound is None else float(self.bound.predict([0])[0])

    def _name_of_anchor(self) -> str:
        return "zero_width_loss" if self.bound is None else "bound.zero_width_loss_"

    def _end(self) -> float:
        """Width from which on nothing is lost."""
        if self.bound is not None:
            return float(self.bound.critical_width_)
        return np.inf if self.teacher_width is None else float(self.teacher_width)

    def _solve(self) -> np.ndarray:
        """The curve's parameters by generalised least squares; return the standardised residuals."""
        design = self._design(self.widths_)
        covariance = self._covariance(self.widths_, self.widths_) + self._run_error**2 * np.eye(len(self.widths_))
        try:
            self._factor = cho_factor(covariance, lower=True)
        except np.linalg.LinAlgError as error:
            raise ValueError(
                f"run_error={self.run_error!r} is too small beside form_error={self.form_error!r} to tell runs at "
                "almost the same widths apart; give a larger one, or average those runs."
            ) from error
        # Errors are shares of the loss: of the losses as such after scaling, of their logarithms as they are.
        logarithmic = self.predictor is None
        scale = np.ones(len(design)) if logarithmic else self.losses_
        response = (np.log(self.losses_) if logarithmic else self.losses_) / scale - self._known() / scale
        design = design / scale[:, np.newaxis]
        whitened = self._whiten(design)
        lower = np.full(design.shape[1], -np.inf)
        lower[0] = 0.0
        anchor = self._anchor()
        if anchor is not None:
            lower[:] = 0.0
        norms = np.linalg.norm(whitened, axis=0)
        norms[norms == 0.0] = 1.0
        found = lsq_linear(whitened / norms, self._whiten(response), (lower, np.inf), method="bvls")
        self._parameters = parameters = found.x / norms
        if logarithmic:
            self.decay_, self.baseline_ = float(parameters[0]), 0.0
            self.slope_ = anchor or float(np.exp(parameters[1]))
            if anchor is not None:
                self.exponent_ = float(parameters[1] if self.bound is None else self.bound_exponent)
        else:
            self.slope_ = float(parameters[0])
            self.baseline_ = float(parameters[1] if self.baseline is None else self.baseline)
        # A parameter held at zero is known; what is left to estimate are the others.
        self._estimated = estimated = parameters > lower
        self._information = np.linalg.pinv(whitened[:, estimated].T @ whitened[:, estimated])
        relative = response - design @ parameters
        self._weights = cho_solve(self._factor, relative)
        self._whitened = whitened[:, estimated]
        return self._whiten(relative)

    def predict(self, X: ArrayLike, *, return_interval: bool = False, level: float = 0.9) -> Any:
        """Loss at each width.

        Parameters
        ----------
        X : array-like of shape (n_widths,) or (n_widths, 1)
            Widths of students, in dimensions.
        return_interval : bool, default=False
            Whether to return a prediction interval for the loss of one run as well.
        level : float, default=0.9
            Its probability, between 0 and 1.

        Returns
        -------
        losses : ndarray of shape (n_widths,)
            Forecast loss, in nats per token, at least 0.
        interval : ndarray of shape (n_widths, 2)
            Lower and upper end, if `return_interval`.

        Raises
        ------
        ValueError
            If a width is not above 0 or not finite, or `level` is outside (0, 1).

        Warns
        -----
        UserWarning
            If a width is not below the teacher's, where the law is 0 and says nothing of a trained student.
        """
        check_is_fitted(self)
        level = check_number("level", level, 0, 1, open_low=True, open_high=True)
        return_interval = check_flag("return_interval", return_interval)
        widths = read_widths(self, X)
        if not widths.max() < self._end():
            name = "teacher_width" if self.bound is None else "bound.critical_width_"
            warn_caller(
                f"X holds the width {widths.max():g}, which is not below {name}={self._end():g}. From there on the law "
                "is 0, since a student can be the teacher; one that is trained ends above 0, and above the interval. "
                "Ask for narrower students.",
                UserWarning,
            )
        losses, ends = self._forecast(widths, level)
        return (losses, ends) if return_interval else losses

    def _forecast(self, widths: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Losses (n_widths,) and ends of their intervals (n_widths, 2), at any width above 0."""
        losses, ends = np.zeros(len(widths)), np.zeros((len(widths), 2))
        short = widths < self._end()
        if short.any():
            losses[short], ends[short] = self._predict(widths[short], level)
        if self.bound is not None:
            least = self._least(widths)
            losses, ends = np.maximum(losses, least), np.maximum(ends, least[:, np.newaxis])
        return losses, ends

    def _predict(self, widths: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
        """The same, at widths where the law is above 0."""
        design = self._design(widths)
        between = self._covariance(self.widths_, widths)
        curve, correction = design @ self._parameters, between.T @ self._weights
        logarithmic = self.predictor is None
        if logarithmic:
            scale, factor = np.ones(len(widths)), np.exp(correction)
            losses = np.exp(curve + self._known()) * factor
        else:
            scale, factor = np.maximum(curve + self._known(), 0.0), np.maximum(1.0 + correction, 0.0)
            losses = scale * factor
        # In the unit of the curve, so that where it has come down to zero its parameters are still uncertain.
        whitened = self._whiten(between)
        variance = scale**2 * (self.form_error_**2 + self._run_error**2 - np.square(whitened).sum(axis=0))
        drift = design[:, self._estimated] - scale[:, np.newaxis] * (whitened.T @ self._whitened)
        variance = variance + np.einsum("ij,jk,ik->i", drift, self._information, drift)
        half = norm.ppf(0.5 + level / 2.0) * np.sqrt(np.maximum(variance, 0.0))
        if logarithmic:
            ends = half[:, np.newaxis] * [-1.0, 1.0]
            with np.errstate(over="ignore", invalid="ignore"):
                # Far away the loss is 0 in float64, and the upper end may still be anything.
                whole = np.exp((curve + self._known() + correction)[:, np.newaxis] + ends)
                return losses, np.where(losses[:, np.newaxis] > 0.0, losses[:, np.newaxis] * np.exp(ends), whole)
        return losses, np.maximum(losses[:, np.newaxis] + (factor * half)[:, np.newaxis] * [-1.0, 1.0], 0.0)

    def min_width(self, target: float, *, safe: bool = False, level: float = 0.9) -> int | None:
        """Smallest whole width that is forecast to reach a loss.

        Parameters
        ----------
        target : float
            Loss to reach, in nats per token.
        safe : bool, default=False
            Whether the upper end of the interval must reach it too.
        level : float, default=0.9
            Probability of the interval.

        Returns
        -------
        width : int or None
            In dimensions; None if no width does up to twice the widest run, or the predictor's critical width or the
            `teacher_width` if that is larger.

        Raises
        ------
        ValueError
            If the target is not a finite number of at least 0, or `level` is outside (0, 1).
        """
        check_is_fitted(self)
        target, safe = check_number("target", target, 0), check_flag("safe", safe)
        level = check_number("level", level, 0, 1, open_low=True, open_high=True)
        # Blocks of widths, each twice as wide as the one before: forecasts need not be monotone.
        end = self._end()
        reach = max(getattr(self.predictor, "critical_width_", 0.0), end if end < np.inf else 0.0)
        last = min(max(reach, 2.0 * self.widths_.max()), _WIDEST)
        start = 1
        while start <= last:
            widths = np.arange(start, min(2 * start, int(last) + 1))
            losses, ends = self._forecast(widths.astype(np.float64), level)
            reached = ends[:, 1] if safe else losses
            if (reached <= target).any():
                return int(widths[np.argmax(reached <= target)])
            start *= 2
        return None

    def decide(self, width: int, target: float, *, level: float = 0.9) -> Decision:
        """Whether a student of a width reaches a loss, and if not which does.

        Parameters
        ----------
        width : int
            Width of the student, in dimensions.
        target : float
            Loss to reach, in nats per token.
        level : float, default=0.9
            Probability of the interval.

        Returns
        -------
        decision : Decision
            Named tuple with ``answer``: ``"go"`` where the whole interval is at most the target, ``"no-go"`` where it
            is above, else ``"uncertain"``; the forecast and its interval; ``min_width`` and ``safe_width``, as
            `min_width` gives them. ``print`` makes a sentence of it.

        Raises
        ------
        ValueError
            As `predict` and `min_width`.

        Warns
        -----
        UserWarning
            As `predict`.
        """
        number, target = check_number("width", width, 0, open_low=True), check_number("target", target, 0)
        width = int(number) if number.is_integer() else number
        losses, interval = self.predict([width], return_interval=True, level=level)
        level = float(level)
        low, high = interval[0]
        answer = "go" if high <= target else "no-go" if low > target else "uncertain"
        smallest, safe = (self.min_width(target, safe=each, level=level) for each in (False, True))
        least = None if self.bound is None else float(self._least([width])[0])
        return Decision(width, target, answer, float(losses[0]), float(low), float(high), level, smallest, safe, least)

    def _least(self, widths: ArrayLike) -> np.ndarray:
        """What no student gets below."""
        return self.bound.predict(widths, return_bounds=True)[1][:, 0]

    def _known(self) -> float:
        """The part of the curve that is not fitted."""
        anchor = self._anchor()
        return float(self.baseline or 0.0) if anchor is None else float(np.log(anchor))

    def _design(self, widths: np.ndarray) -> np.ndarray:
        if self.bound is not None:
            reduction = self._known() - np.log(np.asarray(self.bound.predict(widths), dtype=np.float64))
            return -(np.maximum(reduction, 0.0)[:, np.newaxis] ** self.bound_exponent)
        if self.predictor is None:
            if self.zero_width_loss is None:
                second = np.ones(len(widths))
            elif self.teacher_width is None:
                second = -np.log1p(widths)
            else:
                second = np.log1p(-np.log1p(widths) / np.log1p(self.teacher_width))
            return np.column_stack([-widths, second])
        floors = check_array_of_numbers(self.predictor.predict(widths), "predictor.predict(widths)")
        return floors[:, np.newaxis] if self.baseline is not None else np.column_stack([floors, np.ones(len(floors))])

    def _covariance(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        octaves = np.abs(np.log2(a)[:, np.newaxis] - np.log2(b))
        return self.form_error_**2 * np.exp(-octaves / _RANGE)

    def _whiten(self, values: np.ndarray) -> np.ndarray:
        return solve_triangular(self._factor[0], values, lower=True)
