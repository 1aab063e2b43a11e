"""Ridge regression of many sparse targets from sums over rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import gen_batches

BATCH_ROWS = 8192
_NEGLIGIBLE = 1e-12  # share of a sum of squares; rounding errors reach it


class Moments(NamedTuple):
    """Sums over rows of states x, shifted by a constant, and of codes z."""

    n: int
    x: np.ndarray  # (width,)
    xx: np.ndarray  # (width, width)
    z: np.ndarray  # (n_features,)
    zz: np.ndarray  # (n_features,)
    xz: np.ndarray  # (width, n_features)

    def __add__(self, other: Any) -> Moments:
        return Moments(*(mine + its for mine, its in zip(self, other, strict=True)))

    def centered(self, mean_x: np.ndarray, mean_z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the sums of (x − a)(x − a)ᵀ, (x − a)(z − b) and (z − b)² for the means a and b."""
        xx = self.xx - np.outer(mean_x, self.x) - np.outer(self.x, mean_x) + self.n * np.outer(mean_x, mean_x)
        xz = self.xz - np.outer(mean_x, self.z) - np.outer(self.x - self.n * mean_x, mean_z)
        return xx, xz, self.zz - 2 * mean_z * self.z + self.n * mean_z**2


class MomentRidge:
    """Ridge regression of all codes on standardized states, for any strength after one eigendecomposition."""

    def __init__(self, moments: Moments) -> None:
        self.mean_x, self.mean_z = moments.x / moments.n, moments.z / moments.n
        xx, xz, _ = moments.centered(self.mean_x, self.mean_z)
        variance = np.diag(xx) / moments.n
        # A dimension that varies by rounding alone gets a weight of zero.
        varies = variance > _NEGLIGIBLE * np.maximum(variance.max(initial=0.0), np.diag(moments.xx) / moments.n)
        self.scale = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1.0)), 0.0)
        self._values, self._basis = np.linalg.eigh(xx * np.outer(self.scale, self.scale) / moments.n)
        self._targets = self._basis.T @ (xz * self.scale[:, None] / moments.n)

    def coefficients(self, strength: float) -> np.ndarray:
        """Return weights of shape (width, n_features) for centered states."""
        shrunk = self._targets / (np.maximum(self._values, 0.0) + strength)[:, None]
        return (self._basis @ shrunk) * self.scale[:, None]

    def unexplained(self, strength: float, moments: Moments) -> np.ndarray:
        """Return 1 − R² of each feature on other rows; NaN where the feature does not vary."""
        weights = self.coefficients(strength)
        xx, xz, zz = moments.centered(self.mean_x, self.mean_z)
        errors = zz - 2 * np.einsum("ij,ij->j", weights, xz) + np.einsum("ij,ij->j", weights, xx @ weights)
        total = moments.zz - moments.z**2 / moments.n
        varies = total > _NEGLIGIBLE * moments.zz
        return np.where(varies, np.maximum(errors, 0.0) / np.where(varies, total, 1.0), np.nan)


def sum_moments(states: Any, codes: Any, rows: np.ndarray, shift: np.ndarray) -> Moments:
    """Sum the moments of some rows in float64, batch by batch."""
    width, n_features = len(shift), codes.shape[1]
    totals = Moments(
        0,
        np.zeros(width),
        np.zeros((width, width)),
        np.zeros(n_features),
        np.zeros(n_features),
        np.zeros((width, n_features)),
    )
    for x, z in iter_rows(states, codes, rows, shift):
        square = z.copy()
        square.data **= 2
        with np.errstate(over="ignore", invalid="ignore"):  # the caller checks that the sums are finite
            totals += Moments(len(x), x.sum(axis=0), x.T @ x, _column_sums(z), _column_sums(square), (z.T @ x).T)
    return totals


def iter_rows(states: Any, codes: Any, rows: np.ndarray, shift: np.ndarray) -> Iterator[tuple[np.ndarray, Any]]:
    """Yield batches of shifted states and of codes, in float64."""
    for batch in gen_batches(len(rows), BATCH_ROWS):
        chosen = rows[batch]
        yield np.asarray(states[chosen], dtype=np.float64) - shift, codes[chosen].astype(np.float64)


def _column_sums(codes: Any) -> np.ndarray:
    return np.bincount(codes.indices, codes.data, minlength=codes.shape[1])
