"""Interface of predictors over widths."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import TransformerMixin
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from geofloor._estimators import WidthInputMixin
from geofloor._validation import check_array_of_numbers
from geofloor.theory._capacity import count_kept


class WidthPredictorMixin(WidthInputMixin, TransformerMixin):
    """Search and transform widths with the `predict` of a predictor of floors.

    A class defines ``predict`` and sets ``critical_width_`` in ``fit``. As a transformer it feeds a calibrator in a
    `Pipeline`.
    """

    # `widths` are data: they are not routed as metadata.
    __metadata_request__predict: ClassVar = {"widths": UNUSED}
    __metadata_request__transform: ClassVar = {"widths": UNUSED}

    def transform(self, widths: ArrayLike) -> np.ndarray:
        """Predict the floor at each width as a column, for a calibrator behind a frozen predictor.

        Parameters
        ----------
        widths : array-like of shape (n_widths,) or (n_widths, 1)
            Widths of students, in dimensions.

        Returns
        -------
        floors : ndarray of shape (n_widths, 1), float64
            Predicted floors, in the units of `predict`.

        Raises
        ------
        ValueError
            If a width is negative or not finite.
        """
        return self.predict(widths)[:, np.newaxis]

    def fit_transform(self, X: Any, y: Any = None, **params: Any) -> np.ndarray:
        """Raise an error: `fit` and `transform` take different data.

        Parameters
        ----------
        X : object
            Not used.
        y : object
            Not used.
        **params : object
            Not used.

        Raises
        ------
        ValueError
            Always, since a pipeline would refit the predictor on widths.
        """
        raise ValueError(
            f"{type(self).__name__} is fitted on one kind of data and transforms widths, so it cannot do both at once; "
            "inside a Pipeline put sklearn.frozen.FrozenEstimator(fitted_predictor)."
        )

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Name the column of `transform`.

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

    def min_width(self, target: ArrayLike) -> Any:
        """Find the smallest whole width with a predicted floor of at most `target`.

        Parameters
        ----------
        target : float or array-like
            Target floor, in the units of `predict`.

        Returns
        -------
        width : int or ndarray of int64 of the shape of `target`
            Smallest such width, in dimensions; -1 if no width reaches the target.

        Raises
        ------
        ValueError
            If a target is negative or not finite.
        """
        check_is_fitted(self)
        targets = read_targets(target)
        # The critical width may be rounded, hence one more; float64 does not hold all whole widths beyond 2^53.
        widest = int(min(np.ceil(self.critical_width_), 2.0**53)) + 1
        low = np.full(targets.shape, -1, dtype=np.int64)
        high = np.where(self._meets(np.full_like(low, widest), targets), widest, low)
        while (open_ := high - low > 1).any():  # leave finished searches alone
            middle = (low[open_] + high[open_]) // 2
            enough = self._meets(middle, targets[open_])
            high[open_], low[open_] = np.where(enough, middle, high[open_]), np.where(enough, low[open_], middle)
        return int(high) if high.ndim == 0 else high

    def _meets(self, widths: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Tell where the predicted floors are at most the targets."""
        return (self.predict(widths.ravel()) <= targets.ravel()).reshape(targets.shape)


class FeaturePredictorMixin(WidthPredictorMixin):
    """Count the features kept at each width, and search widths like `WidthPredictorMixin`.

    A class sets ``capacity_`` and ``n_features_`` in ``fit``.
    """

    def kept_features(self, widths: ArrayLike) -> np.ndarray:
        """Count the features kept at each width, at most all there are.

        Under an allocation that shares dimensions these are the features with a share, however small.

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
        return self._kept(read_widths(widths))

    def _kept(self, widths: np.ndarray) -> np.ndarray:
        return count_kept(widths, self.capacity_, self.n_features_)


def read_targets(target: Any, name: str = "target") -> np.ndarray:
    """Read targets of any shape as float64: finite and not negative."""
    return check_array_of_numbers(target, name, ndim=None, low=0.0, empty=True)


def read_widths(widths: Any) -> np.ndarray:
    """Read widths in one dimension or one column as a float64 copy: finite and not negative."""
    return check_array_of_numbers(widths, "widths", low=0.0, empty=True)
