"""Allocations of a student's dimensions to features: one small class each, with its own options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from geofloor._validation import check_choice, check_number, check_object, shown
from geofloor.theory._capacity import CapacityMethod, check_method, features_per_dimension
from geofloor.theory._curves import DistortionCurve
from geofloor.theory._cutoff import CutoffDivision
from geofloor.theory._distortion import CURVES, STARTS, check_amplitude
from geofloor.theory._division import ChargedFeatures, Division
from geofloor.theory._measured import MeasuredDivision
from geofloor.theory._waterfilling import Waterfilling

# Up to this width "auto" packs blocks. On toy floors they were nearer than water-filling at all widths up to 30.
WIDEST_PACKING = 32
_MOST_WIDTH = 2**53  # float64 does not hold all whole widths beyond it


class Allocation(ABC):
    """Divide a student's dimensions among the teacher's features: the base of all allocations.

    A subclass defines `divide`. Make it a frozen dataclass whose fields are its options, so that estimators can
    clone and print it.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> from geofloor import FloorPredictor
    >>> from geofloor.theory import Allocation, Waterfilling, cutoff_curve
    >>> @dataclass(frozen=True)
    ... class FeaturesPerDimension(Allocation):
    ...     number: float
    ...
    ...     def divide(self, features):
    ...         return Waterfilling(features.charges, cutoff_curve(self.number))
    >>> FloorPredictor(0.9, allocation=FeaturesPerDimension(2)).fit([4.0, 2.0, 1.0]).predict([0, 1])
    array([7., 1.])
    """

    @abstractmethod
    def divide(self, features: ChargedFeatures) -> Division:
        """Prepare the division of any width among features.

        Parameters
        ----------
        features : ChargedFeatures
            Charges, sparsity and firing rates of the teacher's features.

        Returns
        -------
        division : Division
            Floors and shares at any width.
        """

    @property
    def _uses_equation_1(self) -> bool:
        """Whether floors depend on Eq. 1."""
        return False

    def _capacity_at(self, alpha: float) -> float:
        """Compute g(α); by Eq. 1 if floors don't depend on it."""
        return float(features_per_dimension(np.array(alpha), "asymptotic"))

    def _doubt(self, critical_width: float) -> str | None:
        """Return a warning about the fitted features, if there is one."""
        return None


@dataclass(frozen=True)
class CutoffAllocation(Allocation):
    r"""Keep the most important features without loss and drop the others, as Eq. 2 does.

    Parameters
    ----------
    capacity : {"asymptotic", "minimax", "minimax_nonnegative"} or callable, default="asymptotic"
        Features per dimension g(α), as in `geofloor.theory.capacity`.
    teacher_width : int, default=None
        Width of the teacher, in dimensions. If given, `FloorPredictor.fit` warns of a critical width over twice as
        large: the codes are then too dense to tell features apart.

    Raises
    ------
    ValueError
        If `capacity` is unknown, or `teacher_width` is not a whole number of at least 1.

    Examples
    --------
    >>> from geofloor import FloorPredictor
    >>> from geofloor.theory import CutoffAllocation
    >>> allocation = CutoffAllocation(capacity="minimax_nonnegative")
    >>> round(FloorPredictor(0.9, allocation=allocation).fit([4.0, 2.0, 1.0]).capacity_, 2)
    3.77
    """

    capacity: CapacityMethod = "asymptotic"
    teacher_width: int | None = None

    def __post_init__(self) -> None:
        check_method(self.capacity, "capacity")
        if self.teacher_width is not None:
            check_number("teacher_width", self.teacher_width, 1, whole=True)

    def divide(self, features: ChargedFeatures) -> Division:
        """Prepare the division of any width among features.

        Parameters
        ----------
        features : ChargedFeatures
            Charges of the teacher's features in order of importance, and their capacity g(α).

        Returns
        -------
        division : Division
            Floors and shares at any width.

        Raises
        ------
        ValueError
            If no width up to 2⁵³ holds all features at this capacity.
        """
        _check_features(features)
        if len(features.charges) > features.capacity * _MOST_WIDTH:
            raise ValueError(
                f"capacity={shown(self.capacity)} gives {features.capacity:g} features per dimension at "
                f"alpha={features.alpha:g}: no width holds {len(features.charges)} features; give a larger one."
            )
        return CutoffDivision(features)

    @property
    def _uses_equation_1(self) -> bool:
        return isinstance(self.capacity, str) and self.capacity == "asymptotic"

    def _capacity_at(self, alpha: float) -> float:
        return float(features_per_dimension(np.array(alpha), self.capacity, "capacity"))

    def _doubt(self, critical_width: float) -> str | None:
        if self.teacher_width is None or critical_width <= 2 * self.teacher_width:
            return None
        return (
            f"critical_width_={critical_width:,.0f} is over twice teacher_width={self.teacher_width}: no teacher holds "
            "more features than fit its width, so the codes are too dense, or too many features count as alive. Train "
            "the autoencoder for longer or with a stronger sparsity penalty, or raise min_firing_rate."
        )


@dataclass(frozen=True)
class WaterfillingAllocation(Allocation):
    """Divide dimensions as finely as the distortion curves of trained students allow.

    No student divides them more finely, so its floors are bounds from below.

    Parameters
    ----------
    curve : {"relu", "deep"}, default="relu"
        Decoder of the student: one ReLU layer with tied weights, or two hidden layers.
    amplitude : {"uniform", "exponential", "half-normal", "constant"}, default=None
        Law of an active feature, for importances without a feature table: the means of a table replace it. It sets
        the loss of a dropped feature, since a student with a bias answers its mean. By default ``"uniform"``.

    Raises
    ------
    ValueError
        If an option is unknown.

    Examples
    --------
    >>> from geofloor import FloorPredictor
    >>> from geofloor.theory import WaterfillingAllocation
    >>> FloorPredictor(0.9, allocation=WaterfillingAllocation(amplitude="constant")).fit([4.0, 2.0]).predict([0])
    array([5.4])
    """

    curve: str = "relu"
    amplitude: str | None = None

    def __post_init__(self) -> None:
        _check_options(self)

    def divide(self, features: ChargedFeatures) -> Division:
        """Prepare the division of any width among features.

        Parameters
        ----------
        features : ChargedFeatures
            Charges, sparsity and firing rates of the teacher's features.

        Returns
        -------
        division : Division
            Floors and shares at any width.

        Raises
        ------
        ValueError
            If `amplitude` is given beside measured means.
        """
        return _measured(self, features, starts="best", packed_up_to=-1.0)


@dataclass(frozen=True)
class BlocksAllocation(Allocation):
    """Pack groups of features into whole blocks of dimensions, as measured on trained students.

    It is meant for small widths.

    Parameters
    ----------
    curve : {"relu", "deep"}, default="relu"
        Decoder of the student: one ReLU layer with tied weights, or two hidden layers.
    amplitude : {"uniform", "exponential", "half-normal", "constant"}, default=None
        Law of an active feature, for importances without a feature table: the means of a table replace it. It sets
        the loss of a dropped feature, since a student with a bias answers its mean. By default ``"uniform"``.
    starts : {"mean", "best"}, default="mean"
        Whether to predict the average training from one starting point, or the best of several. The average is
        above the best by a share 0.10/√n, where n is the effective number of features, (Σ w_i)²/Σ w_i² of the
        charges w_i. The share is small for language models.

    Raises
    ------
    ValueError
        If an option is unknown.

    Examples
    --------
    >>> from geofloor import FloorPredictor
    >>> from geofloor.theory import BlocksAllocation
    >>> FloorPredictor(0.9, allocation=BlocksAllocation(starts="best")).fit([4.0, 2.0]).predict([0, 1, 2]).round(3)
    array([5.55 , 0.296, 0.   ])
    """

    curve: str = "relu"
    amplitude: str | None = None
    starts: str = "mean"

    def __post_init__(self) -> None:
        _check_options(self)

    def divide(self, features: ChargedFeatures) -> Division:
        """Prepare the division of any width among features.

        Parameters
        ----------
        features : ChargedFeatures
            Charges, sparsity and firing rates of the teacher's features.

        Returns
        -------
        division : Division
            Floors and shares at any width.

        Raises
        ------
        ValueError
            If `amplitude` is given beside measured means.
        """
        return _measured(self, features, starts=self.starts, packed_up_to=np.inf)


@dataclass(frozen=True)
class AutoAllocation(Allocation):
    """Pack blocks up to width 32, and water-fill beyond.

    Parameters
    ----------
    curve : {"relu", "deep"}, default="relu"
        Decoder of the student, as in `BlocksAllocation`.
    amplitude : {"uniform", "exponential", "half-normal", "constant"}, default=None
        Law of an active feature, as in `BlocksAllocation`.
    starts : {"mean", "best"}, default="mean"
        Whether to predict the average training or the best, as in `BlocksAllocation`.

    Raises
    ------
    ValueError
        If an option is unknown.

    Examples
    --------
    >>> from geofloor import FloorPredictor
    >>> from geofloor.theory import AutoAllocation
    >>> FloorPredictor(0.9, allocation=AutoAllocation(curve="deep")).fit([4.0, 2.0]).predict([0, 2]).round(3)
    array([5.55, 0.  ])
    """

    curve: str = "relu"
    amplitude: str | None = None
    starts: str = "mean"

    def __post_init__(self) -> None:
        _check_options(self)

    def divide(self, features: ChargedFeatures) -> Division:
        """Prepare the division of any width among features.

        Parameters
        ----------
        features : ChargedFeatures
            Charges, sparsity and firing rates of the teacher's features.

        Returns
        -------
        division : Division
            Floors and shares at any width.

        Raises
        ------
        ValueError
            If `amplitude` is given beside measured means.
        """
        return _measured(self, features, starts=self.starts, packed_up_to=WIDEST_PACKING)


@dataclass(frozen=True)
class CurveAllocation(Allocation):
    """Water-fill a distortion curve of one's own, the same for all features.

    Parameters
    ----------
    distortion : DistortionCurve
        Loss of a feature as a function of its dimensions.

    Raises
    ------
    TypeError
        If `distortion` is not a `DistortionCurve`.

    Examples
    --------
    >>> from geofloor import FloorPredictor
    >>> from geofloor.theory import CurveAllocation, cutoff_curve
    >>> FloorPredictor(0.9, allocation=CurveAllocation(cutoff_curve(2.0))).fit([4.0, 2.0]).predict([0, 0.25, 1])
    array([6., 4., 0.])
    """

    distortion: DistortionCurve

    def __post_init__(self) -> None:
        check_object("distortion", self.distortion, DistortionCurve, "give a DistortionCurve, as lower_hull makes it")

    def divide(self, features: ChargedFeatures) -> Division:
        """Prepare the division of any width among features.

        Parameters
        ----------
        features : ChargedFeatures
            Charges of the teacher's features.

        Returns
        -------
        division : Division
            Floors and shares at any width.
        """
        _check_features(features)
        return Waterfilling(features.charges, self.distortion)


# Short names; options given beside a name go to its class.
NAMED: dict[str, type[Allocation]] = {
    "cutoff": CutoffAllocation,
    "waterfilling": WaterfillingAllocation,
    "blocks": BlocksAllocation,
    "auto": AutoAllocation,
}


def as_allocation(allocation: Any, options: Mapping[str, Any]) -> Allocation:
    """Return an allocation given as an object, as a name with options, or as a distortion curve.

    Parameters
    ----------
    allocation : Allocation, str or DistortionCurve
        The allocation, its short name, or the curve of a `CurveAllocation`.
    options : mapping of str to object
        Options of a named allocation; None stands for the default.

    Returns
    -------
    allocation : Allocation
        The allocation as an object.

    Raises
    ------
    ValueError
        If the allocation or an option is unknown, or if the allocation does not use the option.

    Examples
    --------
    >>> from geofloor.theory._allocations import as_allocation
    >>> as_allocation("auto", {"curve": "deep", "capacity": None})
    AutoAllocation(curve='deep', amplitude=None, starts='mean')
    """
    given = {name: value for name, value in options.items() if value is not None}
    kind = NAMED.get(allocation) if isinstance(allocation, str) else None
    used = () if kind is None else _options_of(kind)
    for name, value in given.items():
        if name not in used:
            remedy = "leave it None"
            if isinstance(allocation, Allocation) and name in _options_of(type(allocation)):
                remedy = f"leave it None and give {type(allocation).__name__}({name}=...)"
            users = " and ".join(repr(each) for each, named in NAMED.items() if name in _options_of(named))
            raise ValueError(
                f"{name}={shown(value)} is not used with allocation={shown(allocation)}, only with {users}; {remedy}."
            )
    if kind is not None:
        return kind(**given)
    if isinstance(allocation, DistortionCurve):
        return CurveAllocation(allocation)
    if isinstance(allocation, Allocation):
        return allocation
    raise ValueError(
        f"allocation={shown(allocation)} is unknown; use one of {', '.join(map(repr, NAMED))}, an Allocation, or a "
        "DistortionCurve."
    )


def _options_of(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else ()


def _check_features(features: Any) -> None:
    check_object("features", features, ChargedFeatures, "FloorPredictor.fit makes ChargedFeatures")


def _check_options(allocation: WaterfillingAllocation | BlocksAllocation | AutoAllocation) -> None:
    check_choice("curve", allocation.curve, CURVES)
    if allocation.amplitude is not None:
        check_amplitude(allocation.amplitude)
    check_choice("starts", getattr(allocation, "starts", "best"), STARTS)


def _measured(
    allocation: WaterfillingAllocation | BlocksAllocation | AutoAllocation,
    features: ChargedFeatures,
    starts: str,
    packed_up_to: float,
) -> Division:
    _check_features(features)
    if features.bias_savings is not None and allocation.amplitude is not None:
        raise ValueError(
            f"amplitude={allocation.amplitude!r} is not used with a feature table that has means; leave it None."
        )
    return MeasuredDivision(features, allocation.curve, allocation.amplitude, starts, packed_up_to)
