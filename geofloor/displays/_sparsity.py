"""Toy sweep: floors over student width at each sparsity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from geofloor._validation import check_number
from geofloor.displays._drawing import (
    check_scale,
    draw_bands,
    draw_curves,
    integer_ticks,
    legend_above,
    measured_label,
    panels,
    set_scale,
)
from geofloor.displays._style import (
    DASHES,
    FLOOR_LABEL,
    INK,
    WIDTH_LABEL,
    alpha_colors,
    check_line_kwargs,
    key,
)
from geofloor.displays._tables import POINT, check_points, configurations, sorted_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

_TEACHER_WIDTH = 5  # the paper's


class SparsityDisplay:
    """Floors over student width at each sparsity, one panel per number of features (Figure 9 of the paper).

    Parameters
    ----------
    points : DataFrame
        One row per point of students of one teacher width, with the columns n_features, alpha, teacher_width and
        width, and those named below.
    measured : str, default="floor"
        Column of measured floors, in hidden-space units.
    spread : str or None, default="floor_std"
        Column with half the height of the band around the measured floors; None draws no band.
    predicted : str, default="Eq. 2"
        Column of predicted floors, in hidden-space units. Its name stands in the legend.

    Attributes
    ----------
    figure_ : matplotlib Figure or SubFigure
        Figure drawn in.
    axes_ : ndarray of shape (n_numbers_of_features,) of matplotlib Axes
        Panels, in ascending order. They share their axes.
    lines_ : dict of (int, float) to matplotlib Line2D
        Measured floors for each number of features and sparsity.
    bands_ : dict of (int, float) to matplotlib PolyCollection
        Bands of the measured floors; empty without `spread`.
    predicted_lines_ : dict of (int, float) to matplotlib Line2D
        Predicted floors.

    See Also
    --------
    SparsityDisplay.from_summary : Choose the teacher width and draw.
    FloorGridDisplay : One panel per sparsity, with the critical widths.

    Notes
    -----
    ``scale="log"`` shows high sparsities better, but cannot show the zeros of Eq. 2.

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
        teacher_width: int | None = None,
        predicted: str = "Eq. 2",
        measured: str = "floor",
        spread: str | None = "floor_std",
        scale: str = "linear",
        figure: Figure | SubFigure | None = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> SparsityDisplay:
        """Select the students of one teacher width and draw their floors.

        Parameters
        ----------
        summary : DataFrame
            One row per point, with the columns n_features, alpha, width and those named below, and teacher_width if
            there are teachers.
        teacher_width : int or None, default=None
            Width of the teacher. None takes 5, the paper's, if there are teachers.
        predicted : str, default="Eq. 2"
            Column of predicted floors.
        measured : str, default="floor"
            Column of measured floors.
        spread : str or None, default="floor_std"
            Column with half the height of the band around the measured floors; None draws no band.
        scale : {"linear", "log"}, default="linear"
            Scale of the floors.
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of every measured curve.

        Returns
        -------
        display : SparsityDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If `teacher_width` is not in the summary, `scale` is unknown, or the summary is empty, lacks a column, has
            a point twice or a value that is not finite.
        """
        if teacher_width is not None:
            teacher_width = check_number("teacher_width", teacher_width, 1, whole=True)
        points = check_points(summary, [*POINT, measured, predicted], spread)
        if teacher_width is None:
            teacher_width = _TEACHER_WIDTH if points["teacher_width"].any() else 0
        chosen = points[points["teacher_width"] == teacher_width]
        if chosen.empty:
            widths = sorted_values(points, "teacher_width")
            raise ValueError(f"teacher_width={teacher_width!r} is not in the summary; it has {widths}.")
        display = cls(points=chosen, measured=measured, spread=spread, predicted=predicted)
        return display.plot(figure=figure, scale=scale, line_kwargs=line_kwargs)

    def frame(self) -> pd.DataFrame:
        """Return the data behind the figure.

        Returns
        -------
        frame : DataFrame
            One row per point, with the columns

            - ``n_features``, ``alpha``: configuration, which selects panel and color;
            - ``teacher_width``, ``width``: widths of teacher and student, in dimensions;
            - `measured`, `spread` and `predicted`: as in `points`, in hidden-space units.
        """
        names = [*POINT, self.measured, *([self.spread] if self.spread else []), self.predicted]
        return self._checked()[names].reset_index(drop=True)

    def plot(
        self,
        figure: Figure | SubFigure | None = None,
        *,
        scale: str = "linear",
        line_kwargs: dict[str, Any] | None = None,
    ) -> SparsityDisplay:
        """Draw one panel per number of features.

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
        self : SparsityDisplay
            The display.

        Raises
        ------
        ValueError
            If `points` is empty, lacks a column, has a point twice or a value that is not finite, has several teacher
            widths, or `scale` is unknown.
        """
        check_scale(scale)
        line_kwargs = check_line_kwargs(line_kwargs)
        table = self._checked()
        columns, colors = sorted_values(table, "n_features"), alpha_colors(table["alpha"])
        style: dict[str, Any] = {"linewidth": 1.5, "marker": "o", "markersize": 3.5}
        self.figure_, axes = panels(figure, 1, len(columns), size=(2.5, 2.4))
        self.axes_ = axes[0]
        self.lines_, self.bands_, self.predicted_lines_ = {}, {}, {}
        for configuration, points in configurations(table):
            ax, color = self.axes_[columns.index(configuration[0])], colors[configuration[1]]
            (self.predicted_lines_[configuration],) = draw_curves(
                ax, points, self.predicted, color=color, linestyle=DASHES[1], linewidth=1.3
            )
            for band in draw_bands(ax, points, self.measured, self.spread, color=color):
                self.bands_[configuration] = band
            (self.lines_[configuration],) = draw_curves(
                ax, points, self.measured, line_kwargs=line_kwargs, color=color, **style
            )
            ax.update_datalim([(1.0, 0.0)], updatex=False)
        for ax, n_features in zip(self.axes_, columns, strict=True):
            ax.autoscale_view()
            ax.set_title(f"n = {n_features:g}", fontsize="medium")
            integer_ticks(ax)
        if scale == "log":
            set_scale(self.axes_[0], scale)  # panels share their y axis
        self.figure_.supxlabel(WIDTH_LABEL, fontsize="medium")
        self.axes_[0].set_ylabel(FLOOR_LABEL)
        legend_above(
            self.figure_,
            [
                *(key(f"α = {alpha:g}", color=color, linewidth=3) for alpha, color in colors.items()),
                key(measured_label(self.spread), **{"color": INK, **style, **line_kwargs}),
                key(self.predicted, color=INK, linestyle=DASHES[1], linewidth=1.3),
            ],
        )
        return self

    def _checked(self) -> pd.DataFrame:
        """Return the points, if they are of one teacher width."""
        points = check_points(self.points, [*POINT, self.measured, self.predicted], self.spread, argument="points")
        teachers = sorted_values(points, "teacher_width")
        if len(teachers) > 1:
            raise ValueError(f"points has the teacher widths {teachers}; select one, as from_summary does.")
        return points
