"""Loss floors over student width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from geofloor._validation import check_array_of_numbers, check_number
from geofloor.displays._drawing import OneAxesMixin, check_scale, draw_critical_width, set_scale
from geofloor.displays._style import (
    COLORS,
    DASHES,
    HIDDEN_UNITS,
    OBSERVED,
    WIDTH_LABEL,
    check_line_kwargs,
    check_scatter_kwargs,
    scatter_style,
)
from geofloor.displays._tables import check_lengths, check_together, labeled, predict_all, vectors_by_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class FloorDisplay(OneAxesMixin):
    """Loss floor over student width, for one predictor or several.

    Parameters
    ----------
    widths : array-like of shape (n_widths,)
        Student widths, in dimensions.
    floors : array-like of shape (n_widths,), or mapping of str to such arrays
        Floor at each width. A mapping holds one curve per label.
    critical_widths : float or mapping of str to float, default=None
        Critical width d* of each curve, drawn as a dotted vertical. The labels are those of `floors`.
    observed_widths : array-like of shape (n_runs,), default=None
        Widths of measured students.
    observed : array-like of shape (n_runs,), default=None
        Losses of these students, in the unit of `floors`.
    unit : str, default="hidden-space units"
        Unit of floors and observed losses, for the label of the axis.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure of the axes.
    lines_ : list of matplotlib Line2D
        One line per curve.
    critical_lines_ : list of matplotlib Line2D
        Verticals at the critical widths within the axes.
    observed_points_ : matplotlib PathCollection or None
        Observed losses.

    See Also
    --------
    FloorDisplay.from_predictor : Compute the floors and draw them.
    geofloor.FloorPredictor : Predicts the floors.

    Notes
    -----
    The axis ends near the largest width. A critical width beyond it by more than half the range of widths is not drawn;
    a text with an arrow names it instead.

    Examples
    --------
    >>> from geofloor.displays import FloorDisplay
    >>> display = FloorDisplay(widths=[128, 256, 512], floors=[0.0795, 0.04, 0.0111], critical_widths=600.0)
    >>> display.plot()
    <geofloor.displays...FloorDisplay object at ...>
    >>> display.ax_.get_xlabel()
    'student width d (dimensions)'
    """

    def __init__(
        self,
        *,
        widths: ArrayLike,
        floors: ArrayLike | Mapping[str, ArrayLike],
        critical_widths: float | Mapping[str, float] | None = None,
        observed_widths: ArrayLike | None = None,
        observed: ArrayLike | None = None,
        unit: str = HIDDEN_UNITS,
    ) -> None:
        self.widths = widths
        self.floors = floors
        self.critical_widths = critical_widths
        self.observed_widths = observed_widths
        self.observed = observed
        self.unit = unit

    @classmethod
    def from_predictor(
        cls,
        predictor: Any,
        widths: ArrayLike,
        *,
        observed_widths: ArrayLike | None = None,
        observed: ArrayLike | None = None,
        unit: str = HIDDEN_UNITS,
        scale: str = "linear",
        ax: Axes | None = None,
        line_kwargs: dict[str, Any] | None = None,
        scatter_kwargs: dict[str, Any] | None = None,
    ) -> FloorDisplay:
        """Predict the floor at each width and draw it.

        Parameters
        ----------
        predictor : estimator, or mapping of str to estimators
            Fitted, with a ``predict`` from widths to floors: a `FloorPredictor`, a `PowerLawCalibrator`, or a pipeline
            of a frozen predictor and an `AffineCalibrator`. If it has a ``critical_width_``, that is drawn too.
        widths : array-like of shape (n_widths,)
            Student widths, in dimensions.
        observed_widths : array-like of shape (n_runs,), default=None
            Widths of measured students.
        observed : array-like of shape (n_runs,), default=None
            Losses of these students, in the unit of the predictions.
        unit : str, default="hidden-space units"
            Unit of floors and observed losses.
        scale : {"linear", "log"}, default="linear"
            Scale of the floors.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of every curve.
        scatter_kwargs : dict, default=None
            Keyword arguments for the ``scatter`` call of the observed losses.

        Returns
        -------
        display : FloorDisplay
            The display, drawn.

        Examples
        --------
        >>> import numpy as np
        >>> from geofloor import FloorPredictor
        >>> from geofloor.displays import FloorDisplay
        >>> predictor = FloorPredictor(alpha=0.99).fit(1 / np.arange(1, 1001) ** 2)
        >>> display = FloorDisplay.from_predictor(predictor, np.arange(1, 61))
        >>> display.lines_[0].get_ydata().shape
        (60,)
        """
        widths = check_array_of_numbers(widths, "widths", low=0)
        floors, critical = predict_all(predictor, widths)
        display = cls(
            widths=widths,
            floors=floors,
            critical_widths=critical or None,
            observed_widths=observed_widths,
            observed=observed,
            unit=unit,
        )
        return display.plot(ax=ax, scale=scale, line_kwargs=line_kwargs, scatter_kwargs=scatter_kwargs)

    def frame(self) -> pd.DataFrame:
        """Return the data behind the figure.

        Returns
        -------
        frame : DataFrame
            One row per point or vertical, with the columns

            - ``source``: ``"predicted"``, ``"critical width"`` or ``"observed"``;
            - ``label``: label of the curve, empty if there is only one;
            - ``width``: student width, in dimensions;
            - ``floor``: floor or observed loss, in `unit`; NaN for critical widths.
        """
        widths, curves, critical, runs = self._checked()
        rows = [
            ("predicted", label, *point)
            for label, floors in curves.items()
            for point in zip(widths, floors, strict=True)
        ]
        rows += [("critical width", label, width, np.nan) for label, width in critical.items()]
        rows += [("observed", "", *point) for point in zip(*runs, strict=True)]
        return pd.DataFrame(rows, columns=["source", "label", "width", "floor"])

    def plot(
        self,
        ax: Axes | None = None,
        *,
        scale: str = "linear",
        line_kwargs: dict[str, Any] | None = None,
        scatter_kwargs: dict[str, Any] | None = None,
    ) -> FloorDisplay:
        """Draw the floors, the critical widths and the observed losses.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        scale : {"linear", "log"}, default="linear"
            Scale of the floors. Floors of zero cannot be drawn on a logarithmic scale.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of every curve.
        scatter_kwargs : dict, default=None
            Keyword arguments for the ``scatter`` call of the observed losses.

        Returns
        -------
        self : FloorDisplay
            The display.

        Raises
        ------
        ValueError
            If only one of `observed_widths` and `observed` was given, `scatter_kwargs` is given without them, a
            critical width has a label that no curve has, or `scale` is unknown.
        """
        check_scale(scale)
        line_kwargs = check_line_kwargs(line_kwargs)
        widths, curves, critical, (at, losses) = self._checked()
        if scatter_kwargs is not None and self.observed is None:
            raise ValueError("scatter_kwargs is for observed losses, and there are none; leave it out.")
        scatter_kwargs = check_scatter_kwargs(scatter_kwargs)

        ax = self._start(ax)
        self.lines_, self.critical_lines_, self.observed_points_ = [], [], None
        narrowest, widest = widths.min(), widths.max()
        for index, (label, floors) in enumerate(curves.items()):
            color = COLORS[index % len(COLORS)]
            name = f"d* = {critical[label]:,.0f}" if label in critical else ""
            style = {
                "color": color,
                "linestyle": DASHES[index % len(DASHES)],
                "marker": "o" if len(widths) <= 12 and self.observed is None else None,
                "label": ", ".join(filter(None, [label, name])) or "predicted",
            }
            self.lines_ += ax.plot(widths, floors, **{**style, **line_kwargs})
            if label in critical:
                vertical = draw_critical_width(
                    ax,
                    critical[label],
                    last=widest + 0.5 * (widest - narrowest),
                    color=color,
                    text=name if len(curves) == 1 else None,
                    text_color=color,
                    fontsize="small",
                )
                self.critical_lines_ += [] if vertical is None else [vertical]
        if self.observed is not None:
            self.observed_points_ = ax.scatter(at, losses, **scatter_style(OBSERVED, scatter_kwargs))
        if len(curves) > 1 or self.observed is not None:
            ax.legend(frameon=False, fontsize="small", scatteryoffsets=[0.5])
        # Include zero without setting limits: fixed limits would stay when the user makes the axis logarithmic.
        ax.update_datalim([(narrowest, 0.0)], updatex=False)
        ax.autoscale_view()
        ax.set(xlabel=WIDTH_LABEL, ylabel=f"floor L* ({self.unit})")
        set_scale(ax, scale)
        return self

    def _checked(
        self,
    ) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, float], tuple[np.ndarray, np.ndarray]]:
        """Return widths, floors and critical widths by label, and the widths and losses of the runs."""
        widths = check_array_of_numbers(self.widths, "widths")
        curves = vectors_by_label(self.floors, "floors")
        check_lengths(curves, "floors", len(widths), "widths")
        critical = {} if self.critical_widths is None else dict(labeled(self.critical_widths))
        unknown = sorted(set(critical) - set(curves), key=str)
        if unknown:
            raise ValueError(
                f"critical_widths has the labels {unknown}, floors only {sorted(curves, key=str)}; use the same."
            )
        critical = {label: check_number("critical_widths", each, 0) for label, each in critical.items()}
        if not check_together(self, "observed_widths", "observed"):
            return widths, curves, critical, (np.empty(0), np.empty(0))
        at = check_array_of_numbers(self.observed_widths, "observed_widths")
        losses = check_array_of_numbers(self.observed, "observed")
        check_lengths({"": losses}, "observed", len(at), "observed_widths")
        return widths, curves, critical, (at, losses)
