"""Tables of sweeps: one row per model, summaries over seeds, and predictions beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from geofloor._validation import check_object, shown
from geofloor.toy._features import SparseFeatures

KEYS = ["n_features", "alpha", "teacher_width", "width"]


COLUMNS = [
    *KEYS, "seed", "floor", "standard_error", "kept", "dropped_share", "data_floor", "data_standard_error",
    "n_steps", "converged", "total",
]  # fmt: skip


def summarize_sweep(sweep: pd.DataFrame) -> pd.DataFrame:
    """Summarize the seeds at every point of a sweep: mean, spread and best.

    Parameters
    ----------
    sweep : DataFrame
        Table of `toy_sweep`.

    Returns
    -------
    summary : DataFrame
        One row per configuration and width, with ``floor`` (mean over seeds), ``floor_std``,
        ``floor_best``, ``standard_error`` (of the mean, from seeds and samples),
        ``sampling_error`` (of a single floor, from samples alone), ``kept`` and ``dropped_share``
        (means), ``n_seeds`` and ``total``; with a teacher as the target also ``data_floor``,
        ``data_floor_std`` and ``data_floor_best``.

    Raises
    ------
    ValueError
        If a column is missing.

    Examples
    --------
    >>> from geofloor.toy import summarize_sweep, toy_sweep
    >>> sweep = toy_sweep(10, [3], 0.9, teacher_widths=None, n_seeds=4, n_eval_samples=8192)
    >>> summary = summarize_sweep(sweep)
    >>> bool(summary.floor_best[0] <= summary.floor[0])
    True
    """
    check_object("sweep", sweep, pd.DataFrame, "give the table of toy_sweep")
    missing = {"n_features", "alpha", "width", "floor", "standard_error", "kept", "total"} - set(sweep.columns)
    if missing:
        raise ValueError(f"sweep has no column {sorted(missing)}; give the table of toy_sweep.")
    groups = sweep.groupby([key for key in KEYS if key in sweep.columns], sort=True)
    columns = {
        "floor": groups.floor.mean(),
        "floor_std": groups.floor.std(),
        "floor_best": groups.floor.min(),
        # Seeds share samples, so that the sampling error does not fall with their number.
        "standard_error": np.sqrt(groups.floor.var().fillna(0.0) / groups.size() + groups.standard_error.mean() ** 2),
        "sampling_error": groups.standard_error.mean(),
        "kept": groups.kept.mean(),
        "n_seeds": groups.size(),
        "total": groups.total.first(),
    }
    if "dropped_share" in sweep.columns:
        columns["dropped_share"] = groups.dropped_share.mean()
    if "data_floor" in sweep.columns:
        columns["data_floor"] = groups.data_floor.mean()
        columns["data_floor_std"] = groups.data_floor.std()
        columns["data_floor_best"] = groups.data_floor.min()
    return pd.DataFrame(columns).reset_index()


def predict_sweep(summary: pd.DataFrame, predictors: Mapping[str, Callable[[int, float], Any]]) -> pd.DataFrame:
    """Put predicted floors beside the measured ones.

    Parameters
    ----------
    summary : DataFrame
        Table of `summarize_sweep`.
    predictors : mapping of str to callable
        Per new column, a function of the number of features and the sparsity, returning a fitted predictor.

    Returns
    -------
    summary : DataFrame
        A copy with the new columns.

    Raises
    ------
    ValueError
        If a name is already a column, or a column is missing.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import FloorPredictor
    >>> from geofloor.toy import predict_sweep, summarize_sweep, toy_sweep
    >>> def eq2(n, alpha):
    ...     return FloorPredictor(alpha).fit(1 / np.arange(1, n + 1), second_moments=np.full(n, (1 - alpha) / 3))
    >>> sweep = toy_sweep(10, [3], 0.9, teacher_widths=None, n_seeds=2, n_eval_samples=8192)
    >>> predict_sweep(summarize_sweep(sweep), {"Eq. 2": eq2})["Eq. 2"].round(5).tolist()
    [0.0]
    """
    check_object("summary", summary, pd.DataFrame, "give the table of summarize_sweep")
    check_object("predictors", predictors, Mapping, "give a dict of functions by the name of the new column")
    missing = sorted({"n_features", "alpha", "width"} - set(summary.columns))
    if missing:
        raise ValueError(f"summary has no column {missing}; give the table of summarize_sweep.")
    for name, make in predictors.items():
        if not callable(make):
            raise TypeError(f"predictors[{name!r}]={shown(make)} is no function; give one of n_features and alpha.")
    taken = sorted(set(predictors) & set(summary.columns))
    if taken:
        raise ValueError(f"predictors has the names {taken}, which are columns of the summary; use others.")
    result = summary.copy()
    configurations = summary[["n_features", "alpha"]].drop_duplicates()
    for name, make in predictors.items():
        floors = np.full(len(summary), np.nan)
        for n, alpha in configurations.itertuples(index=False):
            rows = ((summary.n_features == n) & (summary.alpha == alpha)).to_numpy()
            floors[rows] = make(int(n), float(alpha)).predict(summary.width.to_numpy()[rows])
        result[name] = floors
    return result


def sweep_frame(
    found: Mapping[tuple[int, float, int, int, int], Mapping[str, Any]],
    importances: Mapping[int, Sequence[float]],
    amplitude: str,
) -> pd.DataFrame:
    """Make the table of a sweep, in the order of the grid, without parameters."""
    totals = {
        (n, alpha): float(np.dot(importances[n], SparseFeatures(n, alpha, amplitude).second_moments))
        for n, alpha in {(key[0], key[1]) for key in found}
    }
    frame = pd.DataFrame(
        [
            dict(zip([*KEYS, "seed"], key, strict=True))
            | {name: value for name, value in row.items() if name != "parameters"}
            | {"total": totals[key[0], key[1]]}
            for key, row in found.items()
        ]
    )
    if not frame.teacher_width.any():
        frame = frame.drop(columns="teacher_width")
    return frame[[column for column in COLUMNS if column in frame.columns]]
