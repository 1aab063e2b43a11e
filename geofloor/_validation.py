"""Argument checks: the one way in for numbers, arrays, choices and objects.

Every check names the argument, the value and a remedy. Nothing here imports torch: a tensor is
recognized only where its library is already loaded. Checks return Python numbers and NumPy arrays, which share no
memory with those of the caller unless stated.
"""

from __future__ import annotations

import numbers
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np

_SHOWN = 60  # characters of a value in a message
_LARGEST = int(np.finfo(np.float64).max)
_INNER = ("geofloor", "sklearn", "joblib", "functools", "contextlib")  # packages of other authors than the user


def shown(value: Any) -> str:
    """Return the start of a value's repr on one line, for a message."""
    try:
        text = repr(value)
    except Exception:  # a foreign repr may raise anything
        text = f"<{type(value).__name__}>"
    text = " ".join(text.split()) if "\n" in text else text
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def check_number(
    name: str,
    value: Any,
    low: float = -np.inf,
    high: float = np.inf,
    *,
    whole: bool = False,
    open_low: bool = False,
    open_high: bool = False,
) -> Any:
    """Return a finite number in an interval as a plain ``int`` or ``float``.

    Parameters
    ----------
    name : str
        Name of the argument, for messages.
    value : Any
        The number: Python's or NumPy's, or an array or tensor without dimensions.
    low, high : float
        Ends of the interval.
    whole : bool, default=False
        Whether only integers will do.
    open_low, open_high : bool, default=False
        Whether the end itself is outside.

    Raises
    ------
    ValueError
        If it is no finite number of the interval; the message names the argument.
    """
    number = value
    if getattr(value, "shape", None) == () and hasattr(value, "item") and not np.ma.isMaskedArray(value):
        number = None if getattr(value, "is_meta", False) else value.item()
    kind: Any = numbers.Integral if whole else numbers.Real
    plain: float = np.nan
    if isinstance(number, kind) and not isinstance(number, bool):
        try:
            plain = int(number) if whole else float(number)
            finite = bool(np.isfinite(float(plain)))
        except OverflowError:
            finite = False
        above = low < plain or (low == plain and not open_low)
        below = plain < high or (plain == high and not open_high)
        if finite and above and below:
            return plain
    wanted = "a whole number" if whole else "a finite number"
    raise ValueError(f"{name}={shown(value)} must be {wanted}{_interval(low, high, open_low, open_high)}.")


def _interval(low: float, high: float, open_low: bool, open_high: bool) -> str:
    ends = []
    if low > -np.inf:
        ends.append(f"{'above' if open_low else 'of at least'} {low:g}")
    if high < np.inf:
        ends.append(f"{'below' if open_high else 'at most'} {high:g}")
    return (" " + " and ".join(ends)) if ends else ""


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """Return `value` if it is one of `choices`; the message lists them.

    Raises
    ------
    ValueError
        If it is none of them.
    """
    for choice in choices:
        if value is choice or (isinstance(value, str) and isinstance(choice, str) and value == choice):
            return choice
    listed = ", ".join(map(repr, choices))
    raise ValueError(f"{name}={shown(value)} is unknown; use one of {listed}.")


def check_flag(name: str, value: Any) -> bool:
    """Return a truth value as a ``bool``.

    Raises
    ------
    ValueError
        If it is neither True nor False.
    """
    if isinstance(value, bool | np.bool_) or (isinstance(value, numbers.Integral) and value in (0, 1)):
        return bool(value)
    raise ValueError(f"{name}={shown(value)} must be True or False.")


def check_object(name: str, value: Any, kinds: type | tuple[type, ...], remedy: str) -> Any:
    """Return `value` if it is an instance of `kinds`.

    Raises
    ------
    TypeError
        If it is not; the message ends in `remedy`, what to give instead.
    """
    if isinstance(value, kinds):
        return value
    raise TypeError(f"{name}={shown(value)} is a {type(value).__name__}; {remedy}.")


def check_path(name: str, value: Any) -> Path:
    """Return a path as a `Path`.

    Raises
    ------
    TypeError
        If it is neither text nor path-like.
    ValueError
        If it is text that names no file.
    """
    path = check_object(name, value, (str, os.PathLike), "give a path")
    text = os.fspath(path)
    if not isinstance(text, str) or "\0" in text:
        raise ValueError(f"{name}={shown(value)} can't be written or read; give text without null characters.")
    return Path(text)


def check_iterable(name: str, value: Any, remedy: str) -> Any:
    """Return `value` if it is iterable; refuse arrays without dimensions.

    Raises
    ------
    TypeError
        If it can't; the message ends in `remedy`, what to give instead.
    """
    if getattr(value, "shape", None) == ():
        raise TypeError(f"{name}={shown(value)} has no dimensions; {remedy}.")
    return check_object(name, value, Iterable, remedy)


def plain_array(values: Any, name: str) -> Any:
    """Turn tensors into arrays, and refuse input misread by NumPy or scikit-learn.

    Arrays, lists, Series and DataFrames come back as they are, for `sklearn.utils.check_array` or
    `check_array_of_numbers` to read. Tensors are read whatever their dtype, device and gradient;
    bfloat16 and float8, which NumPy lacks, become float32.

    Raises
    ------
    ValueError
        If `values` is text, a path, a mapping, a set, an iterator, a ``datasets.Dataset`` or a sparse
        tensor, or holds masked values, dates, durations or complex numbers.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(values, torch.Tensor):
        return _from_tensor(torch, values, name)
    if np.ma.isMaskedArray(values):
        if np.ma.is_masked(values):
            n_masked = int(np.ma.getmaskarray(values).sum())
            raise ValueError(
                f"{name} is a masked array with {n_masked} masked value(s), which would be used as if they were "
                "data; drop them with .compressed(), or fill them with .filled(value)."
            )
        return values.data
    if isinstance(values, str | bytes | os.PathLike):
        raise ValueError(f"{name}={shown(values)} is text; give an array, for example numpy.load(path, mmap_mode='r').")
    datasets = sys.modules.get("datasets")
    if datasets is not None and isinstance(values, datasets.Dataset | datasets.IterableDataset):
        raise ValueError(
            f"{name} is a {type(values).__name__} with the columns {values.column_names}; give the column as an array, "
            f"for example numpy.asarray({name}.with_format('numpy')['activations'])."
        )
    array_like = hasattr(values, "__array__") or hasattr(values, "shape")  # a DOK matrix is a mapping
    if isinstance(values, Mapping | Set | Iterator) and not array_like:
        raise ValueError(f"{name} is a {type(values).__name__}, not an array; give an array or a list of numbers.")
    dtype = getattr(values, "dtype", None)
    if isinstance(dtype, np.dtype):
        _check_dtype(dtype, name)
    return values


def _from_tensor(torch: Any, values: Any, name: str) -> np.ndarray:
    if values.layout != torch.strided:
        raise ValueError(f"{name} is a sparse tensor; give a dense one, {name}.to_dense(), or a SciPy CSR matrix.")
    if values.is_complex():
        raise ValueError(f"{name} has dtype {values.dtype}. Complex data not supported; give real numbers.")
    if values.is_meta:
        raise ValueError(f"{name} is a tensor on torch's meta device, which holds no values; give one that does.")
    detached = values.detach().resolve_neg().cpu()
    return (
        detached.float() if detached.is_floating_point() and detached.dtype not in _as_numpy(torch) else detached
    ).numpy()


def _as_numpy(torch: Any) -> tuple[Any, ...]:
    return (torch.float16, torch.float32, torch.float64)


def _check_dtype(dtype: np.dtype, name: str) -> None:
    if dtype.kind in "mM":
        raise ValueError(f"{name} has dtype {dtype}: dates and durations are no numbers; convert them first.")
    if dtype.kind == "c":
        raise ValueError(f"{name} has dtype {dtype}. Complex data not supported; give real numbers.")


def check_numeric(values: Any, name: str) -> Any:
    """Apply `plain_array`, and refuse non-numbers accepted by scikit-learn's `validate_data`.

    scikit-learn reads ``"3"`` as 3 and None in a target as NaN, and names no argument where an integer
    is beyond float64. Other faults, such as NaN or a wrong shape, are left to it.

    Raises
    ------
    ValueError
        As `plain_array`, or if `values` holds text, nothing, or integers beyond float64.
    """
    plain = plain_array(values, name)
    if plain is None or hasattr(plain, "nnz"):
        return plain
    try:
        array = np.asarray(plain)
    except ValueError:  # ragged
        return plain
    _check_dtype(array.dtype, name)
    if array.dtype.kind in "USV":
        raise ValueError(f"{name}={shown(values)} holds text, not numbers; convert it first.")
    for value in array.ravel() if array.dtype.kind == "O" else ():
        if isinstance(value, str | bytes):
            raise ValueError(f"{name} holds {shown(value)}, which is text, not a number; convert it first.")
        if value is None or type(value).__name__ in ("NAType", "NaTType"):
            raise ValueError(f"{name} holds {value!r} and so contains NaN; drop or replace values that are missing.")
        if isinstance(value, numbers.Integral) and abs(int(value)) > _LARGEST:
            raise ValueError(f"{name} holds {shown(value)}, which float64 can't; give finite numbers.")
    return plain


def check_array_of_numbers(
    values: Any,
    name: str,
    *,
    ndim: int | None = 1,
    low: float = -np.inf,
    high: float = np.inf,
    empty: bool = False,
    column: bool = True,
) -> np.ndarray:
    """Return finite float64 numbers, in memory of their own.

    Parameters
    ----------
    values : array-like
        Numbers: an array, list, Series, column of a DataFrame or tensor.
    name : str
        Name of the argument, for messages.
    ndim : int or None, default=1
        Dimensions asked for; None takes any.
    low, high : float
        Interval that the numbers must lie in.
    empty : bool, default=False
        Whether no number at all will do.
    column : bool, default=True
        Whether (n, 1) is read as (n,) where `ndim` is 1.

    Returns
    -------
    numbers : ndarray, float64
        A copy of the values.

    Raises
    ------
    ValueError
        If anything else was given; the message names the argument.
    """
    plain = plain_array(values, name)
    try:
        array = np.asarray(plain)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}={shown(values)} is no array of numbers: {error}.") from error
    _check_dtype(array.dtype, name)
    if array.dtype.kind in "USV":
        raise ValueError(f"{name}={shown(values)} holds text, not numbers; convert it first.")
    if array.dtype.kind == "O" and any(isinstance(value, str | bytes | complex) for value in array.ravel()):
        raise ValueError(f"{name}={shown(values)} holds text or complex numbers; give real numbers.")
    try:
        numbers_ = np.array(array, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name}={shown(values)} holds what float64 can't: {error}; give finite numbers.") from error
    with np.errstate(over="ignore", invalid="ignore"):
        total = numbers_.sum()  # finite only if all numbers are; one pass, no copy
    if not np.isfinite(total) and not np.isfinite(numbers_).all():
        what = "NaN" if np.isnan(numbers_).any() else "infinity"
        raise ValueError(f"{name} contains {what}; drop or replace values that are not finite.")
    if column and ndim == 1 and numbers_.ndim == 2 and numbers_.shape[1] == 1:
        numbers_ = numbers_[:, 0]
    if ndim is not None and numbers_.ndim != ndim:
        wanted = {0: "a number", 1: "one dimension or one column"}.get(ndim, f"{ndim} dimensions")
        raise ValueError(f"{name} has shape {numbers_.shape}; give {wanted}. Reshape your data.")
    if not numbers_.size:
        if empty:
            return numbers_
        raise ValueError(f"{name} is empty: Found array with 0 sample(s) while a minimum of 1 is required.")
    if low > -np.inf and (smallest := numbers_.min()) < low:
        negative = "Negative values in data passed to " if low == 0 else ""
        raise ValueError(f"{negative}{name}: {smallest:g} is below {low:g}, the least allowed.")
    if high < np.inf and (largest := numbers_.max()) > high:
        raise ValueError(f"{name}: {largest:g} is above {high:g}, the most allowed.")
    return numbers_


def check_csr(matrix: Any, name: str) -> None:
    """Refuse a sparse matrix with indices out of range, because compiled code would follow them.

    SciPy and scikit-learn do not check them, and sooner or later crash the interpreter. Everything passes except SciPy
    matrices in CSR, CSC, BSR or COO format.

    Raises
    ------
    ValueError
        If a row pointer or an index is out of range, or their numbers don't fit the shape.
    """
    kind = getattr(matrix, "format", None)
    remedy = f"build {name} anew with scipy.sparse.csr_array((data, (rows, columns)), shape), which checks them"
    if kind == "coo":
        for axis, (places, length) in enumerate(zip(matrix.coords, matrix.shape, strict=True)):
            _check_places(places, length, f"{name} holds coordinates of axis {axis}", remedy)
        return
    if kind not in ("csr", "csc", "bsr"):
        return
    pointers, indices, data = matrix.indptr, matrix.indices, matrix.data
    major, minor = (1, *matrix.shape)[-2:] if kind != "csc" else matrix.shape[::-1]
    if kind == "bsr":
        major, minor = major // data.shape[1], minor // data.shape[2]
    pointer, index = ("column", "row") if kind == "csc" else ("row", "column")
    if pointers.shape != (major + 1,) or indices.ndim != 1 or len(indices) != len(data):
        raise ValueError(
            f"{name} is a malformed {kind.upper()} matrix: {len(pointers)} {pointer} pointers, {indices.size} indices "
            f"and {len(data)} values for the shape {matrix.shape}; {remedy}."
        )
    if pointers[0] != 0 or pointers[-1] > len(indices) or (pointers[1:] < pointers[:-1]).any():
        raise ValueError(
            f"{name} is a malformed {kind.upper()} matrix: its {pointer} pointers must rise from 0 to at most the "
            f"{len(indices)} stored values; {remedy}."
        )
    _check_places(indices, minor, f"{name} is a malformed {kind.upper()} matrix with {index} indices", remedy)


def _check_places(places: np.ndarray, length: int, what: str, remedy: str) -> None:
    if places.size and (places.min() < 0 or places.max() >= length):
        raise ValueError(f"{what} from {places.min()} to {places.max()}, outside 0 to {length - 1}; {remedy}.")


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn at the user's line: the nearest one outside geofloor, scikit-learn and joblib.

    Parameters
    ----------
    message : str
        Cause, then remedy.
    category : type of Warning
        For example `sklearn.exceptions.ConvergenceWarning`.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INNER:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def is_stream(X: Any) -> bool:
    """Return whether `X` is an iterable of two-dimensional batches, not an array of rows."""
    if isinstance(X, list | tuple):
        return len(X) > 0 and getattr(X[0], "ndim", 0) == 2
    is_array = hasattr(X, "__array__") or hasattr(X, "shape") or isinstance(X, str | bytes | Mapping | Set)
    return isinstance(X, Iterable) and not is_array
