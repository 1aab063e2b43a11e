"""Calibration of floors to observed losses in nats per token (Eq. 3), and its rival in the width alone (Eq. 4)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas as pd
import statsmodels.api as sm
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar, nnls
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted, validate_data
from statsmodels.regression.linear_model import OLSResults, RegressionResultsWrapper
from statsmodels.tools.tools import pinv_extended

from geofloor._estimators import WidthInputMixin
from geofloor._validation import check_flag, check_number, check_numeric, warn_caller
from geofloor.forecasting._runs import LARGEST, SEEDS_DIFFER, as_column, read_runs, read_widths, warn_of_rise


def _check_squares(values: np.ndarray, name: str) -> None:
    if (largest := float(np.abs(values).max())) > LARGEST:
        raise ValueError(f"{name} holds {largest:.3g}, which is too large to square; scale it.")


class AffineCalibrator(RegressorMixin, BaseEstimator):
    r"""Calibrate predicted floors to observed losses: observed = C · floor + B, with C ≥ 0.

    Parameters
    ----------
    baseline : float or None, default=None
        B, in nats per token: the loss for reasons other than the width, measured on a control run. With None it is
        fitted with the slope.

    Attributes
    ----------
    slope_ : float or ndarray of shape (n_terms,)
        C, in nats per unit of the floor; never negative. An array after a fit to several columns.
    baseline_ : float
        B, in nats per token.
    r2_ : float
        R² on the runs fitted, about their mean, whether or not the baseline is fixed.
    results_ : statsmodels.regression.linear_model.RegressionResultsWrapper
        The least-squares fit. Terms with a slope held at 0 enter it as zeros. With a fixed baseline its response is
        observed − B.
    n_features_in_ : int
        Number of terms.

    See Also
    --------
    FloorPredictor : Predicts the floors.
    PowerLawCalibrator : Uses the width alone.
    LossForecaster : Corrects the calibration by the runs nearby, and decides (`geofloor.forecasting.Calibrated`).

    Notes
    -----
    This is Eq. 3 of [1]_. The paper states that B is fixed at 0.586, the loss of a student as wide as the teacher. Its
    R² = 0.993 is reached only with both parameters fitted; with B fixed R² is 0.982. Besides, a student as wide as the
    teacher still drops features if the critical width is larger. A baseline taken from it contains part of the floor.

    References
    ----------
    .. [1] Sarkar and Deka (2026), "Geometric Limits of Knowledge Distillation", arXiv:2604.04037,
       Section 6.3.

    Examples
    --------
    >>> from geofloor import AffineCalibrator
    >>> floors = [0.0795, 0.0400, 0.0111, 0.0016, 0.0001]
    >>> observed = [1.320, 1.008, 0.733, 0.652, 0.586]
    >>> free = AffineCalibrator().fit(floors, observed)
    >>> f"C = {free.slope_:.3f}, B = {free.baseline_:.4f}, R2 = {free.r2_:.4f}"
    'C = 8.964, B = 0.6226, R2 = 0.9927'
    >>> fixed = AffineCalibrator(baseline=0.586).fit(floors, observed)
    >>> f"C = {fixed.slope_:.3f}, R2 = {fixed.r2_:.3f}"
    'C = 9.566, R2 = 0.982'
    >>> predicted, interval = fixed.predict([0.02], return_interval=True)
    >>> predicted.round(3), interval.round(2)
    (array([0.777]), array([[0.69, 0.87]]))
    """

    def __init__(self, baseline: float | None = None) -> None:
        self.baseline = baseline

    def fit(self, X: ArrayLike, y: ArrayLike) -> AffineCalibrator:
        """Fit the slope, and a free baseline, by least squares with a slope of at least zero.

        Parameters
        ----------
        X : array-like of shape (n_runs,) or (n_runs, n_terms)
            Predicted floors of the runs, in hidden-space units. Several predictions stand in columns.
        y : array-like of shape (n_runs,)
            Observed losses, in nats per token.

        Returns
        -------
        self : AffineCalibrator
            The fitted calibrator.

        Raises
        ------
        ValueError
            If values are not finite, lengths differ, the baseline is not finite, a free baseline
            is to be fitted to one run, or floors are so small that the slope overflows.

        Warns
        -----
        UserWarning
            If losses do not rise with the floors, so that the slope is 0.
        """
        free = self.baseline is None
        known = 0.0 if free else check_number("baseline", self.baseline, -LARGEST, LARGEST)
        floors, observed = self._read_runs(X, y, reset=True)
        if free and len(observed) < 2:
            raise ValueError(
                "baseline=None is fitted with the slope and needs two runs, but n_samples = 1; "
                "give a second run or a baseline."
            )
        response = observed - known
        if free:  # the baseline takes up the means
            slopes, _ = nnls(floors - floors.mean(axis=0), response - response.mean())
        else:
            slopes, _ = nnls(floors, response)
        # Terms held at zero stay in the design as zeros, so that parameters keep their places.
        self._active = slopes > 0
        self.results_ = _least_squares(response, self._design(floors))
        if not np.isfinite(self.results_.params).all():
            raise ValueError(
                f"X holds floors of at most {np.abs(floors).max():.3g} for losses up to {np.abs(observed).max():.3g}, "
                "so that the slope overflows; give floors in a larger unit."
            )
        slopes = self.results_.params[1:] if free else self.results_.params
        self.slope_ = float(slopes[0]) if len(slopes) == 1 else np.asarray(slopes)
        self.baseline_ = float(self.results_.params[0]) if free else known
        if not self._active.any() and len(observed) > 1 and np.ptp(floors) > 0:
            warn_caller(
                "The losses do not rise with the floors, so the slope is held at 0 and every forecast is the baseline; "
                "check that X has the floors and y the losses of the same runs.",
                UserWarning,
            )
        residual = np.square(observed - self._line(floors)).sum()
        total = np.square(observed - observed.mean()).sum()
        self.r2_ = float(1.0 - residual / total) if total > 0 else float("nan")
        return self

    def predict(self, X: ArrayLike, *, return_interval: bool = False, level: float = 0.9) -> Any:
        """Predict the loss of students from their predicted floors.

        Parameters
        ----------
        X : array-like of shape (n_widths,) or (n_widths, n_terms)
            Predicted floors, in hidden-space units.
        return_interval : bool, default=False
            Whether to return a prediction interval for the loss of one more run as well.
        level : float, default=0.9
            Probability of the interval, between 0 and 1.

        Returns
        -------
        predicted : ndarray of shape (n_widths,)
            Predicted loss, in nats per token.
        interval : ndarray of shape (n_widths, 2)
            Lower and upper end, if `return_interval`. With as many parameters as runs no residual is left to
            estimate the error, and the ends are −inf and inf.

        Raises
        ------
        ValueError
            If values are not finite, the number of terms differs from that of the fit, or `level` is
            outside (0, 1).
        """
        check_is_fitted(self)
        level = check_number("level", level, 0, 1, open_low=True, open_high=True)
        floors = validate_data(self, self._columns(check_numeric(X, "X")), dtype=np.float64, reset=False)
        _check_squares(floors, "X")
        predicted = self._line(floors)
        if not check_flag("return_interval", return_interval):
            return predicted
        if self.results_.df_resid < 1:
            return predicted, np.tile([-np.inf, np.inf], (len(predicted), 1))
        forecast = self.results_.get_prediction(self._design(floors))
        return predicted, forecast.conf_int(obs=True, alpha=1 - level) + (
            0.0 if self.baseline is None else self.baseline_
        )

    def decompose(self, X: ArrayLike, y: ArrayLike) -> pd.DataFrame:
        """Split observed losses into the part explained by width and the baseline, as in Table 5.

        Parameters
        ----------
        X : array-like of shape (n_runs,) or (n_runs, n_terms)
            Predicted floors, in hidden-space units.
        y : array-like of shape (n_runs,)
            Observed losses, in nats per token.

        Returns
        -------
        table : DataFrame of shape (n_runs, 5)
            ``observed``, ``geometric`` (C · floor), ``baseline`` and ``residual`` (the rest), all in nats per token,
            and ``percent_geometric`` = 100 · (observed − baseline) / observed, as in the paper's table.

        Raises
        ------
        ValueError
            As `fit` does.
        """
        check_is_fitted(self)
        floors, observed = self._read_runs(X, y, reset=False)
        predicted = self._line(floors)
        return pd.DataFrame(
            {
                "observed": observed,
                "geometric": predicted - self.baseline_,
                "baseline": self.baseline_,
                "residual": observed - predicted,
                "percent_geometric": 100.0 * (observed - self.baseline_) / observed,
            }
        )

    def _read_runs(self, X: Any, y: Any, *, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        X = check_numeric(X, "X")
        columns = as_column(X) if reset else self._columns(X)
        floors, observed = validate_data(
            self, columns, check_numeric(y, "y"), dtype=np.float64, reset=reset, y_numeric=True
        )
        _check_squares(floors, "X")
        _check_squares(observed, "y")
        return floors, observed.astype(np.float64)

    def _columns(self, X: Any) -> Any:
        return as_column(X) if self.n_features_in_ == 1 else X

    def _design(self, floors: np.ndarray) -> np.ndarray:
        active = floors * self._active
        return sm.add_constant(active, has_constant="add") if self.baseline is None else active

    def _line(self, floors: np.ndarray) -> np.ndarray:
        return floors @ np.atleast_1d(self.slope_) + self.baseline_


class PowerLawCalibrator(WidthInputMixin, RegressorMixin, BaseEstimator):
    r"""Fit the observed loss as a power law of width, :math:`a\,d^{-\gamma} + c`.

    It knows nothing of features, and is the rival for `FloorPredictor` to beat.

    Attributes
    ----------
    scale_ : float
        a, in nats per token; never negative.
    exponent_ : float
        γ, between 0.001 and 10.
    offset_ : float
        c, in nats per token.
    r2_ : float
        R² on the runs fitted.

    See Also
    --------
    AffineCalibrator : Uses predicted floors.
    LossForecaster : Fits the same law with intervals (`geofloor.forecasting.PowerOfWidthAboveBaseline`).

    Notes
    -----
    This is Eq. 4 of [1]_, fitted by least squares. For a given γ the best a and c follow from linear least squares, so
    the search is over γ alone.

    References
    ----------
    .. [1] Sarkar and Deka (2026), "Geometric Limits of Knowledge Distillation", arXiv:2604.04037.

    Examples
    --------
    >>> from geofloor import PowerLawCalibrator
    >>> law = PowerLawCalibrator().fit([128, 256, 512, 768, 1024], [1.320, 1.008, 0.733, 0.652, 0.586])
    >>> f"{law.scale_:.3f} * d^-{law.exponent_:.4f} + {law.offset_:.4f}, R2 = {law.r2_:.3f}"
    '11.593 * d^-0.4688 + 0.1319, R2 = 0.998'
    """

    # `widths` are data: they are not routed as metadata.
    __metadata_request__predict: ClassVar = {"widths": UNUSED}

    def fit(self, X: ArrayLike, y: ArrayLike) -> PowerLawCalibrator:
        """Fit the three parameters by least squares.

        Parameters
        ----------
        X : array-like of shape (n_runs,) or (n_runs, 1)
            Widths of the students, in dimensions, above 0.
        y : array-like of shape (n_runs,)
            Observed losses, in nats per token.

        Returns
        -------
        self : PowerLawCalibrator
            The fitted law.

        Raises
        ------
        ValueError
            If widths are not positive, values are not finite, there are fewer than three widths, or
            widths and losses are exchanged.

        Warns
        -----
        UserWarning
            If losses rise with width.
        """
        widths, observed = read_runs(self, X, y)
        logs = np.log(widths)
        if len(np.unique(logs)) < 3:
            raise ValueError(
                f"X has {len(np.unique(logs))} different widths (n_samples = {len(logs)}), "
                "but a power law with an offset has 3 parameters; give at least 3 widths."
            )

        warn_of_rise(widths, observed, SEEDS_DIFFER)

        def solve(log_exponent: float) -> tuple[float, float, float]:
            return _scale_and_offset(logs, observed, np.exp(log_exponent))

        # The residual may have several minima, so a grid brackets the search.
        grid = np.linspace(np.log(1e-3), np.log(10.0), 400)
        best = int(np.argmin([solve(g)[2] for g in grid]))
        bracket = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
        found = minimize_scalar(
            lambda g: solve(g)[2], bounds=bracket, method="bounded", options={"xatol": 1e-12, "maxiter": 500}
        )
        self.exponent_ = float(np.exp(found.x))
        self.scale_, self.offset_, residual = solve(found.x)
        total = np.square(observed - observed.mean()).sum()
        self.r2_ = float(1.0 - residual / total) if total > 0 else float("nan")
        return self

    def predict(self, widths: ArrayLike) -> np.ndarray:
        """Predict the loss at each width.

        Parameters
        ----------
        widths : array-like of shape (n_widths,) or (n_widths, 1)
            Widths of the students, in dimensions. At width 0 a law that falls is infinite.

        Returns
        -------
        predicted : ndarray of shape (n_widths,), float64
            Predicted loss, in nats per token.

        Raises
        ------
        ValueError
            If a width is negative or not finite.
        """
        check_is_fitted(self)
        at = read_widths(widths)
        predicted = np.full(len(at), np.inf if self.scale_ > 0 else self.offset_)
        predicted[at > 0] = self.scale_ * np.exp(-self.exponent_ * np.log(at[at > 0])) + self.offset_
        return predicted


def _least_squares(response: np.ndarray, design: np.ndarray) -> RegressionResultsWrapper:
    """Fit like `sm.OLS.fit`, without its warning about a deficient rank.

    Silencing the warning would change the filters of the whole process: a fit in one thread could leave every thread
    without warnings.
    """
    model = sm.OLS(response, design)
    with np.errstate(over="ignore"):
        inverse, singular_values = pinv_extended(design)
    model.pinv_wexog, model.wexog_singular_values = inverse, singular_values
    model.normalized_cov_params = inverse @ inverse.T
    model.rank = np.linalg.matrix_rank(np.diag(singular_values))
    results = OLSResults(model, inverse @ response, normalized_cov_params=model.normalized_cov_params)
    return RegressionResultsWrapper(results)


def _scale_and_offset(logs: np.ndarray, observed: np.ndarray, exponent: float) -> tuple[float, float, float]:
    """Find the best a ≥ 0 and c for a given exponent, and their squared residual."""
    # Relative to the narrowest width the basis stays near 1, whatever the exponent.
    basis = np.exp(-exponent * (logs - logs.min()))
    centered = basis - basis.mean()
    scale = max(float(centered @ observed) / float(centered @ centered), 0.0)
    offset = float(observed.mean() - scale * basis.mean())
    residual = float(np.square(observed - scale * basis - offset).sum())
    return scale * float(np.exp(exponent * logs.min())), offset, residual
