r"""Reverse water-filling: the best division of dimensions among features with distortion curves.

A distortion curve D(c) is the loss of a feature with c dimensions to itself, relative to its second moment. It is
non-increasing and convex in c. For features with charges w_i (importance times second moment) the best division of
d dimensions,

.. math:: L(d) = \min_{c \ge 0,\ \sum_i c_i \le d} \ \sum_i w_i\, D_i(c_i),

gives each feature dimensions as long as the next bit of them saves, :math:`-w_i D_i'(c_i)`, more than a common water
level λ. The cut-off of Eq. 2 is the case :math:`D(c) = \max(0, 1 - c\,g)`: a feature costs 1/g dimensions, and the
features with the largest charges are kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from geofloor._validation import check_number, check_object, plain_array, shown
from geofloor.theory._curves import DistortionCurve
from geofloor.theory._division import Division, Shares, check_charges
from geofloor.theory._widths import read_widths

_FEW_PIECES = 512  # sorted to find the level among them


class Waterfilling(Division):
    r"""Divide dimensions among features at the smallest loss, for any width, after one sort.

    Parameters
    ----------
    charges : array-like of shape (n_features,)
        Cost of answering each feature with 0: importance times second moment.
    curves : DistortionCurve or sequence of DistortionCurve
        One curve for all features, or the different curves.
    which : array-like of int of shape (n_features,), default=None
        Number of the curve of each feature, if there are several.

    Raises
    ------
    ValueError
        If charges are empty, negative, not finite, or too large to add up in float64, or if `which` does not name one
        curve per feature.
    TypeError
        If a curve is not a `DistortionCurve`.

    Notes
    -----
    On a linear piece of a feature's curve, each dimension saves the same. At the level λ all pieces with larger
    savings are filled. Features with one curve reach a piece in the order of their charges. Counting the filled
    pieces, and adding up the remaining loss, therefore takes one search in the sorted charges per piece of the
    curve. Bisection brackets the level of a width until few pieces lie in the bracket; these are then sorted.

    Examples
    --------
    >>> from geofloor.theory import Waterfilling, cutoff_curve
    >>> Waterfilling([4.0, 2.0, 1.0], cutoff_curve(2.0)).floors([0.0, 0.5, 0.75, 1.5])
    array([7., 3., 2., 0.])
    """

    def __init__(
        self, charges: ArrayLike, curves: DistortionCurve | list[DistortionCurve], which: ArrayLike | None = None
    ) -> None:
        charges = check_charges(charges)
        each = _check_curves(curves)
        index = np.zeros(len(charges), dtype=np.int16) if which is None else np.array(plain_array(which, "which"))
        if index.dtype.kind not in "iu" or index.shape != charges.shape or index.min() < 0 or index.max() >= len(each):
            raise ValueError(
                f"which={shown(which)} must name one of {len(each)} curves for each of {len(charges)} charges, "
                "by whole numbers from 0."
            )
        self.charges, self._curves, self._index = charges, each, index
        grouped = charges
        if len(each) > 1:  # one stable sort of small integers brings the charges of each curve together
            keys = index.astype(np.int16, copy=False) if len(each) < 2**15 else index
            grouped = charges[np.argsort(keys, kind="stable")]
        ends = np.cumsum(np.bincount(index, minlength=len(each)))
        self._groups = []
        for curve, first, last in zip(each, np.append(0, ends[:-1]), ends, strict=True):
            ascending = np.sort(grouped[first:last])
            if not len(ascending):
                continue
            savings, lengths = curve.segments
            useful = savings > 0.0
            # Entry k is the sum of the k smallest charges. Summing from the smallest keeps small remainders exact.
            left = np.concatenate([[0.0], np.cumsum(ascending)])
            rest = float(np.asarray(curve.distortions)[-1]) * left[-1]
            self._groups.append((ascending, left, savings[useful], lengths[useful], rest))

    @property
    def critical_width(self) -> float:
        """Critical width, at the end of all curves: beyond it the floor is constant."""
        return float(sum(len(group[0]) * group[3].sum() for group in self._groups))

    def levels(self, widths: ArrayLike) -> np.ndarray:
        """Compute the water level at each width: the loss saved by the last dimension.

        Parameters
        ----------
        widths : array-like of shape (n_widths,)
            Widths, in dimensions.

        Returns
        -------
        levels : ndarray of shape (n_widths,)
            λ, the lowest level at which the filled pieces fit; 0 where dimensions are left over.

        Raises
        ------
        ValueError
            If a width is negative or not finite.
        """
        widths = read_widths(widths)
        highest = max((group[0][-1] * group[2].max(initial=0.0) for group in self._groups), default=0.0)
        highest = max(highest, 1e-290)  # keeps zeros out of the grid
        grid = np.append(0.0, np.geomspace(highest * 1e-15, highest * (1.0 + 1e-12), 64))
        dimensions, _, pieces = self._filled(grid)
        place = np.searchsorted(-dimensions, -widths, side="left").clip(max=len(grid) - 1)
        before = np.maximum(place - 1, 0)
        # The filled pieces exceed the width at `low` and fit into it at `high`. Positive floats are ordered like their
        # bits, so bisection of the bits finds any level; it stops early where few pieces lie in the bracket.
        low, high = grid[before].view(np.int64), grid[place].view(np.int64)
        n_low, n_high = pieces[before], pieces[place]
        between = n_low - n_high
        while (open_ := (between > _FEW_PIECES) & (high - low > 1)).any():
            middle = low[open_] + (high[open_] - low[open_]) // 2
            dimensions, _, pieces = self._filled(middle.view(np.float64))
            fits = dimensions <= widths[open_]
            high[open_], low[open_] = np.where(fits, middle, high[open_]), np.where(fits, low[open_], middle)
            n_high[open_], n_low[open_] = np.where(fits, pieces, n_high[open_]), np.where(fits, n_low[open_], pieces)
            between = n_low - n_high
        return self._last_fitting(widths, low.view(np.float64), high.view(np.float64), (place > 0) & (high - low > 1))

    def _last_fitting(self, widths: np.ndarray, low: np.ndarray, high: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """Find the level of each width: the savings of the first piece from `high` down without room."""
        # Where rounding lets all pieces fit, the level is `low`: there the width is exceeded by rounding alone.
        levels = np.where(inside, low, high)
        rows = np.flatnonzero(inside)
        if not len(rows):
            return levels
        owners, worths, lengths = [], [], []
        for ascending, _, savings, each, _ in self._groups:
            first = np.searchsorted(ascending, low[rows, np.newaxis] / savings, side="right")
            counts = np.maximum(np.searchsorted(ascending, high[rows, np.newaxis] / savings, side="right") - first, 0)
            row, piece = np.nonzero(counts)
            many, start = counts[row, piece], first[row, piece]
            index = np.repeat(start - np.append(0, np.cumsum(many)[:-1]), many) + np.arange(many.sum())
            owners.append(np.repeat(row, many))
            worths.append(ascending[index] * np.repeat(savings[piece], many))
            lengths.append(np.repeat(each[piece], many))
        owner, worth, length = (np.concatenate(parts) for parts in (owners, worths, lengths))
        order = np.lexsort((-worth, owner))
        owner, worth, length = owner[order], worth[order], length[order]
        room = widths[rows] - self._filled(high[rows])[0]
        # Running sums of each owner's pieces, most valuable first.
        filled = np.cumsum(length)
        starts = np.searchsorted(owner, np.arange(len(rows)))
        filled -= np.append(0.0, filled)[starts][owner]
        over = np.flatnonzero(filled > room[owner])
        owners_over, first_over = np.unique(owner[over], return_index=True)
        levels[rows[owners_over]] = worth[over[first_over]]
        return levels

    def floors(self, widths: ArrayLike) -> np.ndarray:
        """Compute the smallest loss at each width.

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
        widths = read_widths(widths)
        levels = self.levels(widths)
        filled, left, _ = self._filled(levels)
        # Pieces at the level itself are filled in part.
        return np.maximum(left - (widths - filled) * levels, 0.0)

    def served(self, widths: ArrayLike) -> np.ndarray:
        """Count the features with a share of the dimensions at each width.

        Parameters
        ----------
        widths : array-like of shape (n_widths,)
            Widths, in dimensions.

        Returns
        -------
        counts : ndarray of shape (n_widths,), int64
            Features whose first dimension saves at least the level.

        Raises
        ------
        ValueError
            If a width is negative or not finite.
        """
        widths = read_widths(widths)
        levels = self.levels(widths)
        counts = np.zeros(widths.shape, dtype=np.int64)
        for ascending, _, savings, _, _ in self._groups:
            if len(savings):
                counts += len(ascending) - np.searchsorted(ascending, levels / savings[0], side="left")
        return np.where(widths > 0.0, counts, 0)

    def shares(self, width: float) -> Shares:
        """Compute the dimensions and the distortion of each feature at one width.

        Parameters
        ----------
        width : float
            Width, in dimensions.

        Returns
        -------
        shares : Shares
            Dimensions and distortions, in the order of the charges. Pieces at the level itself are filled one feature
            after another.

        Raises
        ------
        ValueError
            If the width is negative or not finite.
        """
        width = check_number("width", width, 0.0)
        level = float(self.levels([width])[0])
        capacities, distortions = np.zeros(len(self.charges)), np.zeros(len(self.charges))
        partial = []
        for number, curve in enumerate(self._curves):
            members = np.flatnonzero(self._index == number)
            savings, lengths = curve.segments
            worth = self.charges[members, np.newaxis] * savings
            capacities[members] = (worth > level * (1.0 + 1e-12)) @ lengths
            if level > 0.0:
                partial += [(members[m], lengths[j]) for m, j in np.argwhere(np.isclose(worth, level, rtol=1e-12))]
        left = width - capacities.sum()
        for member, length in partial:
            given = min(length, max(left, 0.0))
            capacities[member] += given
            left -= given
        for number, curve in enumerate(self._curves):
            members = self._index == number
            distortions[members] = curve(capacities[members])
        return Shares(capacities, distortions)

    def _filled(self, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fill the pieces above each level; return their dimensions, the remaining loss, and their number."""
        dimensions, loss = np.zeros(levels.shape), np.zeros(levels.shape)
        pieces = np.zeros(levels.shape, dtype=np.int64)
        for ascending, left, savings, lengths, rest in self._groups:
            unfilled = np.searchsorted(ascending, levels[:, np.newaxis] / savings, side="right")
            filled = len(ascending) - unfilled
            dimensions += filled @ lengths
            pieces += filled.sum(axis=1)
            loss += left[unfilled] @ (savings * lengths) + rest
        return dimensions, loss, pieces


def _check_curves(curves: Any) -> list[DistortionCurve]:
    remedy = "give a DistortionCurve, or a list of them"
    if isinstance(curves, DistortionCurve):
        return [curves]
    check_object("curves", curves, (list, tuple), remedy)
    for curve in curves:
        check_object("curves", curve, DistortionCurve, remedy)
    return list(curves)
