"""Agreement of predicted floors with measured ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import pearsonr
from sklearn.metrics import r2_score

from geofloor._validation import check_array_of_numbers, check_number, check_object, plain_array
from geofloor.forecasting._runs import LARGEST

_WHOLE = "all"


def agreement_table(
    measured: ArrayLike,
    predictions: Mapping[str, ArrayLike],
    *,
    strata: ArrayLike | None = None,
    relative_above: float = 0.0,
) -> pd.DataFrame:
    r"""Compare predicted floors with measured ones, over all points and by stratum.

    Parameters
    ----------
    measured : array-like of shape (n_points,)
        Measured floors, at least zero.
    predictions : mapping of str to array-like of shape (n_points,)
        Predicted floors by the name of the predictor.
    strata : array-like of shape (n_points,), default=None
        Stratum of each point, such as a range of d/d*. Each adds a row. A point with a missing stratum counts only in
        the row of all points. No stratum may be named ``"all"``.
    relative_above : float, default=0.0
        Least measured floor, exclusive, of the points for relative errors and for the share below. Relative errors
        have no meaning at a floor of 0.

    Returns
    -------
    table : DataFrame
        One row per predictor and stratum, with the columns

        - ``predictor``, ``stratum`` (``"all"`` for all points), ``n_points``, and ``n_relative``, the number of points
          for relative errors;
        - ``pearson_r``: correlation, NaN where one side is constant;
        - ``r2``: coefficient of determination of the prediction itself, with nothing fitted. It is negative where the
          mean of the measured floors would be closer;
        - ``mean_error``, ``median_error``: mean and median of the absolute relative error,
          (predicted − measured) / measured;
        - ``bias``: mean of (predicted − measured) / measured;
        - ``below``: share of points where the prediction is below the measurement.

    Raises
    ------
    ValueError
        If arrays are empty, not finite or of different lengths, a measured floor is negative, there is no predictor,
        a stratum is named ``"all"``, or relative errors overflow.

    Notes
    -----
    Pearson's r ignores offset and scale, and relative errors weigh small floors like large ones. Trust a predictor
    only where R² and both errors are good.

    Examples
    --------
    >>> from geofloor.forecasting import agreement_table
    >>> table = agreement_table([0.4, 0.2, 0.1], {"half": [0.2, 0.1, 0.05]})
    >>> table.round(3).to_dict("records")[0]["pearson_r"], table.median_error[0], table.below[0]
    (1.0, np.float64(0.5), np.float64(1.0))
    """
    observed = check_array_of_numbers(measured, "measured", low=0, high=LARGEST)
    relative_above = check_number("relative_above", relative_above)
    check_object("predictions", predictions, Mapping, "give a dict of predicted floors by predictor")
    if not predictions:
        raise ValueError("predictions is empty; give at least one predictor.")
    labels = None if strata is None else np.asarray(plain_array(strata, "strata"), dtype=object)
    if labels is not None and labels.shape != observed.shape:
        raise ValueError(f"strata has shape {labels.shape} for {len(observed)} measured floors.")
    groups: dict[Any, np.ndarray] = {_WHOLE: np.ones(len(observed), dtype=bool)}
    if labels is not None and any(isinstance(label, str) and label == _WHOLE for label in labels):
        raise ValueError(f"strata holds {_WHOLE!r}, the name of the row of all points; rename that stratum.")
    if labels is not None:
        groups |= {label: labels == label for label in pd.unique(labels[~pd.isna(labels)])}
    rows = []
    for name, values in predictions.items():
        predicted = check_array_of_numbers(values, f"predictions[{name!r}]", low=-LARGEST, high=LARGEST)
        if predicted.shape != observed.shape:
            raise ValueError(f"predictions[{name!r}] has {len(predicted)} values for {len(observed)} measured floors.")
        rows += [
            {"predictor": name, "stratum": label} | _agreement(observed[chosen], predicted[chosen], relative_above)
            for label, chosen in groups.items()
        ]
    return pd.DataFrame(rows)


def _agreement(measured: np.ndarray, predicted: np.ndarray, relative_above: float) -> dict[str, float]:
    above = measured > relative_above
    with np.errstate(over="ignore"):
        relative = predicted[above] / measured[above] - 1.0 if above.any() else np.array([np.nan])
    if np.isinf(relative).any():
        raise ValueError(
            f"relative_above={relative_above!r} lets measured floors of {measured[above].min():.3g} count, and errors "
            "relative to these overflow; raise it."
        )
    varies = len(measured) > 1 and np.ptp(measured) > 0.0
    return {
        "n_points": len(measured),
        "n_relative": int(above.sum()),
        "pearson_r": float(pearsonr(measured, predicted).statistic) if varies and np.ptp(predicted) > 0.0 else np.nan,
        "r2": float(r2_score(measured, predicted)) if varies else np.nan,
        "mean_error": float(np.mean(np.abs(relative))),
        "median_error": float(np.median(np.abs(relative))),
        "bias": float(np.mean(relative)),
        "below": float(np.mean(relative < 0.0)) if above.any() else np.nan,
    }
