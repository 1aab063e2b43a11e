"""Divisions of a student's dimensions among the teacher's features, at every width."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from geofloor._validation import check_array_of_numbers
from geofloor.theory._widths import read_widths

_LARGEST_SUM = 1e300  # of charges; a dimension can save a hundred times a charge, and must not overflow
# Floors are sums of charges. Their last digits depend on the other widths of a call, so a target counts as met up to
# these shares of itself and of the floor at width 0.
_ROUNDING, _ROUNDING_OF_ALL = 1e-12, 1e-15


class ChargedFeatures(NamedTuple):
    """Features of a teacher, as an allocation sees them."""

    charges: np.ndarray  # (n_features,) cost of dropping each: importance times second moment, in the order of `fit`
    ranked: np.ndarray  # (n_features,) the same charges in ascending order of importance
    order: np.ndarray | None  # (n_features,) their places in `charges`; None where the charges are the importances
    alpha: float  # sparsity
    capacity: float  # features per dimension, g(alpha)
    firing_rates: np.ndarray | None  # (n_features,) P(z_i > 0), if the sparsity was taken from a feature table
    bias_savings: np.ndarray | None  # (n_features,) part of each charge that a bias saves, if a table has means


class Shares(NamedTuple):
    """Dimensions and distortion of each feature at one width."""

    capacities: np.ndarray  # (n_features,) dimensions, in the order of the charges given
    distortions: np.ndarray  # (n_features,) loss relative to the second moment


class WidthAllocation(NamedTuple):
    """Division of the dimensions of one student."""

    capacities: np.ndarray  # (n_features,) dimensions of each feature, in the order of the importances given to `fit`
    n_full: int  # features kept without loss
    n_partial: int  # features that share dimensions at a loss
    n_dropped: int  # features without dimensions
    dropped: float  # loss of the dropped features
    interference: float  # loss of the features kept in part; the two add up to the floor


class Division(ABC):
    """Divide the dimensions of any width among charged features: the base of all divisions.

    A subclass sets ``charges`` and defines `floors` and `shares`.

    Attributes
    ----------
    charges : ndarray of shape (n_features,), float64
        Cost of dropping each feature.
    """

    charges: np.ndarray

    @abstractmethod
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
        """

    @abstractmethod
    def shares(self, width: float) -> Shares:
        """Compute the dimensions and the distortion of each feature at one width.

        Parameters
        ----------
        width : float
            Width, in dimensions.

        Returns
        -------
        shares : Shares
            Dimensions and distortions, in the order of the charges.
        """

    @property
    def critical_width(self) -> float:
        """Critical width: beyond it the floor is constant. By default one dimension per feature."""
        return float(len(self.charges))

    def served(self, widths: ArrayLike) -> np.ndarray:
        """Count the features with dimensions at each width.

        Parameters
        ----------
        widths : array-like of shape (n_widths,)
            Widths, in dimensions.

        Returns
        -------
        counts : ndarray of shape (n_widths,), int64
            Features with dimensions.

        Raises
        ------
        ValueError
            If a width is negative or not finite.
        """
        return np.array(
            [np.count_nonzero(self.shares(width).capacities) for width in read_widths(widths)], dtype=np.int64
        )

    def _allocate(self, width: float) -> WidthAllocation:
        shares = self.shares(width)
        losses = self.charges * shares.distortions
        has, whole = shares.capacities > 0.0, shares.distortions == 0.0
        return WidthAllocation(
            shares.capacities,
            int((has & whole).sum()),
            int((has & ~whole).sum()),
            int((~has).sum()),
            float(losses[~has].sum()),
            float(losses[has].sum()),
        )

    def _bounds(self, widths: np.ndarray, floors: np.ndarray) -> np.ndarray | None:
        """Bound the floors from below and above, (n_widths, 2); None without measured students to tell."""
        return None

    def _meets(self, widths: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Tell where the floors are at most the targets, up to rounding."""
        *floors, whole = self.floors(np.append(widths, 0.0))
        return floors <= targets * (1.0 + _ROUNDING) + whole * _ROUNDING_OF_ALL


def check_charges(charges: ArrayLike) -> np.ndarray:
    """Return charges as an array of non-negative numbers with a sum within float64.

    Parameters
    ----------
    charges : array-like of shape (n_features,)
        Cost of dropping each feature.

    Returns
    -------
    charges : ndarray of shape (n_features,), float64
        A copy.

    Raises
    ------
    ValueError
        If charges are empty, negative, not finite or too large.

    Examples
    --------
    >>> from geofloor.theory._division import check_charges
    >>> check_charges([2, 1])
    array([2., 1.])
    """
    array = check_array_of_numbers(charges, "charges", low=0.0)
    with np.errstate(over="ignore"):
        check_total(array.sum(), "charges")
    return array


def check_total(total: float, name: str) -> None:
    """Refuse charges with a sum near the largest float64.

    Parameters
    ----------
    total : float
        Sum of the charges.
    name : str
        Name of the argument in the message.

    Raises
    ------
    ValueError
        If the sum is above 1e300.

    Examples
    --------
    >>> from geofloor.theory._division import check_total
    >>> check_total(3.0, "charges")
    """
    if total > _LARGEST_SUM:
        raise ValueError(f"{name} add up to {total:g}, too near the end of float64; divide them by a constant.")
