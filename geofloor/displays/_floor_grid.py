"""Toy sweep: floors over student width, one panel per configuration."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geofloor._validation import check_number, check_object
from geofloor.displays._drawing import (
    check_scale,
    draw_bands,
    draw_critical_width,
    draw_curves,
    integer_ticks,
    leave_empty,
    legend_above,
    measured_label,
    name_rows,
    panels,
    set_scale,
)
from geofloor.displays._style import (
    FAINT,
    FLOOR_LABEL,
    INK,
    MARKERS,
    WIDTH_COLORMAP,
    WIDTH_LABEL,
    check_line_kwargs,
    key,
    predictor_style,
    ramp,
)
from geofloor.displays._tables import (
    POINT,
    check_capacity,
    check_points,
    column_names,
    configurations,
    sorted_values,
)
from geofloor.theory import critical_width
from geofloor.theory._capacity import CapacityMethod

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure


class FloorGridDisplay:
    """Measured and predicted floors over student width, one panel per configuration (Figure 2 of the paper).

    Parameters
    ----------
    points : DataFrame
        One row per point, with the columns n_features, alpha, width and those named below, and teacher_width if there
        are teachers.
    measured : str, default="floor"
        Column of measured floors, in hidden-space units.
    spread : str or None, default="floor_std"
        Column with half the height of the band around the measured floors; None draws no band.
    predicted : str, sequence of str or None, default=None
        Columns of predicted floors, in hidden-space units, as `predict_sweep <geofloor.toy.predict_sweep>` adds them.
        Their names stand in the legend. None draws ``"Eq. 2"`` if there is such a column.
    critical_widths : mapping of (int, float) to float, default=None
        Critical width d* for a number of features and a sparsity, drawn as a dotted vertical.

    Attributes
    ----------
    figure_ : matplotlib Figure or SubFigure
        Figure drawn in.
    axes_ : ndarray of shape (n_numbers_of_features, n_sparsities) of matplotlib Axes
        Panels, in ascending order of both. Panels without points are left empty.
    lines_ : dict of (int, float) to list of matplotlib Line2D
        Measured floors of each panel.
    bands_ : dict of (int, float) to list of matplotlib PolyCollection
        Bands of each panel.
    predicted_lines_ : dict of (int, float) to list of matplotlib Line2D
        Predicted floors of each panel.
    critical_lines_ : dict of (int, float) to matplotlib Line2D
        Verticals at the critical widths within the axes.

    See Also
    --------
    FloorGridDisplay.from_summary : Compute the critical widths and draw.
    FloorDisplay : Floors of a single teacher.
    SparsityDisplay : The same floors, with all sparsities in one panel.

    Notes
    -----
    If the teacher width only limits the student width, teachers of different widths share their points; these are
    drawn once. If the floors differ, each teacher width has a curve with its own marker.

    Each column of panels has its own scale, because floors fall with sparsity by an order of magnitude.

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
        predicted: str | Sequence[str] | None = None,
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
        predicted: str | Sequence[str] | None = None,
        measured: str = "floor",
        spread: str | None = "floor_std",
        capacity: CapacityMethod = "asymptotic",
        scale: str = "linear",
        figure: Figure | SubFigure | None = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> FloorGridDisplay:
        """Compute the critical widths and draw all configurations.

        Parameters
        ----------
        summary : DataFrame
            Table of `summarize_sweep <geofloor.toy.summarize_sweep>`: one row per point, with the columns of `points`.
        predicted : str, sequence of str or None, default=None
            Columns of predicted floors. None draws ``"Eq. 2"`` if there is such a column.
        measured : str, default="floor"
            Column of measured floors.
        spread : str or None, default="floor_std"
            Column with half the height of the band around the measured floors; None draws no band.
        capacity : {"asymptotic", "minimax", "minimax_nonnegative"} or callable, default="asymptotic"
            Features per dimension for the critical widths, as in `geofloor.theory.capacity`.
        scale : {"linear", "log"}, default="linear"
            Scale of the floors.
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of every measured curve.

        Returns
        -------
        display : FloorGridDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the summary is empty, lacks a column, has a point twice or a value that is not finite, or `scale` is
            unknown.
        """
        check_capacity(capacity)
        points = check_points(summary, [*POINT, measured, *_predicted(predicted, summary)], spread)
        critical = {
            (n_features, alpha): critical_width(n_features, alpha, capacity)
            for (n_features, alpha), _ in configurations(points)
        }
        display = cls(points=points, measured=measured, spread=spread, predicted=predicted, critical_widths=critical)
        return display.plot(figure=figure, scale=scale, line_kwargs=line_kwargs)

    def frame(self) -> pd.DataFrame:
        """Return the data behind the figure.

        Returns
        -------
        frame : DataFrame
            One row per point, with the columns

            - ``n_features``, ``alpha``: configuration, which selects the panel;
            - ``teacher_width``, ``width``: widths of teacher and student, in dimensions;
            - `measured`, `spread` and `predicted`: as in `points`, in hidden-space units;
            - ``critical_width``: critical width d*, in dimensions; NaN where none is given.
        """
        points, critical = self._checked()
        spread = [self.spread] if self.spread else []
        names = [*POINT, self.measured, *spread, *_predicted(self.predicted, points)]
        places = zip(points["n_features"].tolist(), points["alpha"].tolist(), strict=True)
        return (
            points[names]
            .reset_index(drop=True)
            .assign(critical_width=[critical.get(place, np.nan) for place in places])
        )

    def plot(
        self,
        figure: Figure | SubFigure | None = None,
        *,
        scale: str = "linear",
        line_kwargs: dict[str, Any] | None = None,
    ) -> FloorGridDisplay:
        """Draw one panel per number of features and sparsity.

        Parameters
        ----------
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.
        scale : {"linear", "log"}, default="linear"
            Scale of the floors. Floors of zero cannot be drawn on a logarithmic scale.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of every measured curve.

        Returns
        -------
        self : FloorGridDisplay
            The display.

        Raises
        ------
        ValueError
            If `points` is empty, lacks a column, has a point twice or a value that is not finite, or `scale` is
            unknown.
        """
        check_scale(scale)
        line_kwargs = check_line_kwargs(line_kwargs)
        table, critical = self._checked()
        predicted = _predicted(self.predicted, table)
        rows, columns = sorted_values(table, "n_features"), sorted_values(table, "alpha")
        teachers = {
            width: {"color": color, "marker": marker}
            for (width, color), marker in zip(
                ramp(sorted_values(table, "teacher_width"), WIDTH_COLORMAP).items(),
                itertools.cycle(MARKERS),
                strict=False,
            )
        }
        style: dict[str, Any] = {"color": INK, "linewidth": 1.3, "marker": "o", "markersize": 3}
        self.figure_, self.axes_ = panels(figure, len(rows), len(columns), size=(1.9, 1.55), sharey="col")
        self.lines_, self.bands_, self.predicted_lines_, self.critical_lines_ = {}, {}, {}, {}
        widest = float(table["width"].max()) + 0.5
        empty = np.ones(self.axes_.shape, dtype=bool)
        for configuration, points in configurations(table):
            place = rows.index(configuration[0]), columns.index(configuration[1])
            ax, empty[place] = self.axes_[place], False
            self.predicted_lines_[configuration] = [
                line
                for index, name in enumerate(predicted)
                for line in draw_curves(ax, points, name, zorder=3, **predictor_style(index))
            ]
            self.bands_[configuration] = draw_bands(ax, points, self.measured, self.spread, teachers, color=INK)
            self.lines_[configuration] = draw_curves(
                ax, points, self.measured, teachers=teachers, line_kwargs=line_kwargs, **style
            )
            if configuration in critical:
                width = critical[configuration]
                line = draw_critical_width(ax, width, last=widest, color=FAINT, text=f"d* = {width:.2f}")
                if line is not None:
                    self.critical_lines_[configuration] = line
            ax.update_datalim([(0.0, 0.0)])
            ax.locator_params(axis="y", nbins=4)
        for ax, alpha in zip(self.axes_[0], columns, strict=True):
            ax.set_title(f"α = {alpha:g}", fontsize="medium", pad=15)
            ax.set_xlim(0.0, widest)
            ax.autoscale_view(scalex=False)
            integer_ticks(ax)
        if scale == "log":
            for ax in self.axes_[0]:  # panels of a column share their y axis
                set_scale(ax, scale)
        name_rows(self.axes_, rows)
        leave_empty(self.axes_, empty)
        self.figure_.supxlabel(WIDTH_LABEL, fontsize="medium")
        self.figure_.supylabel(FLOOR_LABEL, fontsize="medium")
        split = any(len(lines) > 1 for lines in self.lines_.values())
        legend_above(
            self.figure_,
            [
                key(measured_label(self.spread), **{**style, **({"marker": None} if split else {}), **line_kwargs}),
                *(key(name, **predictor_style(index)) for index, name in enumerate(predicted)),
                *([key("critical width d*", color=FAINT, linestyle=":", linewidth=1.2)] if critical else []),
                *(key(f"teacher width {width:g}", markersize=4, **each) for width, each in teachers.items() if split),
            ],
        )
        return self

    def _checked(self) -> tuple[pd.DataFrame, dict[Any, float]]:
        """Return the points and the critical widths by configuration."""
        table = self.points
        needed = [*POINT, self.measured, *_predicted(self.predicted, table)]
        points = check_points(table, needed, self.spread, argument="points")
        critical = check_object(
            "critical_widths",
            {} if self.critical_widths is None else self.critical_widths,
            Mapping,
            "give a dict of widths by numbers of features and sparsities",
        )
        return points, {place: check_number("critical_widths", width, 0) for place, width in critical.items()}


def _predicted(predicted: Any, table: Any) -> list[str]:
    """Return the names of the columns of predictions, by default Eq. 2 if it is there."""
    if predicted is None:
        return [name for name in ("Eq. 2",) if name in getattr(table, "columns", ())]
    return column_names(predicted)
