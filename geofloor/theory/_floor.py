"""Loss floors of students, from their widths and the importances of the teacher's features."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from geofloor._files.estimators import SaveMixin
from geofloor._files.schema import optional
from geofloor._files.tables import array
from geofloor._validation import check_array_of_numbers, check_flag, check_number, shown, warn_caller
from geofloor.theory._allocations import Allocation, as_allocation
from geofloor.theory._capacity import CapacityMethod, is_too_dense, warn_of_density
from geofloor.theory._curves import DistortionCurve
from geofloor.theory._division import ChargedFeatures, WidthAllocation, check_total
from geofloor.theory._importances import check_table, read_importances
from geofloor.theory._widths import FeaturePredictorMixin, read_widths

# Arguments of the constructor that are options of a named allocation.
_OPTIONS = ("capacity", "curve", "amplitude", "starts", "teacher_width")


class FloorPredictor(SaveMixin, FeaturePredictorMixin, BaseEstimator):
    r"""Predict the loss floor of a student of any width from the importances of the teacher's features.

    By default a student of width d keeps the :math:`F_S = \lfloor d\,g(\alpha) \rfloor` most important features, and
    loses the others (Eq. 2). Other allocations divide the dimensions among features as trained students do.

    Parameters
    ----------
    alpha : float or None, default=None
        Sparsity of the features, in [0, 1). With None it is one minus the mean firing rate in the
        feature table given to `fit`.
    allocation : {"cutoff", "waterfilling", "blocks", "auto"}, Allocation or DistortionCurve, default="cutoff"
        Division of the dimensions among features, as an object or by its short name:

        - ``"cutoff"``: the cut-off of Eq. 2 (`CutoffAllocation`);
        - ``"waterfilling"``: reverse water-filling over the distortion curves of trained students
          (`WaterfillingAllocation`);
        - ``"blocks"``: whole blocks of dimensions, for small widths (`BlocksAllocation`);
        - ``"auto"``: blocks up to width 32 and water-filling beyond (`AutoAllocation`);
        - a curve of your own, which is water-filled (`CurveAllocation`).

        For toy students with one ReLU layer all but the cut-off predict the measured floors. For language models none
        is settled: the cut-off orders widths, and its forecasts from two distilled students can be off by a fifth or
        more (measured on three teachers, of widths 64, 96 and 128).
    capacity : {"asymptotic", "minimax", "minimax_nonnegative"} or callable, default=None
        Option of ``"cutoff"``: see `CutoffAllocation`. This and the next four arguments go with a name; an object
        has its own options. An option unused by the allocation is an error.
    curve : {"relu", "deep"}, default=None
        Option of ``"waterfilling"``, ``"blocks"`` and ``"auto"``: see `BlocksAllocation`.
    amplitude : {"uniform", "exponential", "half-normal", "constant"}, default=None
        Option of ``"waterfilling"``, ``"blocks"`` and ``"auto"``: see `BlocksAllocation`.
    starts : {"mean", "best"}, default=None
        Option of ``"blocks"`` and ``"auto"``: see `BlocksAllocation`.
    teacher_width : int, default=None
        Option of ``"cutoff"``: see `CutoffAllocation`.

    Attributes
    ----------
    allocation_ : Allocation
        Allocation in use, as an object.
    alpha_ : float
        Sparsity in use.
    capacity_ : float
        Features per dimension, g(α). For allocations other than the cut-off it is that of Eq. 1, and floors do not
        depend on it.
    critical_width_ : float
        Critical width: beyond it the floor is constant. It is d* = F/g(α) for the cut-off, and F for the other named
        allocations.
    n_features_ : int
        Number of features F.
    importances_ : ndarray of shape (n_features_,), float64
        Importances, in descending order.

    See Also
    --------
    FeatureStatistics : Measures the feature table on codes of a sparse autoencoder.
    AffineCalibrator : Turns the floor into nats per token.

    Notes
    -----
    The floor is Eq. 2 of [1]_, in the units of the importances:

    .. math:: L^*(d) = \sum_{i > F_S} I_i \,\mathbb{E}[x_i^2], \qquad I_1 \ge I_2 \ge \dots

    Importances measured on codes are second moments already, :math:`I_i = \mathbb{E}[z_i^2]`, and stand alone. In a
    toy model, :math:`\mathbb{E}[x_i^2]` is given as `second_moments`.

    Eq. 2 is a hard cut-off: features are kept without loss or dropped. Water-filling lets features share dimensions
    at a loss,

    .. math:: L^*(d) = \min_{c \ge 0,\ \sum_i c_i \le d} \ \sum_i I_i\, \mathbb{E}[x_i^2]\, D_{\alpha_i}(c_i),

    with the curve D measured on features of equal importance (`geofloor.theory.distortion_curve`). Eq. 2 is the case
    D(c) = max(0, 1 − c·g), up to the rounding of :math:`F_S`.

    At the end of a pipeline it is fitted by ``pipeline.fit(activations)`` and predicts by
    ``pipeline[-1].predict(widths)``: ``pipeline.predict`` would give the widths to the autoencoder as activations.

    References
    ----------
    .. [1] Sarkar and Deka (2026), "Geometric Limits of Knowledge Distillation", arXiv:2604.04037,
       Theorem 1.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import FloorPredictor
    >>> importances = 1 / np.arange(1, 1001) ** 2
    >>> predictor = FloorPredictor(alpha=0.992).fit(importances)
    >>> predictor.predict([4, 16, 64]).round(5)
    array([0.00866, 0.00141, 0.     ])
    >>> predictor.kept_features([4, 16, 64])
    array([ 103,  414, 1000])
    >>> predictor.min_width(0.005)
    7
    >>> from geofloor.theory import AutoAllocation
    >>> FloorPredictor(0.992, allocation=AutoAllocation(starts="best")).fit(importances).min_width(0.005)
    65
    """

    _saved: ClassVar = {
        "importances": array(),
        "firing_rates": optional(array()),
        "means": optional(array()),
        "second_moments": optional(array()),
    }
    # `importances` are data too.
    __metadata_request__fit: ClassVar = {"importances": UNUSED}

    def __init__(
        self,
        alpha: float | None = None,
        *,
        allocation: str | Allocation | DistortionCurve = "cutoff",
        capacity: CapacityMethod | None = None,
        curve: str | None = None,
        amplitude: str | None = None,
        starts: str | None = None,
        teacher_width: int | None = None,
    ) -> None:
        self.alpha = alpha
        self.allocation = allocation
        self.capacity = capacity
        self.curve = curve
        self.amplitude = amplitude
        self.starts = starts
        self.teacher_width = teacher_width

    def fit(self, importances: Any, y: Any = None, *, second_moments: ArrayLike | None = None) -> FloorPredictor:
        """Fit to the importances of the teacher's features.

        Parameters
        ----------
        importances : array-like of shape (n_features,), (n_features, 1) or (n_features, 3), or DataFrame
            Importances in any order; or the feature table of `FeatureStatistics`, with the columns importance, firing
            rate and mean. A DataFrame is read by its column names, ``"importance"`` and, if there are such columns,
            ``"firing_rate"`` and ``"mean"``.
        y : None
            Ignored; here by convention.
        second_moments : array-like of shape (n_features,), default=None
            E[x_i²] of each feature, in the order of `importances`, for importances that are weights without it.
            By default 1.

        Returns
        -------
        self : FloorPredictor
            The fitted predictor.

        Raises
        ------
        ValueError
            If importances or second moments are empty, negative, not finite, of the wrong shape, or too large to
            add up in float64; if a feature table has values that no codes have; if `alpha` is outside
            [0, 1), or is None without a feature table; or if `allocation` or an option is unknown, or an option is
            given that the allocation does not use.

        Warns
        -----
        ConvergenceWarning
            If the features of a table fire so often that Eq. 1 does not hold, or if the critical width is over twice
            `teacher_width`.
        NonMonotoneCapacityWarning
            If the given `alpha` is below the range of Eq. 1.
        """
        self._fit(importances, second_moments)
        if self.alpha is None and is_too_dense(self.alpha_):
            consequence = "and floors of features so dense are no forecast"
            if self.allocation_._uses_equation_1:
                consequence = "which is below the range of Eq. 1, so that these floors are no forecast"
            warn_caller(
                f"The features of the table fire on {100 * (1 - self.alpha_):.0f}% of tokens on average: "
                f"alpha_={self.alpha_:.3f} is below 0.632, {consequence}. Codes of a converged sparse autoencoder are "
                "sparser: train it for longer or with a stronger sparsity penalty.",
                ConvergenceWarning,
            )
        elif self.allocation_._uses_equation_1:
            warn_of_density(np.array(self.alpha_), "capacity")
        if (doubt := self.allocation_._doubt(self.critical_width_)) is not None:
            warn_caller(doubt, ConvergenceWarning)
        return self

    def _fit(self, importances: Any, second_moments: Any = None) -> FloorPredictor:
        """Fit without warnings."""
        return self._fit_columns(*read_importances(importances), second_moments)

    def _fit_columns(self, weights: np.ndarray, firing_rates: Any, means: Any, second_moments: Any) -> FloorPredictor:
        """Fit to the columns of a feature table that were checked, and keep them for `save`."""
        self.allocation_ = as_allocation(self.allocation, {name: getattr(self, name) for name in _OPTIONS})
        if second_moments is not None:
            second_moments = check_array_of_numbers(second_moments, "second_moments", low=0.0)
        self._columns = (weights, firing_rates, means, second_moments)
        self.alpha_ = self._sparsity(firing_rates)
        self.capacity_ = self.allocation_._capacity_at(self.alpha_)
        self.n_features_ = len(weights)
        with np.errstate(over="ignore"):  # check_total finds sums that overflow
            features = self._charge(weights, firing_rates, means, second_moments)
            self._division = self.allocation_.divide(features)
            self.critical_width_ = self._division.critical_width
        return self

    def _sparsity(self, firing_rates: np.ndarray | None) -> float:
        if self.alpha is not None:
            return check_number("alpha", self.alpha, 0.0, 1.0, open_high=True)
        if firing_rates is None:
            raise ValueError(
                "alpha=None needs a feature table with the columns importance, firing_rate and mean, as "
                "FeatureStatistics().fit(codes).table_ has them; for importances alone, give alpha."
            )
        if not firing_rates.any():
            raise ValueError("firing_rate is 0 for every feature; give a table of features that fire, or alpha.")
        return float(1.0 - firing_rates.mean())

    def _charge(self, weights: np.ndarray, rates: Any, means: Any, second_moments: Any) -> ChargedFeatures:
        """Order features by importance, and charge each for being dropped."""
        name, charges, order = "importances", weights, None
        saved = None if means is None else np.minimum(np.square(means), weights)
        if second_moments is None:
            ranked = np.sort(weights)
            self.importances_ = ranked[::-1]
        else:
            moments = second_moments
            if len(moments) != len(weights):
                raise ValueError(f"second_moments has {len(moments)} values for {len(weights)} importances.")
            name, charges = "importances times second_moments", weights * moments
            saved = None if saved is None else saved * moments
            order = np.lexsort((moments, weights))  # equal importances: the floor must not depend on their order
            self.importances_, ranked = weights[order][::-1], charges[order]
        check_total(charges.sum(), name)
        rates = rates if self.alpha is None else None
        return ChargedFeatures(charges, ranked, order, self.alpha_, self.capacity_, rates, saved)

    def predict(self, widths: ArrayLike, *, return_bounds: bool = False) -> Any:
        """Predict the floor at each width.

        Parameters
        ----------
        widths : array-like of shape (n_widths,) or (n_widths, 1)
            Widths of students, in dimensions.
        return_bounds : bool, default=False
            Whether to also return bounds on the floor of a well-trained student, for ``"waterfilling"``, ``"blocks"``
            and ``"auto"``. The lower bound is water-filling, which divides dimensions more finely than a student can.
            The upper bound is a packing of blocks as average training leaves them, with the excess of average
            training over the best. The floor lies within its bounds.

        Returns
        -------
        floors : ndarray of shape (n_widths,), float64
            Predicted floors, in the units of the importances.
        bounds : ndarray of shape (n_widths, 2), float64
            Lower and upper bound, if `return_bounds`.

        Raises
        ------
        ValueError
            If a width is negative or not finite, or if `return_bounds` is set for an allocation without bounds.
        """
        check_is_fitted(self)
        return_bounds = check_flag("return_bounds", return_bounds)
        at = read_widths(widths)
        floors = self._division.floors(at)
        if not return_bounds:
            return floors
        bounds = self._division._bounds(at, floors)
        if bounds is None:
            raise ValueError(
                f"return_bounds=True: allocation={shown(self.allocation_)} has no measured students behind it; "
                "use 'waterfilling', 'blocks' or 'auto'."
            )
        return floors, bounds

    def allocate(self, width: float) -> WidthAllocation:
        """Divide the dimensions of a student of one width among the features.

        Parameters
        ----------
        width : float
            Width of the student, in dimensions.

        Returns
        -------
        allocation : WidthAllocation
            Named tuple of ``capacities`` (n_features,), dimensions of each feature in the order given to
            `fit`; the numbers ``n_full`` kept without loss, ``n_partial`` kept in part, ``n_dropped``; and
            the two shares of the floor, ``dropped`` and ``interference``, in the units of the importances. They
            describe the best student, predicted with ``starts="best"``.

        Raises
        ------
        ValueError
            If the width is negative or not finite.

        Examples
        --------
        >>> from geofloor import FloorPredictor
        >>> predictor = FloorPredictor(alpha=0.9, allocation="waterfilling").fit(1 / np.arange(1, 41))
        >>> found = predictor.allocate(6)
        >>> found.n_full, found.n_partial, found.n_dropped
        (0, 16, 24)
        >>> bool(np.isclose(found.dropped + found.interference, predictor.predict([6])[0]))
        True
        """
        check_is_fitted(self)
        return self._division._allocate(float(check_number("width", width, 0)))

    def _state_to_save(self) -> dict[str, Any]:
        return dict(zip(self._saved, self._columns, strict=True))

    def _restore(self, state: dict[str, Any]) -> None:
        names = {"importance": "importances", "firing_rate": "firing_rates", "mean": "means"}
        columns = {column: state[name] for column, name in names.items() if state[name] is not None}
        if len({len(column) for column in columns.values()}) != 1:
            raise ValueError("its columns have different lengths")
        self._fit_columns(*check_table(columns), state["second_moments"])

    def _kept(self, widths: np.ndarray) -> np.ndarray:
        return self._division.served(widths)

    def _meets(self, widths: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return self._division._meets(widths.ravel(), targets.ravel()).reshape(targets.shape)
