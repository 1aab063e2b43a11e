"""Fit a power law to the largest values of a sample."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import chi2

from geofloor._validation import check_array_of_numbers, check_number

_MIN_TAIL = 50  # with fewer, the relative standard error of β − 1 is over 14%
_MAX_STARTS = 100


class PowerLawTail(NamedTuple):
    """Power law p(x) ∝ x^−β fitted to the largest values of a sample.

    Attributes
    ----------
    exponent : float
        Exponent β of the density; NaN if there are too few values.
    interval : tuple of (float, float)
        Confidence interval of the exponent, given `start`.
    start : float
        Largest value below the tail, in the unit of the values.
    n_tail : int
        Number of values above `start`.
    """

    exponent: float
    interval: tuple[float, float]
    start: float
    n_tail: int


def power_law_tail(values: ArrayLike, *, level: float = 0.9) -> PowerLawTail:
    r"""Fit a power law p(x) ∝ x^−β to the upper tail of positive values.

    Parameters
    ----------
    values : array-like of shape (n,)
        Sample, in any order. Zeros carry no information on a power law and are left out.
    level : float, default=0.9
        Coverage probability of the confidence interval, between 0 and 1.

    Returns
    -------
    tail : PowerLawTail
        Exponent with its interval, start of the tail and number of values in it. With fewer than
        51 distinct positive values all numbers are NaN and `n_tail` is 0.

    Raises
    ------
    ValueError
        If `values` is empty, not one-dimensional, negative or not finite, or `level` is not between 0 and 1.

    Notes
    -----
    Let the start :math:`x_0` be one of the values, with k values above it. The continuous maximum-likelihood
    estimate (Hill [1]_) is

    .. math:: \hat\beta = 1 + k \Big/ \sum_{x_i > x_0} \ln(x_i / x_0),

    and :math:`2k\,(\beta - 1)/(\hat\beta - 1)` follows :math:`\chi^2_{2k}` exactly. The interval follows from this
    distribution. The start minimizes the Kolmogorov-Smirnov distance between tail and fit [2]_ over at most 100 values
    at log-spaced ranks; each leaves a tail of at least 50 values. The interval does not cover the uncertainty of the
    start.

    The function returns its best power law even for a sample without one.

    References
    ----------
    .. [1] Hill (1975), "A simple general approach to inference about the tail of a distribution",
       Annals of Statistics 3(5).
    .. [2] Clauset, Shalizi and Newman (2009), "Power-law distributions in empirical data",
       SIAM Review 51(4), Sections 3.1 and 3.3.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor.features import power_law_tail
    >>> tail = power_law_tail(np.linspace(0, 1, 10_000, endpoint=False)[1:] ** -0.5)  # β = 3
    >>> round(tail.exponent, 1)
    3.0
    """
    level = check_level(level)
    sample = check_array_of_numbers(values, "values", column=False)
    if sample.min() < 0:
        raise ValueError(f"values holds {sample.min()!r}; a power law has positive values only.")
    descending = np.sort(sample[sample > 0])[::-1]
    logs = np.log(descending)
    best, closest = PowerLawTail(math.nan, (math.nan, math.nan), math.nan, 0), math.inf
    for size in _tail_sizes(logs):
        excess = logs[:size] - logs[size]
        shape = size / excess.sum()
        survival, steps = np.exp(-shape * excess), np.arange(size + 1) / size
        distance = max(np.max(survival - steps[:-1]), np.max(steps[1:] - survival))
        if distance < closest:
            closest = distance
            low, high = chi2.ppf([0.5 - level / 2, 0.5 + level / 2], 2 * size) / (2 * size)
            interval = (float(1 + shape * low), float(1 + shape * high))
            best = PowerLawTail(float(1 + shape), interval, float(descending[size]), int(size))
    return best


def _tail_sizes(logs: np.ndarray) -> np.ndarray:
    """List the numbers of values above the candidate starts, without splitting equal values."""
    if len(logs) <= _MIN_TAIL:
        return np.empty(0, dtype=np.intp)
    ranks = np.rint(np.geomspace(_MIN_TAIL, len(logs) - 1, _MAX_STARTS)).astype(np.intp)
    sizes = np.unique(np.searchsorted(-logs, -logs[ranks], side="left"))
    return sizes[sizes >= _MIN_TAIL]


def check_level(level: float) -> float:
    """Refuse a coverage probability outside the open interval from 0 to 1."""
    return check_number("level", level, 0.0, 1.0, open_low=True, open_high=True)
