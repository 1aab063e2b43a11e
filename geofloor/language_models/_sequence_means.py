"""Means over the positions of sequences."""

from __future__ import annotations

import numpy as np


def mean_and_error(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Compute the mean over all positions and its standard error over sequences.

    Parameters
    ----------
    sums : ndarray of shape (n_sequences,)
        Sum over the positions of each sequence.
    counts : ndarray of shape (n_sequences,)
        Number of positions of each sequence.

    Returns
    -------
    mean : float
        Mean over all positions.
    error : float
        Standard error of that ratio of sums, with sequences as the unit of sampling; NaN for one sequence.
    """
    mean = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return mean, float("nan")
    residual = sums - mean * counts
    return mean, float(np.sqrt(np.square(residual).sum() * len(sums) / (len(sums) - 1)) / counts.sum())


def covariance_of_means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Compute the covariance matrix of several means over all positions, with sequences as the unit of sampling.

    Parameters
    ----------
    sums : ndarray of shape (n_means, n_sequences)
        Sums over the positions of each sequence.
    counts : ndarray of shape (n_sequences,)
        Number of positions of each sequence.

    Returns
    -------
    covariance : ndarray of shape (n_means, n_means)
        Squares of standard errors are on the diagonal; NaN for one sequence.
    """
    n = len(counts)
    if n < 2:
        return np.full((len(sums), len(sums)), np.nan)
    means = sums.sum(axis=1) / counts.sum()
    residual = (sums - means[:, np.newaxis] * counts) / counts.sum()
    return residual @ residual.T * (n / (n - 1))
