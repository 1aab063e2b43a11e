"""Checks of hidden states, codes, indices and groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike

from geofloor._validation import check_array_of_numbers, check_csr, check_numeric, plain_array, shown

_LARGEST = 1e150  # of a value, so that squares do not overflow


def check_rows(values: Any, name: str) -> Any:
    """Return rows for scikit-learn to read, without text and malformed sparse matrices.

    Raises
    ------
    ValueError
        As `check_csr` and `check_numeric`.
    """
    check_csr(values, name)
    return check_numeric(values, name)


def check_squares(values: Any, name: str) -> None:
    """Refuse values too large to square.

    Raises
    ------
    ValueError
        If the largest magnitude is above 1e150.
    """
    largest = float(np.abs(values.data if hasattr(values, "nnz") else values).max(initial=0.0))
    if largest > _LARGEST:
        raise ValueError(f"{name} holds {largest:.3g}, which is too large to square; scale it.")


def read_states(given: Any, name: str) -> Any:
    """Return two-dimensional states, indexable by row number.

    Arrays, memory maps, stores and sparse matrices stay where they are; everything else becomes an array.

    Raises
    ------
    ValueError
        If the states are not two-dimensional numbers.
    """
    if sp.issparse(given):
        check_csr(given, name)
        rows: Any = given
        return rows.tocsr()
    plain = plain_array(given, name)
    if len(getattr(plain, "shape", ())) == 2 and not (isinstance(plain, np.ndarray) or hasattr(plain, "columns")):
        return plain
    array = np.asarray(check_numeric(plain, name))
    if array.ndim != 2:
        raise ValueError(f"{name} has shape {array.shape}; give two dimensions, one row per example.")
    return array if array.dtype.kind in "biuf" else check_array_of_numbers(array, name, ndim=2)


def read_indices(values: Any, name: str) -> np.ndarray:
    """Return row or column numbers counted from 0.

    Raises
    ------
    ValueError
        If they are not a vector of whole numbers of at least 0.
    """
    numbers = np.asarray(plain_array(values, name))
    if numbers.ndim != 1 or not numbers.size or numbers.dtype.kind not in "iu":
        raise ValueError(f"{name} must be a vector of whole numbers; for a mask give numpy.flatnonzero(mask).")
    if numbers.min() < 0 or numbers.max() > np.iinfo(np.intp).max:
        raise ValueError(f"{name} reach from {numbers.min()} to {numbers.max()}; count from 0.")
    return numbers.astype(np.intp)


def read_groups(groups: ArrayLike, n_rows: int, rows: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the group of each row, as given and as a number counted from 0.

    Raises
    ------
    ValueError
        If there is not one group per row, or the groups cannot be sorted; the message calls the rows `rows`.
    """
    given = np.asarray(plain_array(groups, "groups"))
    if given.shape not in ((n_rows,), (n_rows, 1)):
        raise ValueError(f"groups has shape {given.shape} for {n_rows} {rows}; give one value for each.")
    given = given.ravel()
    try:
        return given, np.unique(given, return_inverse=True)[1]
    except TypeError as error:
        raise ValueError(f"groups={shown(groups)} can't be sorted: {error}; give numbers or text.") from error
