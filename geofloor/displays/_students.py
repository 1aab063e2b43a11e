"""Tables of distilled students.

The floors have one row per student, with the columns width and floor, and perhaps seed and floor_error. The history has
one row per evaluation of a student, with width, step and a loss, and perhaps seed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.validation import check_is_fitted

from geofloor._validation import check_iterable, check_object, shown
from geofloor.displays._tables import check_points

STUDENT = ["width", "seed"]  # columns that identify a student


def tables_of(students: Iterable[Any], loss: str | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Collect history and floors of fitted students.

    Parameters
    ----------
    students : iterable of DistilledStudent
        Fitted. A seed is the ``random_state``, or a count within the width if that is not a number.
    loss : str or None
        Loss to take from the histories; None leaves the history empty.

    Returns
    -------
    history : DataFrame
        One row per evaluation, with the columns width, seed, step and `loss`.
    floors : DataFrame
        One row per student, with the columns width, seed, floor and floor_error.

    Raises
    ------
    ValueError
        If there are no students, two have the same width and seed, or a history has no such loss.
    """
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    check_object("loss", loss, (str, type(None)), "give the name of a column")
    for student in check_iterable("students", students, "give a list of fitted students"):
        if not (hasattr(student, "fit") and hasattr(student, "width")):
            raise TypeError(f"students holds {shown(student)}; give fitted DistilledStudents.")
        check_is_fitted(student)
        width, seed = int(student.width), student.random_state
        if not isinstance(seed, int | np.integer):
            seed = sum(row["width"] == width for row in rows)
        identity = {"width": width, "seed": int(seed)}
        if identity in [{name: row[name] for name in STUDENT} for row in rows]:
            raise ValueError(f"students has two of width={width} and random_state={seed}; give one of them.")
        rows.append({**identity, "floor": student.floor_, "floor_error": student.floor_error_})
        if loss is None:
            continue
        if loss not in student.history_[-1]:
            raise ValueError(f"loss={loss!r} is not in the history, which has {sorted(student.history_[-1])}.")
        curves += [{**identity, "step": each["step"], loss: each[loss]} for each in student.history_]
    if not rows:
        raise ValueError("students is empty; give at least one that is fitted.")
    # There is no training loss before the first step.
    history = pd.DataFrame(curves).dropna(ignore_index=True) if curves else pd.DataFrame()
    return history, pd.DataFrame(rows)


def check_floors(floors: Any) -> pd.DataFrame:
    """Return a table of floors with one row per student, and a column of seeds.

    Raises
    ------
    TypeError
        If it is not a DataFrame.
    ValueError
        If it is empty, lacks a column, has a student twice or a value that is not finite.
    """
    check_object("floors", floors, pd.DataFrame, "give a pandas DataFrame")
    students = ["width", *(["seed"] if "seed" in floors.columns else [])]
    return _with_seeds(check_points(floors, [*students, "floor"], unique=students, argument="floors"))


def check_history(history: Any, loss: Any) -> pd.DataFrame:
    """Return a history with one row per student and step, and a column of seeds.

    Raises
    ------
    TypeError
        If it is not a DataFrame.
    ValueError
        If it is empty, lacks a column, repeats a step or holds a non-finite value.
    """
    check_object("history", history, pd.DataFrame, "give a pandas DataFrame")
    unique = ["width", *(["seed"] if "seed" in history.columns else []), "step"]
    return _with_seeds(check_points(history, [*unique, loss], unique=unique, argument="history"))


def check_same_students(history: pd.DataFrame, floors: pd.DataFrame) -> None:
    """Refuse floors of students without a history.

    Raises
    ------
    ValueError
        If there are any; the message names the first.
    """
    known = set(history[STUDENT].itertuples(index=False, name=None))
    for width, seed in floors[STUDENT].itertuples(index=False, name=None):
        if (width, seed) not in known:
            raise ValueError(f"floors has width={width:g}, seed={seed:g}, which history has not.")


def _with_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Add a seed of 0 to a table without seeds."""
    return table if "seed" in table.columns else table.assign(seed=0)
