"""The loss floor of a student from its width and the teacher's features: Eq. 2 and its successors."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from geofloor._validation import check_choice, check_flag, check_number, shown, warn_caller
from geofloor.theory._allocation import BlockPacking, DistortionCurve, Waterfilling, check_total
from geofloor.theory._capacity import CapacityMethod, capacity, features_per_dimension, is_too_dense
from geofloor.theory._distortion import AMPLITUDES, CURVES, STARTS, blocks, distortion_curves, empty_distortion
from geofloor.theory._widths import WidthPredictorMixin, read_column, read_importances, read_targets

ALLOCATIONS = ("cutoff", "waterfilling", "blocks", "auto")
# Up to this width "auto" packs blocks. On toy floors they were nearer than water-filling at all widths, up to 30.
WIDEST_PACKING = 32
# An average training ends above the best by 0.10 / sqrt(effective number of features): the median over toy floors of
# importances other than the paper's (benchmarks/allocations.py).
_EXCESS = 0.10
# Bounds from above pack blocks exactly up to this width, and only blocks of the next number of dimensions beyond it.
_EXACT_PACKING, _COARSE_BLOCK = 64, 8
# Constructor arguments that each allocation uses; one given to another is an error.
_USED = {
    "cutoff": ("capacity", "teacher_width"),
    "waterfilling": ("curve", "amplitude"),
    "blocks": ("curve", "amplitude", "starts"),
    "auto": ("curve", "amplitude", "starts"),
}
_MOST_WIDTH = 2**53  # whole widths beyond it are no float64
_BIN = 0.25  # of the logarithm of the firing rate: features within one share a curve


class Allocation(NamedTuple):
    """What a student of one width does with its dimensions."""

    capacities: np.ndarray  # (n_features,) dimensions of each feature, in the order of the importances given to `fit`
    n_full: int  # features kept without loss
    n_partial: int  # features that share dimensions at a loss
    n_dropped: int  # features without dimensions
    dropped: float  # loss of the dropped features
    interference: float  # loss of those kept in part; the two add up to the floor


class FloorPredictor(WidthPredictorMixin, BaseEstimator):
    r"""Predict the loss floor of a student of any width from the importances of the teacher's features.

    By default with Eq. 2: a student of width d keeps the :math:`F_S = \lfloor d\,g(\alpha) \rfloor` most
    important features and pays for those that it drops. Other allocations divide the dimensions among
    features as trained students do.

    Parameters
    ----------
    alpha : float or None, default=None
        Sparsity of the features, in [0, 1). With None it is one minus the mean firing rate in the
        feature table given to `fit`.
    allocation : {"cutoff", "waterfilling", "blocks", "auto"} or DistortionCurve, default="cutoff"
        How dimensions are divided among features: the cut-off of Eq. 2; reverse water-filling over the
        distortion curve of trained students, or over the curve given; whole blocks of them, for small widths;
        or blocks for widths up to 32 and water-filling beyond. For students with one ReLU layer
        the others predict what is measured. For language models none is settled: the default orders widths, and
        what it forecasts from two distilled students can be off by a fifth or more.
    capacity : {"asymptotic", "minimax", "minimax_nonnegative"} or callable, default=None
        Features per dimension g(α), as in `geofloor.theory.capacity`, for the cut-off only. By default
        ``"asymptotic"``.
    curve : {"relu", "deep"}, default=None
        What the student's decoder can compute, for ``"waterfilling"``, ``"blocks"`` and ``"auto"`` only: one ReLU
        layer with tied weights, or two hidden layers. By default ``"relu"``.
    amplitude : {"uniform", "exponential", "half-normal", "constant"}, default=None
        Law of an active feature, for ``"waterfilling"``, ``"blocks"`` and ``"auto"`` on importances without a
        feature table, whose means replace it: it sets what a dropped feature costs a student that has a bias. By
        default ``"uniform"``.
    starts : {"mean", "best"}, default=None
        Which student ``"blocks"`` and ``"auto"``, and only they, predict: what training from one starting point
        ends at on average, or the best of several. The average is above the best by a share 0.10/√n, where n is the
        effective number of features, (Σ w_i)²/Σ w_i² of the charges w_i; it is small for language models. By
        default ``"mean"``.
    teacher_width : int, default=None
        Width of the teacher, in dimensions, for the cut-off only. If given, `fit` warns where the critical width
        is over twice as large, which says that the codes are too dense to tell features apart.

    Attributes
    ----------
    alpha_ : float
        Sparsity in use.
    capacity_ : float
        Features per dimension, g(α); by Eq. 1 for other allocations than the cut-off, whose floors don't use it.
    critical_width_ : float
        Width from which on nothing is lost: d* = F/g(α) for the cut-off, F for the other allocations.
    n_features_ : int
        Number of features F.
    importances_ : ndarray of shape (n_features_,), float64
        Importances, in descending order.

    See Also
    --------
    FeatureStatistics : Measures the feature table on codes of a sparse autoencoder.
    AffineCalibrator : Turns the floor into nats per token.

    Notes
    -----
    The floor is Eq. 2 of [1]_, in the units of the importances:

    .. math:: L^*(d) = \sum_{i > F_S} I_i \,\mathbb{E}[x_i^2], \qquad I_1 \ge I_2 \ge \dots

    Importances that are second moments already, :math:`I_i = \mathbb{E}[z_i^2]` as measured on
    codes, stand alone; in a toy model, :math:`\mathbb{E}[x_i^2]` is given as `second_moments`.

    Eq. 2 is a hard cut-off: it takes features as either kept without loss or dropped. Water-filling lets
    features share dimensions at a loss,

    .. math:: L^*(d) = \min_{c \ge 0,\ \sum_i c_i \le d} \ \sum_i I_i\, \mathbb{E}[x_i^2]\, D_{\alpha_i}(c_i),

    with the curve D measured on features of equal importance (`geofloor.distortion`); Eq. 2 is the case
    D(c) = max(0, 1 − c·g), up to the rounding of :math:`F_S`.

    References
    ----------
    .. [1] Sarkar and Deka (2026), "Geometric Limits of Knowledge Distillation", arXiv:2604.04037,
       Theorem 1.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import FloorPredictor
    >>> importances = 1 / np.arange(1, 1001) ** 2
    >>> predictor = FloorPredictor(alpha=0.992).fit(importances)
    >>> predictor.predict([4, 16, 64]).round(5)
    array([0.00866, 0.00141, 0.     ])
    >>> predictor.kept_features([4, 16, 64])
    array([ 103,  414, 1000])
    >>> predictor.min_width(0.005)
    7
    """

    # `importances` are data too.
    __metadata_request__fit: ClassVar = {"importances": UNUSED}

    def __init__(
        self,
        alpha: float | None = None,
        *,
        allocation: str = "cutoff",
        capacity: CapacityMethod | None = None,
        curve: str | None = None,
        amplitude: str | None = None,
        starts: str | None = None,
        teacher_width: int | None = None,
    ) -> None:
        self.alpha = alpha
        self.allocation = allocation
        self.capacity = capacity
        self.curve = curve
        self.amplitude = amplitude
        self.starts = starts
        self.teacher_width = teacher_width

    def fit(self, importances: Any, y: Any = None, *, second_moments: ArrayLike | None = None) -> FloorPredictor:
        """Take in the importances of the teacher's features.

        Parameters
        ----------
        importances : array-like of shape (n_features,), (n_features, 1) or (n_features, 3), or DataFrame
            Importances in any order; or a feature table with the columns importance, firing rate and
            mean, as `FeatureStatistics` gives it. A DataFrame is read by its column names,
            ``"importance"`` and, if `alpha` is None, ``"firing_rate"``.
        y : None
            Ignored; here by convention.
        second_moments : array-like of shape (n_features,), default=None
            E[x_i²] of each feature, in the order of `importances`, where importances are weights
            that don't contain it. By default 1.

        Returns
        -------
        self : FloorPredictor
            The fitted predictor.

        Raises
        ------
        ValueError
            If importances or second moments are empty, negative, not finite, of the wrong shape, or too large to
            add up in float64; if a feature table has values that no codes have; if `alpha` is outside
            [0, 1), or is None where there is no feature table to take it from; or if `allocation` or one of its
            options is unknown, or an option is given that the allocation does not use.

        Warns
        -----
        ConvergenceWarning
            If the features of a table fire so often that Eq. 1 does not hold, or the critical width is over twice
            `teacher_width`.
        """
        self._fit(importances, second_moments)
        if self.alpha is None and is_too_dense(self.alpha_):
            consequence = "which is below the range of Eq. 1, so that these floors are no forecast"
            if not self._by_equation_1():
                consequence = "and floors of features so dense are no forecast"
            warn_caller(
                f"The features of the table fire on {100 * (1 - self.alpha_):.0f}% of tokens on average: "
                f"alpha_={self.alpha_:.3f} is below 0.632, {consequence}. Codes of a converged sparse autoencoder are "
                "sparser: train it for longer or with a stronger sparsity penalty.",
                ConvergenceWarning,
            )
        if self.teacher_width is not None and self.critical_width_ > 2 * self.teacher_width:
            warn_caller(
                f"critical_width_={self.critical_width_:,.0f} is over twice teacher_width={self.teacher_width}: no "
                "teacher holds more features than fit its width, so the codes are too dense, or too many features "
                "count as alive. Train the autoencoder for longer or with a stronger sparsity penalty, or raise "
                "min_firing_rate.",
                ConvergenceWarning,
            )
        return self

    def _fit(self, importances: Any, second_moments: Any = None) -> FloorPredictor:
        """Fit without warnings on measured features."""
        self._check_parameters()
        weights, firing_rates, means = read_importances(importances)
        if means is not None and self.amplitude is not None:
            raise ValueError(
                f"amplitude={self.amplitude!r} is not used with a feature table that has means; leave it None."
            )
        cutoff = self._allocation == "cutoff"
        if self.alpha is not None:
            self.alpha_ = check_number("alpha", self.alpha, 0.0, 1.0, open_high=True)
        elif firing_rates is None:
            raise ValueError(
                "alpha=None needs a feature table with firing rates, as FeatureStatistics gives it; "
                "for importances alone, give alpha."
            )
        elif not firing_rates.any():
            raise ValueError("firing_rate is 0 for every feature; give a table of features that fire, or alpha.")
        else:
            self.alpha_ = float(1.0 - firing_rates.mean())
        method = "asymptotic" if self.capacity is None else self.capacity
        if self.alpha is not None and self._by_equation_1():
            self.capacity_ = capacity(self.alpha_)  # warns where Eq. 1 does not hold
        else:
            self.capacity_ = float(features_per_dimension(np.array(self.alpha_), method, "capacity"))
        self.n_features_ = len(weights)
        if cutoff and self.n_features_ > self.capacity_ * _MOST_WIDTH:
            raise ValueError(
                f"capacity={shown(method)} gives {self.capacity_:g} features per dimension at alpha={self.alpha_:g}: "
                f"no width holds {self.n_features_} features; give a larger one."
            )
        self.critical_width_ = self.n_features_ / self.capacity_

        with np.errstate(over="ignore"):  # found by check_total
            self._charge(weights, firing_rates, means, second_moments)
        return self

    def _charge(self, weights: np.ndarray, rates: Any, means: Any, second_moments: Any) -> None:
        """Order what each feature costs where it is dropped, and prepare the division of dimensions."""
        name, charges, order = "importances", weights, None
        saved = None if means is None else np.minimum(np.square(means), weights)
        if second_moments is None:
            ascending = np.sort(weights)
            self.importances_ = ascending[::-1]
        else:
            moments = read_column(second_moments, "second_moments")
            if len(moments) != len(weights):
                raise ValueError(f"second_moments has {len(moments)} values for {len(weights)} importances.")
            name, charges = "importances times second_moments", weights * moments
            saved = None if saved is None else saved * moments
            order = np.lexsort((moments, weights))  # equal importances: the floor must not depend on their order
            self.importances_, ascending = weights[order][::-1], charges[order]
        if self._allocation == "cutoff":
            self._weights, self._order = weights, order
            # Entry k is the charge of the k least important features, summed from the smallest up.
            self._dropped_charge = np.empty(self.n_features_ + 1)
            self._dropped_charge[0] = 0.0
            np.cumsum(ascending, out=self._dropped_charge[1:])
            check_total(self._dropped_charge[-1], name)
        else:
            check_total(charges.sum(), name)
            self._divide(charges, rates if self.alpha is None else None, saved)
            self.critical_width_ = float(self.n_features_)

    def _by_equation_1(self) -> bool:
        eq_1 = self.capacity is None or (isinstance(self.capacity, str) and self.capacity == "asymptotic")
        return self._allocation == "cutoff" and eq_1

    def _check_parameters(self) -> None:
        """Resolve the allocation and its options, and refuse those that it does not use."""
        own_curve = isinstance(self.allocation, DistortionCurve)
        if not own_curve and not (isinstance(self.allocation, str) and self.allocation in ALLOCATIONS):
            raise ValueError(
                f"allocation={shown(self.allocation)} is unknown; use one of {', '.join(map(repr, ALLOCATIONS))}, "
                "or a DistortionCurve."
            )
        self._allocation = "curve" if own_curve else self.allocation
        used = _USED.get(self._allocation, ())
        for name in ("capacity", "curve", "amplitude", "starts", "teacher_width"):
            if getattr(self, name) is not None and name not in used:
                users = " and ".join(repr(each) for each, names in _USED.items() if name in names)
                raise ValueError(
                    f"{name}={shown(getattr(self, name))} is not used with allocation="
                    f"{shown(self.allocation)}, only with {users}; leave it None."
                )
        self._curve = "relu" if self.curve is None else check_choice("curve", self.curve, CURVES)
        self._starts = "mean" if self.starts is None else check_choice("starts", self.starts, STARTS)
        self._amplitude = "uniform"
        if self.amplitude is not None:
            self._amplitude = check_choice("amplitude", self.amplitude, tuple(AMPLITUDES))
        if self.teacher_width is not None:
            check_number("teacher_width", self.teacher_width, 1, whole=True)

    def _divide(self, charges: np.ndarray, rates: np.ndarray | None, saved: np.ndarray | None) -> None:
        """Prepare the division of dimensions: a curve for each range of firing rates, and blocks for the mean rate.

        `saved` is what a bias saves of each charge, where that is known.
        """
        self._packings: dict[tuple[str, int | None], BlockPacking] = {}
        self._mixed = rates is not None
        if isinstance(self.allocation, DistortionCurve):
            self._filling = Waterfilling(charges, self.allocation)
            self._variance, self._excess = float(self._filling.floors([0.0])[0]), 1.0
            return
        if rates is None:
            bins, which = np.array([1.0 - self.alpha_]), np.zeros(len(charges), dtype=np.intp)
        else:
            bins, which = _rate_bins(rates)
        total = np.bincount(which, weights=charges, minlength=len(bins))
        empty = np.array([empty_distortion(1.0 - rate, self._amplitude) for rate in bins])
        if saved is not None:  # the importances of a table are second moments, and it has the means
            of_bin = np.bincount(which, weights=saved, minlength=len(bins))
            empty = 1.0 - np.divide(of_bin, total, out=np.zeros_like(total), where=total > 0.0).clip(max=1.0)
        curves = distortion_curves(1.0 - bins, curve=self._curve, empty=empty)
        self._filling = Waterfilling(charges, curves, which)
        self._charges = self._filling.charges
        self._empty = float(np.average(empty, weights=total)) if total.sum() > 0.0 else 1.0
        self._variance = float(self._filling.floors([0.0])[0])
        relative = charges / (charges.max() or 1.0)
        effective = relative.sum() ** 2 / np.square(relative).sum() if relative.any() else 1.0
        self._excess = 1.0 + _EXCESS / float(np.sqrt(effective))

    def _packing(self, starts: str, only: int | None = None) -> BlockPacking:
        """Blocks for the mean firing rate, of all sizes or of one, which becomes the unit of width."""
        if (starts, only) not in self._packings:
            found = blocks(self.alpha_, curve=self._curve, starts=starts)
            chosen = slice(None) if only is None else found.widths == only
            self._packings[starts, only] = BlockPacking(
                self._charges,
                found.widths[chosen] // (only or 1),
                found.features[chosen],
                found.distortions[chosen],
                self._empty,
            )
        return self._packings[starts, only]

    def predict(self, widths: ArrayLike, *, return_bounds: bool = False) -> Any:
        """Predict the floor at each width.

        Parameters
        ----------
        widths : array-like of shape (n_widths,) or (n_widths, 1)
            Widths of students, in dimensions.
        return_bounds : bool, default=False
            Whether to return bounds on the floor of a well-trained student as well, for the allocations that
            have measured students behind them: from below water-filling, which divides dimensions more finely
            than a student can; from above blocks as they come out of training on average, of which a student
            can be made, and what an average training loses beyond the best. The floor lies within its bounds.

        Returns
        -------
        floors : ndarray of shape (n_widths,), float64
            Predicted floors, in the units of the importances.
        bounds : ndarray of shape (n_widths, 2), float64
            Lower and upper bound, if `return_bounds`.

        Raises
        ------
        ValueError
            If a width is negative or not finite, or bounds are asked of an allocation that has none.
        """
        check_is_fitted(self)
        return_bounds = check_flag("return_bounds", return_bounds)
        at = read_column(widths, "widths")
        if self._is("cutoff"):
            floors = self._dropped_charge[self.n_features_ - self._kept(at)]
        else:
            packed = self._is_packed(at)
            floors = np.empty(len(at))
            floors[~packed] = self._filling.floors(at[~packed])
            floors[packed] = self._packing("best").floors(at[packed]) if packed.any() else 0.0
            if self._is("auto") and self._mixed and not packed.all():
                # Blocks know the mean firing rate only, so that water-filling may lie above them on a table. A wider
                # student loses no more than a narrower one.
                floors[~packed] = np.minimum(floors[~packed], self._packing("best").floors([WIDEST_PACKING])[0])
            if self._starts == "mean" and not self._is("waterfilling"):
                floors = np.minimum(self._excess * floors, self._variance)
        if not return_bounds:
            return floors
        if self._is("cutoff") or self._is("curve"):
            raise ValueError(
                f"return_bounds=True: allocation={shown(self.allocation)} has no measured students behind it; "
                "use 'waterfilling', 'blocks' or 'auto'."
            )
        # Water-filling knows each feature's own firing rate and blocks their mean, so that on a table they may cross.
        lower, upper = np.minimum(self._filling.floors(at), floors), np.maximum(self._upper(at), floors)
        return floors, np.column_stack([lower, upper])

    def _is(self, name: str) -> bool:
        return self._allocation == name

    def _is_packed(self, widths: np.ndarray) -> np.ndarray:
        """Where the division is into blocks."""
        if self._is("auto"):
            return widths <= WIDEST_PACKING
        return np.full(len(widths), self._is("blocks"))

    def _upper(self, widths: np.ndarray) -> np.ndarray:
        upper = np.empty(len(widths))
        exact = widths <= _EXACT_PACKING
        if exact.any():
            upper[exact] = self._packing("mean").floors(widths[exact])
        if not exact.all():
            upper[~exact] = self._packing("mean", _COARSE_BLOCK).floors(widths[~exact] / _COARSE_BLOCK)
        return np.minimum(self._excess * upper, self._variance)

    def allocate(self, width: float) -> Allocation:
        """How a student of one width divides its dimensions.

        Parameters
        ----------
        width : float
            Width of the student, in dimensions.

        Returns
        -------
        allocation : Allocation
            Named tuple of ``capacities`` (n_features,), dimensions of each feature in the order given to
            `fit`; the numbers ``n_full`` kept without loss, ``n_partial`` kept in part, ``n_dropped``; and
            the floor's two shares, ``dropped`` and ``interference``, in the units of the importances. They are
            those of the best student, which `predict` gives with ``starts="best"``.

        Raises
        ------
        ValueError
            If the width is negative or not finite.

        Examples
        --------
        >>> from geofloor import FloorPredictor
        >>> predictor = FloorPredictor(alpha=0.9, allocation="waterfilling").fit(1 / np.arange(1, 41))
        >>> found = predictor.allocate(6)
        >>> found.n_full, found.n_partial, found.n_dropped
        (0, 16, 24)
        >>> bool(np.isclose(found.dropped + found.interference, predictor.predict([6])[0]))
        True
        """
        check_is_fitted(self)
        at = np.array([check_number("width", width, 0)], dtype=np.float64)
        if self._is("cutoff"):
            order = np.argsort(self._weights, kind="stable") if self._order is None else self._order
            kept = int(self._kept(at)[0])
            capacities = np.zeros(self.n_features_)
            capacities[order[self.n_features_ - kept :]] = 1.0 / self.capacity_
            return Allocation(capacities, kept, 0, self.n_features_ - kept, float(self.predict(at)[0]), 0.0)
        packed = bool(self._is_packed(at)[0])
        division = self._packing("best") if packed else self._filling
        shares = division.shares(float(at[0]))
        losses = division.charges * shares.distortions
        has, whole = shares.capacities > 0.0, shares.distortions == 0.0
        return Allocation(
            shares.capacities,
            int((has & whole).sum()),
            int((has & ~whole).sum()),
            int((~has).sum()),
            float(losses[~has].sum()),
            float(losses[has].sum()),
        )

    def kept_features(self, widths: ArrayLike) -> np.ndarray:
        """Features kept at each width, at most all there are.

        With other allocations than the cut-off these are the features that get a share of the dimensions
        under water-filling, however small.

        Parameters
        ----------
        widths : array-like of shape (n_widths,) or (n_widths, 1)
            Widths of students, in dimensions.

        Returns
        -------
        counts : ndarray of shape (n_widths,), int64
            Features kept, F_S.

        Raises
        ------
        ValueError
            If a width is negative or not finite.
        """
        check_is_fitted(self)
        at = read_column(widths, "widths")
        return self._kept(at) if self._is("cutoff") else self._filling.served(at)

    def min_width(self, floor: ArrayLike) -> Any:
        """Smallest whole width whose predicted floor is at most `floor`.

        Parameters
        ----------
        floor : float or array-like
            Target floor, in the units of the importances.

        Returns
        -------
        width : int or ndarray of int64
            Smallest such width, in dimensions.

        Raises
        ------
        ValueError
            If a target is negative or not finite.
        """
        check_is_fitted(self)
        if not self._is("cutoff"):
            return self._search_width(floor, self.n_features_)
        target = read_targets(floor)
        needed = self.n_features_ + 1 - np.searchsorted(self._dropped_charge, target, side="right")
        width = np.ceil(needed / self.capacity_)
        # Rounding in the division must not cost, or save, a dimension.
        width = np.where(self._kept(width) < needed, width + 1, width)
        width = np.where((width > 0) & (self._kept(np.maximum(width - 1, 0)) >= needed), width - 1, width).astype(
            np.int64
        )
        return int(width) if width.ndim == 0 else width

    def _kept(self, widths: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.floor(np.minimum(widths * self.capacity_, self.n_features_)).astype(np.int64)


def _rate_bins(rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean firing rates of the features whose rates are alike, and the place of each feature among them."""
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
