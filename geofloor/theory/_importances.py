"""Reading of importances and feature tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from geofloor._validation import check_array_of_numbers, plain_array, shown

_COLUMNS = ("importance", "firing_rate", "mean")


def read_importances(importances: Any) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Read importances and, from a feature table, firing rates and means.

    Parameters
    ----------
    importances : array-like of shape (n_features,), (n_features, 1) or (n_features, 3), or DataFrame
        Importances, or a feature table.

    Returns
    -------
    weights : ndarray of shape (n_features,), float64
        Importances.
    firing_rates, means : ndarray of shape (n_features,), float64, or None
        The other columns, if there are any.

    Raises
    ------
    ValueError
        If values are empty, negative, not finite or of the wrong shape, or if no codes have them.
    TypeError
        If `importances` is a `FeatureStatistics` and not its table.

    Examples
    --------
    >>> from geofloor.theory._importances import read_importances
    >>> weights, firing_rates, means = read_importances([[1.0, 0.1, 0.2]])
    >>> firing_rates
    array([0.1])
    """
    if hasattr(importances, "table_"):
        raise TypeError(
            f"importances={shown(importances)} is a {type(importances).__name__}; give its feature table, .table_."
        )
    if hasattr(importances, "columns"):  # a DataFrame of any library
        columns = list(importances.columns)
        if "importance" in columns:
            return check_table({name: importances[name] for name in _COLUMNS if name in columns})
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
        return check_table(dict(zip(_COLUMNS, table.T, strict=True)))
    if len(shape) == 2 and not shape[1]:
        raise ValueError(
            f"importances is empty: Found array with 0 feature(s) (shape={shape}) while a minimum of 1 is required."
        )
    if len(shape) == 2 and shape[1] != 1:
        raise ValueError(
            f"importances has shape {shape}; give one dimension or one column, or a feature table of 3 columns. "
            "Codes go through FeatureStatistics first. Reshape your data."
        )
    return check_array_of_numbers(plain, "importances", low=0.0), None, None


def check_table(table: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return the columns of a feature table: importances, and firing rates and means if there are any.

    Raises
    ------
    ValueError
        If a value is out of range, or no codes have it, as in columns in another order.
    """
    weights = check_array_of_numbers(table["importance"], "importances", low=0.0)
    rates = means = None
    if "firing_rate" in table:
        rates = check_array_of_numbers(table["firing_rate"], "firing_rate", low=0.0, high=1.0)
    if "mean" in table:
        means = check_array_of_numbers(table["mean"], "mean")
    if rates is not None and means is not None:
        with np.errstate(over="ignore"):
            wrong = np.flatnonzero(np.square(means) > weights * rates * (1.0 + 1e-4))  # leaves room for float32
        if wrong.size:
            row = wrong[0]
            raise ValueError(
                f"importances is a feature table, but no codes have its row {row}: mean {means[row]:g} squared exceeds "
                f"importance {weights[row]:g} times firing rate {rates[row]:g}. Its columns must be importance E[z²], "
                "firing rate P(z != 0) and mean E[z], in this order."
            )
    return weights, rates, means
