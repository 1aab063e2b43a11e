"""Floors, spectra, capacities and calibrations: one axes each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from geofloor._validation import (
    check_array_of_numbers,
    check_choice,
    check_flag,
    check_number,
    check_numeric,
    check_object,
    shown,
)
from geofloor.displays._style import (
    COLORS,
    DASHES,
    FAINT,
    HIDDEN_UNITS,
    INK,
    axes_or_new,
    check_capacity,
    check_lengths,
    check_line_kwargs,
    check_predictor,
    numbers_of,
)
from geofloor.features import PowerLawTail, power_law_tail
from geofloor.theory import capacity, kept_features
from geofloor.theory._capacity import METHODS, CapacityMethod

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_DRAWN = 2000  # points of a spectrum; more would only make the file larger
_METHOD_LABELS = {
    "asymptotic": "Eq. 1",
    "minimax": "exact, either sign",
    "minimax_nonnegative": "exact, non-negative",
}


class FloorDisplay:
    """Loss floor over student width, for one predictor or several.

    Parameters
    ----------
    widths : array-like of shape (n_widths,)
        Widths of students, in dimensions.
    floors : array-like of shape (n_widths,), or mapping of str to such arrays
        Floor at each width; a mapping has a label for each curve.
    critical_widths : float or mapping of str to float, default=None
        Critical width d* of each curve, drawn as a dotted vertical. Labels are those of `floors`.
    observed_widths : array-like of shape (n_runs,), default=None
        Widths of measured students.
    observed : array-like of shape (n_runs,), default=None
        Their losses, in the unit of `floors`.
    unit : str, default="hidden-space units"
        Unit of floors and observed losses, for the label of the axis.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure of the axes.
    lines_ : list of matplotlib Line2D
        One line a curve.
    critical_lines_ : list of matplotlib Line2D
        Verticals at the critical widths that lie within the axes.
    observed_line_ : matplotlib Line2D or None
        The observed points.

    See Also
    --------
    FloorDisplay.from_predictor : Compute the floors and draw them.
    geofloor.FloorPredictor : Predicts the floors.

    Notes
    -----
    A critical width that lies more than half the range beyond the widths is named, with an arrow,
    and not drawn: the axis stays with the widths asked for.

    Examples
    --------
    >>> from geofloor.displays import FloorDisplay
    >>> display = FloorDisplay(widths=[128, 256, 512], floors=[0.0795, 0.04, 0.0111], critical_widths=600.0)
    >>> display.plot()
    <geofloor.displays...FloorDisplay object at ...>
    >>> display.ax_.get_xlabel()
    'student width d (dimensions)'
    """

    def __init__(
        self,
        *,
        widths: ArrayLike,
        floors: ArrayLike | Mapping[str, ArrayLike],
        critical_widths: float | Mapping[str, float] | None = None,
        observed_widths: ArrayLike | None = None,
        observed: ArrayLike | None = None,
        unit: str = HIDDEN_UNITS,
    ) -> None:
        self.widths = widths
        self.floors = floors
        self.critical_widths = critical_widths
        self.observed_widths = observed_widths
        self.observed = observed
        self.unit = unit

    @classmethod
    def from_predictor(
        cls,
        predictor: Any,
        widths: ArrayLike,
        *,
        observed_widths: ArrayLike | None = None,
        observed: ArrayLike | None = None,
        unit: str = HIDDEN_UNITS,
        ax: Axes | None = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> FloorDisplay:
        """Predict the floor at each width and draw it.

        Parameters
        ----------
        predictor : estimator, or mapping of str to estimators
            Fitted, with a ``predict`` from widths to floors: a `FloorPredictor`, a
            `PowerLawCalibrator`, or a pipeline of a frozen predictor and an `AffineCalibrator`.
            Its ``critical_width_`` is drawn where it has one.
        widths : array-like of shape (n_widths,)
            Widths of students, in dimensions.
        observed_widths : array-like of shape (n_runs,), default=None
            Widths of measured students.
        observed : array-like of shape (n_runs,), default=None
            Their losses, in the unit of the predictions.
        unit : str, default="hidden-space units"
            Unit of floors and observed losses.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of every curve.

        Returns
        -------
        display : FloorDisplay
            The display, drawn.

        Examples
        --------
        >>> import numpy as np
        >>> from geofloor import FloorPredictor
        >>> from geofloor.displays import FloorDisplay
        >>> predictor = FloorPredictor(alpha=0.99).fit(1 / np.arange(1, 1001) ** 2)
        >>> display = FloorDisplay.from_predictor(predictor, np.arange(1, 61))
        >>> display.lines_[0].get_ydata().shape
        (60,)
        """
        predictors, widths = _labelled(predictor), check_array_of_numbers(widths, "widths", low=0)
        for label, each in predictors.items():
            check_predictor(f"predictor[{label!r}]" if label else "predictor", each)
        floors = {label: each.predict(widths) for label, each in predictors.items()}
        critical = {
            label: each.critical_width_ for label, each in predictors.items() if hasattr(each, "critical_width_")
        }
        display = cls(
            widths=widths,
            floors=floors,
            critical_widths=critical or None,
            observed_widths=observed_widths,
            observed=observed,
            unit=unit,
        )
        return display.plot(ax=ax, line_kwargs=line_kwargs)

    def plot(self, ax: Axes | None = None, *, line_kwargs: dict[str, Any] | None = None) -> FloorDisplay:
        """Draw the floors, the critical widths and the observed points.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of every curve.

        Returns
        -------
        self : FloorDisplay
            The display.

        Raises
        ------
        ValueError
            If only one of `observed_widths` and `observed` was given, or a critical width has a
            label that no curve has.
        """
        line_kwargs = check_line_kwargs(line_kwargs)
        widths = check_array_of_numbers(self.widths, "widths")
        curves = numbers_of(self.floors, "floors")
        check_lengths(curves, "floors", len(widths), "widths")
        critical = {} if self.critical_widths is None else dict(_labelled(self.critical_widths))
        unknown = sorted(set(critical) - set(curves), key=str)
        if unknown:
            raise ValueError(
                f"critical_widths has the labels {unknown}, floors only {sorted(curves, key=str)}; use the same."
            )
        if (self.observed_widths is None) != (self.observed is None):
            raise ValueError("observed_widths and observed belong together; give both or neither.")
        critical = {label: check_number("critical_widths", each, 0) for label, each in critical.items()}
        if self.observed is not None:
            at, losses = (check_array_of_numbers(getattr(self, each), each) for each in ("observed_widths", "observed"))
            check_lengths({"": losses}, "observed", len(at), "observed_widths")

        self.ax_ = axes_or_new(ax)
        self.figure_ = self.ax_.figure
        self.lines_, self.critical_lines_, self.observed_line_ = [], [], None
        narrowest, widest = widths.min(), widths.max()
        for index, (label, floors) in enumerate(curves.items()):
            color = COLORS[index % len(COLORS)]
            name = ", ".join(filter(None, [label, f"d* = {critical[label]:,.0f}" if label in critical else ""]))
            style = {
                "color": color,
                "linestyle": DASHES[index % len(DASHES)],
                "marker": "o" if len(widths) <= 12 and self.observed is None else None,
                "label": name or "predicted",
            }
            self.lines_ += self.ax_.plot(widths, floors, **{**style, **line_kwargs})
            if label not in critical:
                continue
            if critical[label] <= widest + 0.5 * (widest - narrowest):
                self.critical_lines_.append(
                    self.ax_.axvline(critical[label], color=color, linestyle=":", linewidth=1.2, zorder=1)
                )
            if len(curves) == 1:
                inside = bool(self.critical_lines_)
                self.ax_.text(
                    critical[label] if inside else 1.0,
                    1.0,
                    f"d* = {critical[label]:,.0f}" + ("" if inside else " →"),
                    transform=self.ax_.get_xaxis_transform() if inside else self.ax_.transAxes,
                    ha="center" if inside else "right",
                    va="bottom",
                    fontsize="small",
                    color=color,
                )
        if self.observed is not None:
            (self.observed_line_,) = self.ax_.plot(
                at,
                losses,
                linestyle="none",
                marker="o",
                markersize=5.5,
                markerfacecolor="white",
                color=INK,
                label="observed",
                zorder=3,
            )
        if len(curves) > 1 or self.observed is not None:
            self.ax_.legend(frameon=False, fontsize="small")
        # Zero belongs to the axis; limits that are set would stand in the way of a logarithmic scale.
        self.ax_.update_datalim([(narrowest, 0.0)], updatex=False)
        self.ax_.autoscale_view()
        self.ax_.set(xlabel="student width d (dimensions)", ylabel=f"floor L* ({self.unit})")
        return self


class SpectrumDisplay:
    """Importance over rank: what a student of each width keeps and what it drops (Figures 5 and 12 of the paper).

    Parameters
    ----------
    importances : array-like of shape (n_features,)
        Importances, in any order. Zeros have no place on a logarithmic axis and are left out.
    tail : PowerLawTail, default=None
        Power law of the largest importances, drawn as a dashed line.
    kept : mapping of float to int, default=None
        Features kept at each width, drawn as verticals.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure of the axes.
    line_ : matplotlib Line2D
        The spectrum; of more than 2,000 features, as many at log-spaced ranks.
    tail_line_ : matplotlib Line2D or None
        The power law.
    kept_lines_ : list of matplotlib Line2D
        One vertical for each width that drops features.

    See Also
    --------
    SpectrumDisplay.from_importances : Fit the tail, compute the kept features and draw.
    SpectrumDisplay.from_statistics : The same from fitted `FeatureStatistics`.
    geofloor.features.power_law_tail : Fits the power law.

    Notes
    -----
    Importances with density p(I) ∝ I^−β have, at rank r of a tail of k features that starts at I₀,
    the importance I₀ (r/k)^(−1/(β − 1)): a straight line of slope −1/(β − 1).

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor.displays import SpectrumDisplay
    >>> display = SpectrumDisplay(importances=1 / np.arange(1, 101), kept={4: 30}).plot()
    >>> display.ax_.get_xscale(), len(display.kept_lines_)
    ('log', 1)
    """

    def __init__(
        self,
        *,
        importances: ArrayLike,
        tail: PowerLawTail | None = None,
        kept: Mapping[float, int] | None = None,
    ) -> None:
        self.importances = importances
        self.tail = tail
        self.kept = kept

    @classmethod
    def from_importances(
        cls,
        importances: ArrayLike,
        *,
        widths: ArrayLike | None = None,
        alpha: float | None = None,
        capacity: CapacityMethod = "asymptotic",
        fit_tail: bool = True,
        scale: str = "log",
        ax: Axes | None = None,
    ) -> SpectrumDisplay:
        """Fit the tail, compute what each width keeps, and draw.

        Parameters
        ----------
        importances : array-like of shape (n_features,)
            Importances, in any order.
        widths : array-like of shape (n_widths,), default=None
            Widths whose boundary between kept and dropped features is drawn.
        alpha : float, default=None
            Sparsity, in [0, 1); needed with `widths`.
        capacity : {"asymptotic", "minimax", "minimax_nonnegative"} or callable, default="asymptotic"
            Features per dimension, as in `geofloor.theory.capacity`.
        fit_tail : bool, default=True
            Whether to fit and draw the power law of the largest importances.
        scale : {"log", "linear"}, default="log"
            Scale of both axes.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        display : SpectrumDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If `widths` are given without `alpha`, or as `power_law_tail` and `capacity` do.
        """
        importances = check_array_of_numbers(importances, "importances", low=0)
        check_capacity(capacity)
        kept = None
        if widths is not None:
            if alpha is None:
                raise ValueError("alpha=None: what a width keeps depends on the sparsity; give alpha with widths.")
            alpha = check_number("alpha", alpha, 0, 1, open_high=True)
            at = check_array_of_numbers(widths, "widths", low=0).tolist()
            kept = {width: kept_features(width, alpha, capacity) for width in at}
        tail = power_law_tail(importances) if check_flag("fit_tail", fit_tail) else None
        return cls(importances=importances, tail=tail, kept=kept).plot(ax=ax, scale=scale)

    @classmethod
    def from_statistics(
        cls,
        statistics: Any,
        *,
        widths: ArrayLike | None = None,
        scale: str = "log",
        ax: Axes | None = None,
    ) -> SpectrumDisplay:
        """Draw the spectrum of measured features, with the tail and the capacity they were measured with.

        Parameters
        ----------
        statistics : FeatureStatistics
            Fitted statistics.
        widths : array-like of shape (n_widths,), default=None
            Widths whose boundary between kept and dropped features is drawn.
        scale : {"log", "linear"}, default="log"
            Scale of both axes.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        display : SpectrumDisplay
            The display, drawn.
        """
        if not (hasattr(statistics, "fit") and hasattr(statistics, "capacity")):
            raise TypeError(f"statistics={shown(statistics)} has no table of features; give fitted FeatureStatistics.")
        check_is_fitted(statistics)
        importances = statistics.table_[:, 0]
        kept = None
        if widths is not None:
            kept = {
                width: kept_features(width, statistics.alpha_, statistics.capacity)
                for width in check_array_of_numbers(widths, "widths", low=0).tolist()
            }
        tail = PowerLawTail(
            exponent=statistics.tail_exponent_,
            interval=statistics.tail_exponent_interval_,
            start=statistics.tail_start_,
            n_tail=int(np.count_nonzero(importances > statistics.tail_start_)),
        )
        return cls(importances=importances, tail=tail, kept=kept).plot(ax=ax, scale=scale)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        scale: str = "log",
        line_kwargs: dict[str, Any] | None = None,
    ) -> SpectrumDisplay:
        """Draw the spectrum, its tail and what each width keeps.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        scale : {"log", "linear"}, default="log"
            Scale of both axes.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of the spectrum.

        Returns
        -------
        self : SpectrumDisplay
            The display.

        Raises
        ------
        ValueError
            If no importance is above zero, or `scale` is unknown.
        """
        check_choice("scale", scale, ("log", "linear"))
        line_kwargs = check_line_kwargs(line_kwargs)
        check_object("tail", self.tail, (PowerLawTail, type(None)), "give a PowerLawTail, or None")
        kept = check_object("kept", {} if self.kept is None else self.kept, Mapping, "give a dict of counts by width")
        kept = {check_number("kept", width, 0): check_number("kept", count, 0) for width, count in kept.items()}
        importances = np.sort(check_array_of_numbers(self.importances, "importances", low=0))[::-1]
        n_positive = int(np.count_nonzero(importances > 0))
        if n_positive == 0:
            raise ValueError("importances has no value above zero, so there is no spectrum to draw.")
        ranks = np.arange(1, n_positive + 1)
        if n_positive > _MAX_DRAWN:
            ranks = np.unique(np.rint(np.geomspace(1, n_positive, _MAX_DRAWN)).astype(int))

        self.ax_ = axes_or_new(ax)
        self.figure_ = self.ax_.figure
        style = {"color": COLORS[0], "linewidth": 1.8, "label": "features"}
        (self.line_,) = self.ax_.plot(ranks, importances[ranks - 1], **{**style, **line_kwargs})
        self.ax_.set(xscale=scale, yscale=scale)

        self.tail_line_ = None
        if self.tail is not None and self.tail.n_tail > 0:
            # A straight line on logarithmic axes, a curve on linear ones.
            along = np.geomspace(1.0, self.tail.n_tail, 2 if scale == "log" else 200)
            law = self.tail.start * (along / self.tail.n_tail) ** (-1.0 / (self.tail.exponent - 1.0))
            low, high = self.tail.interval
            (self.tail_line_,) = self.ax_.plot(
                along,
                law,
                color=COLORS[1],
                linestyle=DASHES[1],
                label=f"power law, β = {self.tail.exponent:.2f} [{low:.2f}, {high:.2f}]",
            )
            self.ax_.legend(frameon=False, fontsize="small", loc="lower left" if scale == "log" else "upper right")

        self.kept_lines_ = []
        for width, count in sorted(kept.items()):
            if not 0 < count < len(importances):
                continue
            self.kept_lines_.append(self.ax_.axvline(count, color=FAINT, linestyle=":", linewidth=1.0, zorder=1))
            self.ax_.text(
                count,
                1.01,
                f"d = {width:,g}",
                transform=self.ax_.get_xaxis_transform(),
                rotation=90,
                ha="center",
                va="bottom",
                fontsize="x-small",
                color=INK,
            )
        self.ax_.set(xlabel="rank of the feature", ylabel=f"importance ({HIDDEN_UNITS})")
        return self


class CapacityDisplay:
    """Features per dimension over sparsity, for Eq. 1 and the exact thresholds (Figure 1 of the paper).

    Parameters
    ----------
    alphas : array-like of shape (n_alphas,)
        Sparsities, in [0, 1).
    capacities : mapping of str to array-like of shape (n_alphas,)
        Features per dimension, by method. Other names than those of `geofloor.theory.capacity`
        stand in the legend as they are.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on. Their x coordinate is α; the scale is that of log(1 − α).
    figure_ : matplotlib Figure
        Figure of the axes.
    lines_ : dict of str to matplotlib Line2D
        The curve of each method. That of Eq. 1 starts at its minimum, α = 1 − 1/e.
    non_monotone_line_ : matplotlib Line2D or None
        The part of Eq. 1 below its minimum, where it is no capacity, drawn faintly.

    See Also
    --------
    CapacityDisplay.from_methods : Compute the capacities and draw them.
    geofloor.theory.capacity : Features per dimension.

    Examples
    --------
    >>> from geofloor.displays import CapacityDisplay
    >>> display = CapacityDisplay.from_methods()
    >>> sorted(display.lines_)
    ['asymptotic', 'minimax', 'minimax_nonnegative']
    """

    def __init__(self, *, alphas: ArrayLike, capacities: Mapping[str, ArrayLike]) -> None:
        self.alphas = alphas
        self.capacities = capacities

    @classmethod
    def from_methods(
        cls,
        methods: Sequence[str] = METHODS,
        *,
        alphas: ArrayLike | None = None,
        ax: Axes | None = None,
    ) -> CapacityDisplay:
        """Compute features per dimension with each method and draw them.

        Parameters
        ----------
        methods : sequence of str, default=("asymptotic", "minimax", "minimax_nonnegative")
            Methods of `geofloor.theory.capacity`.
        alphas : array-like of shape (n_alphas,), default=None
            Sparsities, in [0, 1). By default 0 to 0.999, evenly spaced in log(1 − α).
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        display : CapacityDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If a method is unknown or a sparsity is outside [0, 1).
        """
        sparsities = 1.0 - np.geomspace(1.0, 1e-3, 301) if alphas is None else check_array_of_numbers(alphas, "alphas")
        if not isinstance(methods, list | tuple) or not methods:
            raise ValueError(f"methods={shown(methods)} must be a list of some of {', '.join(map(repr, METHODS))}.")
        capacities = {check_choice("methods", method, METHODS): _capacity(sparsities, method) for method in methods}
        return cls(alphas=sparsities, capacities=capacities).plot(ax=ax)

    def plot(self, ax: Axes | None = None, *, line_kwargs: dict[str, Any] | None = None) -> CapacityDisplay:
        """Draw features per dimension over sparsity.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of every curve.

        Returns
        -------
        self : CapacityDisplay
            The display.
        """
        line_kwargs = check_line_kwargs(line_kwargs)
        alphas = check_array_of_numbers(self.alphas, "alphas", low=0, high=np.nextafter(1.0, 0.0))
        check_object("capacities", self.capacities, Mapping, "give a dict of capacities by method")
        capacities = numbers_of(self.capacities, "capacities")
        check_lengths(capacities, "capacities", len(alphas), "alphas")
        self.ax_ = axes_or_new(ax)
        self.figure_ = self.ax_.figure
        self.lines_, self.non_monotone_line_ = {}, None
        highest = 1.0
        for index, (method, values) in enumerate(capacities.items()):
            style = {
                "color": COLORS[index % len(COLORS)],
                "linestyle": DASHES[index % len(DASHES)],
                "label": _METHOD_LABELS.get(method, method),
                **line_kwargs,
            }
            drawn = values
            holds = np.ones_like(alphas, dtype=bool)
            if method == "asymptotic":
                holds = alphas >= 1.0 - np.exp(-1.0)
                below = ~holds & (alphas > 0.0)  # at 0 the paper's convention, a point apart from the curve
                faint = {**style, "linestyle": ":", "alpha": 0.6, "label": "_no capacity"}
                (self.non_monotone_line_,) = self.ax_.plot(alphas[below], drawn[below], **faint)
            (self.lines_[method],) = self.ax_.plot(alphas[holds], drawn[holds], **style)
            highest = max(highest, drawn[holds].max(initial=1.0))

        self.ax_.set_xscale("function", functions=(_sparsity_to_axis, _axis_to_sparsity))
        self.ax_.set_yscale("log")
        self.ax_.set_ylim(0.9, 1.3 * highest)
        ticks = [tick for tick in (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999) if tick <= alphas.max()]
        self.ax_.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        self.ax_.yaxis.set_major_formatter("{x:g}")
        self.ax_.legend(frameon=False, fontsize="small")
        self.ax_.set(xlabel="sparsity α", ylabel="features per dimension, g(α)")
        return self


class CalibrationDisplay:
    """Observed loss over predicted floor, with the fitted line (Figure 7 of the paper).

    Parameters
    ----------
    floors : array-like of shape (n_runs,)
        Predicted floors of the runs, in hidden-space units.
    observed : array-like of shape (n_runs,)
        Observed losses, in nats per token.
    grid : array-like of shape (n_grid,), default=None
        Floors at which the line is given.
    line : array-like of shape (n_grid,), default=None
        Calibrated loss at each floor of the grid, in nats per token.
    interval : array-like of shape (n_grid, 2), default=None
        Its prediction interval; drawn if it is finite.
    level : float, default=None
        Probability of the interval, for the legend.
    widths : array-like of shape (n_runs,), default=None
        Width of each run, written beside its point.
    label : str, default=None
        What the legend says of the line.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure of the axes.
    points_ : matplotlib Line2D
        The runs.
    line_ : matplotlib Line2D or None
        The fitted line.
    band_ : matplotlib PolyCollection or None
        The prediction interval.

    See Also
    --------
    CalibrationDisplay.from_calibrator : Compute line and interval and draw them.
    geofloor.AffineCalibrator : Fits the line.

    Examples
    --------
    >>> from geofloor import AffineCalibrator
    >>> from geofloor.displays import CalibrationDisplay
    >>> floors, observed = [0.0795, 0.0400, 0.0111, 0.0016, 0.0001], [1.320, 1.008, 0.733, 0.652, 0.586]
    >>> calibrator = AffineCalibrator().fit(floors, observed)
    >>> display = CalibrationDisplay.from_calibrator(calibrator, floors, observed)
    >>> display.label
    'C = 8.96, B = 0.623, R² = 0.993'
    """

    def __init__(
        self,
        *,
        floors: ArrayLike,
        observed: ArrayLike,
        grid: ArrayLike | None = None,
        line: ArrayLike | None = None,
        interval: ArrayLike | None = None,
        level: float | None = None,
        widths: ArrayLike | None = None,
        label: str | None = None,
    ) -> None:
        self.floors = floors
        self.observed = observed
        self.grid = grid
        self.line = line
        self.interval = interval
        self.level = level
        self.widths = widths
        self.label = label

    @classmethod
    def from_calibrator(
        cls,
        calibrator: Any,
        floors: ArrayLike,
        observed: ArrayLike,
        *,
        widths: ArrayLike | None = None,
        level: float | None = 0.95,
        ax: Axes | None = None,
    ) -> CalibrationDisplay:
        """Draw runs beside the line that a calibrator fitted.

        Parameters
        ----------
        calibrator : AffineCalibrator
            Fitted, with one term. The runs need not be those that it was fitted on.
        floors : array-like of shape (n_runs,)
            Predicted floors of the runs, in hidden-space units.
        observed : array-like of shape (n_runs,)
            Observed losses, in nats per token.
        widths : array-like of shape (n_runs,), default=None
            Width of each run, written beside its point.
        level : float or None, default=0.95
            Probability of the prediction interval, between 0 and 1; None draws none.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        display : CalibrationDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the calibrator has more than one term.
        """
        check_predictor("calibrator", calibrator, "decompose")
        check_is_fitted(calibrator)
        floors = check_array_of_numbers(floors, "floors")
        if calibrator.n_features_in_ != 1:
            raise ValueError(f"calibrator has {calibrator.n_features_in_} terms; a line over the floor needs one.")
        grid = np.linspace(0.0, 1.05 * float(floors.max()), 101)
        interval = None
        if level is None:
            line = calibrator.predict(grid)
        else:
            line, interval = calibrator.predict(grid, return_interval=True, level=level)
        label = f"C = {calibrator.slope_:.3g}, B = {calibrator.baseline_:.3f}, R² = {calibrator.r2_:.3f}"
        display = cls(
            floors=floors,
            observed=observed,
            grid=grid,
            line=line,
            interval=interval,
            level=level,
            widths=widths,
            label=label.replace("-", "−"),
        )
        return display.plot(ax=ax)

    def plot(self, ax: Axes | None = None, *, line_kwargs: dict[str, Any] | None = None) -> CalibrationDisplay:
        """Draw the runs, the line and its interval.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of the line.

        Returns
        -------
        self : CalibrationDisplay
            The display.
        """
        line_kwargs = check_line_kwargs(line_kwargs)
        floors = check_array_of_numbers(self.floors, "floors")
        observed = check_array_of_numbers(self.observed, "observed")
        check_lengths({"": observed}, "observed", len(floors), "floors")
        level = None if self.level is None else check_number("level", self.level, 0, 1, open_low=True, open_high=True)
        widths = None
        if self.widths is not None:
            widths = check_array_of_numbers(self.widths, "widths")
            check_lengths({"": widths}, "widths", len(floors), "floors")
        if (self.grid is None) != (self.line is None):
            raise ValueError("grid and line belong together; give both or neither.")
        if self.grid is not None:
            grid, line = check_array_of_numbers(self.grid, "grid"), check_array_of_numbers(self.line, "line")
            check_lengths({"": line}, "line", len(grid), "points of the grid")
        self.ax_ = axes_or_new(ax)
        self.figure_ = self.ax_.figure
        self.line_, self.band_ = None, None
        if self.grid is not None:
            style = {"color": COLORS[0], "linewidth": 1.8, "label": self.label}
            (self.line_,) = self.ax_.plot(grid, line, **{**style, **line_kwargs})
            interval = None if self.interval is None else np.asarray(check_numeric(self.interval, "interval"))
            if interval is not None and interval.shape != (len(grid), 2):
                raise ValueError(
                    f"interval has shape {interval.shape}; give {(len(grid), 2)}, two ends for each point."
                )
            if interval is not None and np.isfinite(interval).all():
                low, high = interval.T
                self.band_ = self.ax_.fill_between(
                    grid,
                    low,
                    high,
                    color=self.line_.get_color(),
                    alpha=0.14,
                    linewidth=0,
                    label="prediction interval" if level is None else f"{100 * level:g}% prediction interval",
                )
            if self.label is not None or self.band_ is not None:
                self.ax_.legend(frameon=False, fontsize="small", loc="upper left")
        (self.points_,) = self.ax_.plot(
            floors,
            observed,
            linestyle="none",
            marker="o",
            markersize=5.5,
            markerfacecolor="white",
            color=INK,
            zorder=3,
        )
        if widths is not None:
            from matplotlib.patheffects import withStroke

            for width, floor, loss in zip(widths.tolist(), floors, observed, strict=True):
                self.ax_.annotate(
                    f"d = {width:,g}",
                    (floor, loss),
                    xytext=(6, -3),
                    textcoords="offset points",
                    va="top",
                    fontsize="x-small",
                    color=INK,
                    path_effects=[withStroke(linewidth=2, foreground="white")],  # legible where the line runs
                )
        self.ax_.set_ylim(bottom=0.0)
        self.ax_.set(xlabel=f"predicted floor L* ({HIDDEN_UNITS})", ylabel="observed loss (nats per token)")
        return self


def _capacity(alphas: np.ndarray, method: str) -> np.ndarray:
    """Capacity at each sparsity. Where Eq. 1 is no capacity the figure shows it, and nothing is warned of."""
    falls = (method == "asymptotic") & (alphas > 0.0) & (alphas < 1.0 - np.exp(-1.0))
    values = capacity(np.where(falls, 0.0, alphas), method)
    values[falls] = -1.0 / ((1.0 - alphas[falls]) * np.log1p(-alphas[falls]))
    return values


def _labelled(values: Any) -> Mapping[str, Any]:
    return values if isinstance(values, Mapping) else {"": values}


def _sparsity_to_axis(alpha: np.ndarray) -> np.ndarray:
    return -np.log10(np.clip(1.0 - np.asarray(alpha, dtype=np.float64), 1e-12, None))


def _axis_to_sparsity(position: np.ndarray) -> np.ndarray:
    return 1.0 - 10.0 ** -np.asarray(position, dtype=np.float64)
