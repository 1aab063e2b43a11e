"""Reading of runs, the widths of distilled students and their losses, and warnings about doubtful ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import validate_data

from geofloor._validation import check_array_of_numbers, check_numeric, shown, warn_caller

LARGEST = 1e150  # loss; squares of it must not overflow
LARGEST_ERROR = 100.0  # as a share of the loss; squares of it must not overflow
SEEDS_DIFFER = 0.05  # largest expected difference between two seeds of one width, as a share of the loss
# Above it float64 skips whole numbers.
WIDEST = 2.0**53
# Losses in nats per token are seldom whole, and mostly below the logarithm of the vocabulary's size.
# Whole numbers from here on are taken for widths.
_LEAST_WIDTH = 8


def read_runs(estimator: Any, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Read the widths and losses given to an estimator's fit.

    Returns
    -------
    widths : ndarray of shape (n_runs,), float64
        Above 0.
    losses : ndarray of shape (n_runs,), float64
        Finite.

    Raises
    ------
    ValueError
        If they are anything else, differ in length, or seem to be exchanged.
    """
    column, losses = validate_data(
        estimator, as_column(check_numeric(X, "X")), check_numeric(y, "y"), dtype=np.float64, y_numeric=True
    )
    widths, losses = _one_column(column), losses.astype(np.float64)
    if np.abs(losses).max() > LARGEST:
        raise ValueError(f"y holds a loss of {np.abs(losses).max():.3g}; losses are in nats per token.")
    if np.any(tiny := (losses != 0.0) & (np.abs(losses) < 1.0 / LARGEST)):
        raise ValueError(f"y holds a loss of {losses[tiny][0]:.3g}; losses are in nats per token.")
    check_order(widths, losses)
    return widths, losses


def read_widths(widths: Any) -> np.ndarray:
    """Read the widths of a prediction, (n_widths,) float64, at least 0."""
    return check_array_of_numbers(widths, "widths", low=0.0, high=WIDEST)


def read_loss_error(loss_error: Any, n_runs: int, *, several_budgets: bool) -> np.ndarray:
    """Read the error of each loss, one share for all runs or one each.

    Returns
    -------
    errors : ndarray of shape (n_runs,), float64
        At least 0, and all 0 if nothing is given.

    Raises
    ------
    ValueError
        If they are no shares of at least 0, their number is not that of the runs, or the runs have several budgets.
    """
    if loss_error is None:
        return np.zeros(n_runs)
    errors = check_array_of_numbers(loss_error, "loss_error", ndim=None, low=0.0, high=LARGEST_ERROR)
    errors = np.full(n_runs, float(errors)) if errors.ndim == 0 else errors
    if errors.shape != (n_runs,):
        raise ValueError(
            f"loss_error has shape {errors.shape} for {n_runs} runs; give one share per run, or one for all."
        )
    if several_budgets:
        raise ValueError(
            f"loss_error={shown(loss_error)} is for runs of one budget, but n_steps holds several; leave one of them "
            "out, or fit the runs of one budget alone."
        )
    return errors


def as_column(X: Any) -> Any:
    """Turn one dimension into a column, and leave everything else to scikit-learn's validation."""
    if isinstance(X, list | tuple | range):
        try:
            X = np.asarray(X)
        except ValueError:  # ragged
            return X
    return np.asarray(X).reshape(-1, 1) if len(getattr(X, "shape", ())) == 1 else X


def _one_column(column: np.ndarray) -> np.ndarray:
    if column.shape[1] != 1:
        raise ValueError(f"X has {column.shape[1]} columns; give one column of widths.")
    if not column.min() > 0:
        raise ValueError(f"X holds the width {column.min():g}; widths must be above 0.")
    if column.max() > WIDEST:
        raise ValueError(f"X holds the width {column.max():g}; widths must be at most 2**53 dimensions.")
    return column[:, 0]


def check_order(widths: np.ndarray, losses: np.ndarray, names: tuple[str, str] = ("X", "y")) -> None:
    """Refuse widths in place of losses.

    Raises
    ------
    ValueError
        If all losses are whole numbers of at least 8, and no width is whole or all are below every loss.
    """
    whole = losses.min() >= _LEAST_WIDTH and (losses == np.rint(losses)).all()
    if whole and ((widths != np.rint(widths)).any() or widths.max() < losses.min()):
        raise ValueError(
            f"{names[1]} holds {losses.min():g} to {losses.max():g}, all whole like widths, and {names[0]} "
            f"{widths.min():g} to {widths.max():g}: widths come first, then losses in nats per token; "
            f"exchange {names[0]} and {names[1]}."
        )


def warn_of_rise(widths: np.ndarray, losses: np.ndarray, tolerance: float) -> None:
    """Warn if a run's loss exceeds a narrower run's by more than a share `tolerance`.

    Warns
    -----
    UserWarning
        Names the two runs with the largest rise.
    """
    order = np.lexsort((losses, widths))
    widths, losses = widths[order], losses[order]
    n_narrower = np.searchsorted(widths, widths)
    lowest = np.minimum.accumulate(losses)[n_narrower - 1]
    rise = np.where(n_narrower > 0, losses - lowest, 0.0)
    high = int(np.argmax(rise))
    if rise[high] > tolerance * abs(lowest[high]):
        low = int(np.argmin(losses[: n_narrower[high]]))
        warn_caller(
            f"The loss rises with width: {losses[low]:.3g} at width {widths[low]:g}, {losses[high]:.3g} at width "
            f"{widths[high]:g}. Wider students lose less when all are trained alike, so a forecast from these runs "
            "is not to be trusted; train the wider one for longer, check which loss belongs to which width, and that "
            "all are divergences at one temperature, with the factor T² in none.",
            UserWarning,
        )
