"""The loss floor of a student from its width and the teacher's features: Eq. 2 and its successors."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags, check_array
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from geofloor.allocation import BlockPacking, Waterfilling
from geofloor.capacity import CapacityMethod, NonMonotoneCapacityWarning, capacity
from geofloor.distortion import blocks, distortion_curve, empty_distortion

ALLOCATIONS = ("cutoff", "waterfilling", "blocks", "auto")
# Up to this width "auto" packs blocks. Where best to change over has not been measured: floors up to width 10 have.
WIDEST_PACKING = 16
_BIN = 0.05  # of the logarithm of the firing rate: features within one share a curve


class FloorPredictor(TransformerMixin, BaseEstimator):
    r"""Predict the loss floor of a student of any width from the importances of the teacher's features.

    By default with Eq. 2: a student of width d keeps the :math:`F_S = \lfloor d\,g(\alpha) \rfloor` most
    important features and pays for those that it drops. Other allocations divide the dimensions among
    features as trained students do.

    Parameters
    ----------
    alpha : float or None, default=None
        Sparsity of the features, in [0, 1). With None it is one minus the mean firing rate in the
        feature table given to `fit`.
    allocation : {"cutoff", "waterfilling", "blocks", "auto"}, default="cutoff"
        How dimensions are divided among features: the cut-off of Eq. 2; reverse water-filling over the
        distortion curve of trained students; whole blocks of them, for small widths; or blocks for widths
        up to 16 and water-filling beyond. For language models the evidence is for the default, with a
        calibration; for students with one ReLU layer it is for the others.
    capacity : {"asymptotic", "minimax", "minimax_nonnegative"} or callable, default="asymptotic"
        Features per dimension g(α), as in `geofloor.capacity.capacity`, for the cut-off.
    curve : {"relu"}, default="relu"
        What the student's decoder can compute, for the other allocations: one ReLU layer with tied weights.
    amplitude : {"uniform", "exponential", "half-normal", "constant"}, default="uniform"
        Law of an active feature, for the other allocations, where no feature table gives its mean: it sets
        what a dropped feature costs a student that has a bias.

    Attributes
    ----------
    alpha_ : float
        Sparsity in use.
    capacity_ : float
        Features per dimension, g(α).
    critical_width_ : float
        Width from which on nothing is lost: d* = F/g(α) for the cut-off, F for the other allocations.
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

    Importances that are second moments already, :math:`I_i = \mathbb{E}[z_i^2]` as measured on
    codes, stand alone; in a toy model, :math:`\mathbb{E}[x_i^2]` is given as `second_moments`.

    Eq. 2 is a hard cut-off: it takes features as either kept without loss or dropped. Water-filling lets
    features share dimensions at a loss,

    .. math:: L^*(d) = \min_{c \ge 0,\ \sum_i c_i \le d} \ \sum_i I_i\, \mathbb{E}[x_i^2]\, D_{\alpha_i}(c_i),

    with the curve D measured on features of equal importance (`geofloor.distortion`); Eq. 2 is the case
    D(c) = max(0, 1 − c·g), up to the rounding of :math:`F_S`.

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
    """

    # `importances` and `widths` are this estimator's data: they are not routed as metadata.
    __metadata_request__fit: ClassVar = {"importances": UNUSED}
    __metadata_request__predict: ClassVar = {"widths": UNUSED}
    __metadata_request__transform: ClassVar = {"widths": UNUSED}

    def __init__(
        self,
        alpha: float | None = None,
        *,
        allocation: str = "cutoff",
        capacity: CapacityMethod = "asymptotic",
        curve: str = "relu",
        amplitude: str = "uniform",
    ) -> None:
        self.alpha = alpha
        self.allocation = allocation
        self.capacity = capacity
        self.curve = curve
        self.amplitude = amplitude

    def fit(self, importances: Any, y: Any = None, *, second_moments: ArrayLike | None = None) -> FloorPredictor:
        """Take in the importances of the teacher's features.

        Parameters
        ----------
        importances : array-like of shape (n_features,), (n_features, 1) or (n_features, 3), or DataFrame
            Importances in any order; or a feature table with the columns importance, firing rate and
            mean, as `FeatureStatistics` gives it. A DataFrame is read by its column names,
            ``"importance"`` and, if `alpha` is None, ``"firing_rate"``.
        y : None
            Ignored; here by convention.
        second_moments : array-like of shape (n_features,), default=None
            E[x_i²] of each feature, in the order of `importances`, where importances are weights
            that don't contain it. By default 1.

        Returns
        -------
        self : FloorPredictor
            The fitted predictor.

        Raises
        ------
        ValueError
            If importances or second moments are empty, negative, not finite or of the wrong shape,
            if `alpha` is outside [0, 1), or is None where there is no feature table to take it from, or
            if `allocation`, `curve` or `amplitude` is unknown.
        """
        if self.allocation not in ALLOCATIONS:
            raise ValueError(
                f"allocation={self.allocation!r} is unknown; use one of {', '.join(map(repr, ALLOCATIONS))}."
            )
        weights, firing_rates, means = _read_importances(importances)
        if self.alpha is not None:
            self.alpha_ = float(self.alpha)
        elif firing_rates is not None:
            self.alpha_ = float(1.0 - firing_rates.mean())
        else:
            raise ValueError(
                "alpha=None needs a feature table with firing rates, as FeatureStatistics gives it; "
                "for importances alone, give alpha."
            )
        if self.allocation == "cutoff":
            self.capacity_ = capacity(self.alpha_, self.capacity)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NonMonotoneCapacityWarning)  # it has no part in these floors
                self.capacity_ = capacity(self.alpha_, self.capacity)
        self.n_features_ = len(weights)
        self.critical_width_ = self.n_features_ / self.capacity_

        if second_moments is None:
            ascending = np.sort(weights)
            charges = ascending
        else:
            moments = _read_column(second_moments, "second_moments")
            if len(moments) != len(weights):
                raise ValueError(f"second_moments has {len(moments)} values for {len(weights)} importances.")
            order = np.lexsort((moments, weights))  # equal importances: the floor must not depend on their order
            ascending = weights[order]
            charges = ascending * moments[order]
        self.importances_ = ascending[::-1]
        # Entry k is the charge of the k least important features, summed from the smallest up.
        self._dropped_charge = np.empty(self.n_features_ + 1)
        self._dropped_charge[0] = 0.0
        np.cumsum(charges, out=self._dropped_charge[1:])
        if self.allocation != "cutoff":
            rates = firing_rates if self.alpha is None else None
            moments = np.ones(len(weights)) if second_moments is None else moments
            self._divide(weights, moments, rates, means)
            self.critical_width_ = float(self.n_features_)
        return self

    def _divide(
        self, weights: np.ndarray, moments: np.ndarray, rates: np.ndarray | None, means: np.ndarray | None
    ) -> None:
        """Prepare the division of dimensions: a curve for each range of firing rates, and blocks for the mean rate."""
        charges = weights * moments
        if rates is None:
            bins, which = np.array([1.0 - self.alpha_]), np.zeros(len(charges), dtype=np.intp)
        else:
            steps = np.round(np.log(np.clip(rates, 1e-12, 1.0)) / _BIN)
            values, which = np.unique(steps, return_inverse=True)
            bins = np.exp(values * _BIN)
        total = np.bincount(which, weights=charges, minlength=len(bins))
        if means is None:
            empty = np.array([empty_distortion(1.0 - rate, self.amplitude) for rate in bins])
        else:  # the importances of a table are second moments
            saved = np.bincount(which, weights=np.minimum(means**2, weights) * moments, minlength=len(bins))
            empty = 1.0 - np.divide(saved, total, out=np.zeros_like(total), where=total > 0.0)
        curves = [
            distortion_curve(1.0 - rate, curve=self.curve, empty=float(loss))
            for rate, loss in zip(bins, empty, strict=True)
        ]
        self._filling = Waterfilling(charges, curves, which)
        share = float(np.average(empty, weights=total)) if total.sum() > 0.0 else 1.0
        self._packing = BlockPacking(charges, *blocks(self.alpha_, curve=self.curve), share)

    def predict(self, widths: ArrayLike) -> np.ndarray:
        """Floor at each width.

        Parameters
        ----------
        widths : array-like of shape (n_widths,) or (n_widths, 1)
            Widths of students, in dimensions.

        Returns
        -------
        floors : ndarray of shape (n_widths,), float64
            Predicted floors, in the units of the importances.

        Raises
        ------
        ValueError
            If a width is negative or not finite.
        """
        check_is_fitted(self)
        at = _read_column(widths, "widths")
        if self.allocation == "cutoff":
            return self._dropped_charge[self.n_features_ - self._kept(at)]
        if self.allocation == "waterfilling":
            return self._filling.floors(at)
        if self.allocation == "blocks":
            return self._packing.floors(at)
        floors = self._filling.floors(at)
        small = at <= WIDEST_PACKING
        floors[small] = self._packing.floors(at[small])
        return floors

    def transform(self, widths: ArrayLike) -> np.ndarray:
        """Floor at each width as a column, so that a frozen predictor can stand before a calibrator.

        Parameters
        ----------
        widths : array-like of shape (n_widths,) or (n_widths, 1)
            Widths of students, in dimensions.

        Returns
        -------
        floors : ndarray of shape (n_widths, 1), float64
            Predicted floors, in the units of the importances.

        Raises
        ------
        ValueError
            If a width is negative or not finite.
        """
        return self.predict(widths)[:, np.newaxis]

    def fit_transform(self, importances: Any, y: Any = None, **params: Any) -> np.ndarray:
        """Not available: `fit` takes importances and `transform` takes widths.

        Parameters
        ----------
        importances : object
            Not used.
        y : object
            Not used.
        **params : object
            Not used.

        Raises
        ------
        ValueError
            Always, since a pipeline that refits its predictor would read widths as importances.
        """
        raise ValueError(
            "FloorPredictor is fitted on importances but transforms widths, so it cannot do both at once; "
            "inside a Pipeline put sklearn.frozen.FrozenEstimator(fitted_predictor)."
        )

    def kept_features(self, widths: ArrayLike) -> np.ndarray:
        """Features kept at each width, at most all there are.

        With other allocations than the cut-off these are the features that get a share of the dimensions
        under water-filling, however small.

        Parameters
        ----------
        widths : array-like of shape (n_widths,) or (n_widths, 1)
            Widths of students, in dimensions.

        Returns
        -------
        counts : ndarray of shape (n_widths,), int64
            Features kept, F_S.

        Raises
        ------
        ValueError
            If a width is negative or not finite.
        """
        check_is_fitted(self)
        at = _read_column(widths, "widths")
        return self._kept(at) if self.allocation == "cutoff" else self._filling.served(at)

    def min_width(self, floor: ArrayLike) -> Any:
        """Smallest whole width whose predicted floor is at most `floor`.

        Parameters
        ----------
        floor : float or array-like
            Target floor, in the units of the importances.

        Returns
        -------
        width : int or ndarray of int64
            Smallest such width, in dimensions.

        Raises
        ------
        ValueError
            If a target is negative or not finite.
        """
        check_is_fitted(self)
        target = np.asarray(floor, dtype=np.float64)
        if not (np.isfinite(target).all() and (target >= 0).all()):
            raise ValueError(f"floor={floor!r}: a target floor must be finite and not negative.")
        if self.allocation != "cutoff":
            return self._search_width(target)
        needed = self.n_features_ + 1 - np.searchsorted(self._dropped_charge, target, side="right")
        width = np.ceil(needed / self.capacity_)
        # Rounding in the division must not cost, or save, a dimension.
        width = np.where(self._kept(width) < needed, width + 1, width)
        width = np.where((width > 0) & (self._kept(width - 1) >= needed), width - 1, width).astype(np.int64)
        return int(width) if width.ndim == 0 else width

    def _search_width(self, target: np.ndarray) -> Any:
        """Smallest whole width by bisection; a width of all features loses nothing."""
        low, high = np.full(target.shape, -1, dtype=np.int64), np.full(target.shape, self.n_features_, dtype=np.int64)
        while (high - low > 1).any():
            middle = (low + high) // 2
            enough = self.predict(np.maximum(middle, 0).ravel()).reshape(target.shape) <= target
            high, low = np.where(enough, middle, high), np.where(enough, low, middle)
        return int(high) if high.ndim == 0 else high

    def _kept(self, widths: np.ndarray) -> np.ndarray:
        return np.floor(np.minimum(widths * self.capacity_, self.n_features_)).astype(np.int64)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Name of the column that `transform` gives.

        Parameters
        ----------
        input_features : object
            Ignored; here by convention.

        Returns
        -------
        names : ndarray of shape (1,), object
            ``["floor"]``.
        """
        check_is_fitted(self)
        return np.array(["floor"], dtype=object)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.positive_only = True
        return tags


def _read_importances(importances: Any) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Importances and, where there is a feature table, firing rates and means."""
    if hasattr(importances, "columns"):  # a DataFrame of any library
        columns = list(importances.columns)
        if "importance" in columns:
            weights, rates, means = (
                _read_column(importances[name], label) if name in columns else None
                for name, label in (("importance", "importances"), ("firing_rate", "firing_rate"), ("mean", "mean"))
            )
            return cast(np.ndarray, weights), rates, means
        if len(columns) != 1:
            raise ValueError(f"importances is a DataFrame with the columns {columns}, without 'importance'.")
    if np.ndim(importances) == 2 and np.shape(importances)[1] == 3:
        table = check_array(importances, dtype=np.float64, input_name="importances")
        weights, rates, means = (
            _read_column(column, name)
            for column, name in zip(table.T, ("importances", "firing_rate", "mean"), strict=True)
        )
        return weights, rates, means
    return _read_column(importances, "importances"), None, None


def _read_column(values: Any, name: str) -> np.ndarray:
    """A float64 vector of finite, non-negative values out of one dimension or one column."""
    array = check_array(values, dtype=np.float64, ensure_2d=False, allow_nd=True, ensure_min_samples=0, input_name=name)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(
            f"{name} has shape {array.shape}; give one dimension or one column"
            + (", or a feature table of 3 columns." if name == "importances" else ".")
        )
    if array.size == 0 and name != "widths":
        raise ValueError(f"{name} is empty: Found array with 0 sample(s) while a minimum of 1 is required.")
    if array.size and array.min() < 0:
        raise ValueError(f"Negative values in data passed to {name}: {array.min():g}; they must be at least 0.")
    return array
