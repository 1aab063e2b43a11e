"""Toy sweep: relative floors over relative widths."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pandas as pd

from geofloor.displays._drawing import OneAxesMixin, check_scale, draw_curves, legend_beside, set_scale
from geofloor.displays._style import DASHES, FAINT, INK, MARKERS, alpha_colors, check_line_kwargs, key
from geofloor.displays._tables import POINT, check_capacity, check_points, configurations, sorted_values
from geofloor.theory import critical_width
from geofloor.theory._capacity import CapacityMethod

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class CollapseDisplay(OneAxesMixin):
    """Floors relative to the floor of width 0, over widths relative to the critical width (Figure 13 of the paper).

    Parameters
    ----------
    points : DataFrame
        One row per point, with the columns n_features, alpha, teacher_width and width; relative_width, d/d*; and
        relative_floor, L*(d)/L*(0).

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on. The x axis is logarithmic.
    figure_ : matplotlib Figure
        Figure of the axes.
    lines_ : dict of (int, float) to list of matplotlib Line2D
        Curves for each number of features and sparsity: one, or one per teacher width if these differ.
    critical_line_ : matplotlib Line2D
        Vertical at the critical width.

    See Also
    --------
    CollapseDisplay.from_summary : Compute both ratios and draw.

    Notes
    -----
    If floors depended on d/d* alone, all configurations would fall on one curve. If Eq. 2 held, this curve would be
    zero to the right of 1.

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
        scale: str = "linear",
        ax: Axes | None = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> CollapseDisplay:
        """Divide floors by the floor of width 0 and widths by the critical width, and draw.

        Parameters
        ----------
        summary : DataFrame
            One row per point, with the columns n_features, alpha, width and those named below, and teacher_width if
            there are teachers.
        total : str, default="total"
            Column with the floor of width 0: the sum over features of importance times second moment, or times
            variance if the decoder has a bias.
        measured : str, default="floor"
            Column of measured floors.
        capacity : {"asymptotic", "minimax", "minimax_nonnegative"} or callable, default="asymptotic"
            Features per dimension for the critical widths, as in `geofloor.theory.capacity`.
        scale : {"linear", "log"}, default="linear"
            Scale of the relative floors.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of every curve.

        Returns
        -------
        display : CollapseDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If a total is not above zero, `scale` is unknown, or the summary is empty, lacks a column, has a point twice
            or a value that is not finite.
        """
        check_capacity(capacity)
        points = check_points(summary, [*POINT, total, measured])
        if not (points[total] > 0).all():
            raise ValueError(f"summary[{total!r}] has {points[total].min():g}; the floor of width 0 is above zero.")
        points = points[POINT].assign(
            relative_width=points["width"] / critical_width(points["n_features"], points["alpha"], capacity),
            relative_floor=points[measured] / points[total],
        )
        return cls(points=points).plot(ax=ax, scale=scale, line_kwargs=line_kwargs)

    def frame(self) -> pd.DataFrame:
        """Return the data behind the figure.

        Returns
        -------
        frame : DataFrame
            One row per point, with the columns

            - ``n_features``, ``alpha``: configuration, which selects marker and color;
            - ``teacher_width``, ``width``: widths of teacher and student, in dimensions;
            - ``relative_width``: student width over critical width, d/d*;
            - ``relative_floor``: floor over the floor of width 0.
        """
        return self._checked()[[*POINT, "relative_width", "relative_floor"]].reset_index(drop=True)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        scale: str = "linear",
        line_kwargs: dict[str, Any] | None = None,
    ) -> CollapseDisplay:
        """Draw all configurations on one axes.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        scale : {"linear", "log"}, default="linear"
            Scale of the relative floors. Floors of zero cannot be drawn on a logarithmic scale.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of every curve.

        Returns
        -------
        self : CollapseDisplay
            The display.

        Raises
        ------
        ValueError
            If `points` is empty, lacks a column, has a point twice or a value that is not finite, or `scale` is
            unknown.
        """
        check_scale(scale)
        line_kwargs = check_line_kwargs(line_kwargs)
        table = self._checked()
        ax = self._start(ax)
        self.lines_ = {}
        colors = alpha_colors(table["alpha"])
        markers = dict(zip(sorted_values(table, "n_features"), itertools.cycle(MARKERS), strict=False))
        for configuration, points in configurations(table):
            self.lines_[configuration] = draw_curves(
                ax,
                points,
                "relative_floor",
                over="relative_width",
                line_kwargs=line_kwargs,
                color=colors[configuration[1]],
                marker=markers[configuration[0]],
                markersize=4,
                linewidth=0.9,
            )
        self.critical_line_ = ax.axvline(1.0, color=FAINT, linestyle=DASHES[1], linewidth=1.2, zorder=1)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.update_datalim([(1.0, 0.0)])
        ax.autoscale_view()
        set_scale(ax, scale)
        ax.set(xlabel="student width / critical width, d/d*", ylabel="floor / loss of answering 0")
        legend_beside(
            ax,
            [
                *(key(f"α = {alpha:g}", color=color, linewidth=3) for alpha, color in colors.items()),
                *(
                    key(f"n = {n_features:g}", color=INK, linestyle="none", marker=marker, markersize=4.5)
                    for n_features, marker in markers.items()
                ),
            ],
        )
        return self

    def _checked(self) -> pd.DataFrame:
        """Return the points, checked."""
        return check_points(self.points, [*POINT, "relative_width", "relative_floor"], argument="points")
