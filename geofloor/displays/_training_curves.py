"""Toy sweep: loss over training step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geofloor._validation import check_number
from geofloor.displays._drawing import leave_empty, legend_above, panels
from geofloor.displays._style import DASHES, HIDDEN_UNITS, INK, WIDTH_COLORMAP, check_line_kwargs, key, ramp
from geofloor.displays._tables import check_points, configurations, sorted_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

_STEP = ["n_features", "alpha", "width", "step"]


class TrainingCurvesDisplay:
    """Loss over training step at each student width, one panel per configuration (Figure 14 of the paper).

    Parameters
    ----------
    history : DataFrame
        One row per step of a configuration, with the columns n_features, alpha, width, step and loss, such as the mean
        over seeds in hidden-space units.
    predicted : str, default=None
        Column of predicted floors, constant over steps, drawn as dashed horizontals; by default none are drawn.
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

    Notes
    -----
    Step 0 and predicted floors of zero have no place on logarithmic axes and are not drawn.

    Examples
    --------
    >>> import pandas as pd
    >>> from geofloor.displays import TrainingCurvesDisplay
    >>> history = pd.DataFrame({"n_features": 10, "alpha": 0.9, "width": [1, 1, 2, 2], "step": [1, 10, 1, 10],
    ...                         "loss": [0.09, 0.05, 0.08, 0.03]})
    >>> display = TrainingCurvesDisplay(history=history).plot()
    >>> display.lines_[10, 0.9, 2].get_ydata()
    array([0.08, 0.03])
    """

    def __init__(self, *, history: pd.DataFrame, predicted: str | None = None, n_columns: int = 3) -> None:
        self.history = history
        self.predicted = predicted
        self.n_columns = n_columns

    def frame(self) -> pd.DataFrame:
        """Return the data behind the figure.

        Returns
        -------
        frame : DataFrame
            One row per drawn step, with the columns

            - ``n_features``, ``alpha``: configuration, which selects the panel;
            - ``width``: student width, in dimensions;
            - ``step``: training step, above 0;
            - ``loss``: loss, in hidden-space units;
            - `predicted`: predicted floor, in hidden-space units, if named.
        """
        history = self._checked()
        names = [*_STEP, "loss", *([] if self.predicted is None else [self.predicted])]
        return history.loc[history["step"] > 0, names].sort_values(_STEP, ignore_index=True)

    def plot(
        self,
        figure: Figure | SubFigure | None = None,
        *,
        line_kwargs: dict[str, Any] | None = None,
    ) -> TrainingCurvesDisplay:
        """Draw one panel per number of features and sparsity in the history.

        Parameters
        ----------
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of every curve.

        Returns
        -------
        self : TrainingCurvesDisplay
            The display.

        Raises
        ------
        ValueError
            If the history is empty, lacks a column, repeats a step of a configuration or holds a non-finite value.
        """
        from matplotlib.ticker import NullFormatter

        line_kwargs = check_line_kwargs(line_kwargs)
        table = self._checked()
        in_panels = list(configurations(table))
        colors = ramp(sorted_values(table, "width"), WIDTH_COLORMAP)
        n_columns = min(check_number("n_columns", self.n_columns, 1, whole=True), len(in_panels))
        n_rows = -(-len(in_panels) // n_columns)
        self.figure_, axes = panels(figure, n_rows, n_columns, size=(2.5, 2.1), sharey=False)
        self.axes_, self.lines_, self.predicted_lines_ = {}, {}, {}
        for ax, ((n_features, alpha), history) in zip(axes.flat, in_panels, strict=False):
            self.axes_[n_features, alpha] = ax
            for width, curve in history[history["step"] > 0].sort_values("step").groupby("width"):
                place = (n_features, alpha, width)
                style = {"color": colors[width], "linewidth": 1.3, **line_kwargs}
                (self.lines_[place],) = ax.plot(curve["step"].to_numpy(), curve["loss"].to_numpy(), **style)
                floor = 0.0 if self.predicted is None else curve[self.predicted].iloc[-1]
                if floor > 0.0:
                    self.predicted_lines_[place] = ax.axhline(
                        floor, color=colors[width], linestyle=DASHES[1], linewidth=1.0, zorder=1
                    )
            ax.set(xscale="log", yscale="log")
            low, high = np.log10(ax.get_ylim())
            if np.floor(high) >= low:  # the axis has a labeled power of ten; ticks between need no labels
                ax.yaxis.set_minor_formatter(NullFormatter())
            ax.set_title(f"n = {n_features:g}, α = {alpha:g}", fontsize="medium")
        leave_empty(axes, np.arange(axes.size).reshape(axes.shape) >= len(in_panels))
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

    def _checked(self) -> pd.DataFrame:
        """Return the history, checked."""
        needed = [*_STEP, "loss", *([] if self.predicted is None else [self.predicted])]
        return check_points(self.history, needed, unique=_STEP, argument="history")
