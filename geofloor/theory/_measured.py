"""Division of dimensions as in trained students: water-filled distortion curves, or packed blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from geofloor.theory._distortion import blocks, distortion_curves, empty_distortion
from geofloor.theory._division import ChargedFeatures, Division, Shares
from geofloor.theory._packing import BlockPacking
from geofloor.theory._waterfilling import Waterfilling
from geofloor.theory._widths import read_widths

# An average training ends above the best by 0.10 / sqrt(effective number of features): the median over toy floors of
# importances other than the paper's (benchmarks/allocations.py).
_EXCESS = 0.10
# Upper bounds pack blocks of all sizes up to this width, and blocks of 8 dimensions beyond it.
_EXACT_PACKING, _COARSE_BLOCK = 64, 8
_BIN = 0.25  # of the logarithm of the firing rate: features within one bin share a curve


class MeasuredDivision(Division):
    """Pack measured blocks up to a width, and water-fill measured curves beyond it.

    Parameters
    ----------
    features : ChargedFeatures
        Charges, sparsity and firing rates of the teacher's features.
    curve : {"relu", "deep"}
        Decoder of the measured students.
    amplitude : str or None
        Law of an active feature, for features without means; None is ``"uniform"``.
    starts : {"mean", "best"}
        Whether floors are those of an average training or of the best.
    packed_up_to : float
        Largest packed width.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor.theory._division import ChargedFeatures
    >>> from geofloor.theory._measured import MeasuredDivision
    >>> features = ChargedFeatures(np.ones(4), np.ones(4), None, 0.9, 4.3, None, None)
    >>> MeasuredDivision(features, "relu", None, "best", 32).floors([0, 4]).tolist()
    [3.7, 0.0]
    """

    def __init__(
        self, features: ChargedFeatures, curve: str, amplitude: str | None, starts: str, packed_up_to: float
    ) -> None:
        charges, rates = features.charges, features.firing_rates
        self._alpha, self._curve, self._starts, self._packed_up_to = features.alpha, curve, starts, packed_up_to
        self._packings: dict[tuple[str, int | None], BlockPacking] = {}
        self._mixed = rates is not None
        if rates is None:
            bins, which = np.array([1.0 - features.alpha]), np.zeros(len(charges), dtype=np.intp)
        else:
            bins, which = _rate_bins(rates)
        total = np.bincount(which, weights=charges, minlength=len(bins))
        if features.bias_savings is None:
            empty = np.array([empty_distortion(1.0 - rate, amplitude or "uniform") for rate in bins])
        else:
            saved = np.bincount(which, weights=features.bias_savings, minlength=len(bins))
            empty = 1.0 - np.divide(saved, total, out=np.zeros_like(total), where=total > 0.0).clip(max=1.0)
        self._filling = Waterfilling(charges, distortion_curves(1.0 - bins, curve=curve, empty=empty), which)
        self.charges = self._filling.charges
        self._empty = float(np.average(empty, weights=total)) if total.sum() > 0.0 else 1.0
        self._variance = float(self._filling.floors([0.0])[0])
        relative = charges / (charges.max() or 1.0)
        effective = relative.sum() ** 2 / np.square(relative).sum() if relative.any() else 1.0
        self._excess = 1.0 + _EXCESS / float(np.sqrt(effective))

    @property
    def critical_width(self) -> float:
        """Critical width: with one dimension per feature nothing is lost."""
        return float(len(self.charges))

    def floors(self, widths: ArrayLike) -> np.ndarray:
        """Compute the loss at each width.

        Parameters
        ----------
        widths : array-like of shape (n_widths,)
            Widths, in dimensions.

        Returns
        -------
        floors : ndarray of shape (n_widths,)
            Loss, in the units of the charges.

        Raises
        ------
        ValueError
            If a width is negative or not finite.
        """
        at = read_widths(widths)
        packed = at <= self._packed_up_to
        floors = np.empty(len(at))
        floors[~packed] = self._filling.floors(at[~packed])
        floors[packed] = self._packing("best").floors(at[packed]) if packed.any() else 0.0
        if self._mixed and self._packed_up_to >= 0 and not packed.all():
            # Blocks know only the mean firing rate, so on a table water-filling may lie above them. A wider student
            # loses no more than a narrower one.
            floors[~packed] = np.minimum(floors[~packed], self._packing("best").floors([self._packed_up_to])[0])
        return np.minimum(self._excess * floors, self._variance) if self._starts == "mean" else floors

    def shares(self, width: float) -> Shares:
        """Compute the dimensions and the distortion of each feature at one width, in the best student.

        Parameters
        ----------
        width : float
            Width, in dimensions.

        Returns
        -------
        shares : Shares
            Dimensions and distortions, in the order of the charges.

        Raises
        ------
        ValueError
            If the width is negative or not finite.
        """
        return (self._packing("best") if width <= self._packed_up_to else self._filling).shares(width)

    def served(self, widths: ArrayLike) -> np.ndarray:
        """Count the features with a share of the dimensions at each width, under water-filling.

        Parameters
        ----------
        widths : array-like of shape (n_widths,)
            Widths, in dimensions.

        Returns
        -------
        counts : ndarray of shape (n_widths,), int64
            Features with a share, however small.

        Raises
        ------
        ValueError
            If a width is negative or not finite.
        """
        return self._filling.served(widths)

    def _bounds(self, widths: np.ndarray, floors: np.ndarray) -> np.ndarray:
        upper = np.empty(len(widths))
        exact = widths <= _EXACT_PACKING
        if exact.any():
            upper[exact] = self._packing("mean").floors(widths[exact])
        if not exact.all():
            upper[~exact] = self._packing("mean", _COARSE_BLOCK).floors(widths[~exact] / _COARSE_BLOCK)
        upper = np.minimum(self._excess * upper, self._variance)
        # Water-filling uses each feature's own firing rate, and blocks use the mean, so on a table they may cross.
        return np.column_stack([np.minimum(self._filling.floors(widths), floors), np.maximum(upper, floors)])

    def _packing(self, starts: str, only: int | None = None) -> BlockPacking:
        """Pack blocks measured at the mean firing rate: of all sizes, or of one size as the unit of width."""
        if (starts, only) not in self._packings:
            found = blocks(self._alpha, curve=self._curve, starts=starts)
            chosen = slice(None) if only is None else found.widths == only
            self._packings[starts, only] = BlockPacking(
                self.charges,
                found.widths[chosen] // (only or 1),
                found.features[chosen],
                found.distortions[chosen],
                self._empty,
            )
        return self._packings[starts, only]


def _rate_bins(rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Group features by firing rate; return the mean rate of each group, and the group of each feature."""
    steps = np.log(np.maximum(rates, 1e-12))
    steps *= 1.0 / _BIN
    steps = np.rint(steps, out=steps).astype(np.int16)
    steps -= steps.min()
    counts = np.bincount(steps)
    used = np.flatnonzero(counts)
    place = np.zeros(len(counts), dtype=np.int16)
    place[used] = np.arange(len(used))
    which = place[steps]
    return np.clip(np.bincount(which, weights=rates) / counts[used], 1e-12, 1.0), which
