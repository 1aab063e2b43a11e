"""Axes, panels, scales, legends and the artists of several displays. Matplotlib is imported late."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from geofloor._validation import check_choice, check_object
from geofloor.displays._style import INK
from geofloor.displays._tables import curves_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.lines import Line2D

_FEW_DECADES = 3.5  # beyond them, ticks at 1, 2 and 5 are too close

Share = bool | Literal["none", "all", "row", "col"]


class OneAxesMixin:
    """Mixin for displays with a single axes."""

    ax_: Axes
    figure_: Any

    def _start(self, ax: Axes | None, size: tuple[float, float] = (4.8, 3.4)) -> Axes:
        """Set `ax_` and `figure_` to the given axes or to new ones, and hide the top and right spines."""
        import matplotlib.pyplot as plt
        from matplotlib.axes import Axes as AnyAxes

        check_object("ax", ax, (AnyAxes, type(None)), "give a matplotlib Axes, or None for new ones")
        if ax is None:
            _, ax = plt.subplots(figsize=size, layout="constrained")
        ax.spines[["top", "right"]].set_visible(False)
        self.ax_, self.figure_ = ax, ax.figure
        return ax


def check_figure(figure: Figure | SubFigure | None) -> None:
    """Refuse anything but a figure, a subfigure or None."""
    from matplotlib.figure import FigureBase

    check_object("figure", figure, (FigureBase, type(None)), "give a matplotlib Figure, or None for a new one")


def panels(
    figure: Figure | SubFigure | None,
    n_rows: int,
    n_columns: int,
    *,
    size: tuple[float, float],
    sharex: Share = True,
    sharey: Share = True,
) -> tuple[Figure | SubFigure, np.ndarray]:
    """Make a grid of axes in the given figure, or in a new one with panels of about `size`, in inches."""
    import matplotlib.pyplot as plt

    check_figure(figure)
    if figure is None:
        width, height = size
        figure = plt.figure(figsize=(width * n_columns + 0.6, height * n_rows + 0.8), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False, sharex=sharex, sharey=sharey)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def leave_empty(axes: np.ndarray, empty: np.ndarray) -> None:
    """Hide the panels without data, and label the ticks of the lowest panel with data in each column."""
    for row, column in np.argwhere(empty):
        axes[row, column].set_axis_off()
    for column in range(axes.shape[1]):
        used = np.flatnonzero(~empty[:, column])
        if used.size:
            axes[used[-1], column].tick_params(labelbottom=True)


def legend_above(figure: Figure | SubFigure, handles: list[Any]) -> None:
    """Draw a legend above all panels, with as many columns as fit the figure."""
    needed = sum(0.5 + 0.07 * len(handle.get_label()) for handle in handles)  # inches, at the small font size
    n_rows = int(np.ceil(needed / (0.9 * figure.bbox.width / figure.dpi)))
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=-(-len(handles) // n_rows),
        frameon=False,
        fontsize="small",
        columnspacing=1.4,
    )


def legend_beside(ax: Axes, handles: list[Any]) -> None:
    """Draw a legend to the right of the axes."""
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize="small")


def check_scale(scale: Any) -> str:
    """Return the scale of an axis, if it is known."""
    return check_choice("scale", scale, ("linear", "log"))


def set_scale(ax: Axes, scale: str, *, from_zero: bool = False) -> None:
    """Set the scale of the y axis.

    Over a few decades, a logarithmic axis has ticks at 1, 2 and 5 times the powers of ten, as plain numbers. With
    `from_zero`, a linear axis starts at zero.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.set_yscale(scale)
    if scale == "linear":
        if from_zero:
            ax.set_ylim(bottom=0.0)
        return
    low, high = ax.get_ylim()
    if np.log10(high / low) > _FEW_DECADES:
        return
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def integer_ticks(ax: Axes) -> None:
    """Put the ticks of the x axis at integers."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def name_rows(axes: np.ndarray, n_features: Iterable[int]) -> None:
    """Write the number of features to the right of each row of panels."""
    for ax, number in zip(axes[:, -1], n_features, strict=True):
        ax.annotate(f"n = {number:g}", (1.03, 0.5), xycoords="axes fraction", rotation=270, va="center")


def draw_critical_width(
    ax: Axes,
    width: float,
    *,
    last: float,
    color: str,
    text: str | None = None,
    text_color: str = INK,
    fontsize: str = "x-small",
) -> Line2D | None:
    """Draw a dotted vertical at a critical width, with a text above it.

    A critical width beyond `last` is not drawn: its text ends in an arrow, at the right end of the axes.
    """
    inside = width <= last
    line = ax.axvline(width, color=color, linestyle=":", linewidth=1.2, zorder=1) if inside else None
    if text is not None:
        ax.text(
            width if inside else 1.0,
            1.0,
            text + ("" if inside else " →"),
            transform=ax.get_xaxis_transform() if inside else ax.transAxes,
            ha="center" if inside else "right",
            va="bottom",
            fontsize=fontsize,
            color=text_color,
        )
    return line


def draw_curves(
    ax: Axes,
    points: pd.DataFrame,
    column: str,
    *,
    over: str = "width",
    teachers: Mapping[Any, dict[str, Any]] | None = None,
    line_kwargs: Mapping[str, Any] | None = None,
    **style: Any,
) -> list[Line2D]:
    """Draw one line per curve of a configuration.

    `teachers` holds the style of each teacher width, for columns that depend on it. `line_kwargs` overrides both
    styles.
    """
    lines = []
    for teacher, curve in curves_of(points, column).items():
        own = (teachers or {}).get(teacher, {})
        lines += ax.plot(curve[over].to_numpy(), curve[column].to_numpy(), **{**style, **own, **(line_kwargs or {})})
    return lines


def draw_bands(
    ax: Axes,
    points: pd.DataFrame,
    column: str,
    spread: str | None,
    teachers: Mapping[Any, dict[str, Any]] | None = None,
    *,
    color: Any,
) -> list[Any]:
    """Draw one band per curve of a configuration, from `spread` below to `spread` above the column."""
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
        for teacher, curve in curves_of(points, column).items()
    ]


def measured_label(spread: str | None) -> str:
    """Return the legend text of measured floors and of their band."""
    return "measured" if spread is None else f"measured ± {spread.removeprefix('floor_').replace('_', ' ')}"


def draw_cells(
    ax: Axes,
    values: np.ndarray,
    *,
    colormap: Any,
    norm: Any,
    cells: Sequence[Sequence[str]],
    columns: Iterable[str],
    rows: Iterable[str],
) -> tuple[Any, np.ndarray]:
    """Draw a heat map with a text in each cell.

    Parameters
    ----------
    ax : matplotlib Axes
        Axes to draw on.
    values : ndarray of shape (n_rows, n_columns)
        Values that set the colors; NaN cells are gray.
    colormap : matplotlib Colormap
        Colors.
    norm : matplotlib Normalize
        Scale of the values.
    cells : sequence of sequence of str
        Text of each cell, row by row. It is dark on light colors and white on dark ones.
    columns, rows : iterable of str
        Tick labels.

    Returns
    -------
    image : matplotlib AxesImage
        The heat map.
    texts : ndarray of shape (n_rows, n_columns) of matplotlib Text
        The texts of the cells.
    """
    image = ax.imshow(values, cmap=colormap, norm=norm, aspect="auto")
    texts = np.empty(values.shape, dtype=object)
    for (row, column), value in np.ndenumerate(values):
        red, green, blue = colormap(norm(value))[:3] if np.isfinite(value) else (1.0, 1.0, 1.0)
        luma = 0.3 * red + 0.59 * green + 0.11 * blue
        texts[row, column] = ax.text(
            column,
            row,
            cells[row][column],
            ha="center",
            va="center",
            fontsize="small",
            linespacing=1.15,
            color=INK if luma > 0.5 else "white",
        )
    n_rows, n_columns = values.shape
    ax.set_xticks(range(n_columns), labels=list(columns))
    ax.set_yticks(range(n_rows), labels=list(rows))
    ax.set_xticks(np.arange(0.5, n_columns - 1), minor=True)
    ax.set_yticks(np.arange(0.5, n_rows - 1), minor=True)
    ax.grid(which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    return image, texts


def minus(text: str) -> str:
    """Replace hyphens by minus signs."""
    return text.replace("-", "−")
