"""Losses of students over the number of training steps, from runs of several budgets."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares
from scipy.stats import norm
from sklearn.base import BaseEstimator
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from geofloor._validation import check_array_of_numbers, check_flag, check_number, shown, warn_caller
from geofloor.forecasting._runs import LARGEST, WIDEST, check_order

# Priors: medians, and standard deviations of logarithms. They are wide, and no data of benchmarks/results were fitted.
_RATE = 0.05, 1.5  # relative growth of the reduction per e-fold of the steps, at the longest budget
_POWER = 0.5, 0.5  # p; scaling laws of the steps and of the data have 0.3 to 0.8
_POWERS_DIFFER = 0.3  # between widths
_TO_ZERO_WIDTH = 0.7, 0.7  # log of the loss at width 0 over the largest loss, where it is not known
_PRIOR_WEIGHT = 4.0  # of a misfit as expected, in runs
_N_DRAWS = 1000
_CONFIRMED_STEPS = 16.0  # times the longest run: benchmarks/results/training_budgets_held_out.txt
_FARTHEST = 4.0  # draw, in standard deviations
MOST_STEPS = 1e12


class BudgetForecaster(BaseEstimator):
    r"""Forecast losses after another number of steps, from runs of several budgets.

    The runs are students that were trained to the end of their learning-rate schedule. Short runs of all widths and one
    long run of any width forecast the long runs of the others. Runs of three budgets forecast a fourth.

    Parameters
    ----------
    zero_width_loss : float or None, default=None
        L₀, the loss of a student of width 0 in nats per token, as `geofloor.language_models.zero_width_kl` measures it
        at the temperature of the runs. With None it is estimated, and intervals become wider.
    fall_error : float, default=0.3
        Standard deviation between widths of the logarithm of the factor on their falls. The default is for students
        that start from the teacher's principal directions. For random starts take 1.
    run_error : float, default=0.004
        Standard deviation of a run's loss between repetitions with the same seed, as a share of the loss. For random
        starts take 0.03.

    Attributes
    ----------
    widths_ : ndarray of shape (n_widths,)
        Widths of the runs, ascending.
    n_steps_ : ndarray of shape (n_budgets,)
        Budgets of the runs, in steps, ascending.
    power_ : float
        Power p of the steps, common to the widths.
    zero_width_loss_ : float
        L₀, given or estimated.

    See Also
    --------
    LossForecaster : Forecasts other widths as well. It uses this model if its runs have several budgets.
    distill_widths : Trains students of several widths and budgets in one pass.

    Notes
    -----
    The model of the loss L of a student of width d after N steps is

    .. math:: \log\frac{L_0}{L_N(d)} = c_N(d) \log\frac{L_0}{L_M(d)}, \qquad
              c_N(d) = 1 + \kappa\,e^{\eta(d)}\,\frac{1 - (N/M)^{-p(d)}}{p(d)},

    with M the longest budget. One factor c for all widths was found on three small language models with principal
    starts (see :doc:`/findings/distillation`). There η, the deviation of a width, is small. The loss falls as a power
    of the steps toward a limit, which ``n_steps=inf`` forecasts.

    All parameters are fitted together, by least squares with wide priors: κ 0.05 and p 0.5 in the median, with standard
    deviations of 1.5 and 0.5 of their logarithms; η with `fall_error`; and log p(d) with 0.3 around log p. Intervals
    come from draws of the parameters around the fit. Residuals that are larger than expected widen them.

    It fails for random starts, where widths profit from more steps unequally, and at widths close to the teacher's
    (``benchmarks/results/training_budgets_held_out.txt``). It also fails for runs so short that their losses still fall
    fast: on SmolLM2-135M it is off by 10 and 34% from 25 to 100 steps, and by 3 and 25% from 100 to 300
    (``smollm2_forecasts.txt``, ``smollm2_forecasts_300.txt``). Runs before the end of their schedule do not fit the
    model.

    Examples
    --------
    Students of widths 32, 48 and 96 after 1,000 steps, and one of width 48 after 8,000. Those of widths 32 and 96 ended
    at 0.3179 and 0.0320 nats per token after 8,000 steps:

    >>> from geofloor.forecasting import BudgetForecaster
    >>> fitted = BudgetForecaster(1.396).fit(
    ...     [32, 48, 96, 48], [0.3811, 0.2387, 0.0500, 0.1979], n_steps=[1000, 1000, 1000, 8000]
    ... )
    >>> losses, interval = fitted.predict([32, 96], 8000, return_interval=True)
    >>> losses.round(3), interval.round(3)
    (array([0.33 , 0.035]), array([[0.292, 0.374],
           [0.025, 0.048]]))
    """

    # Runs are data: they are not routed as metadata.
    __metadata_request__fit: ClassVar = {"widths": UNUSED, "losses": UNUSED, "n_steps": UNUSED}
    __metadata_request__predict: ClassVar = {"widths": UNUSED, "n_steps": UNUSED}

    def __init__(
        self, zero_width_loss: float | None = None, *, fall_error: float = 0.3, run_error: float = 0.004
    ) -> None:
        self.zero_width_loss = zero_width_loss
        self.fall_error = fall_error
        self.run_error = run_error

    def fit(self, widths: ArrayLike, losses: ArrayLike, n_steps: ArrayLike) -> BudgetForecaster:
        """Fit the model to runs.

        Parameters
        ----------
        widths : array-like of shape (n_runs,)
            Widths of the students, in dimensions, above 0.
        losses : array-like of shape (n_runs,)
            Their losses, in nats per token, above 0.
        n_steps : array-like of shape (n_runs,)
            Their training steps, at least 1. All steps have the same number of tokens.

        Returns
        -------
        self : BudgetForecaster
            The fitted forecaster.

        Raises
        ------
        ValueError
            If values are not finite or out of range, lengths differ, widths and losses are exchanged, no width has
            runs of two budgets, or a loss is not below the loss at width 0.
        """
        zero = self.zero_width_loss
        if zero is not None:
            zero = check_number("zero_width_loss", zero, 0, LARGEST, open_low=True)
        fall_error, self._run_error = (
            check_number(name, getattr(self, name), 1e-6, 10) for name in ("fall_error", "run_error")
        )
        at = check_array_of_numbers(widths, "widths", low=0.0, high=WIDEST)
        observed = check_array_of_numbers(losses, "losses", low=0.0, high=LARGEST)
        if at.shape != observed.shape:
            raise ValueError(f"widths has {len(at)} values and losses {len(observed)}; give one loss per width.")
        steps = read_steps(n_steps, len(at))
        check_order(at, observed, ("widths", "losses"))
        if not (at.min() > 0 and observed.min() > 0):
            raise ValueError(f"widths and losses must be above 0, but hold {at.min():g} and {observed.min():g}.")
        if zero is not None and not observed.max() < zero:
            raise ValueError(
                f"losses holds {observed.max():g}, which is not below zero_width_loss={zero:g}, the loss of one "
                "distribution for all positions; measure both at one temperature, or train for longer."
            )
        self.widths_, rows = np.unique(at, return_inverse=True)
        self.n_steps_ = np.unique(steps)
        if len(np.unique(np.column_stack([rows, steps]), axis=0)) == len(self.widths_):
            raise ValueError(
                f"n_steps={shown(steps.tolist())} gives each width one budget; give a run of another budget for at "
                "least one of the widths."
            )
        self._fit(np.log(observed), rows, steps, zero, fall_error)
        return self

    def _fit(self, logs: np.ndarray, rows: np.ndarray, steps: np.ndarray, zero: float | None, error: float) -> None:
        """Find the most likely parameters, and draw others from their normal approximation."""
        n_widths = len(self.widths_)
        self._known, self._highest = None if zero is None else np.log(zero), logs.max()
        # In this order: κ, p and L0, by their logarithms; log losses after the longest budget; η; log p(d) / p.
        longest = [logs[rows == row][np.argmax(steps[rows == row])] for row in range(n_widths)]
        own = np.zeros(n_widths)
        medians = np.concatenate([np.log([_RATE[0], _POWER[0], _TO_ZERO_WIDTH[0]]), longest, own, own])
        spreads = np.array([_RATE[1], _POWER[1], _TO_ZERO_WIDTH[1]])
        spreads = np.concatenate([spreads, own + np.inf, own + error, own + _POWERS_DIFFER])

        def residuals(values: np.ndarray) -> np.ndarray:
            curve = self._log_losses(values[np.newaxis], rows, steps)[0]
            return np.concatenate([(logs - curve) / self._run_error, (values - medians) / spreads])

        with np.errstate(over="ignore"):  # of steps that are then refused
            found = least_squares(residuals, medians, x_scale="jac")
        slopes = np.asarray(found.jac)
        misfit, free = 2.0 * found.cost, len(logs) - n_widths
        covariance = np.linalg.pinv(slopes.T @ slopes)
        covariance *= max((_PRIOR_WEIGHT + misfit) / (_PRIOR_WEIGHT + free), 1.0)
        eigenvalues, vectors = np.linalg.eigh(covariance)
        normal = np.random.default_rng(0).standard_normal((_N_DRAWS, len(medians)))
        # Mirrored, so that the mean of the draws is the fit.
        shifts = np.concatenate([normal, -normal]) * np.sqrt(np.maximum(eigenvalues, 0.0)) @ vectors.T
        self._values, self._draws = found.x, found.x + shifts
        self.power_ = float(np.exp(found.x[1]))
        self.zero_width_loss_ = float(np.exp(self._log_zero(found.x[np.newaxis])[0]))

    def _log_zero(self, values: np.ndarray) -> np.ndarray:
        return np.full(len(values), self._known) if self._known is not None else self._highest + np.exp(values[:, 2])

    def _log_losses(self, values: np.ndarray, rows: np.ndarray, steps: np.ndarray | float) -> np.ndarray:
        """Compute log losses (n_draws, n_points) of the widths at `rows` after `steps`, for draws of the parameters."""
        longest, own_rate, own_power = np.split(values[:, 3:], 3, axis=1)
        power = np.exp(values[:, [1]] + own_power[:, rows])
        with np.errstate(divide="ignore"):
            growth = -np.expm1(-power * np.log(steps / self.n_steps_[-1])) / power
        reduction = self._log_zero(values)[:, np.newaxis] - longest[:, rows]
        return longest[:, rows] - np.exp(values[:, [0]] + own_rate[:, rows]) * reduction * growth

    def predict(self, widths: ArrayLike, n_steps: float, *, return_interval: bool = False, level: float = 0.9) -> Any:
        """Forecast the losses of widths with runs after a number of steps.

        Parameters
        ----------
        widths : array-like of shape (n_widths,)
            Widths among `widths_`.
        n_steps : float
            Number of steps, at least half the shortest budget; inf for the limit.
        return_interval : bool, default=False
            Whether to return a prediction interval for the loss of one run as well.
        level : float, default=0.9
            Probability of the interval, between 0 and 1.

        Returns
        -------
        losses : ndarray of shape (n_widths,), float64
            Forecast loss, in nats per token.
        interval : ndarray of shape (n_widths, 2), float64
            Lower and upper end, if `return_interval`.

        Raises
        ------
        ValueError
            If a width has no run, `n_steps` is below half the shortest budget, or `level` is outside (0, 1).

        Warns
        -----
        UserWarning
            If `n_steps` is finite and more than 16 times the longest budget.
        """
        check_is_fitted(self)
        steps, level = (
            check_steps(n_steps, self.n_steps_),
            check_number("level", level, 0, 1, open_low=True, open_high=True),
        )
        at = check_array_of_numbers(widths, "widths", low=0.0, high=WIDEST)
        if not np.isin(at, self.widths_).all():
            missing = at[~np.isin(at, self.widths_)][0]
            raise ValueError(
                f"widths holds {missing:g}, which has no run; give widths among {shown(self.widths_.tolist())}, or fit "
                "LossForecaster, which forecasts any width."
            )
        rows = np.searchsorted(self.widths_, at)
        logs, covariance = self._at(steps)
        losses = np.exp(logs[rows])
        if not check_flag("return_interval", return_interval):
            return losses
        half = norm.ppf(0.5 + level / 2.0) * np.sqrt(np.diag(covariance) + self._run_error**2)[rows]
        with np.errstate(over="ignore"):
            return losses, losses[:, np.newaxis] * np.exp(half[:, np.newaxis] * [-1.0, 1.0])

    def _at(self, n_steps: float) -> tuple[np.ndarray, np.ndarray]:
        """Compute the log losses (n_widths,) of all widths after a number of steps, and their covariance."""
        rows = np.arange(len(self.widths_))
        logs = self._log_losses(self._values[np.newaxis], rows, n_steps)[0]
        shifts = self._log_losses(self._draws, rows, n_steps) - logs
        # A few draws lie far off: a standard deviation by quantiles, and draws cut at a few of it.
        far = _FARTHEST * np.ptp(np.quantile(shifts, norm.cdf([-1.0, 1.0]), axis=0), axis=0) / 2.0
        return logs, np.cov(np.clip(shifts, -far, far).T).reshape(len(rows), len(rows))

    def _reduce(self, n_steps: float) -> Reduced:
        """Turn the runs into runs of one budget."""
        logs, covariance = self._at(n_steps)
        eigenvalues, vectors = np.linalg.eigh(covariance)
        shared = np.sqrt(max(eigenvalues[-1], 0.0)) * vectors[:, -1]
        own = np.sqrt(np.maximum(np.diag(covariance) - np.square(shared), 0.0))
        return Reduced(np.exp(logs), own, shared)


class Reduced(NamedTuple):
    """Runs of several budgets turned into runs of one budget, one per width."""

    losses: np.ndarray  # (n_widths,)
    own_errors: np.ndarray  # (n_widths,) independent standard errors, as shares of the losses
    shared_error: np.ndarray  # (n_widths,) one standard error that moves all losses together, as shares


def read_steps(n_steps: Any, n_runs: int) -> np.ndarray:
    """Read the steps of runs, one number for all or one each.

    Raises
    ------
    ValueError
        If they are not whole numbers of at least 1, or their number is not that of the runs.
    """
    steps = check_array_of_numbers(n_steps, "n_steps", ndim=None, low=1.0, high=MOST_STEPS)
    steps = np.full(n_runs, float(steps)) if steps.ndim == 0 else steps
    if steps.shape != (n_runs,):
        raise ValueError(f"n_steps has shape {steps.shape} for {n_runs} runs; give one number per run, or one for all.")
    if (steps != np.rint(steps)).any():
        raise ValueError(f"n_steps holds {steps[steps != np.rint(steps)][0]:g}; steps are whole numbers.")
    return steps


def check_steps(n_steps: Any, budgets: np.ndarray | None) -> float:
    """Check the number of steps of a forecast, a number or inf, by the budgets of the runs.

    Raises
    ------
    ValueError
        If it is no number of at least 1, or below half the shortest budget.

    Warns
    -----
    UserWarning
        If it is finite and far above the longest budget.
    """
    if isinstance(n_steps, float | np.floating) and n_steps == np.inf:
        return np.inf
    steps = float(check_number("n_steps", n_steps, 1, MOST_STEPS))
    if budgets is not None and steps < 0.5 * budgets.min():
        raise ValueError(
            f"n_steps={steps:g} is below half the shortest budget of the runs, {budgets.min():g} steps; give a shorter "
            "run."
        )
    if budgets is not None and steps > _CONFIRMED_STEPS * budgets.max():
        warn_caller(
            f"n_steps={steps:g} is {steps / budgets.max():,.0f} times the longest budget of the runs, and forecasts "
            f"were confirmed up to {_CONFIRMED_STEPS:g} times; train longer runs, or trust the interval only.",
            UserWarning,
        )
    return steps
