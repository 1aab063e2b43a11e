"""Calibration of floors together with the capacity of students."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar, nnls
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from geofloor._estimators import SharedParametersMixin, WidthInputMixin
from geofloor._validation import check_array_of_numbers, check_number, shown
from geofloor.forecasting._runs import SEEDS_DIFFER, read_runs, read_widths, warn_of_rise

_LARGEST_MULTIPLIER = 1e6  # of a capacity; beyond it no student drops anything


class CapacityCalibrator(SharedParametersMixin, WidthInputMixin, RegressorMixin, BaseEstimator):
    r"""Fit a multiplier of the capacity together with slope and baseline, on four runs or more.

    A student may keep κ times as many features per dimension as predicted: observed = C · floor(κ d) + B, with C and
    B at least 0.

    Parameters
    ----------
    predictor : FloorPredictor
        Fitted predictor of the floors. It is never changed, and shared by clones.
    smallest, largest : float, default=0.25 and 8.0
        Range of κ.

    Attributes
    ----------
    multiplier_ : float
        κ.
    slope_ : float
        C, in nats per unit of the floor.
    baseline_ : float
        B, in nats per token.
    r2_ : float
        R² on the runs fitted.

    See Also
    --------
    AffineCalibrator : Fits slope and baseline alone, from two runs on.
    forecast_table : Shows whether the third parameter lowers the errors of forecasts.

    Notes
    -----
    The fit is variable projection [1]_. For a given κ, C and B are found by non-negative least squares, so the search
    is over κ alone, on a grid and then by Brent's method. By Eq. 2 the floor at width κ d equals the floor at width d
    for the capacity κ g(α). If the importances follow one power law, κ can't be separated from C (or from B, for
    importances 1/i) except by the end of the spectrum. The fit may then be good and its three numbers arbitrary.

    References
    ----------
    .. [1] Golub and Pereyra (1973), "The Differentiation of Pseudo-Inverses and Nonlinear Least Squares
       Problems Whose Variables Separate", SIAM Journal on Numerical Analysis 10(2).

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import FloorPredictor
    >>> from geofloor.forecasting import CapacityCalibrator
    >>> floor = FloorPredictor(alpha=0.992).fit(np.exp(-np.arange(3000) / 1000))
    >>> widths = np.array([8, 16, 32, 64])
    >>> fitted = CapacityCalibrator(floor).fit(widths, 0.01 * floor.predict(1.5 * widths) + 0.5)
    >>> f"kappa = {fitted.multiplier_:.1f}, B = {fitted.baseline_:.1f}, R2 = {fitted.r2_:.3f}"
    'kappa = 1.5, B = 0.5, R2 = 1.000'
    """

    _shared_parameters = ("predictor",)
    # `widths` are data: they are not routed as metadata.
    __metadata_request__predict: ClassVar = {"widths": UNUSED}

    def __init__(self, predictor: Any, *, smallest: float = 0.25, largest: float = 8.0) -> None:
        self.predictor = predictor
        self.smallest = smallest
        self.largest = largest

    def fit(self, X: ArrayLike, y: ArrayLike) -> CapacityCalibrator:
        """Fit multiplier, slope and baseline by least squares.

        Parameters
        ----------
        X : array-like of shape (n_runs,) or (n_runs, 1)
            Widths of the students, in dimensions, above 0.
        y : array-like of shape (n_runs,)
            Observed losses, in nats per token.

        Returns
        -------
        self : CapacityCalibrator
            The fitted calibrator.

        Raises
        ------
        TypeError
            If the predictor has no ``predict``.
        ValueError
            If values are not finite, there are fewer than four different widths, widths and losses are
            exchanged, or the range of κ is empty.

        Warns
        -----
        UserWarning
            If losses rise with width.
        """
        smallest, largest = (
            check_number(name, getattr(self, name), 0, _LARGEST_MULTIPLIER, open_low=True)
            for name in ("smallest", "largest")
        )
        if not smallest < largest:
            raise ValueError(f"smallest={smallest!r} must be below largest={largest!r}.")
        if not hasattr(self.predictor, "predict"):
            raise TypeError(f"predictor={shown(self.predictor)} has no predict; give a fitted FloorPredictor.")
        widths, observed = read_runs(self, X, y)
        if len(np.unique(widths)) < 4:
            raise ValueError(
                f"X has {len(np.unique(widths))} different widths (n_samples = {len(widths)}); a multiplier, a slope "
                "and a baseline need at least 4. For fewer, use AffineCalibrator."
            )

        warn_of_rise(widths, observed, SEEDS_DIFFER)

        def solve(log_multiplier: float) -> tuple[np.ndarray, float]:
            floors = self._floors(widths, np.exp(log_multiplier))
            return nnls(np.column_stack([floors, np.ones(len(floors))]), observed)

        # The residual has a step at each feature and may have several minima, so a grid brackets the search.
        grid = np.linspace(np.log(smallest), np.log(largest), 64)
        residuals = [solve(point)[1] for point in grid]
        best = int(np.argmin(residuals))
        bracket = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
        found = minimize_scalar(
            lambda point: solve(point)[1], bounds=bracket, method="bounded", options={"xatol": 1e-8}
        )
        chosen = found.x if found.fun < residuals[best] else grid[best]
        (slope, baseline), _ = solve(chosen)
        self.multiplier_, self.slope_, self.baseline_ = float(np.exp(chosen)), float(slope), float(baseline)
        self.r2_ = float(r2_score(observed, self.predict(widths)))
        return self

    def predict(self, widths: ArrayLike) -> np.ndarray:
        """Predict the loss at each width.

        Parameters
        ----------
        widths : array-like of shape (n_widths,) or (n_widths, 1)
            Widths of the students, in dimensions.

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
        return self.slope_ * self._floors(read_widths(widths), self.multiplier_) + self.baseline_

    def _floors(self, widths: np.ndarray, multiplier: float) -> np.ndarray:
        return check_array_of_numbers(self.predictor.predict(multiplier * widths), "predictor.predict(widths)")
