"""Sum the codes of a batch per latent, and count its rows by their squared norm."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.utils import gen_batches

_CHUNK = 2**16  # codes summed at a time, so that their conversion to float64 stays in the cache
_LOWEST_POWER = -1074  # of 2, of float64
_FEW_ROWS = 1e-3  # share of the rows
_VANISHING = 1e-290  # squares below it lose digits
_OUTLYING = 100.0  # times the mean squared norm; the largest 0.1% then carry a tenth of the second moment or more


def sum_sparse(codes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Sum squares, firings and values per latent, and squares per row.

    Parameters
    ----------
    codes : CSR of shape (n_rows, n_latents)
        Codes of any dtype.

    Returns
    -------
    totals : ndarray of shape (3, n_latents), float64
        Sums of squares, numbers of firings and sums of values.
    squared_norms : ndarray of shape (n_rows_with_codes,), float64
        Sums of squares of the rows that store codes.
    """
    if not codes.has_canonical_format:  # repeated entries stand for their sum
        codes = codes.copy()
        codes.sum_duplicates()
    n_latents = codes.shape[1]
    totals = np.zeros((3, n_latents))
    squares, firings, sums = totals
    starts = codes.indptr[:-1][codes.indptr[1:] > codes.indptr[:-1]]
    squared_norms = np.zeros(len(starts))
    with np.errstate(over="ignore"):  # the caller refuses infinite sums
        for start in range(0, codes.nnz, chunk := max(_CHUNK, 2 * n_latents)):
            part = slice(start, min(start + chunk, codes.nnz))
            latents = codes.indices[part].astype(np.intp, copy=False)
            values = codes.data[part].astype(np.float64)
            fires = values != 0
            firings += np.bincount(latents if fires.all() else latents[fires], minlength=n_latents)
            sums += np.bincount(latents, values, minlength=n_latents)
            values *= values
            squares += np.bincount(latents, values, minlength=n_latents)
            # The first row of a chunk may start in the chunk before.
            first, last = np.searchsorted(starts, start, side="right") - 1, np.searchsorted(starts, part.stop)
            squared_norms[first:last] += np.add.reduceat(values, np.maximum(starts[first:last] - start, 0))
    return totals, squared_norms


def sum_dense(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum squares, firings and values per latent, (3, n_latents), and squares per row, (n_rows,)."""
    totals, squared_norms = np.zeros((3, codes.shape[1])), np.zeros(codes.shape[0])
    squares, firings, sums = totals
    with np.errstate(over="ignore"):
        for rows in gen_batches(codes.shape[0], max(1, _CHUNK // codes.shape[1])):
            values = codes[rows].astype(np.float64)
            firings += np.count_nonzero(values, axis=0)
            sums += values.sum(axis=0)
            squares += np.square(values, out=values).sum(axis=0)
            squared_norms[rows] = values.sum(axis=1)
    return totals, squared_norms


def count_by_power(squared_norms: np.ndarray) -> np.ndarray:
    """Count squared norms above zero by their power of 2, and sum them, (2, n_powers)."""
    squared_norms = squared_norms[squared_norms > 0.0]
    powers, n_powers = np.frexp(squared_norms)[1] - _LOWEST_POWER, 1025 - _LOWEST_POWER
    counts, sums = np.bincount(powers, minlength=n_powers), np.bincount(powers, squared_norms, n_powers)
    return np.stack([counts, sums]).astype(np.float64)


def largest_rows(by_power: np.ndarray) -> tuple[int, int, float]:
    """Measure the share of the largest 0.1% of rows in the sum of squared norms.

    Rows of the power of 2 that the 0.1% cuts in two count with their mean.

    Parameters
    ----------
    by_power : ndarray of shape (2, n_powers), float64
        Result of `count_by_power`.

    Returns
    -------
    n_largest, n_rows : int
        Number of the largest rows, and of all rows with a norm above zero.
    share : float
        Share of the largest rows in the sum.
    """
    counts, sums = by_power[:, ::-1]
    n_rows, total = int(counts.sum()), sums.sum()
    few = max(1, math.ceil(_FEW_ROWS * n_rows))
    taken = np.minimum(counts, np.maximum(few - (np.cumsum(counts) - counts), 0.0))
    largest = sums @ np.divide(taken, counts, out=np.zeros_like(counts), where=counts > 0.0)
    return few, n_rows, float(largest / total) if total > 0.0 else 0.0


def is_outlying(n_largest: int, n_rows: int, share: float) -> bool:
    """Return whether the largest rows, as measured by `largest_rows`, dominate the sum."""
    return share * n_rows >= _OUTLYING * n_largest


def check_sums(totals: np.ndarray, n_tokens: int, by_power: np.ndarray) -> None:
    """Refuse sums of no codes, from a file.

    Parameters
    ----------
    totals : ndarray of shape (3, n_latents), float64
        Sums of squares, numbers of firings and sums of values.
    n_tokens : int
        Number of rows.
    by_power : ndarray of shape (2, n_powers), float64
        Result of `count_by_power`.

    Raises
    ------
    ValueError
        If no codes have these sums.
    """
    if len(totals) != 3 or by_power.shape != (expected := count_by_power(np.empty(0))).shape:
        raise ValueError(f"it has sums of shape {totals.shape} and {by_power.shape}, not (3, n) and {expected.shape}")
    squares, firings, sums = totals
    counts, norms = by_power
    for what, numbers in (("firings", firings), ("rows", counts)):
        if not ((numbers >= 0) & (numbers <= n_tokens) & (numbers == np.rint(numbers))).all():
            raise ValueError(f"its numbers of {what} are not whole numbers from 0 to {n_tokens}")
    if squares.min() < 0.0 or norms.min() < 0.0 or not np.isfinite([squares.sum(), norms.sum()]).all():
        raise ValueError("its sums of squares are negative or beyond float64")
    most = np.sqrt(np.maximum(squares, _VANISHING)) * np.sqrt(firings)
    if counts.sum() > n_tokens or (np.abs(sums) > most * (1.0 + 1e-6)).any():
        raise ValueError("its sums of codes are larger than their squares allow")
