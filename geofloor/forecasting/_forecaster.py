"""Forecasts of students' losses from a few distilled ones, with intervals and decisions."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import lsq_linear
from scipy.stats import norm
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from geofloor._estimators import SharedParametersMixin, WidthInputMixin
from geofloor._files.estimators import SaveMixin
from geofloor._files.schema import mapping, number, optional
from geofloor._files.tables import array
from geofloor._validation import check_array_of_numbers, check_flag, check_number, shown, warn_caller
from geofloor.forecasting._auto import Auto
from geofloor.forecasting._budgets import check_steps
from geofloor.forecasting._decision import Decision, decide
from geofloor.forecasting._law import Law
from geofloor.forecasting._laws import read_law
from geofloor.forecasting._limits import (
    check_below_teacher,
    check_question,
    search_range,
    teacher_end,
    warn_of_factor,
    warn_of_width,
)
from geofloor.forecasting._mixture import Evidence, Mixture
from geofloor.forecasting._priors import FORM_ERRORS, RUN_ERRORS, load_priors
from geofloor.forecasting._runs import read_runs, read_widths, warn_of_rise
from geofloor.forecasting._steps import StepsNeeded, forecast, read_budget, reduce_runs, steps_needed

_RUN_ERROR, _FORM_ERROR = 0.03, 0.15  # defaults of a law that is given
_RANGE = 3.0  # octaves of width over which a law's errors stay alike
_PRIOR_WEIGHT = 4.0  # of the default form error, in runs
_LARGEST_ERROR = 100.0  # as a share of the loss; squares of it must not overflow
_MAX_STEPS = 200  # of Gauss-Newton
_MAX_HALVINGS = 30  # of one step
# Decrease of the weighted sum of squares at which the fit ends: relative, and in squared standard errors.
_TOLERANCE = 1e-12, 1e-20


class LossForecaster(SharedParametersMixin, SaveMixin, WidthInputMixin, RegressorMixin, BaseEstimator):
    r"""Forecast the loss of students of any width from a few distilled ones, with intervals.

    By default it weighs several laws of the width by the runs. Forecast and interval are those of all laws together, so
    that the interval is wide where they disagree. What is known besides the runs makes it narrower.

    Parameters
    ----------
    law : "auto", "exponential", "power", Law or None, default="auto"
        Curve of the loss over width. ``"auto"`` and None weigh several laws, which Notes list. Otherwise one is taken:
        `AboveBottleneck`, `AnchoredBothEnds`, `Anchored`, `Calibrated`, `EndsAtTeacher`, `Exponential`,
        `PowerOfWidth`, `PowerOfWidthAboveBaseline` or a class derived from `Law`. ``"exponential"`` stands for
        ``Exponential()``, ``"power"`` for ``PowerOfWidth()``. The law is never changed, and shared by clones.
    bound : BottleneckPredictor or None, default=None
        For ``"auto"``: bound fitted on the teacher, at the temperature of the runs. No forecast is below it. It is
        never changed, and shared by clones.
    students : {"principal", "random"} or None, default=None
        For ``"auto"``: kind of start, from the teacher's principal directions (also its untrained slices) or from
        random weights. With None both are equally probable beforehand.
    zero_width_loss : float or None, default=None
        For ``"auto"``: loss of a student of width 0 in nats per token, as `geofloor.language_models.zero_width_kl`
        measures it at the temperature of the runs. With None it is that of the bound, if there is one.
    teacher_width : float or None, default=None
        The teacher's own width in dimensions, where a student can equal the teacher. No student is wider. With None it
        is that of the bound or the law, if they know it. With ``"auto"``, if runs reach this width, it counts as the
        end of the law for principal starts only.
    run_error : float or None, default=None
        Standard deviation of a run's loss between seeds, as a share of the loss. None stands for 0.03, and with
        ``"auto"`` for a choice by the runs.
    form_error : float or None, default=None
        Standard deviation of the law's error far from any run, as a share of the loss. It expresses the trust in the
        shape of the law. None stands for 0.15, and with ``"auto"`` for a choice by the runs.

    Attributes
    ----------
    law_ : Law
        The law in use. After ``"auto"`` it describes the most probable law.
    params_ : dict of str to float
        Fitted parameters by the law's own names. ``law_.describe(params_)`` gives the formula. After ``"auto"`` they
        are the expected ones of the most probable law.
    probabilities_ : dict of str to float
        Probability of each law that was tried, given the runs.
    form_error_, run_error_ : float
        Errors in use. After ``"auto"`` they are square roots of the expected squares. With one law the form error is
        `form_error`, adjusted to the residuals where there are more runs than parameters.
    widths_, losses_ : ndarray of shape (n_runs,)
        The runs. Runs of several budgets are given as forecasts for the longest of these, one per width.
    budgets_ : BudgetForecaster or None
        Model of the steps, if the runs have several budgets.

    See Also
    --------
    BottleneckPredictor : Measures the bound of `AboveBottleneck`.
    AblationPredictor : Predicts floors in nats per token for `Calibrated`.
    forecast_table : Compares laws and other predictors on given runs.

    Notes
    -----
    **Laws.** ``"auto"`` weighs `PowerOfWidth`, `PowerOfWidthAboveBaseline`, `Exponential` and `EndsAtTeacher`, with any
    teacher's width if it is unknown. With a loss at width 0 it adds `Anchored`, with a teacher's width as well
    `AnchoredBothEnds`, and with a bound `AboveBottleneck` with any exponent m, anywhere between the ends of the bound.
    Which law holds depends on the students: powers on models trained from scratch and on the paper's students, laws
    with a known end on principal starts. :doc:`/auto_examples/plot_other_peoples_numbers` shows all on all sets.

    **Model.** The losses follow universal kriging [1]_ over the logarithm of the width. For a law L of the width,

    .. math:: \log y(d) = \log L(d) + e(d) + \epsilon, \qquad
              \operatorname{cov}(e(d), e(d')) = \tau^2 \exp(-|\log_2 (d/d')| / 3),

    with ε the `run_error` and τ the `form_error`. For a `Calibrated` predictor
    :math:`y(d) = (C\,L^*(d) + B)\,(1 + e(d) + \epsilon)`. Parameters of one law are fitted by generalized least squares
    within their bounds. The forecast is the best linear unbiased one. Its variance is that of a single new run, and
    includes the uncertainty of the parameters. A nonlinear law is linearized at the fit.

    **Weights.** ``"auto"`` computes the probability of the runs for each law, over a grid of its parameters and of form
    and run errors. Priors give each its probability before the runs. Together these weigh normal forecasts of the
    logarithm of the loss. The forecast is the median of this mixture, and the interval its quantiles. If the teacher's
    width D is known, errors also change over octaves of D − d.

    **Priors.** They were fitted by expectation and maximization to the sets in ``benchmarks/loss_sets.py``: the paper's
    Table 3, the open_lm grid from width 512 on, ten sliced models, and students of three small teachers.
    ``benchmarks/calibration.py --fit-priors`` writes them. Without this option it prints how often intervals held, each
    teacher's sets with priors fitted to the others (``benchmarks/results/calibration.txt``): with nothing known, 90%
    intervals from two runs held 99% of 1,056 losses in 43 sets and at least 85% in each. With kind of start and
    bound they held 97% of 388 losses in 18 sets and at least 77% in each. They are too wide on most sets, and too
    narrow on students with too small heads.

    **Intervals.** Far from the runs the `form_error` sets the width of an interval. Between two near runs the interval
    is hardly wider than for the `run_error` alone. With one law, n runs and p parameters, τ² is the weighted mean of
    its default, with weight 4, and the n − p squared standardized residuals. The default of τ was chosen for
    `AblationPredictor` on students of the embedded teacher. For other predictors take τ from the errors in
    `forecast_table`.

    Intervals are for students trained like the given ones. Longer training lowers losses, and those of wide students
    most. Runs of several budgets tell by how much: `BudgetForecaster
    <geofloor.forecasting.BudgetForecaster>` has the model.

    References
    ----------
    .. [1] Cressie (1993), "Statistics for Spatial Data", Section 3.4.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import FloorPredictor, LossForecaster
    >>> from geofloor.forecasting import Anchored, AnchoredBothEnds, Calibrated

    Three of the paper's students forecast from the other two. They ended at 1.008, 0.733 and 0.652 nats per token:

    >>> forecast = LossForecaster().fit([128, 1024], [1.32, 0.586])
    >>> losses, interval = forecast.predict([256, 512, 768], return_interval=True)
    >>> losses.round(2), interval.round(2)
    (array([1.02, 0.78, 0.66]), array([[0.92, 1.24],
           [0.71, 0.98],
           [0.61, 0.78]]))
    >>> forecast.law_.describe(forecast.params_)
    '8.950 d^-0.393'

    One law alone:

    >>> LossForecaster("power").fit([128, 1024], [1.32, 0.586]).predict([256, 512, 768]).round(2)
    array([1.01, 0.77, 0.66])
    >>> LossForecaster(Anchored(4.0)).fit([128, 1024], [1.32, 0.586]).predict([256, 512, 768]).round(2)
    array([1.08, 0.84, 0.69])

    With intervals, and a decision:

    >>> floor = FloorPredictor(alpha=0.992).fit(np.exp(-np.arange(30_000) / 6_000))
    >>> forecast = LossForecaster(Calibrated(floor)).fit([128, 1024], [1.32, 0.586])
    >>> loss, interval = forecast.predict([256, 512], return_interval=True)
    >>> loss.round(2), interval.round(2)
    (array([1.  , 0.71]), array([[0.83, 1.18],
           [0.59, 0.84]]))
    >>> decision = forecast.decide(256, 0.7)
    >>> decision.answer, decision.min_width, decision.safe_width
    ('not at this budget', 535, 775)
    >>> both_ends = LossForecaster(AnchoredBothEnds(1.38, teacher_width=128)).fit([32, 96], [0.381, 0.05])
    >>> both_ends.predict([0, 16, 64]).round(2)
    array([1.38, 0.63, 0.15])

    Runs of several budgets, each trained to the end of its own schedule, forecast longer ones. Those of width 48 ended
    at 0.1979 nats per token after 8,000 steps and at 0.1911 after 16,000:

    >>> widths, steps = [32, 48, 96] * 3, [1000] * 3 + [2000] * 3 + [4000] * 3
    >>> losses = [0.3811, 0.2387, 0.0500, 0.3541, 0.2202, 0.0390, 0.3326, 0.2070, 0.0342]
    >>> longer = LossForecaster(AnchoredBothEnds(1.38, teacher_width=128)).fit(widths, losses, n_steps=steps)
    >>> longer.predict([48], n_steps=8000).round(3), longer.predict([48], n_steps=16000).round(3)
    (array([0.197]), array([0.191]))
    >>> round(longer.min_steps(0.2, width=48).n_steps, -3)
    6000.0
    """

    _shared_parameters = ("law", "bound")
    _saved: ClassVar = {
        "widths": array(),
        "losses": array(),
        "n_steps": optional(array()),
        "n_tokens": optional(number(1, whole=True)),
        "params": mapping,
    }
    # `widths` are data: they are not routed as metadata.
    __metadata_request__fit: ClassVar = {"n_steps": UNUSED, "n_tokens": UNUSED}
    __metadata_request__predict: ClassVar = {"widths": UNUSED, "n_steps": UNUSED}

    def __init__(
        self,
        law: Law | str | None = "auto",
        *,
        bound: Any = None,
        students: str | None = None,
        zero_width_loss: float | None = None,
        teacher_width: float | None = None,
        run_error: float | None = None,
        form_error: float | None = None,
    ) -> None:
        self.law = law
        self.bound = bound
        self.students = students
        self.zero_width_loss = zero_width_loss
        self.teacher_width = teacher_width
        self.run_error = run_error
        self.form_error = form_error

    def fit(
        self, X: ArrayLike, y: ArrayLike, *, n_steps: ArrayLike | None = None, n_tokens: int | None = None
    ) -> LossForecaster:
        """Fit the law to distilled students, trained here or elsewhere.

        Parameters
        ----------
        X : array-like of shape (n_runs,) or (n_runs, 1)
            Their widths, in dimensions, above 0. A width may occur more than once.
        y : array-like of shape (n_runs,)
            Their losses, in nats per token, above 0.
        n_steps : int or array-like of shape (n_runs,), default=None
            Their training steps, one number for all or one each. Runs of several budgets must each have ended their
            learning-rate schedule. They are then turned into runs of the longest budget by a `BudgetForecaster`.
        n_tokens : int, default=None
            Tokens per step, for the sentences of decisions.

        Returns
        -------
        self : LossForecaster
            The fitted forecaster.

        Raises
        ------
        TypeError
            If `law` is no law, or `bound` is no bound.
        ValueError
            If values are not finite, a width or loss is not above 0, an error is not a share above 0, the runs
            contradict known ends, the teacher's width or the bound, widths and losses are exchanged, there are fewer
            different widths than parameters, or an argument for ``"auto"`` is given with another law.

        Warns
        -----
        UserWarning
            If a run has a higher loss than a narrower run, by more than two seeds of one width differ, or two runs of
            one width differ by the factor T² of the temperature.
        """
        return self._fit(X, y, n_steps, n_tokens)

    def _fit(self, X: Any, y: Any, n_steps: Any, n_tokens: Any, *, warns: bool = True) -> LossForecaster:
        law = self._read_law()
        self._noise: tuple[float | None, ...] = tuple(
            None if value is None else check_number(name, value, 0, _LARGEST_ERROR, open_low=True)
            for name, value in (("run_error", self.run_error), ("form_error", self.form_error))
        )
        self._run_error = _RUN_ERROR if self._noise[0] is None else self._noise[0]
        widths, losses = read_runs(self, X, y)
        if not losses.min() > 0:
            raise ValueError(f"y holds the loss {losses.min():g}; losses must be above 0, in nats per token.")
        self.budget_, self._runs = read_budget(n_steps, n_tokens, len(losses)), (widths, losses)
        check_below_teacher(widths, *teacher_end(self, law))
        law = law.without_end(widths) if isinstance(law, Auto) else law
        law.check_runs(widths, losses)
        if warns:
            warn_of_factor(widths, losses, law)
        widths, losses, errors = reduce_runs(self, widths, losses, law.loss_at_zero)
        if warns:
            warn_of_rise(widths, losses, 2.0**0.5 * self._run_error)
        return self._fit_runs(law, widths, losses, errors)

    def _state_to_save(self) -> dict[str, Any]:
        params = {name: value for name, value in self.params_.items() if np.isfinite(value)}
        return dict(zip(self._saved, (*self._runs, *self.budget_, params), strict=True))

    def _restore(self, state: dict[str, Any]) -> None:
        *runs, params = state.values()
        self._fit(*runs, warns=False)
        found = self.params_
        if not all(type(each) is float and np.isclose(found.get(name, np.nan), each) for name, each in params.items()):
            warn_caller(
                f"The file holds the parameters {shown(params)}, and a fit to its runs gives {shown(found)}: laws or "
                "priors have changed since it was written. Forecasts are those of the new fit.",
                UserWarning,
            )

    def _refit(self, losses: np.ndarray, errors: np.ndarray) -> LossForecaster:
        """Fit a copy to other losses at the same widths, with errors beside the run error."""
        return copy.copy(self)._fit_runs(self.law_, self.widths_, losses, errors)

    def _fit_runs(self, law: Law, widths: np.ndarray, losses: np.ndarray, errors: np.ndarray) -> LossForecaster:
        """Fit the law to runs of one budget."""
        n_parameters = len(law.bounds)
        if (n_different := len(np.unique(widths))) < n_parameters:
            raise ValueError(
                f"law={shown(law)} fits {n_parameters} parameters and needs runs of as many different widths, but X "
                f"has {n_different} (n_samples = {len(widths)}); give more runs, or a law with fewer parameters: "
                "AboveBottleneck(bound), or Calibrated(predictor, baseline=0)."
            )
        self.law_, self.widths_, self.losses_ = law, widths, losses
        self._run_errors = np.hypot(self._run_error, errors)
        self._mixture: Mixture | None = None
        if isinstance(law, Auto):
            return self._weigh(law, *self._noise)
        form_error = _FORM_ERROR if self._noise[1] is None else self._noise[1]
        self.form_error_ = form_error
        residuals = self._solve()
        free = len(losses) - n_parameters
        if free > 0:
            expected = _PRIOR_WEIGHT * form_error**2
            squares = form_error**2 * residuals @ residuals
            self.form_error_ = float(np.sqrt((expected + squares) / (_PRIOR_WEIGHT + free)))
            self._solve()
        self.run_error_, self.params_ = self._run_error, law.params(self._values)
        self.probabilities_ = {type(law).__name__: 1.0}
        return self

    def _read_law(self) -> Law:
        """Read the law, with what ``"auto"`` may know besides the runs."""
        known = {name: getattr(self, name) for name in ("bound", "students", "zero_width_loss", "teacher_width")}
        if self.law is None or (isinstance(self.law, str) and self.law == "auto"):
            return Auto(**known)
        law = read_law(self.law)
        for name, value in known.items():
            if name != "teacher_width" and value is not None:
                raise ValueError(
                    f"{name}={shown(value)} is used with law='auto' only, but law={shown(self.law)}; leave one of them "
                    "out. A law takes what it knows itself: AboveBottleneck(bound), Anchored(zero_width_loss)."
                )
        return law

    def _weigh(self, law: Auto, run_error: float | None, form_error: float | None) -> LossForecaster:
        """Weigh all laws by the runs."""
        forms = FORM_ERRORS if form_error is None else (form_error,)
        runs = RUN_ERRORS if run_error is None else (run_error,)
        added = np.sqrt(np.maximum(np.square(self._run_errors) - self._run_error**2, 0.0))
        try:
            evidence = Evidence(self.widths_, self.losses_, law.knowledge(), added, forms, runs)
        except np.linalg.LinAlgError as error:
            raise ValueError(self._too_small(max(forms))) from error
        free = form_error is None, run_error is None
        self._mixture = mixture = Mixture(evidence, load_priors(), law.students, free=free)
        self.form_error_, self.run_error_ = mixture.errors()
        chosen, self.params_ = mixture.chosen()
        self.law_, self.probabilities_ = replace(law, chosen=chosen), mixture.probabilities
        return self

    def _solve(self) -> np.ndarray:
        """Fit the law by generalized least squares within its bounds, and return the standardized residuals."""
        law, widths, losses = self.law_, self.widths_, self.losses_
        covariance = self._covariance(widths, widths) + np.diag(self._run_errors**2)
        try:
            self._factor = cho_factor(covariance, lower=True)
        except np.linalg.LinAlgError as error:
            raise ValueError(self._too_small(self.form_error_)) from error
        # Errors are shares of the loss: logarithms have them as they are, losses after division by themselves.
        scale = np.ones(len(losses)) if law.logarithmic else losses
        response = np.log(losses) if law.logarithmic else losses
        low, high = np.transpose(law.bounds)
        values = law.start(widths, losses)

        def residuals(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            curve, derivatives = law.linearize(widths, values)
            return response / scale - curve / scale, self._whiten(derivatives / scale[:, np.newaxis])

        # Gauss-Newton, with steps halved until they help. The first step solves a linear law.
        left, slopes = residuals(values)
        square = np.square(self._whiten(left)).sum()
        for _ in range(_MAX_STEPS):
            norms = np.linalg.norm(slopes, axis=0)
            norms[norms == 0.0] = 1.0
            target = self._whiten(left) + slopes @ values
            found = lsq_linear(slopes / norms, target, (low * norms, high * norms), method="bvls").x / norms
            enough = (1.0 - _TOLERANCE[0]) * square - _TOLERANCE[1]
            if not np.square(target - slopes @ found).sum() < enough:
                break
            for halvings in range(_MAX_HALVINGS):
                trial = found if halvings == 0 else values + 0.5**halvings * (found - values)
                trial_left, trial_slopes = residuals(trial)
                trial_square = np.square(self._whiten(trial_left)).sum()
                if trial_square < enough:
                    break
            else:
                break
            values, left, slopes, square = trial, trial_left, trial_slopes, trial_square
        self._values = values
        # A value held at a bound is known; the others are estimated.
        self._estimated = (values > low) & (values < high)
        self._slopes = slopes[:, self._estimated]
        self._information = np.linalg.pinv(self._slopes.T @ self._slopes)
        self._weights = cho_solve(self._factor, left)
        return self._whiten(left)

    def _too_small(self, form_error: float) -> str:
        return (
            f"run_error={self._run_error!r} is too small beside form_error={form_error!r} to tell runs at almost the "
            "same widths apart; give a larger one, or average those runs."
        )

    def predict(
        self, widths: ArrayLike, *, n_steps: float | None = None, return_interval: bool = False, level: float = 0.9
    ) -> Any:
        """Forecast the loss at each width.

        Parameters
        ----------
        widths : array-like of shape (n_widths,) or (n_widths, 1)
            Widths of students, in dimensions. At width 0 a law gives its known loss, without uncertainty: inf for
            `PowerOfWidth` and `PowerOfWidthAboveBaseline`, and for ``"auto"`` if no loss at width 0 is known.
        n_steps : float or None, default=None
            Number of training steps, at least half the shortest budget; inf for the limit. It needs runs of several
            budgets. None stands for the longest of these.
        return_interval : bool, default=False
            Whether to return a prediction interval for the loss of one run as well.
        level : float, default=0.9
            Probability of the interval, between 0 and 1.

        Returns
        -------
        losses : ndarray of shape (n_widths,), float64
            Forecast loss, in nats per token, at least 0.
        interval : ndarray of shape (n_widths, 2), float64
            Lower and upper end, if `return_interval`.

        Raises
        ------
        ValueError
            If a width is negative or not finite, `level` is outside (0, 1), or `n_steps` is given for runs of one
            budget.

        Warns
        -----
        UserWarning
            If a width is not below the teacher's, the end of the law. A forecast from there on says nothing about a
            trained student. Also if `n_steps` is finite and more than 16 times the longest budget.
        """
        check_is_fitted(self)
        level = check_number("level", level, 0, 1, open_low=True, open_high=True)
        return_interval = check_flag("return_interval", return_interval)
        at = read_widths(widths)
        warn_of_width(self, at)
        losses, ends = forecast(self, at, level, self._check_steps(n_steps))
        return (losses, ends) if return_interval else losses

    def _forecast(self, widths: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Forecast losses (n_widths,) and ends of their intervals (n_widths, 2), at any width from 0 on."""
        losses, ends = np.zeros(len(widths)), np.zeros((len(widths), 2))
        fitted, zero = widths < self.law_.end_width, self.law_.loss_at_zero
        if zero is not None:
            at_zero = widths == 0.0
            losses[at_zero], ends[at_zero], fitted = zero, zero, fitted & ~at_zero
        if fitted.any():
            losses[fitted], ends[fitted] = self._krige(widths[fitted], level)
            if zero is not None and np.isfinite(zero):
                # No trained student is worse than the best single distribution.
                losses, ends[:, 0] = np.minimum(losses, zero), np.minimum(ends[:, 0], zero)
        least = self.law_.least(widths)
        if least is not None:
            losses, ends = np.maximum(losses, least), np.maximum(ends, least[:, np.newaxis])
        return losses, ends

    def _krige(self, widths: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Forecast as `_forecast` does, at widths where the law is fitted."""
        if self._mixture is not None:
            quantiles = 0.5 - 0.5 * level, 0.5, 0.5 + 0.5 * level
            with np.errstate(over="ignore"):
                low, losses, high = np.exp(self._mixture.quantiles(widths, quantiles))
            return losses, np.column_stack([low, high])
        curve, derivatives = self.law_.linearize(widths, self._values)
        between = self._covariance(self.widths_, widths)
        correction = between.T @ self._weights
        if self.law_.logarithmic:
            scale, factor = np.ones(len(widths)), np.exp(correction)
            with np.errstate(over="ignore"):
                losses = np.exp(curve) * factor
        else:
            scale, factor = np.maximum(curve, 0.0), np.maximum(1.0 + correction, 0.0)
            losses = scale * factor
        # In the unit of the curve, so that its parameters stay uncertain where the curve is zero.
        whitened = self._whiten(between)
        variance = scale**2 * (self.form_error_**2 + self._run_error**2 - np.square(whitened).sum(axis=0))
        drift = derivatives[:, self._estimated] - scale[:, np.newaxis] * (whitened.T @ self._slopes)
        variance = variance + np.einsum("ij,jk,ik->i", drift, self._information, drift)
        half = norm.ppf(0.5 + level / 2.0) * np.sqrt(np.maximum(variance, 0.0))
        if self.law_.logarithmic:
            ends = half[:, np.newaxis] * [-1.0, 1.0]
            with np.errstate(over="ignore", invalid="ignore"):
                # Far from the runs the loss underflows to 0, but its upper end need not.
                whole = np.exp((curve + correction)[:, np.newaxis] + ends)
                return losses, np.where(losses[:, np.newaxis] > 0.0, losses[:, np.newaxis] * np.exp(ends), whole)
        return losses, np.maximum(losses[:, np.newaxis] + (factor * half)[:, np.newaxis] * [-1.0, 1.0], 0.0)

    def min_width(
        self, target: ArrayLike, *, n_steps: float | None = None, safe: bool = False, level: float = 0.9
    ) -> Any:
        """Find the smallest whole width forecast to reach a loss.

        Parameters
        ----------
        target : float or array-like
            Loss to reach, in nats per token.
        n_steps : float or None, default=None
            Number of training steps, as in `predict`.
        safe : bool, default=False
            Whether the upper end of the interval must reach it too.
        level : float, default=0.9
            Probability of the interval.

        Returns
        -------
        width : int or ndarray of int64
            In dimensions, in the shape of `target`. It is -1 if no width reaches the target. The search begins at half
            the narrowest run, because forecasts of narrower students are extrapolated: that width then stands for
            itself and all below. It ends at twice the widest run, or at the law's end or the predictor's critical
            width if that is larger, and never above `teacher_width`. It is 0 if the law knows the loss at width 0 and
            that reaches the target.

        Raises
        ------
        ValueError
            If a target is not a finite number of at least 0, or `level` is outside (0, 1).
        """
        check_is_fitted(self)
        targets = check_array_of_numbers(target, "target", ndim=None, low=0.0, empty=True)
        safe = check_flag("safe", safe)
        level = check_number("level", level, 0, 1, open_low=True, open_high=True)
        n_steps = self._check_steps(n_steps)
        start, last = search_range(self)
        stop = 2 * start
        found = np.full(targets.shape, -1, dtype=np.int64)
        # Blocks of widths, each twice as long as the one before. All are searched: forecasts may rise with the width.
        if (zero := self.law_.loss_at_zero) is not None:
            found[targets >= zero] = 0
        while start <= last and (found < 0).any():
            widths = np.arange(start, min(stop, last + 1))
            losses, ends = forecast(self, widths.astype(np.float64), level, n_steps)
            lowest = np.minimum.accumulate(ends[:, 1] if safe else losses)
            first = np.searchsorted(-lowest, -targets)
            reached = (found < 0) & (first < len(widths))
            found[reached] = start + first[reached]
            start, stop = stop, 2 * stop
        return int(found) if found.ndim == 0 else found

    def min_steps(self, target: float, width: int, *, level: float = 0.9) -> StepsNeeded:
        """Find the number of training steps after which a student of a width is forecast to reach a loss.

        Parameters
        ----------
        target : float
            Loss to reach, in nats per token.
        width : int
            Width of the student, in dimensions.
        level : float, default=0.9
            Probability of the interval.

        Returns
        -------
        steps : StepsNeeded
            Named tuple of the steps with their interval, and of the limit of the loss. ``print`` shows it as a
            sentence. Steps are inf if even a thousand times the longest run does not reach the target.

        Raises
        ------
        ValueError
            If the runs have one budget, the width is over the teacher's, or `target` and `level` are out of range.
        """
        check_is_fitted(self)
        target, width = check_number("target", target, 0), check_number("width", width, 0, 2**53)
        level = check_number("level", level, 0, 1, open_low=True, open_high=True)
        check_question(width, target, *teacher_end(self, self.law_))
        return steps_needed(self, width, target, level)

    def decide(self, width: int, target: float, *, n_steps: float | None = None, level: float = 0.9) -> Decision:
        """Decide whether a student of a width reaches a loss after a number of steps.

        Parameters
        ----------
        width : int
            Width of the student, in dimensions.
        target : float
            Loss to reach, in nats per token.
        n_steps : float or None, default=None
            Number of training steps, as in `predict`.
        level : float, default=0.9
            Probability of the interval.

        Returns
        -------
        decision : Decision
            Named tuple of the answer, the forecast with its interval, and the smallest widths of `min_width`. The
            answer is ``"impossible"`` if the target is more than 5% below what any student of the width loses, where
            the law knows a bound. It is ``"go at this budget"`` if the whole interval is at most the target, ``"not at
            this budget"`` if it is above the target, and ``"uncertain"`` otherwise, or if a go would rest on
            extrapolation alone. The budget is that of the runs, or `n_steps`. ``print`` shows the decision as text.

        Raises
        ------
        ValueError
            As `predict` and `min_width`, or if the width is over the teacher's.

        Warns
        -----
        UserWarning
            As `predict`.
        """
        return decide(self, width, target, n_steps=n_steps, level=level)

    def _check_steps(self, n_steps: float | None) -> float | None:
        return None if n_steps is None else check_steps(n_steps, self.budget_.n_steps)

    def _covariance(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):  # width 0 is infinitely many octaves away
            octaves = np.abs(np.log2(a)[:, np.newaxis] - np.log2(b))
        return self.form_error_**2 * np.exp(-octaves / _RANGE)

    def _whiten(self, values: np.ndarray) -> np.ndarray:
        return solve_triangular(self._factor[0], values, lower=True)
