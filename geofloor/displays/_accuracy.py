"""Toy sweep: median accuracy of a predictor by configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from geofloor._validation import check_object
from geofloor.displays._drawing import draw_cells, minus, panels
from geofloor.displays._tables import POINT, above_zero, check_points, plain_table, sorted_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure


class AccuracyDisplay:
    """Median accuracy of a predictor by configuration, as a heat map (Figure 11 of the paper).

    Parameters
    ----------
    accuracies : mapping of int to DataFrame of shape (n_sparsities, n_teacher_widths)
        Accuracies in percent for each number of features, with sparsities as index and teacher widths as columns, the
        same for all; NaN where there is no point.
    predicted : str, default="Eq. 2"
        Name of the predictor, for the label of the colors.

    Attributes
    ----------
    figure_ : matplotlib Figure or SubFigure
        Figure drawn in.
    axes_ : ndarray of shape (n_numbers_of_features,) of matplotlib Axes
        Panels, in the order of `accuracies`.
    images_ : list of matplotlib AxesImage
        One heat map per panel.
    texts_ : list of ndarray of shape (n_sparsities, n_teacher_widths) of matplotlib Text
        Numbers in the cells.
    colorbar_ : matplotlib Colorbar
        Scale of the colors. It starts at 0%; cells below have the darkest color.

    See Also
    --------
    AccuracyDisplay.from_summary : Compute the medians and draw them.
    ErrorDisplay : Distributions of the errors, with their signs.

    Notes
    -----
    The accuracy of a point is 100% minus its absolute error, in percent of the measured floor.

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
            One row per point, with the columns n_features, alpha, width and those named below, and teacher_width if
            there are teachers. Points with a measured floor of zero are left out, because they have no relative error.
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
            If no measured floor is above zero, or the summary is empty, lacks a column, has a point twice or a value
            that is not finite.
        """
        points = check_points(summary, [*POINT, measured, predicted])
        rows, columns = sorted_values(points, "alpha"), sorted_values(points, "teacher_width")
        used = above_zero(points, measured)
        used = used.assign(accuracy=100.0 * (1.0 - (used[predicted] / used[measured] - 1.0).abs()))
        table = used.pivot_table("accuracy", ["n_features", "alpha"], "teacher_width", aggfunc="median")
        accuracies = {
            n_features: table.reindex(
                index=pd.MultiIndex.from_product([[n_features], rows], names=table.index.names), columns=columns
            )
            .rename_axis(columns="teacher_width")
            .droplevel(0)
            for n_features in sorted_values(points, "n_features")
        }
        return cls(accuracies=accuracies, predicted=predicted).plot(figure=figure)

    def frame(self) -> pd.DataFrame:
        """Return the data behind the figure.

        Returns
        -------
        frame : DataFrame
            One row per cell, row by row, with the columns

            - ``n_features``: number of features, which selects the panel;
            - ``alpha``: sparsity;
            - ``teacher_width``: width of the teacher, in dimensions;
            - ``accuracy``: median accuracy, in percent; NaN where there is no point.
        """
        rows = [
            (n_features, alpha, width, table.iat[row, column])  # noqa: PD009
            for n_features, table in self._checked().items()
            for row, alpha in enumerate(table.index)
            for column, width in enumerate(table.columns)
        ]
        return pd.DataFrame(rows, columns=["n_features", "alpha", "teacher_width", "accuracy"])

    def plot(self, figure: Figure | SubFigure | None = None) -> AccuracyDisplay:
        """Draw one heat map per number of features, with the numbers in its cells.

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

        tables = self._checked()
        self.figure_, axes = panels(figure, 1, len(tables), size=(2.4, 2.2))
        self.axes_, self.images_, self.texts_ = axes[0], [], []
        lowest = 0.0
        for ax, (n_features, table) in zip(self.axes_, tables.items(), strict=True):
            values = table.to_numpy(dtype=np.float64)
            lowest = min(lowest, np.nanmin(values, initial=0.0))
            image, texts = draw_cells(
                ax,
                values,
                colormap=mpl.colormaps["cividis"].with_extremes(bad="#e8e8e8"),
                norm=mpl.colors.Normalize(0.0, 100.0),
                cells=[[_cell(value) for value in row] for row in values],
                columns=[f"{width:g}" for width in table.columns],
                rows=[f"{alpha:g}" for alpha in table.index],
            )
            self.images_.append(image)
            self.texts_.append(texts)
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

    def _checked(self) -> dict[int, pd.DataFrame]:
        """Return the accuracies by number of features, with NumPy dtypes."""
        check_object("accuracies", self.accuracies, Mapping, "give a dict of tables by number of features")
        if not self.accuracies:
            raise ValueError("accuracies is empty; give at least one table.")
        checked = {}
        for n_features, table in self.accuracies.items():
            name = f"accuracies[{n_features!r}]"
            check_object(name, table, pd.DataFrame, "give a DataFrame of sparsities and teacher widths")
            if table.empty:
                raise ValueError(f"{name} is empty; give at least one accuracy.")
            checked[n_features] = plain_table(table, name, [], list(table.columns))
        return checked


def _cell(accuracy: float) -> str:
    """Write an accuracy in percent."""
    if np.isnan(accuracy):
        return "–"
    return "<−999" if accuracy < -999.0 else minus(f"{accuracy:.0f}")
