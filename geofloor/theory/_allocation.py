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

import collections
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from geofloor._validation import check_array_of_numbers, check_number, check_object, plain_array, shown

_FEW_PIECES = 512  # that are sorted to find a level among them
_LARGEST_SUM = 1e300  # of charges; what a dimension saves can be a hundred times a charge, and must not overflow


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
            object.__setattr__(self, name, values)  # the caller's arrays may change

    def __call__(self, capacities: Any) -> np.ndarray:
        """Distortion at given capacities.

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

    Raises
    ------
    ValueError
        If `capacity` is no finite number above 0.

    Examples
    --------
    >>> from geofloor.theory import cutoff_curve
    >>> cutoff_curve(4.0)([0, 0.125, 0.25])
    array([1. , 0.5, 0. ])
    """
    # At 1e300 features per dimension 1/g is still a normal number.
    capacity = check_number("capacity", capacity, 0.0, 1e300, open_low=True)
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
        The hull. Where 0 dimensions lose as little as any number of them, it is level.

    Raises
    ------
    ValueError
        If the points are not of one number, 0 is not among the capacities or is alone, or a value is negative.

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
        If charges are empty, negative, not finite, or too large to add up in float64, or `which` does not name a
        curve for each.
    TypeError
        If a curve is something else.

    Notes
    -----
    Every linear piece of every feature's curve is a quantity of dimensions, each of which saves the same. At
    the level λ the pieces that save more are filled. Features with one curve reach a piece in the order of
    their charges, so that counting filled pieces and adding up what is left takes a search in sorted charges
    for each piece of the curve. The level of a width is bracketed by bisection until few pieces lie between, which
    are then sorted.

    Examples
    --------
    >>> from geofloor.theory import Waterfilling, cutoff_curve
    >>> Waterfilling([4.0, 2.0, 1.0], cutoff_curve(2.0)).floors([0.0, 0.5, 0.75, 1.5])
    array([7., 3., 2., 0.])
    """

    def __init__(
        self, charges: ArrayLike, curves: DistortionCurve | list[DistortionCurve], which: ArrayLike | None = None
    ) -> None:
        charges = _checked(charges)
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

        Raises
        ------
        ValueError
            If a width is negative or not finite.
        """
        widths = _check_widths(widths)
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

        Raises
        ------
        ValueError
            If a width is negative or not finite.
        """
        widths = _check_widths(widths)
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

        Raises
        ------
        ValueError
            If a width is negative or not finite.
        """
        widths = _check_widths(widths)
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
        If charges are empty, negative, not finite, or too large to add up in float64; if blocks are not of one
        number, have no whole dimensions and features of at least 1, or a loss below 0.

    Notes
    -----
    Dynamic programming over widths and features, with features in descending order of charge: exact among all
    packings of consecutive features.

    Examples
    --------
    >>> from geofloor.theory import BlockPacking
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
        names = ("block_widths", "block_features", "block_distortions")
        given = (block_widths, block_features, block_distortions)
        sizes, counts, losses = (
            check_array_of_numbers(values, name, low=low)
            for values, name, low in zip(given, names, (1, 1, 0), strict=True)
        )
        if not sizes.shape == counts.shape == losses.shape:
            raise ValueError(f"{', '.join(names)} have shapes {sizes.shape}, {counts.shape}, {losses.shape}; give one.")
        for name, values in zip(names, (sizes, counts), strict=False):
            if (values != np.floor(values)).any() or values.max() > np.iinfo(np.int32).max:
                raise ValueError(f"{name}={shown(values)} must be whole numbers of at most {np.iinfo(np.int32).max}.")
        self.charges, self._order = charges, np.argsort(-charges, kind="stable")
        self._kinds = sizes.astype(np.int64), counts.astype(np.int64), losses
        self._descending, self._empty = charges[self._order], check_number("empty_distortion", empty_distortion, 0.0)
        # From this width on no dimension helps: every feature has a block to itself, of the smallest that lose nothing.
        alone = sizes[(counts == 1) & (losses == 0.0)]
        self._widest = len(charges) * int(alone.min() if len(alone) else sizes.max())

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

        Raises
        ------
        ValueError
            If a width is negative or not finite.
        """
        whole = np.floor(np.minimum(_check_widths(widths), self._widest)).astype(np.int64)
        return self._packed(int(whole.max(initial=0)))[0][whole]

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

        Raises
        ------
        ValueError
            If the width is negative or not finite.
        """
        row = int(min(check_number("width", width, 0.0), self._widest))
        kind: list[np.ndarray] = []
        _, reached = self._packed(row, kind)
        sizes, counts, distortions = self._kinds
        n = len(self.charges)
        capacities, losses = np.zeros(n), np.full(n, self._empty)
        while reached > 0:
            used = int(kind[row][reached])
            if used < 0:  # a dimension that stayed unused
                row -= 1
                continue
            members = self._order[reached - counts[used] : reached]
            capacities[members], losses[members] = sizes[used] / counts[used], distortions[used]
            row, reached = row - int(sizes[used]), reached - int(counts[used])
        return Shares(capacities, losses)

    def _packed(self, widest: int, kinds: list[np.ndarray] | None = None) -> tuple[np.ndarray, int]:
        """Pack every width up to one: the loss of each, and the features that the best packing of the last reaches.

        Into `kinds` goes the last block of the best packing of each width and number of features.
        """
        sizes, counts, distortions = self._kinds
        # No packing of this width reaches further features than the widest blocks do.
        reach = min(len(self._descending), int(np.ceil(widest * np.max(counts / sizes))) + int(counts.max()))
        sums = np.concatenate([[0.0], np.cumsum(self._descending[:reach])])
        rest = self._empty * (sums[-1] - sums + float(self._descending[reach:].sum()))
        each = list(enumerate(zip(sizes.tolist(), counts.tolist(), distortions.tolist(), strict=True)))
        # Loss of the first features packed in a width: only the rows that the widest block looks back on are kept.
        row = np.append(0.0, np.full(reach, np.inf))
        rows, floors = collections.deque([row], maxlen=int(min(sizes.max(), widest)) + 1), np.empty(widest + 1)
        floors[0] = (row + rest).min()
        if kinds is not None:
            kinds.append(np.full(reach + 1, -1, dtype=np.int32))
        for width in range(1, widest + 1):
            row = rows[-1].copy()  # a dimension may stay unused
            if kinds is not None:
                kinds.append(np.full(reach + 1, -1, dtype=np.int32))
            for number, (size, count, distortion) in each:
                if size <= width and count <= reach:
                    packed = rows[-size][: reach + 1 - count] + distortion * (sums[count:] - sums[:-count])
                    if kinds is not None:
                        kinds[-1][count:][packed < row[count:]] = number
                    np.minimum(row[count:], packed, out=row[count:])
            rows.append(row)
            floors[width] = (row + rest).min()
        return floors, int((row + rest).argmin())


def _check_curves(curves: Any) -> list[DistortionCurve]:
    remedy = "give a DistortionCurve, or a list of them"
    if isinstance(curves, DistortionCurve):
        return [curves]
    check_object("curves", curves, (list, tuple), remedy)
    for curve in curves:
        check_object("curves", curve, DistortionCurve, remedy)
    return list(curves)


def _check_widths(widths: ArrayLike) -> np.ndarray:
    return check_array_of_numbers(widths, "widths", low=0.0, empty=True)


def _checked(charges: ArrayLike) -> np.ndarray:
    array = check_array_of_numbers(charges, "charges", low=0.0)
    with np.errstate(over="ignore"):
        check_total(array.sum(), "charges")
    return array


def check_total(total: float, name: str) -> None:
    """Refuse charges whose sum float64 can't hold with room to spare.

    Parameters
    ----------
    total : float
        Sum of the charges.
    name : str
        What the user knows them by.

    Raises
    ------
    ValueError
        If it is above 1e300.

    Examples
    --------
    >>> from geofloor.theory._allocation import check_total
    >>> check_total(3.0, "charges")
    """
    if total > _LARGEST_SUM:
        raise ValueError(f"{name} add up to {total:g}, too near the end of float64; divide them by a constant.")
