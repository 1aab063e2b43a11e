"""The loss floor of a student from its width and the teacher's features: Eq. 2."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags, check_array
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from geofloor.capacity import CapacityMethod, capacity


class FloorPredictor(TransformerMixin, BaseEstimator):
    r"""Predict the loss floor of a student of any width from the importances of the teacher's features.

    A student of width d keeps the :math:`F_S = \lfloor d\,g(\alpha) \rfloor` most important features
    and pays for those that it drops.

    Parameters
    ----------
    alpha : float or None, default=None
        Sparsity of the features, in [0, 1). With None it is one minus the mean firing rate in the
        feature table given to `fit`.
    capacity : {"asymptotic", "minimax", "minimax_nonnegative"} or callable, default="asymptotic"
        Features per dimension g(α), as in `geofloor.capacity.capacity`.

    Attributes
    ----------
    alpha_ : float
        Sparsity in use.
    capacity_ : float
        Features per dimension, g(α).
    critical_width_ : float
        Width d* = F/g(α) from which on no feature is dropped.
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

    Eq. 2 is a hard cut-off: it takes features as either kept without loss or dropped.

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

    def __init__(self, alpha: float | None = None, *, capacity: CapacityMethod = "asymptotic") -> None:
        self.alpha = alpha
        self.capacity = capacity

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
            if `alpha` is outside [0, 1), or is None where there is no feature table to take it from.
        """
        weights, firing_rates = _read_importances(importances)
        if self.alpha is not None:
            self.alpha_ = float(self.alpha)
        elif firing_rates is not None:
            self.alpha_ = float(1.0 - firing_rates.mean())
        else:
            raise ValueError(
                "alpha=None needs a feature table with firing rates, as FeatureStatistics gives it; "
                "for importances alone, give alpha."
            )
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
        return self

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
        kept = self.kept_features(widths)
        return self._dropped_charge[self.n_features_ - kept]

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
        return self._kept(_read_column(widths, "widths"))

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
        needed = self.n_features_ + 1 - np.searchsorted(self._dropped_charge, target, side="right")
        width = np.ceil(needed / self.capacity_)
        # Rounding in the division must not cost, or save, a dimension.
        width = np.where(self._kept(width) < needed, width + 1, width)
        width = np.where((width > 0) & (self._kept(width - 1) >= needed), width - 1, width).astype(np.int64)
        return int(width) if width.ndim == 0 else width

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


def _read_importances(importances: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Importances and, where there is a feature table, firing rates."""
    if hasattr(importances, "columns"):  # a DataFrame of any library
        columns = list(importances.columns)
        if "importance" in columns:
            rates = importances["firing_rate"] if "firing_rate" in columns else None
            return (
                _read_column(importances["importance"], "importances"),
                None if rates is None else _read_column(rates, "firing_rate"),
            )
        if len(columns) != 1:
            raise ValueError(f"importances is a DataFrame with the columns {columns}, without 'importance'.")
    if np.ndim(importances) == 2 and np.shape(importances)[1] == 3:
        table = check_array(importances, dtype=np.float64, input_name="importances")
        return _read_column(table[:, 0], "importances"), _read_column(table[:, 1], "firing_rate")
    return _read_column(importances, "importances"), None


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
