"""Figures of the toy sweep: measured floors beside predicted ones, over many configurations.

All but `TrainingCurvesDisplay` take a summary of the sweep: a DataFrame with one row a point, that is
for each number of features, sparsity, teacher's width and student's width, and in its columns the floor
over the seeds and what each predictor says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from geofloor._validation import check_array_of_numbers, check_number, check_object, shown
from geofloor.displays._style import (
    ALPHA_COLORMAP,
    COLORS,
    DASHES,
    FAINT,
    HIDDEN_UNITS,
    INK,
    MARKERS,
    WIDTH_COLORMAP,
    axes_or_new,
    check_capacity,
    check_lengths,
    key,
    leave_empty,
    legend_above,
    numbers_of,
    panels,
    plain_table,
    ramp,
)
from geofloor.theory import critical_width
from geofloor.theory._capacity import CapacityMethod

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_SYMLOG_FROM = 1000.0  # per cent; with such an error, the others could not be told apart on a linear axis
_POINT = ["n_features", "alpha", "teacher_width", "width"]
_WIDTH_LABEL = "student width d (dimensions)"
_FLOOR_LABEL = f"floor L* ({HIDDEN_UNITS})"


class FloorGridDisplay:
    """Measured and predicted floors over student width, a panel a configuration (Figure 2 of the paper).

    Parameters
    ----------
    points : DataFrame
        One row a point, with the columns n_features, alpha, teacher_width and width, and those named below.
    measured : str, default="floor"
        Column of measured floors.
    spread : str or None, default="floor_std"
        Column with half the height of the band around them; None draws none.
    predicted : str or sequence of str, default="Eq. 2"
        Columns of predicted floors, by which they go in the legend.
    critical_widths : mapping of (int, float) to float, default=None
        Critical width d* for a number of features and a sparsity, drawn as a dotted vertical.

    Attributes
    ----------
    figure_ : matplotlib Figure or SubFigure
        Figure drawn in.
    axes_ : ndarray of shape (n_numbers_of_features, n_sparsities) of matplotlib Axes
        Panels, in ascending order of both. One without points is left empty.
    lines_ : dict of (int, float) to list of matplotlib Line2D
        Measured floors of each panel.
    bands_ : dict of (int, float) to list of matplotlib PolyCollection
        Their bands.
    predicted_lines_ : dict of (int, float) to list of matplotlib Line2D
        Predicted floors of each panel.
    critical_lines_ : dict of (int, float) to matplotlib Line2D
        Verticals at the critical widths that lie within the axes.

    See Also
    --------
    FloorGridDisplay.from_summary : Compute the critical widths and draw.
    FloorDisplay : Floors of a single teacher.
    SparsityDisplay : The same floors, those of all sparsities in one panel.

    Notes
    -----
    Where the teacher's width does no more than bound that of the student, its points repeat and are
    drawn once. Where floors differ, each teacher's width has a curve, with a marker of its own.

    Each column has its own scale, since floors fall with sparsity by an order of magnitude.

    Examples
    --------
    >>> import pandas as pd
    >>> from geofloor.displays import FloorGridDisplay
    >>> summary = pd.DataFrame({"n_features": 10, "alpha": 0.9, "teacher_width": 3, "width": [1, 2, 3],
    ...                         "floor": [0.05, 0.03, 0.02], "floor_std": 0.001, "Eq. 2": [0.03, 0.01, 0.0]})
    >>> display = FloorGridDisplay.from_summary(summary)
    >>> display.axes_.shape, round(display.critical_widths[10, 0.9], 2)
    ((1, 1), 2.3)
    """

    def __init__(
        self,
        *,
        points: pd.DataFrame,
        measured: str = "floor",
        spread: str | None = "floor_std",
        predicted: str | Sequence[str] = "Eq. 2",
        critical_widths: Mapping[tuple[int, float], float] | None = None,
    ) -> None:
        self.points = points
        self.measured = measured
        self.spread = spread
        self.predicted = predicted
        self.critical_widths = critical_widths

    @classmethod
    def from_summary(
        cls,
        summary: pd.DataFrame,
        *,
        predicted: str | Sequence[str] = "Eq. 2",
        measured: str = "floor",
        spread: str | None = "floor_std",
        capacity: CapacityMethod = "asymptotic",
        figure: Figure | SubFigure | None = None,
    ) -> FloorGridDisplay:
        """Compute the critical widths and draw all configurations.

        Parameters
        ----------
        summary : DataFrame
            One row a point, with the columns n_features, alpha, teacher_width, width and those named below.
        predicted : str or sequence of str, default="Eq. 2"
            Columns of predicted floors.
        measured : str, default="floor"
            Column of measured floors.
        spread : str or None, default="floor_std"
            Column with half the height of the band around them; None draws none.
        capacity : {"asymptotic", "minimax", "minimax_nonnegative"} or callable, default="asymptotic"
            Features per dimension for the critical widths, as in `geofloor.theory.capacity`.
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.

        Returns
        -------
        display : FloorGridDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the summary is empty, lacks a column, has a point twice or a value that is not finite.
        """
        check_capacity(capacity)
        points = _checked(summary, [*_POINT, measured, *_names(predicted)], spread)
        critical = {
            (n_features, alpha): critical_width(n_features, alpha, capacity)
            for (n_features, alpha), _ in _configurations(points)
        }
        display = cls(points=points, measured=measured, spread=spread, predicted=predicted, critical_widths=critical)
        return display.plot(figure=figure)

    def plot(self, figure: Figure | SubFigure | None = None) -> FloorGridDisplay:
        """Draw a panel for each number of features and each sparsity.

        Parameters
        ----------
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.

        Returns
        -------
        self : FloorGridDisplay
            The display.
        """
        needed = [*_POINT, self.measured, *_names(self.predicted)]
        _checked(self.points, needed, self.spread, argument="points")
        critical_widths: Mapping[tuple[int, float], float] = check_object(
            "critical_widths",
            {} if self.critical_widths is None else self.critical_widths,
            Mapping,
            "give a dict of widths by numbers of features and sparsities",
        )
        rows, columns = _values(self.points, "n_features"), _values(self.points, "alpha")
        teachers = {
            width: {"color": color, "marker": marker}
            for (width, color), marker in zip(
                ramp(_values(self.points, "teacher_width"), WIDTH_COLORMAP).items(), _cycle(MARKERS), strict=False
            )
        }
        self.figure_, self.axes_ = panels(figure, len(rows), len(columns), size=(1.9, 1.55), sharey="col")
        self.lines_, self.bands_, self.predicted_lines_, self.critical_lines_ = {}, {}, {}, {}
        widest = float(self.points["width"].max()) + 0.5
        empty = np.ones(self.axes_.shape, dtype=bool)
        for configuration, points in _configurations(self.points):
            place = rows.index(configuration[0]), columns.index(configuration[1])
            ax, empty[place] = self.axes_[place], False
            self.predicted_lines_[configuration] = [
                line
                for index, name in enumerate(_names(self.predicted))
                for line in _draw_curves(ax, points, name, zorder=3, **_predictor_style(index))
            ]
            self.bands_[configuration] = _draw_bands(ax, points, self.measured, self.spread, teachers, color=INK)
            self.lines_[configuration] = _draw_curves(
                ax, points, self.measured, teachers=teachers, color=INK, linewidth=1.3, marker="o", markersize=3
            )
            critical = critical_widths.get(configuration)
            if critical is not None:
                inside = critical <= widest
                if inside:
                    self.critical_lines_[configuration] = ax.axvline(
                        critical, color=FAINT, linestyle=":", linewidth=1.2, zorder=1
                    )
                ax.text(
                    critical if inside else 1.0,
                    1.0,
                    f"d* = {critical:.2f}" + ("" if inside else " →"),
                    transform=ax.get_xaxis_transform() if inside else ax.transAxes,
                    ha="center" if inside else "right",
                    va="bottom",
                    fontsize="x-small",
                    color=INK,
                )
            ax.update_datalim([(0.0, 0.0)])
            ax.locator_params(axis="y", nbins=4)
        for ax, alpha in zip(self.axes_[0], columns, strict=True):
            ax.set_title(f"α = {alpha:g}", fontsize="medium", pad=15)
            ax.set_xlim(0.0, widest)
            ax.autoscale_view(scalex=False)
            _integer_ticks(ax)
        _name_rows(self.axes_, rows)
        leave_empty(self.axes_, empty)
        self.figure_.supxlabel(_WIDTH_LABEL, fontsize="medium")
        self.figure_.supylabel(_FLOOR_LABEL, fontsize="medium")
        split = any(len(lines) > 1 for lines in self.lines_.values())
        legend_above(
            self.figure_,
            [
                key(
                    _measured_label(self.spread), color=INK, linewidth=1.3, marker=None if split else "o", markersize=3
                ),
                *(key(name, **_predictor_style(index)) for index, name in enumerate(_names(self.predicted))),
                *([key("critical width d*", color=FAINT, linestyle=":", linewidth=1.2)] if critical_widths else []),
                *(key(f"teacher width {width:g}", markersize=4, **style) for width, style in teachers.items() if split),
            ],
        )
        return self


class SparsityDisplay:
    """Floors over student width at each sparsity, a panel a number of features (Figure 9 of the paper).

    Parameters
    ----------
    points : DataFrame
        One row a point of students of one teacher's width, with the columns n_features, alpha,
        teacher_width and width, and those named below.
    measured : str, default="floor"
        Column of measured floors.
    spread : str or None, default="floor_std"
        Column with half the height of the band around them; None draws none.
    predicted : str, default="Eq. 2"
        Column of predicted floors.

    Attributes
    ----------
    figure_ : matplotlib Figure or SubFigure
        Figure drawn in.
    axes_ : ndarray of shape (n_numbers_of_features,) of matplotlib Axes
        Panels, in ascending order.
    lines_ : dict of (int, float) to matplotlib Line2D
        Measured floors for each number of features and each sparsity.
    bands_ : dict of (int, float) to matplotlib PolyCollection
        Their bands; empty without `spread`.
    predicted_lines_ : dict of (int, float) to matplotlib Line2D
        Predicted floors.

    See Also
    --------
    SparsityDisplay.from_summary : Choose the teacher's width and draw.
    FloorGridDisplay : A panel for each sparsity, with the critical widths.

    Notes
    -----
    The panels share their axes: ``axes_[0].set_yscale("log")`` shows high sparsities better, at the
    price of the zeros that Eq. 2 predicts.

    Examples
    --------
    >>> import pandas as pd
    >>> from geofloor.displays import SparsityDisplay
    >>> summary = pd.DataFrame({"n_features": 10, "alpha": [0.8, 0.8, 0.9, 0.9], "teacher_width": 5,
    ...                         "width": [1, 2, 1, 2], "floor": [0.09, 0.07, 0.05, 0.03],
    ...                         "floor_std": 0.001, "Eq. 2": [0.07, 0.03, 0.03, 0.01]})
    >>> display = SparsityDisplay.from_summary(summary)
    >>> sorted(display.lines_)
    [(10, 0.8), (10, 0.9)]
    """

    def __init__(
        self,
        *,
        points: pd.DataFrame,
        measured: str = "floor",
        spread: str | None = "floor_std",
        predicted: str = "Eq. 2",
    ) -> None:
        self.points = points
        self.measured = measured
        self.spread = spread
        self.predicted = predicted

    @classmethod
    def from_summary(
        cls,
        summary: pd.DataFrame,
        *,
        teacher_width: int = 5,
        predicted: str = "Eq. 2",
        measured: str = "floor",
        spread: str | None = "floor_std",
        figure: Figure | SubFigure | None = None,
    ) -> SparsityDisplay:
        """Take the students of one teacher's width and draw their floors.

        Parameters
        ----------
        summary : DataFrame
            One row a point, with the columns n_features, alpha, teacher_width, width and those named below.
        teacher_width : int, default=5
            Width of the teacher.
        predicted : str, default="Eq. 2"
            Column of predicted floors.
        measured : str, default="floor"
            Column of measured floors.
        spread : str or None, default="floor_std"
            Column with half the height of the band around them; None draws none.
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.

        Returns
        -------
        display : SparsityDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If `teacher_width` is not in the summary, or the summary is empty, lacks a column, has a
            point twice or a value that is not finite.
        """
        teacher_width = check_number("teacher_width", teacher_width, 1, whole=True)
        points = _checked(summary, [*_POINT, measured, predicted], spread)
        chosen = points[points["teacher_width"] == teacher_width]
        if chosen.empty:
            widths = _values(points, "teacher_width")
            raise ValueError(f"teacher_width={teacher_width!r} is not in the summary; it has {widths}.")
        return cls(points=chosen, measured=measured, spread=spread, predicted=predicted).plot(figure=figure)

    def plot(self, figure: Figure | SubFigure | None = None) -> SparsityDisplay:
        """Draw a panel for each number of features.

        Parameters
        ----------
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.

        Returns
        -------
        self : SparsityDisplay
            The display.
        """
        _checked(self.points, [*_POINT, self.measured, self.predicted], self.spread, argument="points")
        columns, colors = _values(self.points, "n_features"), _alpha_colors(self.points["alpha"])
        self.figure_, axes = panels(figure, 1, len(columns), size=(2.5, 2.4))
        self.axes_ = axes[0]
        self.lines_, self.bands_, self.predicted_lines_ = {}, {}, {}
        for configuration, points in _configurations(self.points):
            ax, color = self.axes_[columns.index(configuration[0])], colors[configuration[1]]
            (self.predicted_lines_[configuration],) = _draw_curves(
                ax, points, self.predicted, color=color, linestyle=DASHES[1], linewidth=1.3
            )
            for band in _draw_bands(ax, points, self.measured, self.spread, color=color):
                self.bands_[configuration] = band
            (self.lines_[configuration],) = _draw_curves(
                ax, points, self.measured, color=color, linewidth=1.5, marker="o", markersize=3.5
            )
            ax.update_datalim([(1.0, 0.0)], updatex=False)
        for ax, n_features in zip(self.axes_, columns, strict=True):
            ax.autoscale_view()
            ax.set_title(f"n = {n_features:g}", fontsize="medium")
            _integer_ticks(ax)
        self.figure_.supxlabel(_WIDTH_LABEL, fontsize="medium")
        self.axes_[0].set_ylabel(_FLOOR_LABEL)
        legend_above(
            self.figure_,
            [
                *(key(f"α = {alpha:g}", color=color, linewidth=3) for alpha, color in colors.items()),
                key(_measured_label(self.spread), color=INK, linewidth=1.5, marker="o", markersize=3.5),
                key(self.predicted, color=INK, linestyle=DASHES[1], linewidth=1.3),
            ],
        )
        return self


class PredictionDisplay:
    """Predicted over measured floors on logarithmic axes, a panel a predictor (Figure 3 of the paper).

    Parameters
    ----------
    measured : array-like of shape (n_points,)
        Measured floors.
    predicted : mapping of str to array-like of shape (n_points,)
        Predicted floors, by predictor.
    alphas : array-like of shape (n_points,)
        Sparsities, for the colours.

    Attributes
    ----------
    figure_ : matplotlib Figure or SubFigure
        Figure drawn in.
    axes_ : ndarray of shape (n_predictors,) of matplotlib Axes
        Panels, in the order of `predicted`.
    points_ : dict of (str, float) to matplotlib Line2D
        Points of each predictor at each sparsity.
    statistics_ : DataFrame of shape (n_predictors, 5)
        For each predictor: ``pearson_r``; ``r2``, of the prediction as it stands, without a fitted
        line; ``median_absolute_error``, in per cent of the measured floor; ``n_points``, of which
        ``n_not_drawn`` have no place on the axes.

    See Also
    --------
    PredictionDisplay.from_summary : Take the columns of a summary and draw them.
    ErrorDisplay : Distributions of the errors.

    Notes
    -----
    A floor of zero, predicted or measured, has no place on a logarithmic axis. Such points are not
    drawn, but they are counted, and all of them are in the statistics: r and R² take every point, the
    median every point whose measured floor is above zero. To leave them out, choose the points.

    Examples
    --------
    >>> from geofloor.displays import PredictionDisplay
    >>> predicted = {"half": [0.01, 0.02, 0.03], "cut": [0.02, 0.04, 0.0]}
    >>> display = PredictionDisplay(measured=[0.02, 0.04, 0.06], predicted=predicted, alphas=[0.9, 0.9, 0.8]).plot()
    >>> display.statistics_.round(2)
          pearson_r    r2  median_absolute_error  n_points  n_not_drawn
    half        1.0 -0.75                   50.0         3            0
    cut        -0.5 -3.50                    0.0         3            1
    """

    def __init__(self, *, measured: ArrayLike, predicted: Mapping[str, ArrayLike], alphas: ArrayLike) -> None:
        self.measured = measured
        self.predicted = predicted
        self.alphas = alphas

    @classmethod
    def from_summary(
        cls,
        summary: pd.DataFrame,
        *,
        predicted: str | Sequence[str] = ("Eq. 2", "naive"),
        measured: str = "floor",
        figure: Figure | SubFigure | None = None,
    ) -> PredictionDisplay:
        """Draw columns of predictions over a column of measurements.

        Parameters
        ----------
        summary : DataFrame
            One row a point, with the columns n_features, alpha, teacher_width, width and those named
            below. Its rows are the points: select beforehand.
        predicted : str or sequence of str, default=("Eq. 2", "naive")
            Columns of predicted floors.
        measured : str, default="floor"
            Column of measured floors.
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.

        Returns
        -------
        display : PredictionDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the summary is empty, lacks a column, has a point twice or a value that is not finite.
        """
        predicted = _names(predicted)
        points = _checked(summary, [*_POINT, measured, *predicted])
        display = cls(
            measured=points[measured].to_numpy(),
            predicted={name: points[name].to_numpy() for name in predicted},
            alphas=points["alpha"].to_numpy(),
        )
        return display.plot(figure=figure)

    def plot(self, figure: Figure | SubFigure | None = None) -> PredictionDisplay:
        """Draw a panel for each predictor, with the line of equality and the statistics above.

        Parameters
        ----------
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.

        Returns
        -------
        self : PredictionDisplay
            The display.

        Raises
        ------
        ValueError
            If no point has both a measured and a predicted floor above zero.
        """
        measured = check_array_of_numbers(self.measured, "measured")
        alphas = check_array_of_numbers(self.alphas, "alphas")
        predicted = _by_predictor(self.predicted, "predicted", len(measured))
        check_lengths({"": alphas}, "alphas", len(measured), "measured floors")
        drawn = {name: (values > 0) & (measured > 0) for name, values in predicted.items()}
        shown = [np.concatenate([measured[drawn[name]], values[drawn[name]]]) for name, values in predicted.items()]
        if not any(values.size for values in shown):
            raise ValueError("predicted and measured are nowhere both above zero, so logarithmic axes have no point.")
        limits = np.concatenate(shown).min() / 1.5, np.concatenate(shown).max() * 1.5
        self.statistics_ = pd.DataFrame(
            [_agreement(measured, values, drawn[name]) for name, values in predicted.items()], index=list(predicted)
        )
        colors = _alpha_colors(alphas)
        self.figure_, axes = panels(figure, 1, len(predicted), size=(3.1, 3.7))
        self.axes_, self.points_ = axes[0], {}
        for ax, (name, values) in zip(self.axes_, predicted.items(), strict=True):
            ax.plot(limits, limits, color=FAINT, linewidth=1.0, zorder=1)
            for alpha, color in colors.items():
                here = drawn[name] & (alphas == alpha)
                (self.points_[name, alpha],) = ax.plot(
                    measured[here],
                    values[here],
                    linestyle="none",
                    marker="o",
                    markersize=4.5,
                    markeredgecolor="white",
                    markeredgewidth=0.4,
                    color=color,
                )
            ax.set_xlabel(f"measured floor ({HIDDEN_UNITS})")
            ax.set(xscale="log", yscale="log", xlim=limits, ylim=limits, box_aspect=1.0)
            ax.set_title(f"{name}\n{_agreement_text(self.statistics_.loc[name])}", fontsize="small", loc="left")
        self.axes_[0].set_ylabel(f"predicted floor L* ({HIDDEN_UNITS})")
        legend_above(
            self.figure_,
            [
                key(f"α = {alpha:g}", color=color, linestyle="none", marker="o", markersize=5)
                for alpha, color in colors.items()
            ],
        )
        return self


class ErrorDisplay:
    """Errors of the predicted floors by sparsity, with their signs, predictors side by side (Figure 10 of the paper).

    Parameters
    ----------
    errors : mapping of str to array-like of shape (n_points,)
        Errors of each predictor, in per cent of the measured floor; negative where it predicts too little.
    alphas : array-like of shape (n_points,)
        Sparsities.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure of the axes.
    boxes_ : dict of (str, float) to dict of str to list of matplotlib artists
        What ``Axes.boxplot`` returned for each predictor at each sparsity.

    See Also
    --------
    ErrorDisplay.from_summary : Compute the errors and draw them.
    AccuracyDisplay : Their medians by configuration.

    Notes
    -----
    Boxes reach from the first to the third quartile, with a line at the median; whiskers reach to the
    extremes, so that no point lies outside.

    Where an error exceeds 1,000%, the axis is linear up to 100% and logarithmic beyond.

    The paper draws the accuracy, 100% less the absolute error. It doesn't tell a lower bound from an
    upper one, and an error beyond 100% makes it negative; the signed error shows both.

    Examples
    --------
    >>> from geofloor.displays import ErrorDisplay
    >>> display = ErrorDisplay(errors={"Eq. 2": [-50, -40, -30], "naive": [10, 60, 20]}, alphas=[0.8, 0.8, 0.9]).plot()
    >>> display.boxes_["Eq. 2", 0.8]["medians"][0].get_ydata()
    array([-45., -45.])
    """

    def __init__(self, *, errors: Mapping[str, ArrayLike], alphas: ArrayLike) -> None:
        self.errors = errors
        self.alphas = alphas

    @classmethod
    def from_summary(
        cls,
        summary: pd.DataFrame,
        *,
        predicted: str | Sequence[str] = ("Eq. 2", "naive"),
        measured: str = "floor",
        ax: Axes | None = None,
    ) -> ErrorDisplay:
        """Compute the errors, predicted/measured − 1, and draw them.

        Parameters
        ----------
        summary : DataFrame
            One row a point, with the columns n_features, alpha, teacher_width, width and those named
            below. Points whose measured floor is zero, to which no error is relative, are left out.
        predicted : str or sequence of str, default=("Eq. 2", "naive")
            Columns of predicted floors.
        measured : str, default="floor"
            Column of measured floors.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        display : ErrorDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If no measured floor is above zero, or the summary is empty, lacks a column, has a point
            twice or a value that is not finite.
        """
        predicted = _names(predicted)
        points = _positive(_checked(summary, [*_POINT, measured, *predicted]), measured)
        errors = {name: 100.0 * (points[name] / points[measured] - 1.0).to_numpy() for name in predicted}
        return cls(errors=errors, alphas=points["alpha"].to_numpy()).plot(ax=ax)

    def plot(self, ax: Axes | None = None) -> ErrorDisplay:
        """Draw a box for each predictor at each sparsity.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        self : ErrorDisplay
            The display.
        """
        alphas = check_array_of_numbers(self.alphas, "alphas")
        by_predictor = _by_predictor(self.errors, "errors", len(alphas))
        self.ax_ = axes_or_new(ax)
        self.figure_ = self.ax_.figure
        self.boxes_ = {}
        levels, counts = np.unique(alphas, return_counts=True)
        step = 0.8 / len(by_predictor)
        self.ax_.axhline(0.0, color=FAINT, linewidth=1.0, zorder=1)
        for index, (name, errors) in enumerate(by_predictor.items()):
            color = COLORS[index % len(COLORS)]
            for place, alpha in enumerate(levels.tolist()):
                self.boxes_[name, alpha] = self.ax_.boxplot(
                    [errors[alphas == alpha]],
                    positions=[place + (index - (len(by_predictor) - 1) / 2) * step],
                    widths=0.8 * step,
                    whis=(0, 100),
                    patch_artist=True,
                    manage_ticks=False,
                    boxprops={"facecolor": (color, 0.3), "edgecolor": color},
                    medianprops={"color": color, "linewidth": 2.0, "solid_capstyle": "butt"},
                    whiskerprops={"color": color},
                    capprops={"color": color},
                )
        most = max(float(np.max(errors)) for errors in by_predictor.values())
        if most > _SYMLOG_FROM:
            decades = 10.0 ** np.arange(3, np.ceil(np.log10(most)) + 1)
            ticks = [-100.0, -50.0, 0.0, 50.0, 100.0, *decades[decades <= most]]
            self.ax_.set_yscale("symlog", linthresh=100.0, linscale=1.5)
            self.ax_.set_yticks(ticks, labels=[f"{tick:,.0f}".replace("-", "−") for tick in ticks])
            self.ax_.set_yticks([], minor=True)
        labels = [f"{alpha:g}\n{count} points" for alpha, count in zip(levels, counts, strict=True)]
        self.ax_.set_xticks(range(len(levels)), labels=labels)
        self.ax_.set_xlim(-0.6, len(levels) - 0.4)
        self.ax_.set(xlabel="sparsity α", ylabel="error of the predicted floor (%)")
        self.ax_.legend(
            handles=[
                key(name, color=COLORS[index % len(COLORS)], linewidth=6, alpha=0.6, solid_capstyle="butt")
                for index, name in enumerate(by_predictor)
            ],
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=len(by_predictor),
            frameon=False,
            fontsize="small",
        )
        return self


class AccuracyDisplay:
    """Median accuracy of a predictor by configuration, as a heat map (Figure 11 of the paper).

    Parameters
    ----------
    accuracies : mapping of int to DataFrame of shape (n_sparsities, n_teacher_widths)
        For each number of features the accuracies in per cent, with sparsities as index and teachers'
        widths as columns, the same for all; NaN where there is no point.
    predicted : str, default="Eq. 2"
        The predictor, for the label.

    Attributes
    ----------
    figure_ : matplotlib Figure or SubFigure
        Figure drawn in.
    axes_ : ndarray of shape (n_numbers_of_features,) of matplotlib Axes
        Panels, in the order of `accuracies`.
    images_ : list of matplotlib AxesImage
        One heat map a panel.
    texts_ : list of ndarray of shape (n_sparsities, n_teacher_widths) of matplotlib Text
        The numbers in the cells.
    colorbar_ : matplotlib Colorbar
        Scale of the colours. It starts at 0%; accuracies below are numbers in the darkest cells.

    See Also
    --------
    AccuracyDisplay.from_summary : Compute the medians and draw them.
    ErrorDisplay : Distributions of the errors, with their signs.

    Notes
    -----
    The accuracy of a point is 100% less its absolute error, in per cent of the measured floor.

    Examples
    --------
    >>> import pandas as pd
    >>> from geofloor.displays import AccuracyDisplay
    >>> summary = pd.DataFrame({"n_features": 10, "alpha": 0.9, "teacher_width": 3, "width": [1, 2, 3],
    ...                         "floor": [0.05, 0.03, 0.02], "Eq. 2": [0.03, 0.01, 0.0]})
    >>> display = AccuracyDisplay.from_summary(summary)
    >>> display.accuracies[10].round(1)
    teacher_width     3
    alpha
    0.9            33.3
    """

    def __init__(self, *, accuracies: Mapping[int, pd.DataFrame], predicted: str = "Eq. 2") -> None:
        self.accuracies = accuracies
        self.predicted = predicted

    @classmethod
    def from_summary(
        cls,
        summary: pd.DataFrame,
        *,
        predicted: str = "Eq. 2",
        measured: str = "floor",
        figure: Figure | SubFigure | None = None,
    ) -> AccuracyDisplay:
        """Compute the median accuracy of each configuration over student widths, and draw it.

        Parameters
        ----------
        summary : DataFrame
            One row a point, with the columns n_features, alpha, teacher_width, width and those named
            below. Points whose measured floor is zero, to which no error is relative, are left out.
        predicted : str, default="Eq. 2"
            Column of predicted floors.
        measured : str, default="floor"
            Column of measured floors.
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.

        Returns
        -------
        display : AccuracyDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If no measured floor is above zero, or the summary is empty, lacks a column, has a point
            twice or a value that is not finite.
        """
        points = _checked(summary, [*_POINT, measured, predicted])
        rows, columns = _values(points, "alpha"), _values(points, "teacher_width")
        used = _positive(points, measured)
        used = used.assign(accuracy=100.0 * (1.0 - (used[predicted] / used[measured] - 1.0).abs()))
        table = used.pivot_table("accuracy", ["n_features", "alpha"], "teacher_width", aggfunc="median")
        accuracies = {
            n_features: table.reindex(
                index=pd.MultiIndex.from_product([[n_features], rows], names=table.index.names), columns=columns
            )
            .rename_axis(columns="teacher_width")
            .droplevel(0)
            for n_features in _values(points, "n_features")
        }
        return cls(accuracies=accuracies, predicted=predicted).plot(figure=figure)

    def plot(self, figure: Figure | SubFigure | None = None) -> AccuracyDisplay:
        """Draw a heat map for each number of features, with the numbers in its cells.

        Parameters
        ----------
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.

        Returns
        -------
        self : AccuracyDisplay
            The display.
        """
        import matplotlib as mpl

        check_object("accuracies", self.accuracies, Mapping, "give a dict of tables by number of features")
        if not self.accuracies:
            raise ValueError("accuracies is empty; give at least one table.")
        for n_features, table in self.accuracies.items():
            name = f"accuracies[{n_features!r}]"
            check_object(name, table, pd.DataFrame, "give a DataFrame of sparsities and teachers' widths")
            if table.empty:
                raise ValueError(f"{name} is empty; give at least one accuracy.")
            plain_table(table, name, [], list(table.columns))
        self.figure_, axes = panels(figure, 1, len(self.accuracies), size=(2.4, 2.2))
        self.axes_, self.images_, self.texts_ = axes[0], [], []
        colormap = mpl.colormaps["cividis"].with_extremes(bad="#e8e8e8")
        scale = mpl.colors.Normalize(0.0, 100.0)
        lowest = 0.0
        for ax, (n_features, table) in zip(self.axes_, self.accuracies.items(), strict=True):
            values = table.to_numpy(dtype=np.float64)
            lowest = min(lowest, np.nanmin(values, initial=0.0))
            self.images_.append(ax.imshow(values, cmap=colormap, norm=scale, aspect="auto"))
            texts = np.empty(values.shape, dtype=object)
            for (row, column), value in np.ndenumerate(values):
                light = np.isnan(value) or value > 55.0
                texts[row, column] = ax.text(
                    column,
                    row,
                    _cell(value),
                    ha="center",
                    va="center",
                    fontsize="small",
                    color=INK if light else "white",
                )
            self.texts_.append(texts)
            ax.set_xticks(range(values.shape[1]), labels=[f"{width:g}" for width in table.columns])
            ax.set_yticks(range(values.shape[0]), labels=[f"{alpha:g}" for alpha in table.index])
            ax.set_xticks(np.arange(0.5, values.shape[1] - 1), minor=True)
            ax.set_yticks(np.arange(0.5, values.shape[0] - 1), minor=True)
            ax.grid(which="minor", color="white", linewidth=1.5)
            ax.tick_params(which="both", length=0)
            ax.spines[:].set_visible(False)
            ax.set_title(f"n = {n_features:g}", fontsize="medium")
        self.axes_[0].set_ylabel("sparsity α")
        self.figure_.supxlabel("teacher width (dimensions)", fontsize="medium")
        self.colorbar_ = self.figure_.colorbar(
            self.images_[0],
            ax=self.axes_,
            label=f"median accuracy, {self.predicted} (%)",
            extend="min" if lowest < 0.0 else "neither",
        )
        self.colorbar_.outline.set_visible(False)
        return self


class CollapseDisplay:
    """Floors relative to that of width 0, over widths relative to the critical one (Figure 13 of the paper).

    Parameters
    ----------
    points : DataFrame
        One row a point, with the columns n_features, alpha, teacher_width and width; relative_width,
        which is d/d*; and relative_floor, which is L*(d)/L*(0).

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on. The x axis is logarithmic.
    figure_ : matplotlib Figure
        Figure of the axes.
    lines_ : dict of (int, float) to list of matplotlib Line2D
        Curves for each number of features and each sparsity: one, or one a teacher's width where these differ.
    critical_line_ : matplotlib Line2D
        Vertical at the critical width.

    See Also
    --------
    CollapseDisplay.from_summary : Compute both ratios and draw.

    Notes
    -----
    Configurations that fall on one curve would have a floor that depends on d/d* alone, and zero to
    the right of 1 where Eq. 2 holds. Whether they do is for the figure to show.

    Examples
    --------
    >>> import pandas as pd
    >>> from geofloor.displays import CollapseDisplay
    >>> summary = pd.DataFrame({"n_features": 10, "alpha": 0.9, "teacher_width": 3, "width": [1, 2, 3],
    ...                         "floor": [0.05, 0.03, 0.02], "total": 0.1})
    >>> display = CollapseDisplay.from_summary(summary)
    >>> display.lines_[10, 0.9][0].get_ydata()
    array([0.5, 0.3, 0.2])
    """

    def __init__(self, *, points: pd.DataFrame) -> None:
        self.points = points

    @classmethod
    def from_summary(
        cls,
        summary: pd.DataFrame,
        *,
        total: str = "total",
        measured: str = "floor",
        capacity: CapacityMethod = "asymptotic",
        ax: Axes | None = None,
    ) -> CollapseDisplay:
        """Divide floors by the floor of width 0 and widths by the critical width, and draw.

        Parameters
        ----------
        summary : DataFrame
            One row a point, with the columns n_features, alpha, teacher_width, width and those named below.
        total : str, default="total"
            Column with the floor of width 0: the sum over features of importance times second
            moment, or times variance where the decoder has a bias.
        measured : str, default="floor"
            Column of measured floors.
        capacity : {"asymptotic", "minimax", "minimax_nonnegative"} or callable, default="asymptotic"
            Features per dimension for the critical widths, as in `geofloor.theory.capacity`.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        display : CollapseDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If a total is not above zero, or the summary is empty, lacks a column, has a point twice
            or a value that is not finite.
        """
        check_capacity(capacity)
        points = _checked(summary, [*_POINT, total, measured])
        if not (points[total] > 0).all():
            raise ValueError(f"summary[{total!r}] has {points[total].min():g}; the floor of width 0 is above zero.")
        points = points[_POINT].assign(
            relative_width=points["width"] / critical_width(points["n_features"], points["alpha"], capacity),
            relative_floor=points[measured] / points[total],
        )
        return cls(points=points).plot(ax=ax)

    def plot(self, ax: Axes | None = None) -> CollapseDisplay:
        """Draw all configurations in one axes.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        self : CollapseDisplay
            The display.
        """
        _checked(self.points, [*_POINT, "relative_width", "relative_floor"], argument="points")
        self.ax_ = axes_or_new(ax)
        self.figure_ = self.ax_.figure
        self.lines_ = {}
        colors = _alpha_colors(self.points["alpha"])
        markers = dict(zip(_values(self.points, "n_features"), _cycle(MARKERS), strict=False))
        for configuration, points in _configurations(self.points):
            self.lines_[configuration] = _draw_curves(
                self.ax_,
                points,
                "relative_floor",
                over="relative_width",
                color=colors[configuration[1]],
                marker=markers[configuration[0]],
                markersize=4,
                linewidth=0.9,
            )
        self.critical_line_ = self.ax_.axvline(1.0, color=FAINT, linestyle=DASHES[1], linewidth=1.2, zorder=1)
        self.ax_.set_xscale("log")
        self.ax_.xaxis.set_major_formatter("{x:g}")
        self.ax_.update_datalim([(1.0, 0.0)])
        self.ax_.autoscale_view()
        self.ax_.set(xlabel="student width / critical width, d/d*", ylabel="floor / loss of answering 0")
        self.ax_.legend(
            handles=[
                *(key(f"α = {alpha:g}", color=color, linewidth=3) for alpha, color in colors.items()),
                *(
                    key(f"n = {n_features:g}", color=INK, linestyle="none", marker=marker, markersize=4.5)
                    for n_features, marker in markers.items()
                ),
            ],
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            frameon=False,
            fontsize="small",
        )
        return self


class TrainingCurvesDisplay:
    """Loss over training step at each student width, a panel a configuration (Figure 14 of the paper).

    Parameters
    ----------
    history : DataFrame
        One row a step of a configuration, with the columns n_features, alpha, width, step and loss.
    predicted : str, default=None
        Column of predicted floors, the same at all steps, drawn as dashed horizontals.
    n_columns : int, default=3
        Panels side by side.

    Attributes
    ----------
    figure_ : matplotlib Figure or SubFigure
        Figure drawn in.
    axes_ : dict of (int, float) to matplotlib Axes
        Panel of each number of features and sparsity. Both axes are logarithmic.
    lines_ : dict of (int, float, int) to matplotlib Line2D
        Curve for each number of features, sparsity and width.
    predicted_lines_ : dict of (int, float, int) to matplotlib Line2D
        Predicted floors above zero.

    See Also
    --------
    TrainingCurvesDisplay.from_history : Check the history and draw it.

    Notes
    -----
    Step 0 and predicted floors of zero have no place on logarithmic axes and are not drawn.

    Examples
    --------
    >>> import pandas as pd
    >>> from geofloor.displays import TrainingCurvesDisplay
    >>> history = pd.DataFrame({"n_features": 10, "alpha": 0.9, "width": [1, 1, 2, 2], "step": [1, 10, 1, 10],
    ...                         "loss": [0.09, 0.05, 0.08, 0.03]})
    >>> display = TrainingCurvesDisplay.from_history(history)
    >>> display.lines_[10, 0.9, 2].get_ydata()
    array([0.08, 0.03])
    """

    def __init__(self, *, history: pd.DataFrame, predicted: str | None = None, n_columns: int = 3) -> None:
        self.history = history
        self.predicted = predicted
        self.n_columns = n_columns

    @classmethod
    def from_history(
        cls,
        history: pd.DataFrame,
        *,
        predicted: str | None = None,
        n_columns: int = 3,
        figure: Figure | SubFigure | None = None,
    ) -> TrainingCurvesDisplay:
        """Check the history and draw it.

        Parameters
        ----------
        history : DataFrame
            One row a step of a configuration, with the columns n_features, alpha, width, step and
            loss, which is the mean over seeds.
        predicted : str, default=None
            Column of predicted floors, the same at all steps; by default none are drawn.
        n_columns : int, default=3
            Panels side by side.
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.

        Returns
        -------
        display : TrainingCurvesDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the history is empty, lacks a column, has a step of a configuration twice or a value
            that is not finite.
        """
        unique = ["n_features", "alpha", "width", "step"]
        needed = [*unique, "loss", *([] if predicted is None else [predicted])]
        history = _checked(history, needed, unique=unique, argument="history")
        return cls(history=history, predicted=predicted, n_columns=n_columns).plot(figure=figure)

    def plot(self, figure: Figure | SubFigure | None = None) -> TrainingCurvesDisplay:
        """Draw a panel for each number of features and sparsity that is in the history.

        Parameters
        ----------
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.

        Returns
        -------
        self : TrainingCurvesDisplay
            The display.
        """
        from matplotlib.ticker import NullFormatter

        needed = ["n_features", "alpha", "width", "step", "loss", *([] if self.predicted is None else [self.predicted])]
        _checked(self.history, needed, unique=needed[:4], argument="history")
        configurations = list(_configurations(self.history))
        widths = _values(self.history, "width")
        colors = ramp(widths, WIDTH_COLORMAP)
        n_columns = min(check_number("n_columns", self.n_columns, 1, whole=True), len(configurations))
        n_rows = -(-len(configurations) // n_columns)
        self.figure_, axes = panels(figure, n_rows, n_columns, size=(2.5, 2.1), sharey=False)
        self.axes_, self.lines_, self.predicted_lines_ = {}, {}, {}
        for ax, ((n_features, alpha), history) in zip(axes.flat, configurations, strict=False):
            self.axes_[n_features, alpha] = ax
            for width, curve in history[history["step"] > 0].sort_values("step").groupby("width"):
                place = (n_features, alpha, width)
                (self.lines_[place],) = ax.plot(curve["step"], curve["loss"], color=colors[width], linewidth=1.3)
                floor = 0.0 if self.predicted is None else curve[self.predicted].iloc[-1]
                if floor > 0.0:
                    self.predicted_lines_[place] = ax.axhline(
                        floor, color=colors[width], linestyle=DASHES[1], linewidth=1.0, zorder=1
                    )
            ax.set(xscale="log", yscale="log")
            low, high = np.log10(ax.get_ylim())
            if np.floor(high) >= low:  # a power of ten has its label, and the ticks between need none
                ax.yaxis.set_minor_formatter(NullFormatter())
            ax.set_title(f"n = {n_features:g}, α = {alpha:g}", fontsize="medium")
        leave_empty(axes, np.arange(axes.size).reshape(axes.shape) >= len(configurations))
        self.figure_.supxlabel("training step", fontsize="medium")
        self.figure_.supylabel(f"loss ({HIDDEN_UNITS})", fontsize="medium")
        legend_above(
            self.figure_,
            [
                *(key(f"d = {width:g}", color=color, linewidth=2) for width, color in colors.items()),
                *([key(self.predicted, color=INK, linestyle=DASHES[1], linewidth=1.0)] if self.predicted else []),
            ],
        )
        return self


def _checked(
    frame: pd.DataFrame,
    needed: Sequence[str],
    spread: str | None = None,
    *,
    unique: Sequence[str] = _POINT,
    argument: str = "summary",
) -> pd.DataFrame:
    """The frame, if it has rows, the columns needed with finite values, and no point twice.

    The spread may be NaN: over a single seed there is none.
    """
    columns = [*needed, *([] if spread is None else [spread])]
    frame = plain_table(frame, argument, columns, columns)
    if frame.empty:
        raise ValueError(f"{argument} has no rows; give one for each point.")
    for name in needed:
        n_wrong = int((~np.isfinite(frame[name].to_numpy(dtype=np.float64))).sum())
        if n_wrong:
            raise ValueError(
                f"{argument}[{name!r}]: {n_wrong} of {len(frame)} values are not finite; leave those rows out."
            )
    repeated = frame.duplicated(list(unique))
    if repeated.any():
        point = ", ".join(f"{name}={frame.loc[repeated, name].iloc[0]:g}" for name in unique)
        raise ValueError(f"{argument} has several rows for {point}; give one each, such as the mean over seeds.")
    return frame


def _by_predictor(values: Any, name: str, n_points: int) -> dict[str, np.ndarray]:
    check_object(name, values, Mapping, "give a dict of arrays by predictor")
    by_predictor = numbers_of(values, name)
    check_lengths(by_predictor, name, n_points, "points")
    return by_predictor


def _positive(points: pd.DataFrame, measured: str) -> pd.DataFrame:
    """The points with a measured floor that an error can be relative to."""
    positive = points[points[measured] > 0]
    if positive.empty:
        raise ValueError(f"summary[{measured!r}] has no value above zero, so no error is relative to one.")
    return positive


def _names(predicted: str | Sequence[str]) -> list[str]:
    names = [predicted] if isinstance(predicted, str) else predicted
    if not isinstance(names, list | tuple | pd.Index) or not len(names):
        raise ValueError(f"predicted={shown(predicted)} must name at least one column.")
    return list(names)


def _values(points: pd.DataFrame, column: str) -> list[Any]:
    return sorted(points[column].unique().tolist())


def _cycle(markers: Sequence[str]) -> Iterator[str]:
    while True:
        yield from markers


def _configurations(points: pd.DataFrame) -> Iterator[tuple[tuple[int, float], pd.DataFrame]]:
    """The points of each number of features and sparsity, in ascending order."""
    for n_features in _values(points, "n_features"):
        for alpha in _values(points, "alpha"):
            group = points[(points["n_features"] == n_features) & (points["alpha"] == alpha)]
            if not group.empty:
                yield (n_features, alpha), group


def _alpha_colors(alphas: Any) -> dict[Any, str]:
    return ramp(sorted(np.unique(alphas).tolist()), ALPHA_COLORMAP)


def _predictor_style(index: int) -> dict[str, Any]:
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": DASHES[1 + index % (len(DASHES) - 1)],
        "linewidth": 1.4,
    }


def _curves(points: pd.DataFrame, column: str) -> dict[Any, pd.DataFrame]:
    """Points of one configuration by teacher's width, or as one curve where teachers make no difference."""
    at_width = points.groupby("width")[column]
    if np.allclose(at_width.max(), at_width.min(), rtol=1e-9, atol=0.0):
        return {None: points.drop_duplicates("width").sort_values("width")}
    return {teacher: group.sort_values("width") for teacher, group in points.groupby("teacher_width")}


def _draw_curves(
    ax: Axes,
    points: pd.DataFrame,
    column: str,
    *,
    over: str = "width",
    teachers: Mapping[Any, dict[str, Any]] | None = None,
    **style: Any,
) -> list[Any]:
    """A line for each curve; `teachers` has what is peculiar to each of their widths, where they differ."""
    lines = []
    for teacher, curve in _curves(points, column).items():
        own = (teachers or {}).get(teacher, {})
        lines += ax.plot(curve[over].to_numpy(), curve[column].to_numpy(), **{**style, **own})
    return lines


def _draw_bands(
    ax: Axes,
    points: pd.DataFrame,
    column: str,
    spread: str | None,
    teachers: Mapping[Any, dict[str, Any]] | None = None,
    *,
    color: Any,
) -> list[Any]:
    """A band for each curve, `spread` above and below it."""
    if spread is None:
        return []
    return [
        ax.fill_between(
            curve["width"].to_numpy(),
            (curve[column] - curve[spread]).to_numpy(),
            (curve[column] + curve[spread]).to_numpy(),
            color=(teachers or {}).get(teacher, {}).get("color", color),
            alpha=0.18,
            linewidth=0,
        )
        for teacher, curve in _curves(points, column).items()
    ]


def _measured_label(spread: str | None) -> str:
    return "measured" if spread is None else f"measured ± {spread.removeprefix('floor_').replace('_', ' ')}"


def _cell(accuracy: float) -> str:
    if np.isnan(accuracy):
        return "–"
    return "<−999" if accuracy < -999.0 else f"{accuracy:.0f}".replace("-", "−")


def _integer_ticks(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _name_rows(axes: np.ndarray, n_features: Iterable[int]) -> None:
    for ax, number in zip(axes[:, -1], n_features, strict=True):
        ax.annotate(f"n = {number:g}", (1.03, 0.5), xycoords="axes fraction", rotation=270, va="center")


def _agreement(measured: np.ndarray, predicted: np.ndarray, drawn: np.ndarray) -> dict[str, Any]:
    """What `PredictionDisplay.statistics_` says of one predictor; NaN where it is not defined."""
    from scipy.stats import pearsonr
    from sklearn.metrics import r2_score

    varies = len(measured) > 1 and np.ptp(measured) > 0
    positive = measured > 0
    error = 100.0 * np.abs(predicted[positive] / measured[positive] - 1.0)
    return {
        "pearson_r": pearsonr(measured, predicted).statistic if varies and np.ptp(predicted) > 0 else np.nan,
        "r2": r2_score(measured, predicted) if varies else np.nan,
        "median_absolute_error": np.median(error) if error.size else np.nan,
        "n_points": len(measured),
        "n_not_drawn": int((~drawn).sum()),
    }


def _agreement_text(statistics: Any) -> str:
    left_out = f", {statistics['n_not_drawn']:.0f} of them zero, not drawn" if statistics["n_not_drawn"] else ""
    return (
        f"r = {statistics['pearson_r']:.3f}, R² = {statistics['r2']:.2f}, "
        f"median |error| {statistics['median_absolute_error']:.0f}%\n{statistics['n_points']:.0f} points{left_out}"
    ).replace("-", "−")
