r"""How a student divides its dimensions among features, and what each gets for its share.

A distortion curve D(c) is the loss of a feature that has c dimensions to itself, relative to its second
moment: non-increasing and convex in c. For features with charges w_i (importance times second moment) the
best division of d dimensions,

.. math:: L(d) = \min_{c \ge 0,\ \sum_i c_i \le d} \ \sum_i w_i\, D_i(c_i),

is reverse water-filling: every feature is given dimensions as long as what the next bit of them saves,
:math:`-w_i D_i'(c_i)`, is above a level λ that all share. The cut-off of Eq. 2 is the case
:math:`D(c) = \max(0, 1 - c\,g)`: a feature costs 1/g dimensions, and those with the largest charges are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_FEW_PIECES = 512  # that are sorted to find a level among them


class Shares(NamedTuple):
    """What each feature gets of a student's dimensions."""

    capacities: np.ndarray  # (n_features,) dimensions, in the order of the charges given
    distortions: np.ndarray  # (n_features,) loss relative to the second moment


@dataclass(frozen=True, eq=False)
class DistortionCurve:
    r"""Loss of a feature as a function of the dimensions it has: a convex, piecewise linear curve.

    Parameters
    ----------
    capacities : array-like of shape (n_points,)
        Dimensions a feature c, increasing, from 0.
    distortions : array-like of shape (n_points,)
        Loss relative to the second moment at each, non-increasing and convex; beyond the last it stays.

    Raises
    ------
    ValueError
        If the points are not of that kind.

    Examples
    --------
    >>> from geofloor.allocation import DistortionCurve
    >>> curve = DistortionCurve([0, 0.25, 1], [0.9, 0.3, 0])
    >>> curve([0.125, 0.25, 2.0]).round(3)
    array([0.6, 0.3, 0. ])
    """

    capacities: ArrayLike
    distortions: ArrayLike

    def __post_init__(self) -> None:
        c, d = np.asarray(self.capacities, dtype=np.float64), np.asarray(self.distortions, dtype=np.float64)
        if c.ndim != 1 or c.shape != d.shape or len(c) < 2:
            raise ValueError(
                f"capacities and distortions have shapes {c.shape} and {d.shape}; give two of one length, at least 2."
            )
        if not (np.isfinite(c).all() and np.isfinite(d).all()) or c[0] != 0.0 or (np.diff(c) <= 0.0).any():
            raise ValueError("capacities must be finite and increase from 0, and distortions be finite.")
        slopes = np.diff(d) / np.diff(c)
        if d.min() < 0.0 or (slopes > 0.0).any() or (np.diff(slopes) < -1e-9 * np.abs(slopes).max()).any():
            raise ValueError("distortions must be at least 0, non-increasing and convex; lower_hull makes them so.")

    def __call__(self, capacities: Any) -> np.ndarray:
        """Distortion at given capacities.

        Parameters
        ----------
        capacities : array-like
            Dimensions a feature.

        Returns
        -------
        distortions : ndarray
            Loss relative to the second moment.
        """
        return np.interp(capacities, np.asarray(self.capacities), np.asarray(self.distortions))

    @property
    def segments(self) -> tuple[np.ndarray, np.ndarray]:
        """What a dimension saves, and how many there are, for each linear piece; the savings decrease."""
        lengths = np.diff(np.asarray(self.capacities, dtype=np.float64))
        savings = -np.diff(np.asarray(self.distortions, dtype=np.float64)) / lengths
        return savings, lengths


def cutoff_curve(capacity: float) -> DistortionCurve:
    """The curve under which water-filling is Eq. 2: nothing lost from 1/g dimensions on, nothing gained for fewer.

    Parameters
    ----------
    capacity : float
        Features per dimension g, at least 1.

    Returns
    -------
    curve : DistortionCurve
        max(0, 1 − c·g).

    Examples
    --------
    >>> from geofloor.allocation import cutoff_curve
    >>> cutoff_curve(4.0)([0, 0.125, 0.25])
    array([1. , 0.5, 0. ])
    """
    if not capacity > 0.0:
        raise ValueError(f"capacity={capacity!r} must be positive.")
    return DistortionCurve([0.0, 1.0 / capacity], [1.0, 0.0])


def lower_hull(capacities: ArrayLike, distortions: ArrayLike) -> DistortionCurve:
    """The largest convex, non-increasing curve below measured points.

    A model can treat two groups of features differently, so that it reaches every point between two that it
    can reach.

    Parameters
    ----------
    capacities : array-like of shape (n_points,)
        Dimensions a feature, with 0 among them.
    distortions : array-like of shape (n_points,)
        Measured losses relative to the second moment.

    Returns
    -------
    curve : DistortionCurve
        The hull.

    Examples
    --------
    >>> from geofloor.allocation import lower_hull
    >>> lower_hull([0, 0.1, 0.5, 1], [1, 0.95, 0.2, 0]).capacities
    array([0. , 0.5, 1. ])
    """
    c, d = np.asarray(capacities, dtype=np.float64), np.asarray(distortions, dtype=np.float64)
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
    return DistortionCurve(c[hull], d[hull])


class Waterfilling:
    r"""The best division of dimensions among features, for any width, after one sort.

    Parameters
    ----------
    charges : array-like of shape (n_features,)
        What each feature costs if it is answered with 0: importance times second moment.
    curves : DistortionCurve or sequence of DistortionCurve
        The curve of all features, or the different ones.
    which : array-like of int of shape (n_features,), default=None
        For several curves, the one of each feature.

    Raises
    ------
    ValueError
        If charges are empty, negative or not finite, or `which` does not name a curve for each.

    Notes
    -----
    Every linear piece of every feature's curve is a quantity of dimensions, each of which saves the same. At
    the level λ the pieces that save more are filled. Features with one curve reach a piece in the order of
    their charges, so that counting filled pieces and adding up what is left takes a search in sorted charges
    for each piece of the curve. The level of a width is bracketed by bisection until few pieces lie between, which
    are then sorted.

    Examples
    --------
    >>> from geofloor.allocation import Waterfilling, cutoff_curve
    >>> Waterfilling([4.0, 2.0, 1.0], cutoff_curve(2.0)).floors([0.0, 0.5, 0.75, 1.5])
    array([7., 3., 2., 0.])
    """

    def __init__(
        self, charges: ArrayLike, curves: DistortionCurve | list[DistortionCurve], which: ArrayLike | None = None
    ) -> None:
        charges = _checked(charges)
        each = [curves] if isinstance(curves, DistortionCurve) else list(curves)
        index = np.zeros(len(charges), dtype=np.int16) if which is None else np.asarray(which)
        if index.shape != charges.shape or index.min() < 0 or index.max() >= len(each):
            raise ValueError(f"which must name one of {len(each)} curves for each of {len(charges)} charges.")
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
            # Entry k is the sum of the k smallest charges, so that what is left is exact where little is left.
            left = np.concatenate([[0.0], np.cumsum(ascending)])
            rest = float(np.asarray(curve.distortions)[-1]) * left[-1]
            self._groups.append((ascending, left, savings[useful], lengths[useful], rest))

    def levels(self, widths: ArrayLike) -> np.ndarray:
        """What the last dimension saves at each width: the lowest level at which no more than it is filled.

        Parameters
        ----------
        widths : array-like of shape (n_widths,)
            Widths, in dimensions.

        Returns
        -------
        levels : ndarray of shape (n_widths,)
            λ; 0 where dimensions are left over.
        """
        widths = np.asarray(widths, dtype=np.float64)
        highest = max((group[0][-1] * group[2].max(initial=0.0) for group in self._groups), default=0.0)
        highest = max(highest, 1e-290)  # so that the grid below it has no zero
        grid = np.append(0.0, np.geomspace(highest * 1e-15, highest * (1.0 + 1e-12), 64))
        dimensions, _, pieces = self._filled(grid)
        place = np.searchsorted(-dimensions, -widths, side="left").clip(max=len(grid) - 1)
        before = np.maximum(place - 1, 0)
        # More than the width is filled at `low`, at most the width at `high`. Positive floats are ordered as their
        # bits are, so that halving the bits finds any of them; it stops early where few pieces lie between.
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
        """The level of each width: that of the first piece between `high` and `low` with which it is overfull."""
        # Where rounding lets all of them fit, the level is `low`, at which the width is overfull by rounding alone.
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
        """Smallest loss at each width.

        Parameters
        ----------
        widths : array-like of shape (n_widths,)
            Widths, in dimensions.

        Returns
        -------
        floors : ndarray of shape (n_widths,)
            Loss, in the units of the charges.
        """
        widths = np.asarray(widths, dtype=np.float64)
        levels = self.levels(widths)
        filled, left, _ = self._filled(levels)
        # The pieces that save exactly λ are filled in part.
        return np.maximum(left - (widths - filled) * levels, 0.0)

    def served(self, widths: ArrayLike) -> np.ndarray:
        """Features that get a share of the dimensions at each width.

        Parameters
        ----------
        widths : array-like of shape (n_widths,)
            Widths, in dimensions.

        Returns
        -------
        counts : ndarray of shape (n_widths,), int64
            Features whose first dimension saves more than the level, or as much.
        """
        widths = np.asarray(widths, dtype=np.float64)
        levels = self.levels(widths)
        counts = np.zeros(widths.shape, dtype=np.int64)
        for ascending, _, savings, _, _ in self._groups:
            if len(savings):
                counts += len(ascending) - np.searchsorted(ascending, levels / savings[0], side="left")
        return np.where(widths > 0.0, counts, 0)

    def shares(self, width: float) -> Shares:
        """Dimensions and distortion of each feature at one width.

        Parameters
        ----------
        width : float
            Width, in dimensions.

        Returns
        -------
        shares : Shares
            In the order of the charges. Pieces that save exactly λ are filled one feature after another.
        """
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
        """Dimensions in pieces that save more than each level, the loss left with them, and the number of pieces."""
        dimensions, loss = np.zeros(levels.shape), np.zeros(levels.shape)
        pieces = np.zeros(levels.shape, dtype=np.int64)
        for ascending, left, savings, lengths, rest in self._groups:
            unfilled = np.searchsorted(ascending, levels[:, np.newaxis] / savings, side="right")
            filled = len(ascending) - unfilled
            dimensions += filled @ lengths
            pieces += filled.sum(axis=1)
            loss += left[unfilled] @ (savings * lengths) + rest
        return dimensions, loss, pieces


class BlockPacking:
    r"""Whole blocks of dimensions for groups of features, packed in the order of their charges.

    A block holds K features in a few dimensions, each at the same distortion. Small widths cannot be divided
    as finely as water-filling does it: one dimension holds two features of opposite sign, or one, and nothing
    between. A packing is a construction: a student that is made of these blocks has this loss.

    Parameters
    ----------
    charges : array-like of shape (n_features,)
        What each feature costs if it is answered with 0, in any order.
    block_widths : array-like of int of shape (n_blocks,)
        Dimensions of each kind of block.
    block_features : array-like of int of shape (n_blocks,)
        Features that it holds.
    block_distortions : array-like of shape (n_blocks,)
        Loss of each of them, relative to the second moment.
    empty_distortion : float, default=1.0
        Loss of a feature without dimensions, relative to the second moment.

    Raises
    ------
    ValueError
        If charges are empty, negative or not finite, or the blocks are not of one number.

    Notes
    -----
    Dynamic programming over widths and features, with features in descending order of charge: exact among all
    packings of consecutive features.

    Examples
    --------
    >>> from geofloor.allocation import BlockPacking
    >>> BlockPacking([4.0, 2.0, 1.0], [1, 1], [1, 2], [0.0, 0.25]).floors([0, 1, 2, 3])
    array([7.  , 2.5 , 0.75, 0.  ])
    """

    def __init__(
        self,
        charges: ArrayLike,
        block_widths: ArrayLike,
        block_features: ArrayLike,
        block_distortions: ArrayLike,
        empty_distortion: float = 1.0,
    ) -> None:
        charges = _checked(charges)
        kinds = np.asarray(block_widths), np.asarray(block_features), np.asarray(block_distortions, dtype=np.float64)
        if kinds[0].ndim != 1 or len({kind.shape for kind in kinds}) != 1 or not kinds[0].size:
            raise ValueError("block_widths, block_features and block_distortions must be one dimension of one length.")
        self.charges, self._order = charges, np.argsort(-charges, kind="stable")
        self._descending, self._kinds, self._empty = charges[self._order], kinds, float(empty_distortion)

    def floors(self, widths: ArrayLike) -> np.ndarray:
        """Loss of the best packing at each width.

        Parameters
        ----------
        widths : array-like of shape (n_widths,)
            Widths, in dimensions; fractions are rounded down.

        Returns
        -------
        floors : ndarray of shape (n_widths,)
            Loss, in the units of the charges.
        """
        whole = np.floor(np.asarray(widths, dtype=np.float64)).astype(np.int64)
        best, rest, _ = self._packed(int(whole.max(initial=0)), keep=False)
        return (best + rest).min(axis=1)[whole]

    def shares(self, width: float) -> Shares:
        """Dimensions and distortion of each feature in the best packing of one width.

        Parameters
        ----------
        width : float
            Width, in dimensions; a fraction is rounded down.

        Returns
        -------
        shares : Shares
            In the order of the charges. The dimensions of a block are shared equally.
        """
        row = int(np.floor(width))
        best, rest, kind = self._packed(row, keep=True)
        sizes, counts, distortions = self._kinds
        n = len(self.charges)
        capacities, losses = np.zeros(n), np.full(n, self._empty)
        reached = int((best[row] + rest).argmin())
        while reached > 0:
            used = int(kind[row, reached])
            if used < 0:  # a dimension that stayed unused
                row -= 1
                continue
            members = self._order[reached - counts[used] : reached]
            capacities[members], losses[members] = sizes[used] / counts[used], distortions[used]
            row, reached = row - int(sizes[used]), reached - int(counts[used])
        return Shares(capacities, losses)

    def _packed(self, widest: int, *, keep: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Loss of the first features packed in each width, that of the others, and the last block of each packing."""
        sizes, counts, distortions = self._kinds
        # No packing of this width reaches further features than the widest blocks do.
        reach = min(len(self._descending), int(np.ceil(widest * np.max(counts / sizes))) + int(counts.max()))
        sums = np.concatenate([[0.0], np.cumsum(self._descending[:reach])])
        beyond = float(self._descending[reach:].sum())
        best = np.full((widest + 1, reach + 1), np.inf)
        best[:, 0] = 0.0
        kind = np.full(best.shape if keep else (1, 1), -1, dtype=np.int32)
        kinds = list(enumerate(zip(sizes.tolist(), counts.tolist(), distortions.tolist(), strict=True)))
        for width in range(1, widest + 1):
            row = best[width - 1].copy()  # a dimension may stay unused
            for number, (size, count, distortion) in kinds:
                if size <= width and count <= reach:
                    packed = best[width - size, : reach + 1 - count] + distortion * (sums[count:] - sums[:-count])
                    if keep:
                        kind[width, count:][packed < row[count:]] = number
                    np.minimum(row[count:], packed, out=row[count:])
            best[width] = row
        return best, self._empty * (sums[-1] - sums + beyond), kind


def _checked(charges: ArrayLike) -> np.ndarray:
    array = np.asarray(charges, dtype=np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all() or array.min() < 0.0:
        raise ValueError("charges must be one dimension of finite values of at least 0, and not empty.")
    return array
