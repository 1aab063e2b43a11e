"""Packing of blocks: groups of features in whole dimensions."""

from __future__ import annotations

import collections

import numpy as np
from numpy.typing import ArrayLike

from geofloor._validation import check_array_of_numbers, check_number, shown
from geofloor.theory._division import Division, Shares, check_charges
from geofloor.theory._widths import read_widths


class BlockPacking(Division):
    r"""Pack groups of features into whole blocks of dimensions, in the order of their charges.

    A block holds K features in a few dimensions, each at the same distortion. Water-filling divides small widths too
    finely: one dimension holds one feature, or two of opposite sign, and nothing between. A packing is a
    construction: a student made of these blocks has this loss.

    Parameters
    ----------
    charges : array-like of shape (n_features,)
        Cost of answering each feature with 0, in any order.
    block_widths : array-like of int of shape (n_blocks,)
        Dimensions of each kind of block.
    block_features : array-like of int of shape (n_blocks,)
        Features in each kind of block.
    block_distortions : array-like of shape (n_blocks,)
        Loss of each feature of a block, relative to the second moment.
    empty_distortion : float, default=1.0
        Loss of a feature without dimensions, relative to the second moment.

    Raises
    ------
    ValueError
        If charges are empty, negative, not finite, or too large to add up in float64; if the arrays of blocks differ
        in length, hold dimensions or features that are not whole numbers of at least 1, or hold a negative loss.

    Notes
    -----
    Dynamic programming over widths and features, in descending order of charge. It is exact among all packings of
    consecutive features.

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
        charges = check_charges(charges)
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
        # From this width on no dimension helps: every feature has the smallest lossless block to itself.
        alone = sizes[(counts == 1) & (losses == 0.0)]
        self._widest = len(charges) * int(alone.min() if len(alone) else sizes.max())

    @property
    def critical_width(self) -> float:
        """Critical width: beyond it the floor is constant."""
        return float(self._widest)

    def floors(self, widths: ArrayLike) -> np.ndarray:
        """Compute the loss of the best packing at each width.

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
        whole = np.floor(np.minimum(read_widths(widths), self._widest)).astype(np.int64)
        return self._packed(int(whole.max(initial=0)))[0][whole]

    def shares(self, width: float) -> Shares:
        """Compute the dimensions and the distortion of each feature in the best packing of one width.

        Parameters
        ----------
        width : float
            Width, in dimensions; a fraction is rounded down.

        Returns
        -------
        shares : Shares
            Dimensions and distortions, in the order of the charges. The features of a block share its dimensions
            equally.

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
            if used < 0:  # this dimension stays unused
                row -= 1
                continue
            members = self._order[reached - counts[used] : reached]
            capacities[members], losses[members] = sizes[used] / counts[used], distortions[used]
            row, reached = row - int(sizes[used]), reached - int(counts[used])
        return Shares(capacities, losses)

    def _packed(self, widest: int, kinds: list[np.ndarray] | None = None) -> tuple[np.ndarray, int]:
        """Pack every width up to `widest`; return the losses, and the features packed at the last width.

        `kinds` receives the last block of the best packing of each width and number of features.
        """
        sizes, counts, distortions = self._kinds
        # No packing of this width holds more features than the densest blocks do.
        reach = min(len(self._descending), int(np.ceil(widest * np.max(counts / sizes))) + int(counts.max()))
        sums = np.concatenate([[0.0], np.cumsum(self._descending[:reach])])
        rest = self._empty * (sums[-1] - sums + float(self._descending[reach:].sum()))
        each = list(enumerate(zip(sizes.tolist(), counts.tolist(), distortions.tolist(), strict=True)))
        # A row holds the losses of the first k packed features at one width. Blocks look back by their width.
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
