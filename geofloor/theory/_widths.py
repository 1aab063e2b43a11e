"""What predictors of floors over widths share, and how they read numbers."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike
from sklearn.base import TransformerMixin
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from geofloor._estimators import WidthInputMixin
from geofloor._validation import check_array_of_numbers, plain_array, shown

_COLUMNS = ("importance", "firing_rate", "mean")


class WidthPredictorMixin(WidthInputMixin, TransformerMixin):
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


def read_targets(floor: Any, name: str = "floor") -> np.ndarray:
    """Read target floors of any shape: finite and not negative, float64."""
    return check_array_of_numbers(floor, name, ndim=None, low=0.0, empty=True)


def read_column(values: Any, name: str) -> np.ndarray:
    """Read one dimension or one column of finite, non-negative values into float64 memory of its own."""
    return check_array_of_numbers(values, name, low=0.0, empty=name == "widths")


def read_importances(importances: Any) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Read importances and, from a feature table, firing rates and means."""
    if hasattr(importances, "table_"):
        raise TypeError(
            f"importances={shown(importances)} is a {type(importances).__name__}; give its feature table, .table_."
        )
    if hasattr(importances, "columns"):  # a DataFrame of any library
        columns = list(importances.columns)
        if "importance" in columns:
            return _checked_table({name: importances[name] for name in _COLUMNS if name in columns})
        if len(columns) != 1:
            raise ValueError(f"importances is a DataFrame with the columns {shown(columns)}, without 'importance'.")
    if sp.issparse(importances):
        raise ValueError(
            "importances is a sparse matrix. Sparse data was passed, but dense data is required: codes go through "
            "FeatureStatistics first, whose table_ is read here."
        )
    plain = plain_array(importances, "importances")
    shape = np.shape(plain)
    if len(shape) == 2 and shape[1] == 3:
        table = check_array_of_numbers(plain, "importances", ndim=2)
        return _checked_table(dict(zip(_COLUMNS, table.T, strict=True)))
    if len(shape) == 2 and not shape[1]:
        raise ValueError(
            f"importances is empty: Found array with 0 feature(s) (shape={shape}) while a minimum of 1 is required."
        )
    if len(shape) == 2 and shape[1] != 1:
        raise ValueError(
            f"importances has shape {shape}; give one dimension or one column, or a feature table of 3 columns. "
            "Codes go through FeatureStatistics first. Reshape your data."
        )
    return read_column(plain, "importances"), None, None


def _checked_table(table: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    weights = read_column(table["importance"], "importances")
    rates = means = None
    if "firing_rate" in table:
        rates = check_array_of_numbers(table["firing_rate"], "firing_rate", low=0.0, high=1.0)
    if "mean" in table:
        means = check_array_of_numbers(table["mean"], "mean")
    if rates is not None and means is not None:
        with np.errstate(over="ignore"):
            wrong = np.flatnonzero(np.square(means) > weights * rates * (1.0 + 1e-4))  # of float32 tables, too
        if wrong.size:
            row = wrong[0]
            raise ValueError(
                f"importances is a feature table whose row {row} no codes have: mean {means[row]:g} squared is above "
                f"importance {weights[row]:g} times firing rate {rates[row]:g}. Its columns must be importance E[z²], "
                "firing rate P(z != 0) and mean E[z], in this order."
            )
    return weights, rates, means
