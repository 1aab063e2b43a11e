"""What the figures have in common: colours, dashes, axes, panels and legends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Okabe and Ito's colours, told apart with any colour vision; with the dashes, in grey as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (5, 1.5)), (0, (4, 1.2, 1, 1.2)), (0, (1.2, 1)), (0, (8, 1.5, 1, 1.5)), (0, (2.5, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK = "#222222"
FAINT = "#8a8a8a"
HIDDEN_UNITS = "hidden-space units"
ALPHA_COLORMAP = "viridis"  # sparsities
WIDTH_COLORMAP = "plasma"  # widths of students


def axes_or_new(ax: Axes | None) -> Axes:
    """The given axes or new ones, without the frame's idle sides."""
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(4.8, 3.4), layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def panels(
    figure: Figure | SubFigure | None,
    n_rows: int,
    n_columns: int,
    *,
    size: tuple[float, float],
    sharex: bool | Literal["none", "all", "row", "col"] = True,
    sharey: bool | Literal["none", "all", "row", "col"] = True,
) -> tuple[Figure | SubFigure, np.ndarray]:
    """A grid of axes in the given figure or a new one, whose panels have about the size given, in inches."""
    import matplotlib.pyplot as plt

    if figure is None:
        width, height = size
        figure = plt.figure(figsize=(width * n_columns + 0.6, height * n_rows + 0.8), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False, sharex=sharex, sharey=sharey)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def leave_empty(axes: np.ndarray, empty: np.ndarray) -> None:
    """Take the frames off panels without data, and give their tick labels to the panels above."""
    for row, column in np.argwhere(empty):
        axes[row, column].set_axis_off()
    for column in range(axes.shape[1]):
        used = np.flatnonzero(~empty[:, column])
        if used.size:
            axes[used[-1], column].tick_params(labelbottom=True)


def ramp(values: Sequence[Any], colormap: str) -> dict[Any, str]:
    """A colour for each value, in their order, from dark to light but none too light for white paper."""
    import matplotlib as mpl

    places = np.linspace(0.0, 0.85, len(values))
    return {
        value: mpl.colors.to_hex(mpl.colormaps[colormap](place)) for value, place in zip(values, places, strict=True)
    }


def key(label: str, **style: Any) -> Any:
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **style)


def legend_above(figure: Figure | SubFigure, handles: list[Any]) -> None:
    """A legend above all panels, in as many columns as the figure has room for."""
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
