"""Toy sweep: distributions of the errors of predicted floors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from geofloor._validation import check_array_of_numbers
from geofloor.displays._drawing import OneAxesMixin, minus
from geofloor.displays._style import COLORS, FAINT, key
from geofloor.displays._tables import POINT, above_zero, check_points, column_names, vectors_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SYMLOG_FROM = 1000.0  # percent; one such error would flatten all others on a linear axis


class ErrorDisplay(OneAxesMixin):
    """Signed errors of predicted floors by sparsity, predictors side by side (Figure 10 of the paper).

    Parameters
    ----------
    errors : mapping of str to array-like of shape (n_points,)
        Errors of each predictor, in percent of the measured floor; negative where the prediction is too low.
    alphas : array-like of shape (n_points,)
        Sparsities.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure of the axes.
    boxes_ : dict of (str, float) to dict of str to list of matplotlib artists
        Artists from ``Axes.boxplot`` for each predictor at each sparsity.

    See Also
    --------
    ErrorDisplay.from_summary : Compute the errors and draw them.
    AccuracyDisplay : Median accuracies by configuration.

    Notes
    -----
    Boxes reach from the first to the third quartile, with a line at the median. Whiskers reach to the extremes, so
    that no point lies outside.

    If an error exceeds 1,000%, the axis is linear up to 100% and logarithmic beyond.

    The paper draws the accuracy, 100% minus the absolute error. It cannot tell a lower bound from an upper one, and is
    negative for errors beyond 100%; the signed error shows both.

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
            One row per point, with the columns n_features, alpha, width and those named below, and teacher_width if
            there are teachers. Points with a measured floor of zero are left out, because they have no relative error.
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
            If no measured floor is above zero, or the summary is empty, lacks a column, has a point twice or a value
            that is not finite.
        """
        predicted = column_names(predicted)
        points = above_zero(check_points(summary, [*POINT, measured, *predicted]), measured)
        errors = {name: 100.0 * (points[name] / points[measured] - 1.0).to_numpy() for name in predicted}
        return cls(errors=errors, alphas=points["alpha"].to_numpy()).plot(ax=ax)

    def frame(self) -> pd.DataFrame:
        """Return the data behind the figure.

        Returns
        -------
        frame : DataFrame
            One row per predictor and point, with the columns

            - ``predictor``: name of the predictor;
            - ``alpha``: sparsity;
            - ``error``: predicted floor minus measured floor, in percent of the measured floor.
        """
        errors, alphas = self._checked()
        frames = [
            pd.DataFrame({"predictor": name, "alpha": alphas, "error": values}) for name, values in errors.items()
        ]
        return pd.concat(frames, ignore_index=True)

    def plot(self, ax: Axes | None = None) -> ErrorDisplay:
        """Draw one box per predictor and sparsity.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        self : ErrorDisplay
            The display.
        """
        by_predictor, alphas = self._checked()
        ax = self._start(ax)
        self.boxes_ = {}
        levels, counts = np.unique(alphas, return_counts=True)
        step = 0.8 / len(by_predictor)
        ax.axhline(0.0, color=FAINT, linewidth=1.0, zorder=1)
        for index, (name, errors) in enumerate(by_predictor.items()):
            color = COLORS[index % len(COLORS)]
            for place, alpha in enumerate(levels.tolist()):
                self.boxes_[name, alpha] = ax.boxplot(
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
            ax.set_yscale("symlog", linthresh=100.0, linscale=1.5)
            ax.set_yticks(ticks, labels=[minus(f"{tick:,.0f}") for tick in ticks])
            ax.set_yticks([], minor=True)
        labels = [f"{alpha:g}\n{count} points" for alpha, count in zip(levels, counts, strict=True)]
        ax.set_xticks(range(len(levels)), labels=labels)
        ax.set_xlim(-0.6, len(levels) - 0.4)
        ax.set(xlabel="sparsity α", ylabel="error of the predicted floor (%)")
        ax.legend(
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

    def _checked(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the errors by predictor and the sparsities."""
        alphas = check_array_of_numbers(self.alphas, "alphas")
        return vectors_of(self.errors, "errors", len(alphas), "points"), alphas
