"""Toy sweep: predicted over measured floors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from geofloor._validation import check_array_of_numbers
from geofloor.displays._drawing import legend_above, minus, panels
from geofloor.displays._style import (
    FAINT,
    HIDDEN_UNITS,
    alpha_colors,
    check_scatter_kwargs,
    key,
    scatter_style,
)
from geofloor.displays._tables import POINT, check_lengths, check_points, column_names, vectors_of
from geofloor.forecasting import agreement_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure


class PredictionDisplay:
    """Predicted over measured floors on logarithmic axes, one panel per predictor (Figure 3 of the paper).

    Parameters
    ----------
    measured : array-like of shape (n_points,)
        Measured floors, at least zero, in hidden-space units.
    predicted : mapping of str to array-like of shape (n_points,)
        Predicted floors by predictor, in hidden-space units.
    alphas : array-like of shape (n_points,)
        Sparsities, for the colors.

    Attributes
    ----------
    figure_ : matplotlib Figure or SubFigure
        Figure drawn in.
    axes_ : ndarray of shape (n_predictors,) of matplotlib Axes
        Panels, in the order of `predicted`.
    points_ : dict of (str, float) to matplotlib PathCollection
        Points of each predictor at each sparsity.
    statistics_ : DataFrame of shape (n_predictors, 10)
        The table of `geofloor.forecasting.agreement_table` by predictor, and ``n_not_drawn``, the number of points
        without a place on the axes.

    See Also
    --------
    PredictionDisplay.from_summary : Take the columns of a summary and draw them.
    ErrorDisplay : Distributions of the errors.
    geofloor.forecasting.agreement_table : Computes the statistics.

    Notes
    -----
    A floor of zero has no place on a logarithmic axis. Points with a predicted or measured floor of zero are not drawn,
    but are counted in the title. The statistics include them: r and R² use all points, relative errors all points with
    a measured floor above zero. To leave them out, select the points beforehand.

    Examples
    --------
    >>> from geofloor.displays import PredictionDisplay
    >>> predicted = {"half": [0.01, 0.02, 0.03], "cut": [0.02, 0.04, 0.0]}
    >>> display = PredictionDisplay(measured=[0.02, 0.04, 0.06], predicted=predicted, alphas=[0.9, 0.9, 0.8]).plot()
    >>> display.statistics_[["pearson_r", "r2", "median_error", "n_not_drawn"]].round(2)
               pearson_r    r2  median_error  n_not_drawn
    predictor
    half             1.0 -0.75           0.5            0
    cut             -0.5 -3.50           0.0            1
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
        scatter_kwargs: dict[str, Any] | None = None,
    ) -> PredictionDisplay:
        """Draw columns of predictions over a column of measurements.

        Parameters
        ----------
        summary : DataFrame
            One row per point, with the columns n_features, alpha, width and those named below, and teacher_width if
            there are teachers. All rows are used: select beforehand.
        predicted : str or sequence of str, default=("Eq. 2", "naive")
            Columns of predicted floors.
        measured : str, default="floor"
            Column of measured floors.
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.
        scatter_kwargs : dict, default=None
            Keyword arguments for the ``scatter`` call of the points of each sparsity.

        Returns
        -------
        display : PredictionDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the summary is empty, lacks a column, has a point twice or a value that is not finite.
        """
        predicted = column_names(predicted)
        points = check_points(summary, [*POINT, measured, *predicted])
        display = cls(
            measured=points[measured].to_numpy(),
            predicted={name: points[name].to_numpy() for name in predicted},
            alphas=points["alpha"].to_numpy(),
        )
        return display.plot(figure=figure, scatter_kwargs=scatter_kwargs)

    def frame(self) -> pd.DataFrame:
        """Return the data behind the figure.

        Returns
        -------
        frame : DataFrame
            One row per predictor and point, with the columns

            - ``predictor``: name of the predictor, which selects the panel;
            - ``alpha``: sparsity, which selects the color;
            - ``measured``, ``predicted``: floors, in hidden-space units;
            - ``drawn``: whether both floors are above zero, so that the point has a place on the axes.
        """
        measured, predicted, alphas = self._checked()
        frames = [
            pd.DataFrame(
                {
                    "predictor": name,
                    "alpha": alphas,
                    "measured": measured,
                    "predicted": values,
                    "drawn": (values > 0) & (measured > 0),
                }
            )
            for name, values in predicted.items()
        ]
        return pd.concat(frames, ignore_index=True)

    def plot(
        self,
        figure: Figure | SubFigure | None = None,
        *,
        scatter_kwargs: dict[str, Any] | None = None,
    ) -> PredictionDisplay:
        """Draw one panel per predictor, with the line of equality and the statistics above.

        Parameters
        ----------
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.
        scatter_kwargs : dict, default=None
            Keyword arguments for the ``scatter`` call of the points of each sparsity.

        Returns
        -------
        self : PredictionDisplay
            The display.

        Raises
        ------
        ValueError
            If no point has both a measured and a predicted floor above zero.
        """
        scatter_kwargs = check_scatter_kwargs(scatter_kwargs)
        measured, predicted, alphas = self._checked()
        table = self.frame()
        drawn = table[table["drawn"]]
        if drawn.empty:
            raise ValueError("predicted and measured are nowhere both above zero, so logarithmic axes have no point.")
        floors = drawn[["measured", "predicted"]].to_numpy()
        limits = floors.min() / 1.5, floors.max() * 1.5
        self.statistics_ = agreement_table(measured, predicted).drop(columns="stratum").set_index("predictor")
        self.statistics_["n_not_drawn"] = (~table["drawn"]).groupby(table["predictor"]).sum()
        colors = alpha_colors(alphas)
        self.figure_, axes = panels(figure, 1, len(predicted), size=(3.1, 3.7))
        self.axes_, self.points_ = axes[0], {}
        for ax, name in zip(self.axes_, predicted, strict=True):
            ax.plot(limits, limits, color=FAINT, linewidth=1.0, zorder=1)
            for alpha, color in colors.items():
                here = drawn[(drawn["predictor"] == name) & (drawn["alpha"] == alpha)]
                style = {"s": 4.5**2, "facecolor": color, "edgecolor": "white", "linewidth": 0.4, "zorder": 2}
                self.points_[name, alpha] = ax.scatter(
                    here["measured"].to_numpy(), here["predicted"].to_numpy(), **scatter_style(style, scatter_kwargs)
                )
            ax.set_xlabel(f"measured floor ({HIDDEN_UNITS})")
            ax.set(xscale="log", yscale="log", xlim=limits, ylim=limits, box_aspect=1.0)
            ax.set_title(f"{name}\n{_title(self.statistics_.loc[name])}", fontsize="small", loc="left")
        self.axes_[0].set_ylabel(f"predicted floor L* ({HIDDEN_UNITS})")
        legend_above(
            self.figure_,
            [
                key(f"α = {alpha:g}", color=color, linestyle="none", marker="o", markersize=5)
                for alpha, color in colors.items()
            ],
        )
        return self

    def _checked(self) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        """Return the measured floors, the predicted floors by predictor, and the sparsities."""
        measured = check_array_of_numbers(self.measured, "measured", low=0)
        alphas = check_array_of_numbers(self.alphas, "alphas")
        predicted = vectors_of(self.predicted, "predicted", len(measured), "points")
        check_lengths({"": alphas}, "alphas", len(measured), "measured floors")
        return measured, predicted, alphas


def _title(statistics: Any) -> str:
    """Write the statistics of one predictor in two lines."""
    left_out = f", {statistics['n_not_drawn']:.0f} of them zero, not drawn" if statistics["n_not_drawn"] else ""
    return minus(
        f"r = {statistics['pearson_r']:.3f}, R² = {statistics['r2']:.2f}, "
        f"median |error| {100 * statistics['median_error']:.0f}%\n{statistics['n_points']:.0f} points{left_out}"
    )
