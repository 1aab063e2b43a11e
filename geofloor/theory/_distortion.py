r"""Distortion curves that trained students reach, measured on toy models and shipped as tables.

For K features of equal importance and sparsity α in d dimensions, students were trained and their losses
kept, relative to the second moment: D(d, K; α). From it come the curve D(c) of water-filling, the lower
convex hull over c = d/K, and the blocks of a packing. There is a table for each kind of student: ``"relu"``
decodes with the transpose of its encoder and one ReLU, ``"deep"`` with two hidden layers of 256 units.

Between measured sparsities log D is interpolated over log(1 − α) by shape-preserving cubics, which is exact
where the loss is proportional to a power of the firing rate, as it is for rare features. Between measured
numbers of features the loss of a whole block, K·D, is.
"""

from __future__ import annotations

import functools
import itertools
from importlib import resources
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator

from geofloor._validation import check_array_of_numbers, check_choice, check_number
from geofloor.theory._allocation import DistortionCurve, lower_hull
from geofloor.theory._capacity import capacity

CURVES = ("relu", "deep")
STARTS = ("best", "mean")
# E[a] and E[a^2] of an active feature's amplitude a, by its law.
AMPLITUDES = {
    "uniform": (1 / 2, 1 / 3),
    "exponential": (1.0, 2.0),
    "half-normal": (np.sqrt(2 / np.pi), 1.0),
    "constant": (1.0, 1.0),
}


_SMALLEST = 1e-12  # stands for a distortion of zero, which has no logarithm
_MOST_INTERPOLATED = 64  # features of a block that was not measured itself


class Blocks(NamedTuple):
    """Groups of features that share a few dimensions, at one sparsity."""

    widths: np.ndarray  # (n_blocks,) dimensions
    features: np.ndarray  # (n_blocks,) features
    distortions: np.ndarray  # (n_blocks,) loss of each feature, relative to its second moment


class _Table:
    """Measured blocks of one kind of student, which any sparsity can be asked for."""

    def __init__(self, rows: np.ndarray, starts: str) -> None:
        alphas = np.unique(rows["alpha"])
        self.log_rates = -np.log(1.0 - alphas)
        kinds, block = np.unique(np.column_stack([rows["width"], rows["n_features"]]), axis=0, return_inverse=True)
        self.widths, self.features = kinds.astype(np.int64).T
        logs = np.full((len(alphas), len(kinds)), np.nan)
        logs[np.searchsorted(alphas, rows["alpha"]), block.ravel()] = np.log(np.maximum(rows[starts], _SMALLEST))
        # Many features are measured at high sparsity only: kinds that begin at the same one share an interpolator.
        first = np.isfinite(logs).argmax(axis=0)
        self._groups = []
        for start in np.unique(first):
            chosen = np.flatnonzero(first == start)
            if start < len(alphas) - 1:
                self._groups.append((start, chosen, PchipInterpolator(self.log_rates[start:], logs[start:, chosen])))
        hulls = [self._hull_of(np.exp(row)) for row in logs]
        self._candidates = [np.union1d(*pair) for pair in itertools.pairwise(hulls)]

    def at(self, alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distortion of each kind at each sparsity, NaN where it was not measured, and the interval α lies in."""
        places = np.clip(-np.log(1.0 - alphas), self.log_rates[0], self.log_rates[-1])
        distortions = np.full((len(alphas), len(self.widths)), np.nan)
        for start, chosen, curve in self._groups:
            known = np.flatnonzero(places >= self.log_rates[start])
            distortions[np.ix_(known, chosen)] = np.exp(curve(places[known]))
        intervals = np.searchsorted(self.log_rates, places, side="right") - 1
        return np.minimum(distortions, 1.0), np.minimum(intervals, len(self.log_rates) - 2)

    def hull_points(self, alphas: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Capacities and distortions of the blocks that may lie on the hull at each sparsity."""
        points = []
        for distortions, interval in zip(*self.at(alphas), strict=True):
            chosen = self._candidates[interval]
            chosen = chosen[np.isfinite(distortions[chosen])]
            points.append((self.widths[chosen] / self.features[chosen], distortions[chosen]))
        return points

    def _hull_of(self, distortions: np.ndarray) -> np.ndarray:
        known = np.flatnonzero(np.isfinite(distortions))
        capacities = self.widths[known] / self.features[known]
        hull = lower_hull(np.append(capacities, [0.0, 1.0]), np.append(distortions[known], [1.0, 0.0]))
        return known[np.isin(capacities, np.asarray(hull.capacities))]


@functools.cache
def _table(curve: str, starts: str) -> _Table:
    file = resources.files("geofloor.theory") / "_distortion_tables" / f"{curve}_uniform.csv"
    with file.open(encoding="utf-8") as lines:
        next(lines)  # the command
        names = next(lines).strip().split(",")
        rows = np.loadtxt(lines, delimiter=",", dtype=[(name, np.float64) for name in names])
    return _Table(rows, starts)


def blocks(alpha: float, *, curve: str = "relu", starts: str = "best") -> Blocks:
    """Blocks at a sparsity: what K features lose in d dimensions.

    Parameters
    ----------
    alpha : float
        Sparsity, in [0, 1).
    curve : {"relu", "deep"}, default="relu"
        What the student's decoder can compute: one ReLU layer with tied weights, or two hidden layers.
    starts : {"best", "mean"}, default="best"
        Loss of the best of the starting points that were tried, or their mean. Models of few features often
        end in poor minima, which larger models avoid: two features in one dimension, pointing the same way.

    Returns
    -------
    blocks : Blocks
        All that were measured at the sparsities around α, and those between them of up to 64 features, as far as
        four times the features that an ideal decoder could keep.

    Raises
    ------
    ValueError
        If α is outside [0, 1), or `curve` or `starts` is unknown.

    Notes
    -----
    Measured are α from 0 to 0.9999 for ``"relu"`` and from 0.8 to 0.999 for ``"deep"``; beyond, the nearest
    measurements are used as they are.

    Examples
    --------
    >>> from geofloor.theory import blocks
    >>> found = blocks(0.9)
    >>> bool((found.features >= found.widths).all())
    True
    """
    return _blocks(
        check_number("alpha", alpha, 0.0, 1.0, open_high=True),
        check_choice("curve", curve, CURVES),
        check_choice("starts", starts, STARTS),
    )


@functools.lru_cache(maxsize=256)
def _blocks(alpha: float, curve: str, starts: str) -> Blocks:
    table = _table(curve, starts)
    distortions = table.at(np.array([alpha]))[0][0]
    hull = distortion_curve(alpha, curve=curve, starts=starts, empty=1.0)
    # Far beyond what an ideal decoder could keep, a block saves next to nothing.
    most = max(4.0 * capacity(alpha, "minimax_nonnegative"), 4.0)
    # A block that needs no measurement: a feature with a dimension to itself loses nothing.
    found = [(np.array([1]), np.array([1]), np.array([0.0]))]
    for width in np.unique(table.widths):
        known = (table.widths == width) & np.isfinite(distortions)
        features, losses = table.features[known], distortions[known] * table.features[known]
        if not len(features):
            continue
        counts = np.union1d(features, np.arange(width + 1, min(int(features[-1]), _MOST_INTERPOLATED) + 1))
        counts = counts[counts <= most * width]
        between = PchipInterpolator(np.append(width, features), np.append(0.0, losses))(counts)
        # What is interpolated must not lie below the hull, which bounds every division of dimensions.
        found.append((np.full(len(counts), width), counts, np.maximum(between / counts, hull(width / counts))))
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    if starts == "mean":  # interpolated apart, the mean of several starts can come out below the best of them
        columns[2] = np.maximum(columns[2], _blocks(alpha, curve, "best").distortions)
    for column in columns:
        column.setflags(write=False)  # the next call gets the same arrays
    return Blocks(*columns)


def empty_distortion(alpha: float, amplitude: str = "uniform") -> float:
    """Loss of a feature without dimensions, relative to its second moment: its variance, since a bias is free.

    Parameters
    ----------
    alpha : float
        Sparsity, in [0, 1).
    amplitude : {"uniform", "exponential", "half-normal", "constant"}, default="uniform"
        Law of an active feature.

    Returns
    -------
    distortion : float
        1 − (1 − α) E[a]² / E[a²].

    Raises
    ------
    ValueError
        If α is outside [0, 1), or the law is unknown.

    Examples
    --------
    >>> from geofloor.theory import empty_distortion
    >>> round(empty_distortion(0.9), 4)
    0.925
    """
    check_amplitude(amplitude)
    alpha = check_number("alpha", alpha, 0.0, 1.0, open_high=True)
    mean, second_moment = AMPLITUDES[amplitude]
    return float(1.0 - (1.0 - alpha) * mean**2 / second_moment)


def check_amplitude(amplitude: str) -> None:
    """Refuse a law that is not known.

    Parameters
    ----------
    amplitude : str
        Law of an active feature.

    Raises
    ------
    ValueError
        If it is not among `AMPLITUDES`.

    Examples
    --------
    >>> from geofloor.theory._distortion import check_amplitude
    >>> check_amplitude("uniform")
    """
    check_choice("amplitude", amplitude, tuple(AMPLITUDES))


def distortion_curve(
    alpha: float, *, curve: str = "relu", starts: str = "best", empty: float | None = None
) -> DistortionCurve:
    """The curve D(c) at a sparsity: from the variance at 0 to nothing at one dimension a feature.

    Parameters
    ----------
    alpha : float
        Sparsity, in [0, 1).
    curve : {"relu", "deep"}, default="relu"
        What the student's decoder can compute, as in `blocks`.
    starts : {"best", "mean"}, default="best"
        Best of the starting points, or their mean, as in `blocks`.
    empty : float, default=None
        Loss of a feature without dimensions, in [0, 1]; by default that of the uniform law.

    Returns
    -------
    curve : DistortionCurve
        The lower convex hull of all blocks.

    Raises
    ------
    ValueError
        If α is outside [0, 1), `empty` outside [0, 1], or `curve` or `starts` is unknown.

    Examples
    --------
    >>> from geofloor.theory import distortion_curve
    >>> curve = distortion_curve(0.9)
    >>> curve([0.0, 1.0]).round(3).tolist()
    [0.925, 0.0]
    """
    alpha = check_number("alpha", alpha, 0.0, 1.0, open_high=True)
    losses = None if empty is None else [check_number("empty", empty, 0.0, 1.0)]
    return distortion_curves([alpha], curve=curve, starts=starts, empty=losses)[0]


def distortion_curves(
    alphas: ArrayLike, *, curve: str = "relu", starts: str = "best", empty: ArrayLike | None = None
) -> list[DistortionCurve]:
    """The curves at several sparsities: as `distortion_curve`, in less time than one by one.

    Parameters
    ----------
    alphas : array-like of shape (n_curves,)
        Sparsities, in [0, 1).
    curve : {"relu", "deep"}, default="relu"
        What the student's decoder can compute, as in `blocks`.
    starts : {"best", "mean"}, default="best"
        Best of the starting points, or their mean, as in `blocks`.
    empty : array-like of shape (n_curves,), default=None
        Loss of a feature without dimensions, in [0, 1]; by default that of the uniform law.

    Returns
    -------
    curves : list of DistortionCurve
        One for each sparsity.

    Raises
    ------
    ValueError
        If a sparsity is outside [0, 1), `empty` is outside [0, 1] or of another length, or `curve` or `starts` is
        unknown.

    Examples
    --------
    >>> from geofloor.theory import distortion_curves
    >>> [curve(0.1).round(2).tolist() for curve in distortion_curves([0.9, 0.99])]
    [0.7, 0.44]
    """
    sparsities = check_array_of_numbers(alphas, "alphas", low=0.0, empty=True)
    if (sparsities >= 1.0).any():
        raise ValueError(f"alphas holds {sparsities.max():g}; give sparsities of at least 0 and below 1.")
    if empty is None:
        losses = np.array([empty_distortion(alpha) for alpha in sparsities])
    else:
        losses = check_array_of_numbers(empty, "empty", low=0.0, high=1.0, empty=True)
    if losses.shape != sparsities.shape:
        raise ValueError(f"empty has {len(losses)} values for {len(sparsities)} alphas; give one for each.")
    table = _table(check_choice("curve", curve, CURVES), check_choice("starts", starts, STARTS))
    points = table.hull_points(sparsities)
    return [
        lower_hull(np.append(capacities, [0.0, 1.0]), np.append(distortions, [loss, 0.0]))
        for (capacities, distortions), loss in zip(points, losses, strict=True)
    ]
