"""What predictors of floors over widths share, and how they read numbers."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import TransformerMixin
from sklearn.utils import Tags, check_array
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted


class WidthPredictorMixin(TransformerMixin):
    """What predictors of floors share: from widths to a column of floors, for a `Pipeline` with a calibrator."""

    # `widths` are data: they are not routed as metadata.
    __metadata_request__predict: ClassVar = {"widths": UNUSED}
    __metadata_request__transform: ClassVar = {"widths": UNUSED}

    def transform(self, widths: ArrayLike) -> np.ndarray:
        """Floor at each width as a column, so that a frozen predictor can stand before a calibrator.

        Parameters
        ----------
        widths : array-like of shape (n_widths,) or (n_widths, 1)
            Widths of students, in dimensions.

        Returns
        -------
        floors : ndarray of shape (n_widths, 1), float64
            Predicted floors, in the units that `predict` gives them in.

        Raises
        ------
        ValueError
            If a width is negative or not finite.
        """
        return self.predict(widths)[:, np.newaxis]

    def fit_transform(self, X: Any, y: Any = None, **params: Any) -> np.ndarray:
        """Not available: `fit` and `transform` take different data.

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
            Always, since in a pipeline it would be refitted on widths.
        """
        raise ValueError(
            f"{type(self).__name__} is fitted on one kind of data and transforms widths, so it cannot do both at once; "
            "inside a Pipeline put sklearn.frozen.FrozenEstimator(fitted_predictor)."
        )

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

    def _search_width(self, floor: ArrayLike, largest: int) -> Any:
        """Find the smallest whole width by bisection; `largest` is one that loses nothing."""
        target = read_targets(floor)
        low, high = np.full(target.shape, -1, dtype=np.int64), np.full(target.shape, largest, dtype=np.int64)
        while (open_ := high - low > 1).any():  # a finished search must not go on halving with the others
            middle = (low[open_] + high[open_]) // 2
            enough = self.predict(middle) <= target[open_]
            high[open_], low[open_] = np.where(enough, middle, high[open_]), np.where(enough, low[open_], middle)
        return int(high) if high.ndim == 0 else high

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.positive_only = True
        return tags


def read_targets(floor: Any) -> np.ndarray:
    """Target floors, float64."""
    target = np.asarray(floor, dtype=np.float64)
    if not (np.isfinite(target).all() and (target >= 0).all()):
        raise ValueError(f"floor={floor!r}: a target floor must be finite and not negative.")
    return target


def read_column(values: Any, name: str) -> np.ndarray:
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


def as_column(X: Any) -> Any:
    """One dimension as a column; all else as it is."""
    return np.reshape(X, (-1, 1)) if np.ndim(X) == 1 else X
