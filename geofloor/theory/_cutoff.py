"""The hard cut-off of Eq. 2: features are kept whole or dropped."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from geofloor.theory._capacity import count_kept
from geofloor.theory._division import ChargedFeatures, Division, Shares, WidthAllocation
from geofloor.theory._widths import read_widths


class CutoffDivision(Division):
    r"""Keep the :math:`\lfloor d\,g(\alpha) \rfloor` most important features, and drop the others.

    Parameters
    ----------
    features : ChargedFeatures
        Charges of the teacher's features in order of importance, and their capacity g(α).

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor.theory._cutoff import CutoffDivision
    >>> from geofloor.theory._division import ChargedFeatures
    >>> charges = np.array([1.0, 2.0, 4.0])
    >>> features = ChargedFeatures(charges, charges, None, 0.9, 2.0, None, None)
    >>> CutoffDivision(features).floors([0, 0.5, 1.5]).tolist()
    [7.0, 3.0, 0.0]
    """

    def __init__(self, features: ChargedFeatures) -> None:
        self.charges, self._order, self._capacity = features.charges, features.order, features.capacity
        # Entry k is the charge of the k least important features, summed from the smallest up.
        self._dropped = np.empty(len(self.charges) + 1)
        self._dropped[0] = 0.0
        np.cumsum(features.ranked, out=self._dropped[1:])

    @property
    def critical_width(self) -> float:
        """Critical width d* = F/g(α): beyond it no feature is dropped."""
        return len(self.charges) / self._capacity

    def floors(self, widths: ArrayLike) -> np.ndarray:
        """Sum the charges of the features dropped at each width.

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
        return self._dropped[len(self.charges) - self.served(widths)]

    def shares(self, width: float) -> Shares:
        """Give 1/g dimensions to each feature kept at one width.

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
        order = np.argsort(self.charges, kind="stable") if self._order is None else self._order
        kept = order[len(order) - int(self.served([width])[0]) :]
        capacities, distortions = np.zeros(len(order)), np.ones(len(order))
        capacities[kept], distortions[kept] = 1.0 / self._capacity, 0.0
        return Shares(capacities, distortions)

    def served(self, widths: ArrayLike) -> np.ndarray:
        """Count the features kept at each width.

        Parameters
        ----------
        widths : array-like of shape (n_widths,)
            Widths, in dimensions.

        Returns
        -------
        counts : ndarray of shape (n_widths,), int64
            Features kept, F_S.

        Raises
        ------
        ValueError
            If a width is negative or not finite.
        """
        return count_kept(read_widths(widths), self._capacity, len(self.charges))

    def _allocate(self, width: float) -> WidthAllocation:
        return super()._allocate(width)._replace(dropped=float(self.floors([width])[0]))

    def _meets(self, widths: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return self.floors(widths) <= targets  # exact: these sums do not depend on the other widths of a call
