r"""Distortion curves that trained students reach, measured on toy models and shipped as a table.

For K features of equal importance and sparsity α in d dimensions, toy models were trained and their losses
kept, relative to the second moment: D(d, K; α). From it come the curve D(c) of water-filling, the lower
convex hull over c = d/K, and the blocks of a packing.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import NamedTuple

import numpy as np

from geofloor.allocation import DistortionCurve, lower_hull

CURVES = ("relu",)
# E[a] and E[a^2] of an active feature's amplitude a, by its law.
AMPLITUDES = {
    "uniform": (1 / 2, 1 / 3),
    "exponential": (1.0, 2.0),
    "half-normal": (np.sqrt(2 / np.pi), 1.0),
    "constant": (1.0, 1.0),
}


class Blocks(NamedTuple):
    """Groups of features that share a few dimensions, at one sparsity."""

    widths: np.ndarray  # (n_blocks,) dimensions
    features: np.ndarray  # (n_blocks,) features
    distortions: np.ndarray  # (n_blocks,) loss of each feature, relative to its second moment


class _Table(NamedTuple):
    firing_rates: np.ndarray  # (n_alphas,) descending
    widths: np.ndarray  # (n_blocks,)
    features: np.ndarray  # (n_blocks,)
    mean: np.ndarray  # (n_alphas, n_blocks), NaN where it was not measured
    best: np.ndarray


@functools.cache
def _table(curve: str) -> _Table:
    if curve not in CURVES:
        raise ValueError(f"curve={curve!r} is unknown; use {' or '.join(map(repr, CURVES))}.")
    file = resources.files("geofloor") / "_distortion" / f"{curve}_uniform.csv"
    with file.open(encoding="utf-8") as lines:
        rows = np.genfromtxt(lines, delimiter=",", names=True, skip_header=1)
    alphas = np.unique(rows["alpha"])
    kinds, block = np.unique(np.column_stack([rows["width"], rows["n_features"]]), axis=0, return_inverse=True)
    values = {}
    for name in ("mean", "best"):
        values[name] = np.full((len(alphas), len(kinds)), np.nan)
        values[name][np.searchsorted(alphas, rows["alpha"]), block.ravel()] = rows[name]
    widths, features = kinds.astype(np.int64).T
    return _Table(1.0 - alphas, widths, features, values["mean"], values["best"])


def blocks(alpha: float, *, curve: str = "relu", seeds: str = "best") -> Blocks:
    """Blocks at a sparsity, interpolated linearly in the logarithm of the firing rate.

    Parameters
    ----------
    alpha : float
        Sparsity, in [0, 1).
    curve : {"relu"}, default="relu"
        What the student can compute.
    seeds : {"best", "mean"}, default="best"
        Loss of the best of the four seeds measured, or their mean. Models of few features often end in
        poor minima, which larger models avoid: two features in one dimension, pointing the same way.

    Returns
    -------
    blocks : Blocks
        All that were measured at the sparsities around α.

    Raises
    ------
    ValueError
        If α is outside [0, 1) or `curve` is unknown.

    Notes
    -----
    Beyond the sparsest measurement, α = 0.9999, its blocks are used as they are.

    Examples
    --------
    >>> from geofloor.distortion import blocks
    >>> found = blocks(0.9)
    >>> bool((found.features >= found.widths).all())
    True
    """
    if not 0.0 <= alpha < 1.0:
        raise ValueError(f"alpha={alpha!r} must be at least 0 and below 1.")
    table = _table(curve)
    if seeds not in ("mean", "best"):
        raise ValueError(f"seeds={seeds!r} is unknown; use 'mean' or 'best'.")
    values = table.mean if seeds == "mean" else table.best
    position = np.interp(-np.log(1.0 - alpha), -np.log(table.firing_rates), np.arange(len(table.firing_rates)))
    low = min(int(position), len(table.firing_rates) - 2)
    share = position - low
    distortions = values[low] if share == 0.0 else (1.0 - share) * values[low] + share * values[low + 1]
    if share == 1.0:
        distortions = values[low + 1]
    known = np.isfinite(distortions)
    # A block that needs no measurement: a feature with a dimension to itself loses nothing.
    return Blocks(
        np.append(table.widths[known], 1), np.append(table.features[known], 1), np.append(distortions[known], 0.0)
    )


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
        If the law is unknown.

    Examples
    --------
    >>> from geofloor.distortion import empty_distortion
    >>> round(empty_distortion(0.9), 4)
    0.925
    """
    check_amplitude(amplitude)
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
    >>> from geofloor.distortion import check_amplitude
    >>> check_amplitude("uniform")
    """
    if amplitude not in AMPLITUDES:
        raise ValueError(f"amplitude={amplitude!r} is not a law; use one of {', '.join(map(repr, AMPLITUDES))}.")


def distortion_curve(
    alpha: float, *, curve: str = "relu", seeds: str = "best", empty: float | None = None
) -> DistortionCurve:
    """The curve D(c) at a sparsity: from the variance at 0 to nothing at one dimension a feature.

    Parameters
    ----------
    alpha : float
        Sparsity, in [0, 1).
    curve : {"relu"}, default="relu"
        What the student can compute.
    seeds : {"best", "mean"}, default="best"
        Loss of the best of the four seeds measured, or their mean. Models of few features often end in
        poor minima, which larger models avoid: two features in one dimension, pointing the same way.
    empty : float, default=None
        Loss of a feature without dimensions; by default that of the uniform law.

    Returns
    -------
    curve : DistortionCurve
        The lower convex hull of all blocks.

    Raises
    ------
    ValueError
        If α is outside [0, 1) or `curve` is unknown.

    Examples
    --------
    >>> from geofloor.distortion import distortion_curve
    >>> curve = distortion_curve(0.9)
    >>> curve([0.0, 1.0]).round(3).tolist()
    [0.925, 0.0]
    """
    found = blocks(alpha, curve=curve, seeds=seeds)
    return lower_hull(
        np.concatenate([[0.0], found.widths / found.features, [1.0]]),
        np.concatenate([[empty_distortion(alpha) if empty is None else empty], found.distortions, [0.0]]),
    )
