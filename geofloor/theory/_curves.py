"""Distortion curves: the loss of a feature as a function of its share of the dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from geofloor._validation import check_array_of_numbers, check_number, shown


@dataclass(frozen=True, eq=False)
class DistortionCurve:
    r"""Loss of a feature as a convex, piecewise linear function D(c) of its dimensions.

    Parameters
    ----------
    capacities : array-like of shape (n_points,)
        Dimensions per feature c, increasing from 0.
    distortions : array-like of shape (n_points,)
        Loss at each, relative to the second moment: non-increasing and convex. Beyond the last point D is constant.

    Raises
    ------
    ValueError
        If the capacities do not increase from 0, or the distortions are negative, increasing or not convex.

    Examples
    --------
    >>> from geofloor.theory import DistortionCurve
    >>> curve = DistortionCurve([0, 0.25, 1], [0.9, 0.3, 0])
    >>> curve([0.125, 0.25, 2.0]).round(3)
    array([0.6, 0.3, 0. ])
    """

    capacities: ArrayLike
    distortions: ArrayLike

    def __post_init__(self) -> None:
        c, d = (check_array_of_numbers(getattr(self, name), name) for name in ("capacities", "distortions"))
        if c.shape != d.shape or len(c) < 2:
            raise ValueError(
                f"capacities and distortions have shapes {c.shape} and {d.shape}; give two of one length, at least 2."
            )
        if c[0] != 0.0 or (np.diff(c) <= 0.0).any():
            raise ValueError(f"capacities={shown(c)} must increase from 0.")
        with np.errstate(over="ignore"):
            slopes = np.diff(d) / np.diff(c)
        if not np.isfinite(slopes).all():
            raise ValueError(f"capacities={shown(c)} are so close that the slope between them overflows float64.")
        if d.min() < 0.0 or (slopes > 0.0).any() or (np.diff(slopes) < -1e-9 * np.abs(slopes).max()).any():
            raise ValueError("distortions must be at least 0, non-increasing and convex; lower_hull makes them so.")
        for name, values in (("capacities", c), ("distortions", d)):
            values.setflags(write=False)
            object.__setattr__(self, name, values)  # a copy: callers may change their arrays

    def __call__(self, capacities: Any) -> np.ndarray:
        """Evaluate the curve.

        Parameters
        ----------
        capacities : array-like
            Dimensions per feature, at least 0.

        Returns
        -------
        distortions : ndarray
            Loss relative to the second moment.

        Raises
        ------
        ValueError
            If a capacity is negative or not finite.
        """
        at = check_array_of_numbers(capacities, "capacities", ndim=None, low=0.0, empty=True)
        return np.interp(at, np.asarray(self.capacities), np.asarray(self.distortions))

    @property
    def segments(self) -> tuple[np.ndarray, np.ndarray]:
        """Savings per dimension and length of each linear piece, in descending order of savings."""
        lengths = np.diff(np.asarray(self.capacities, dtype=np.float64))
        savings = -np.diff(np.asarray(self.distortions, dtype=np.float64)) / lengths
        return savings, lengths


def cutoff_curve(capacity: float) -> DistortionCurve:
    """Make the distortion curve of the cut-off of Eq. 2.

    A feature costs 1/g dimensions, and then loses nothing. Water-filling this curve keeps the features with the
    largest charges.

    Parameters
    ----------
    capacity : float
        Features per dimension g, above 0.

    Returns
    -------
    curve : DistortionCurve
        max(0, 1 − c·g).

    Raises
    ------
    ValueError
        If `capacity` is not above 0, or is above 1e300.

    Examples
    --------
    >>> from geofloor.theory import cutoff_curve
    >>> cutoff_curve(4.0)([0, 0.125, 0.25])
    array([1. , 0.5, 0. ])
    """
    # Up to 1e300 features per dimension, 1/g is a normal number.
    capacity = check_number("capacity", capacity, 0.0, 1e300, open_low=True)
    return DistortionCurve([0.0, 1.0 / capacity], [1.0, 0.0])


def lower_hull(capacities: ArrayLike, distortions: ArrayLike) -> DistortionCurve:
    """Find the largest convex, non-increasing curve below measured points.

    A model can treat two groups of features differently, and so reaches every point between two points that it
    reaches.

    Parameters
    ----------
    capacities : array-like of shape (n_points,)
        Dimensions per feature, with 0 among them.
    distortions : array-like of shape (n_points,)
        Measured losses, relative to the second moment.

    Returns
    -------
    curve : DistortionCurve
        Lower convex hull; constant if no number of dimensions loses less than 0 dimensions do.

    Raises
    ------
    ValueError
        If capacities and distortions differ in length, if 0 is not among the capacities or is the only one, or if a
        value is negative.

    Examples
    --------
    >>> from geofloor.theory import lower_hull
    >>> lower_hull([0, 0.1, 0.5, 1], [1, 0.95, 0.2, 0]).capacities
    array([0. , 0.5, 1. ])
    """
    c, d = check_array_of_numbers(capacities, "capacities", low=0.0), check_array_of_numbers(distortions, "distortions")
    if c.shape != d.shape or c.min() > 0.0 or c.max() == 0.0:
        raise ValueError(
            f"capacities={shown(c)} and distortions={shown(d)} must be of one length, with a capacity of 0 and others."
        )
    order = np.lexsort((d, c))
    hull: list[int] = []
    for i in order:
        if hull and (c[i] == c[hull[-1]] or d[i] >= d[hull[-1]]):
            continue
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (d[b] - d[a]) * (c[i] - c[a]) < (d[i] - d[a]) * (c[b] - c[a]):
                break
            hull.pop()
        hull.append(i)
    if len(hull) == 1:
        return DistortionCurve([0.0, c.max()], [d[hull[0]], d[hull[0]]])
    return DistortionCurve(c[hull], d[hull])
