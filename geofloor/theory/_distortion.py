r"""Distortion curves of trained students, measured on toy models and shipped as tables.

Students with d dimensions were trained on K features of equal importance and sparsity α. The tables hold their
losses relative to the second moment, D(d, K; α). These are the blocks of a packing, and their lower convex hull over
c = d/K is the curve D(c) of water-filling. There is one table per kind of student: ``"relu"`` decodes with the
transpose of its encoder and one ReLU, ``"deep"`` with two hidden layers of 256 units.

Between measured sparsities, shape-preserving cubics interpolate log D over log(1 − α). This is exact for a loss
proportional to a power of the firing rate, as for rare features. Between measured numbers of features they
interpolate the loss of a whole block, K·D.
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
from geofloor.theory._capacity import capacity
from geofloor.theory._curves import DistortionCurve, lower_hull

CURVES = ("relu", "deep")
STARTS = ("best", "mean")
# E[a] and E[a^2] of an active feature's amplitude a, by its law.
AMPLITUDES = {
    "uniform": (1 / 2, 1 / 3),
    "exponential": (1.0, 2.0),
    "half-normal": (np.sqrt(2 / np.pi), 1.0),
    "constant": (1.0, 1.0),
}

_SMALLEST = 1e-12  # replaces distortions of zero, which have no logarithm
_MOST_INTERPOLATED = 64  # largest number of features of an interpolated block


class Blocks(NamedTuple):
    """Groups of features sharing a few dimensions, at one sparsity."""

    widths: np.ndarray  # (n_blocks,) dimensions
    features: np.ndarray  # (n_blocks,) features
    distortions: np.ndarray  # (n_blocks,) loss of each feature, relative to its second moment


class _Table:
    """Interpolate the measured blocks of one kind of student at any sparsity."""

    def __init__(self, rows: np.ndarray, starts: str) -> None:
        alphas = np.unique(rows["alpha"])
        self.log_rates = -np.log(1.0 - alphas)
        kinds, block = np.unique(np.column_stack([rows["width"], rows["n_features"]]), axis=0, return_inverse=True)
        self.widths, self.features = kinds.astype(np.int64).T
        logs = np.full((len(alphas), len(kinds)), np.nan)
        logs[np.searchsorted(alphas, rows["alpha"]), block.ravel()] = np.log(np.maximum(rows[starts], _SMALLEST))
        # Blocks of many features are measured at high sparsity only. Those that begin at the same one share an
        # interpolator.
        first = np.isfinite(logs).argmax(axis=0)
        self._groups = []
        for start in np.unique(first):
            chosen = np.flatnonzero(first == start)
            if start < len(alphas) - 1:
                self._groups.append((start, chosen, PchipInterpolator(self.log_rates[start:], logs[start:, chosen])))
        hulls = [self._hull_of(np.exp(row)) for row in logs]
        self._candidates = [np.union1d(*pair) for pair in itertools.pairwise(hulls)]

    def at(self, alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Interpolate each block at each sparsity, NaN where unmeasured; also return the interval of each α."""
        places = np.clip(-np.log(1.0 - alphas), self.log_rates[0], self.log_rates[-1])
        distortions = np.full((len(alphas), len(self.widths)), np.nan)
        for start, chosen, curve in self._groups:
            known = np.flatnonzero(places >= self.log_rates[start])
            distortions[np.ix_(known, chosen)] = np.exp(curve(places[known]))
        intervals = np.searchsorted(self.log_rates, places, side="right") - 1
        return np.minimum(distortions, 1.0), np.minimum(intervals, len(self.log_rates) - 2)

    def hull_points(self, alphas: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Select candidates for the hull at each sparsity, as capacities and distortions."""
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
        next(lines)  # the command that measured the table
        names = next(lines).strip().split(",")
        rows = np.loadtxt(lines, delimiter=",", dtype=[(name, np.float64) for name in names])
    return _Table(rows, starts)


def blocks(alpha: float, *, curve: str = "relu", starts: str = "best") -> Blocks:
    """Look up the losses of blocks, K features in d dimensions, at a sparsity.

    Parameters
    ----------
    alpha : float
        Sparsity, in [0, 1).
    curve : {"relu", "deep"}, default="relu"
        Decoder of the student: one ReLU layer with tied weights, or two hidden layers.
    starts : {"best", "mean"}, default="best"
        Loss of the best training, or the mean over starting points. Models of few features often end in poor
        minima, such as two features in one dimension that point the same way. Larger models avoid them.

    Returns
    -------
    blocks : Blocks
        All blocks measured around α, and interpolated blocks of up to 64 features. Blocks end at four times the
        features of an ideal decoder.

    Raises
    ------
    ValueError
        If `alpha` is outside [0, 1), or `curve` or `starts` is unknown.

    Notes
    -----
    Sparsities were measured from 0 to 0.9999 for ``"relu"``, and from 0.8 to 0.999 for ``"deep"``. Beyond them the
    nearest measurement is used.

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
    # A block far beyond the capacity of an ideal decoder saves next to nothing.
    most = max(4.0 * capacity(alpha, "minimax_nonnegative"), 4.0)
    # A feature with a dimension to itself loses nothing: this block needs no measurement.
    found = [(np.array([1]), np.array([1]), np.array([0.0]))]
    for width in np.unique(table.widths):
        known = (table.widths == width) & np.isfinite(distortions)
        features, losses = table.features[known], distortions[known] * table.features[known]
        if not len(features):
            continue
        counts = np.union1d(features, np.arange(width + 1, min(int(features[-1]), _MOST_INTERPOLATED) + 1))
        counts = counts[counts <= most * width]
        between = PchipInterpolator(np.append(width, features), np.append(0.0, losses))(counts)
        # The hull bounds every division of dimensions from below, so interpolated losses must not lie under it.
        found.append((np.full(len(counts), width), counts, np.maximum(between / counts, hull(width / counts))))
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    if starts == "mean":  # the mean and the best of several starts are interpolated apart, and can cross
        columns[2] = np.maximum(columns[2], _blocks(alpha, curve, "best").distortions)
    for column in columns:
        column.setflags(write=False)  # the cache gives the same arrays to the next call
    return Blocks(*columns)


def empty_distortion(alpha: float, amplitude: str = "uniform") -> float:
    """Compute the loss of a feature without dimensions, relative to its second moment.

    A student with a bias answers such a feature with its mean, so that the loss is the variance.

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
        If `alpha` is outside [0, 1), or `amplitude` is unknown.

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
    """Refuse an unknown law of amplitudes.

    Parameters
    ----------
    amplitude : str
        Law of an active feature.

    Raises
    ------
    ValueError
        If `amplitude` is not among `AMPLITUDES`.

    Examples
    --------
    >>> from geofloor.theory._distortion import check_amplitude
    >>> check_amplitude("uniform")
    """
    check_choice("amplitude", amplitude, tuple(AMPLITUDES))


def distortion_curve(
    alpha: float, *, curve: str = "relu", starts: str = "best", empty: float | None = None
) -> DistortionCurve:
    """Make the distortion curve D(c) at a sparsity.

    It falls from the variance at 0 to nothing at one dimension per feature.

    Parameters
    ----------
    alpha : float
        Sparsity, in [0, 1).
    curve : {"relu", "deep"}, default="relu"
        Decoder of the student, as in `blocks`.
    starts : {"best", "mean"}, default="best"
        Best training, or the mean over starting points, as in `blocks`.
    empty : float, default=None
        Loss of a feature without dimensions, in [0, 1]; by default its variance under the uniform law.

    Returns
    -------
    curve : DistortionCurve
        The lower convex hull of all blocks.

    Raises
    ------
    ValueError
        If `alpha` is outside [0, 1), `empty` is outside [0, 1], or `curve` or `starts` is unknown.

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
    """Make the distortion curves at several sparsities, faster than one by one with `distortion_curve`.

    Parameters
    ----------
    alphas : array-like of shape (n_curves,)
        Sparsities, in [0, 1).
    curve : {"relu", "deep"}, default="relu"
        Decoder of the student, as in `blocks`.
    starts : {"best", "mean"}, default="best"
        Best training, or the mean over starting points, as in `blocks`.
    empty : array-like of shape (n_curves,), default=None
        Loss of a feature without dimensions, in [0, 1]; by default its variance under the uniform law.

    Returns
    -------
    curves : list of DistortionCurve
        One curve per sparsity.

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
