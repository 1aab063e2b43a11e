"""Checks of tables, vectors and predictors given to displays. Nothing here draws."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from geofloor._validation import check_array_of_numbers, check_choice, check_number, check_object, shown
from geofloor.theory._capacity import METHODS

POINT = ["n_features", "alpha", "teacher_width", "width"]  # columns that identify a point of the toy sweep


def plain_table(table: Any, argument: str, needed: Sequence[str], numeric: Sequence[Any]) -> pd.DataFrame:
    """Convert the numeric columns of a table to NumPy dtypes, with NaN for missing values.

    Raises
    ------
    TypeError
        If the table is not a DataFrame.
    ValueError
        If a column is missing, or a numeric column holds anything but numbers.
    """
    check_object(argument, table, pd.DataFrame, "give a pandas DataFrame")
    for name in needed:
        if not isinstance(name, str):
            raise ValueError(f"{argument} has no column {shown(name)}; give the name of a column.")
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise ValueError(f"{argument} lacks the columns {missing}; needed are {list(needed)}.")
    converted = {}
    for name in dict.fromkeys(numeric):
        column = table[name]
        if isinstance(column, pd.DataFrame):
            raise ValueError(f"{argument} has several columns {name!r}; give one.")
        if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iuf":
            continue
        values = column.to_numpy(dtype=object)
        absent = column.isna().to_numpy()
        found = np.full(len(column), np.nan)
        if not absent.all():
            found[~absent] = check_array_of_numbers(values[~absent], f"{argument}[{name!r}]")
        whole = pd.api.types.is_integer_dtype(column.dtype) and not absent.any()
        converted[name] = found.astype(np.int64) if whole else found
    return table.assign(**converted) if converted else table


def check_points(
    table: Any,
    needed: Sequence[str],
    spread: str | None = None,
    *,
    unique: Sequence[str] = POINT,
    argument: str = "summary",
) -> pd.DataFrame:
    """Check a table of points: it needs rows, finite values in the needed columns, and distinct points.

    Tables of sweeps without teachers have no ``teacher_width``; it is added, as 0. The column `spread` may hold NaN,
    because a single seed has no spread.

    Raises
    ------
    TypeError
        If the table is not a DataFrame.
    ValueError
        If it fails one of these conditions.
    """
    columns = [*needed, *([] if spread is None else [spread])]
    if isinstance(table, pd.DataFrame) and "teacher_width" in unique and "teacher_width" not in table.columns:
        table = table.assign(teacher_width=0)
    table = plain_table(table, argument, columns, columns)
    if table.empty:
        raise ValueError(f"{argument} has no rows; give one for each point.")
    for name in needed:
        n_wrong = int((~np.isfinite(table[name].to_numpy(dtype=np.float64))).sum())
        if n_wrong:
            raise ValueError(
                f"{argument}[{name!r}]: {n_wrong} of {len(table)} values are not finite; leave those rows out."
            )
    repeated = table.duplicated(list(unique))
    if repeated.any():
        point = ", ".join(f"{name}={table.loc[repeated, name].iloc[0]:g}" for name in unique)
        raise ValueError(f"{argument} has several rows for {point}; give one each, such as the mean over seeds.")
    return table


def sorted_values(table: pd.DataFrame, column: str) -> list[Any]:
    """Return the distinct values of a column in ascending order."""
    return sorted(table[column].unique().tolist())


def configurations(points: pd.DataFrame) -> Iterator[tuple[tuple[int, float], pd.DataFrame]]:
    """Yield each number of features and sparsity with its points, in ascending order."""
    for n_features in sorted_values(points, "n_features"):
        for alpha in sorted_values(points, "alpha"):
            group = points[(points["n_features"] == n_features) & (points["alpha"] == alpha)]
            if not group.empty:
                yield (n_features, alpha), group


def curves_of(points: pd.DataFrame, column: str) -> dict[Any, pd.DataFrame]:
    """Split the points of one configuration by teacher width.

    If the column does not depend on the teacher width, all points form one curve under the key None, with one point
    per student width.
    """
    at_width = points.groupby("width")[column]
    if np.allclose(at_width.max(), at_width.min(), rtol=1e-9, atol=0.0):
        return {None: points.drop_duplicates("width").sort_values("width")}
    return {teacher: group.sort_values("width") for teacher, group in points.groupby("teacher_width")}


def column_names(predicted: Any) -> list[str]:
    """Return the names of one or several columns as a list.

    Raises
    ------
    ValueError
        If no column is named.
    """
    names = [predicted] if isinstance(predicted, str) else predicted
    if not isinstance(names, list | tuple | pd.Index) or not len(names):
        raise ValueError(f"predicted={shown(predicted)} must name at least one column.")
    return list(names)


def above_zero(points: pd.DataFrame, measured: str) -> pd.DataFrame:
    """Select the points with a measured floor above zero, because relative errors need one.

    Raises
    ------
    ValueError
        If there are none.
    """
    positive = points[points[measured] > 0]
    if positive.empty:
        raise ValueError(f"summary[{measured!r}] has no value above zero, so no error is relative to one.")
    return positive


def vectors_by_label(values: Any, name: str) -> dict[str, np.ndarray]:
    """Return finite vectors by label. A single vector gets the empty label.

    Raises
    ------
    ValueError
        If there is no vector, or one is not finite.
    """
    if not isinstance(values, Mapping):
        return {"": check_array_of_numbers(values, name)}
    if not values:
        raise ValueError(f"{name} is empty; give at least one.")
    return {label: check_array_of_numbers(each, f"{name}[{label!r}]") for label, each in values.items()}


def vectors_of(values: Any, name: str, length: int, others: str) -> dict[str, np.ndarray]:
    """Return finite vectors of one length from a mapping.

    Raises
    ------
    TypeError
        If `values` is not a mapping.
    ValueError
        If it is empty, or a vector is not finite or has another length.
    """
    vectors = vectors_by_label(check_object(name, values, Mapping, "give a dict of arrays by name"), name)
    check_lengths(vectors, name, length, others)
    return vectors


def labeled(values: Any) -> Mapping[str, Any]:
    """Return a mapping as it is, and anything else under the empty label."""
    return values if isinstance(values, Mapping) else {"": values}


def check_lengths(values: Mapping[str, np.ndarray], name: str, length: int, others: str) -> None:
    """Refuse vectors of another length.

    Raises
    ------
    ValueError
        If one has another length; the message names it.
    """
    for label, each in values.items():
        if len(each) != length:
            of = f"{name}[{label!r}]" if label else name
            raise ValueError(f"{of} has {len(each)} values for {length} {others}; give one for each.")


def check_together(display: Any, *names: str) -> bool:
    """Return whether a group of attributes is given.

    Raises
    ------
    ValueError
        If only some of the group are given.
    """
    given = [getattr(display, name) is not None for name in names]
    if any(given) and not all(given):
        raise ValueError(f"{' and '.join(names)} belong together; give both or neither.")
    return all(given)


def check_counts(kept: Any) -> dict[float, float]:
    """Return numbers of kept features by width; None gives an empty dict.

    Raises
    ------
    TypeError
        If `kept` is neither a mapping nor None.
    ValueError
        If a width or a count is negative or not finite.
    """
    kept = check_object("kept", {} if kept is None else kept, Mapping, "give a dict of counts by width")
    return {check_number("kept: width", width, 0): check_number("kept", count, 0) for width, count in kept.items()}


def check_reference(reference: Any, models: pd.Series) -> None:
    """Refuse a reference outside the models.

    Raises
    ------
    ValueError
        If it is neither None nor one of them.
    """
    if reference is None or (isinstance(reference, Hashable) and reference in set(models)):
        return
    raise ValueError(f"reference={shown(reference)} is not among the models {models.unique().tolist()}.")


def check_predictor(name: str, predictor: Any, *attributes: str) -> Any:
    """Check a predictor for a ``predict`` and the named attributes.

    Raises
    ------
    TypeError
        If it lacks one.
    """
    missing = [each for each in ("predict", *attributes) if not hasattr(predictor, each)]
    if missing:
        raise TypeError(f"{name}={shown(predictor)} has no {missing[0]}; give a fitted estimator that has it.")
    return predictor


def predict_all(predictor: Any, widths: Any, default: str = "") -> tuple[dict[str, Any], dict[str, float]]:
    """Predict the floors at all widths with one predictor or several.

    Parameters
    ----------
    predictor : estimator, or mapping of str to estimators
        Fitted, with a ``predict`` from widths to floors.
    widths : ndarray of shape (n_widths,)
        Student widths.
    default : str, default=""
        Label of a single predictor.

    Returns
    -------
    floors : dict of str to ndarray of shape (n_widths,)
        Floors by label.
    critical_widths : dict of str to float
        The ``critical_width_`` of each predictor that has one.

    Raises
    ------
    TypeError
        If one has no ``predict``.
    """
    several = isinstance(predictor, Mapping)
    predictors = predictor if several else {default: predictor}
    for label, each in predictors.items():
        check_predictor(f"predictor[{label!r}]" if several else "predictor", each)
    floors = {label: each.predict(widths) for label, each in predictors.items()}
    critical = {label: each.critical_width_ for label, each in predictors.items() if hasattr(each, "critical_width_")}
    return floors, critical


def check_capacity(method: Any) -> None:
    """Refuse anything but a method of `geofloor.theory.capacity` or a callable."""
    if not callable(method):
        check_choice("capacity", method, METHODS)
