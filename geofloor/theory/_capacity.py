"""Capacity: sparse features per dimension, by Eq. 1 or by the exact thresholds behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from geofloor._validation import check_array_of_numbers, check_number, shown, warn_caller

CapacityMethod = str | Callable[[float], float]

# Noise exceeds the threshold in one tail for features of one sign, in two for features of either sign.
_N_TAILS = {"minimax": 2.0, "minimax_nonnegative": 1.0}
METHODS = ("asymptotic", *_N_TAILS)
LEAST_SPARSITY = 1.0 - float(np.exp(-1.0))  # minimum of Eq. 1, which falls with sparsity below it


class NonMonotoneCapacityWarning(UserWarning):
    """Warning of Eq. 1 at a sparsity below its range."""


def capacity(alpha: ArrayLike, method: CapacityMethod = "asymptotic") -> Any:
    r"""Compute the capacity g(α), in features per dimension, at sparsity α.

    Parameters
    ----------
    alpha : float or array-like
        Sparsity, the probability that a feature is inactive, in [0, 1).
    method : {"asymptotic", "minimax", "minimax_nonnegative"} or callable, default="asymptotic"
        - ``"asymptotic"``: Eq. 1 of the paper.
        - ``"minimax"``: the exact threshold for features of either sign.
        - ``"minimax_nonnegative"``: the exact threshold for non-negative features, such as the codes of a sparse
          autoencoder.
        - a callable: any function from sparsity to features per dimension.

    Returns
    -------
    capacity : float or ndarray of the shape of `alpha`, float64
        Features per dimension.

    Raises
    ------
    ValueError
        If `alpha` has a value outside [0, 1), or if `method` is unknown or does not return a finite number above 0.

    Warns
    -----
    NonMonotoneCapacityWarning
        If Eq. 1 is evaluated between 0 and 1 − 1/e, where it is not monotone.

    Notes
    -----
    Eq. 1 of [1]_ is

    .. math:: g(\alpha) = \frac{1}{(1-\alpha)\,\ln\frac{1}{1-\alpha}},

    an asymptotic form for α near 1. It has its minimum, e, at α = 1 − 1/e ≈ 0.632 and diverges as
    α → 0; the paper's convention g(0) = 1 is kept. Values that overflow near 0 become the largest float64.

    It approximates the threshold 1/M(ε) with ε = 1 − α and, for c = 2 (either sign) or c = 1
    (non-negative) [2]_,

    .. math::

        M(\varepsilon) = \inf_\tau\; \varepsilon(1+\tau^2)
            + (1-\varepsilon)\,c\,[(1+\tau^2)\Phi(-\tau) - \tau\varphi(\tau)].

    It is 1 at α = 0 and increases with α, with no special case.

    References
    ----------
    .. [1] Sarkar and Deka (2026), "Geometric Limits of Knowledge Distillation", arXiv:2604.04037.
    .. [2] Donoho, Johnstone and Montanari (2013), "Accurate prediction of phase transitions in
       compressed sensing via a connection to minimax denoising", IEEE Trans. Inf. Theory 59(6).

    Examples
    --------
    >>> from geofloor.theory import capacity
    >>> round(capacity(0.992), 2)
    25.89
    >>> capacity([0.9, 0.99], method="minimax_nonnegative").round(2)
    array([ 3.77, 19.15])
    """
    sparsity = _check_alpha(alpha)
    values = features_per_dimension(sparsity, method)
    if isinstance(method, str) and method == "asymptotic":
        warn_of_density(sparsity, "method")
    return float(values) if values.ndim == 0 else values


def warn_of_density(sparsity: np.ndarray, name: str) -> None:
    """Warn of sparsities above 0 and below the range of Eq. 1.

    Parameters
    ----------
    sparsity : ndarray
        Sparsities, in [0, 1).
    name : str
        Name of the argument that chooses the capacity.

    Warns
    -----
    NonMonotoneCapacityWarning
        Says what to choose.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor.theory._capacity import warn_of_density
    >>> warn_of_density(np.array([0.0, 0.9]), "method")
    """
    if np.any((sparsity > 0) & is_too_dense(sparsity)):
        warn_caller(
            "Eq. 1 falls with sparsity below alpha = 1 - 1/e = 0.632, where it is no capacity; "
            f"use {name}='minimax_nonnegative' or 'minimax', which hold everywhere.",
            NonMonotoneCapacityWarning,
        )


def is_too_dense(sparsity: Any) -> Any:
    """Tell whether a sparsity is below the range of Eq. 1.

    Parameters
    ----------
    sparsity : float or ndarray
        Sparsity, in [0, 1).

    Returns
    -------
    dense : bool or ndarray of bool
        Whether each sparsity is below 1 − 1/e.

    Examples
    --------
    >>> from geofloor.theory import is_too_dense
    >>> bool(is_too_dense(0.5)), bool(is_too_dense(0.99))
    (True, False)
    """
    return sparsity < LEAST_SPARSITY - 1e-12


def features_per_dimension(sparsity: np.ndarray, method: CapacityMethod, name: str = "method") -> np.ndarray:
    """Compute g(α) as `capacity` does, without its warning.

    Parameters
    ----------
    sparsity : ndarray
        Sparsities, in [0, 1).
    method : str or callable
        As in `capacity`.
    name : str, default="method"
        Name of `method` in messages.

    Returns
    -------
    values : ndarray of the shape of `sparsity`, float64
        Features per dimension.

    Raises
    ------
    ValueError
        If `method` is unknown, or does not return a finite number above 0.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor.theory._capacity import features_per_dimension
    >>> features_per_dimension(np.array([0.0, 0.9]), "minimax").round(2)
    array([1.  , 3.04])
    """
    check_method(method, name)
    if callable(method):
        values = [check_number(f"{name}({each:g})", method(each), 0.0, open_low=True) for each in sparsity.ravel()]
        return np.array(values, dtype=np.float64).reshape(sparsity.shape)
    if method in _N_TAILS:
        return 1.0 / _minimax_risk(1.0 - sparsity, _N_TAILS[method])
    return _asymptotic(sparsity)


def check_method(method: Any, name: str) -> None:
    """Refuse an unknown method of capacity.

    Parameters
    ----------
    method : object
        As in `capacity`.
    name : str
        Name of `method` in the message.

    Raises
    ------
    ValueError
        If `method` is unknown.

    Examples
    --------
    >>> from geofloor.theory._capacity import check_method
    >>> check_method("minimax", "capacity")
    """
    if not callable(method) and not (isinstance(method, str) and method in METHODS):
        raise ValueError(
            f"{name}={shown(method)} is unknown; use one of {', '.join(map(repr, METHODS))} or a callable."
        )


def critical_width(n_features: ArrayLike, alpha: ArrayLike, method: CapacityMethod = "asymptotic") -> Any:
    """Compute the critical width d* = F/g(α).

    From this width on Eq. 2 drops no feature.

    Parameters
    ----------
    n_features : int or array-like of int
        Number of features F.
    alpha : float or array-like
        Sparsity, in [0, 1).
    method : str or callable, default="asymptotic"
        As in `capacity`.

    Returns
    -------
    width : float or ndarray
        Critical width, in dimensions; not rounded.

    Raises
    ------
    ValueError
        If `n_features` is negative or not finite, d* overflows float64, or as `capacity`.

    Examples
    --------
    >>> from geofloor.theory import critical_width
    >>> round(critical_width(28665, alpha=1 - 218.3 / 28665))
    1065
    """
    count = _check_beside_alpha(n_features, "n_features", alpha)
    with np.errstate(over="ignore"):
        width = count / capacity(alpha, method)
    if not np.isfinite(width).all():
        raise ValueError(f"method={shown(method)} gives so few features per dimension that d* overflows float64.")
    return float(width) if np.ndim(width) == 0 else width


def kept_features(width: ArrayLike, alpha: ArrayLike, method: CapacityMethod = "asymptotic") -> Any:
    """Count the features F_S = ⌊d·g(α)⌋ kept by a student of width d.

    Parameters
    ----------
    width : float or array-like
        Width d of the student, in dimensions.
    alpha : float or array-like
        Sparsity, in [0, 1).
    method : str or callable, default="asymptotic"
        As in `capacity`.

    Returns
    -------
    count : int or ndarray of int64
        Features kept, at most 2⁶²; the number of features of the teacher is no limit here.

    Raises
    ------
    ValueError
        If `width` is negative or not finite, or as `capacity`.

    Examples
    --------
    >>> from geofloor.theory import kept_features
    >>> kept_features([128, 256], alpha=0.9924)
    array([3451, 6903])
    """
    with np.errstate(over="ignore"):
        kept = np.floor(_check_beside_alpha(width, "width", alpha) * capacity(alpha, method))
    count = np.minimum(kept, 2.0**62).astype(np.int64)  # the largest power of two in int64
    return int(count) if count.ndim == 0 else count


def count_kept(widths: np.ndarray, capacity: float, n_features: int) -> np.ndarray:
    """Count the features kept at each width, at most all there are.

    Parameters
    ----------
    widths : ndarray
        Widths, in dimensions.
    capacity : float
        Features per dimension.
    n_features : int
        Features of the teacher.

    Returns
    -------
    counts : ndarray of int64 of the shape of `widths`
        Features kept, F_S.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor.theory._capacity import count_kept
    >>> count_kept(np.array([0.0, 3.0, 9.0]), 2.5, 10)
    array([ 0,  7, 10])
    """
    with np.errstate(over="ignore"):
        return np.floor(np.minimum(widths * capacity, n_features)).astype(np.int64)


def _asymptotic(sparsity: np.ndarray) -> np.ndarray:
    log_density = np.log1p(-sparsity)
    with np.errstate(divide="ignore", over="ignore"):
        values = np.where(sparsity == 0, 1.0, -1.0 / ((1.0 - sparsity) * log_density))
    return np.minimum(values, np.finfo(np.float64).max)


def _minimax_risk(density: np.ndarray, n_tails: float) -> np.ndarray:
    """Compute M(ε), at the threshold τ where its derivative vanishes.

    τ is the root of h(τ) = (1 − ε)·c·[φ(τ) − τΦ(−τ)] − ετ. Since h is convex and decreasing, Newton's steps from
    τ = 0 approach the root from below, and need no safeguard.
    """
    tau = np.zeros_like(density)
    for _ in range(200):
        tail, bell = ndtr(-tau), np.exp(-0.5 * tau**2) / np.sqrt(2 * np.pi)
        excess = n_tails * (1 - density) * (bell - tau * tail) - density * tau
        slope = n_tails * (1 - density) * tail + density
        step = excess / slope
        tau = tau + step
        if np.all(np.abs(step) <= 1e-14 * (1 + tau)):
            break
    tail, bell = ndtr(-tau), np.exp(-0.5 * tau**2) / np.sqrt(2 * np.pi)
    return density * (1 + tau**2) + n_tails * (1 - density) * ((1 + tau**2) * tail - tau * bell)


def _check_alpha(alpha: ArrayLike) -> np.ndarray:
    sparsity = check_array_of_numbers(alpha, "alpha", ndim=None, empty=True)
    wrong = ~((sparsity >= 0) & (sparsity < 1))
    if wrong.any():
        raise ValueError(
            f"alpha={sparsity[wrong].flat[0]:g} is no sparsity; give the probability that a feature is inactive, "
            "at least 0 and below 1."
        )
    return sparsity


def _check_beside_alpha(value: ArrayLike, name: str, alpha: ArrayLike) -> np.ndarray:
    array = check_array_of_numbers(value, name, ndim=None, low=0.0, empty=True)
    shape = _check_alpha(alpha).shape
    try:
        np.broadcast_shapes(array.shape, shape)
    except ValueError:
        raise ValueError(f"{name} has shape {array.shape} and alpha {shape}; give shapes that broadcast.") from None
    return array
