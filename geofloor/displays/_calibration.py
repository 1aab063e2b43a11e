"""Calibrations of predicted floors to observed losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from geofloor._validation import check_array_of_numbers, check_number, check_numeric
from geofloor.displays._drawing import OneAxesMixin, minus
from geofloor.displays._style import (
    COLORS,
    HIDDEN_UNITS,
    INK,
    NATS,
    OBSERVED,
    check_line_kwargs,
    check_scatter_kwargs,
    scatter_style,
)
from geofloor.displays._tables import check_lengths, check_predictor, check_together

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class CalibrationDisplay(OneAxesMixin):
    """Observed loss over predicted floor, with the fitted line (Figure 7 of the paper).

    Parameters
    ----------
    floors : array-like of shape (n_runs,)
        Predicted floors of the runs, in hidden-space units.
    observed : array-like of shape (n_runs,)
        Observed losses, in nats per token.
    observed_widths : array-like of shape (n_runs,), default=None
        Width of each run, written beside its point.
    grid : array-like of shape (n_grid,), default=None
        Floors along the line, in hidden-space units.
    line : array-like of shape (n_grid,), default=None
        Calibrated loss at each floor of the grid, in nats per token.
    interval : array-like of shape (n_grid, 2), default=None
        Prediction interval of the line, in nats per token; drawn if it is finite.
    level : float, default=None
        Probability of the interval, for the legend.
    label : str, default=None
        Legend text of the line.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure of the axes.
    observed_points_ : matplotlib PathCollection
        The runs.
    line_ : matplotlib Line2D or None
        The fitted line.
    band_ : matplotlib PolyCollection or None
        The prediction interval.

    See Also
    --------
    CalibrationDisplay.from_calibrator : Compute line and interval and draw them.
    geofloor.AffineCalibrator : Fits the line.

    Examples
    --------
    >>> from geofloor import AffineCalibrator
    >>> from geofloor.displays import CalibrationDisplay
    >>> floors, observed = [0.0795, 0.0400, 0.0111, 0.0016, 0.0001], [1.320, 1.008, 0.733, 0.652, 0.586]
    >>> calibrator = AffineCalibrator().fit(floors, observed)
    >>> display = CalibrationDisplay.from_calibrator(calibrator, floors, observed)
    >>> display.label
    'C = 8.96, B = 0.623, R² = 0.993'
    """

    def __init__(
        self,
        *,
        floors: ArrayLike,
        observed: ArrayLike,
        observed_widths: ArrayLike | None = None,
        grid: ArrayLike | None = None,
        line: ArrayLike | None = None,
        interval: ArrayLike | None = None,
        level: float | None = None,
        label: str | None = None,
    ) -> None:
        self.floors = floors
        self.observed = observed
        self.observed_widths = observed_widths
        self.grid = grid
        self.line = line
        self.interval = interval
        self.level = level
        self.label = label

    @classmethod
    def from_calibrator(
        cls,
        calibrator: Any,
        floors: ArrayLike,
        observed: ArrayLike,
        *,
        observed_widths: ArrayLike | None = None,
        level: float | None = 0.9,
        ax: Axes | None = None,
        line_kwargs: dict[str, Any] | None = None,
        scatter_kwargs: dict[str, Any] | None = None,
    ) -> CalibrationDisplay:
        """Draw runs beside the line of a fitted calibrator.

        Parameters
        ----------
        calibrator : AffineCalibrator
            Fitted, with one term; on these runs or on others.
        floors : array-like of shape (n_runs,)
            Predicted floors of the runs, in hidden-space units.
        observed : array-like of shape (n_runs,)
            Observed losses, in nats per token.
        observed_widths : array-like of shape (n_runs,), default=None
            Width of each run, written beside its point.
        level : float or None, default=0.9
            Probability of the prediction interval, between 0 and 1; None draws none.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of the line.
        scatter_kwargs : dict, default=None
            Keyword arguments for the ``scatter`` call of the runs.

        Returns
        -------
        display : CalibrationDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the calibrator has more than one term.
        """
        check_predictor("calibrator", calibrator, "decompose")
        check_is_fitted(calibrator)
        floors = check_array_of_numbers(floors, "floors")
        if calibrator.n_features_in_ != 1:
            raise ValueError(f"calibrator has {calibrator.n_features_in_} terms; a line over the floor needs one.")
        grid = np.linspace(0.0, 1.05 * float(floors.max()), 101)
        interval = None
        if level is None:
            line = calibrator.predict(grid)
        else:
            line, interval = calibrator.predict(grid, return_interval=True, level=level)
        label = f"C = {calibrator.slope_:.3g}, B = {calibrator.baseline_:.3f}, R² = {calibrator.r2_:.3f}"
        display = cls(
            floors=floors,
            observed=observed,
            observed_widths=observed_widths,
            grid=grid,
            line=line,
            interval=interval,
            level=level,
            label=minus(label),
        )
        return display.plot(ax=ax, line_kwargs=line_kwargs, scatter_kwargs=scatter_kwargs)

    def frame(self) -> pd.DataFrame:
        """Return the data behind the figure.

        Returns
        -------
        frame : DataFrame
            One row per point, with the columns

            - ``source``: ``"observed"`` or ``"line"``;
            - ``width``: student width of a run, in dimensions; NaN if unknown, and along the line;
            - ``floor``: predicted floor, in hidden-space units;
            - ``loss``: observed or calibrated loss, in nats per token;
            - ``low``, ``high``: ends of the prediction interval, in nats per token; NaN if there is none.
        """
        floors, observed, widths, grid, line, interval, _ = self._checked()
        frames = [
            pd.DataFrame(
                {
                    "source": "observed",
                    "width": np.nan if widths is None else widths,
                    "floor": floors,
                    "loss": observed,
                    "low": np.nan,
                    "high": np.nan,
                }
            )
        ]
        if self.line is not None:
            low, high = np.full((2, len(grid)), np.nan) if interval is None else interval.T
            frames.append(
                pd.DataFrame({"source": "line", "width": np.nan, "floor": grid, "loss": line, "low": low, "high": high})
            )
        return pd.concat(frames, ignore_index=True)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        line_kwargs: dict[str, Any] | None = None,
        scatter_kwargs: dict[str, Any] | None = None,
    ) -> CalibrationDisplay:
        """Draw the runs, the line and its interval.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of the line.
        scatter_kwargs : dict, default=None
            Keyword arguments for the ``scatter`` call of the runs.

        Returns
        -------
        self : CalibrationDisplay
            The display.

        Raises
        ------
        ValueError
            If lengths differ; if `label`, `interval` or `line_kwargs` are given without a line, or `level` without an
            interval.
        """
        floors, observed, widths, grid, line, interval, level = self._checked()
        if line_kwargs is not None and self.line is None:
            raise ValueError("line_kwargs is for the fitted line, and there is none; leave it out.")
        line_kwargs = check_line_kwargs(line_kwargs)
        scatter_kwargs = check_scatter_kwargs(scatter_kwargs)
        ax = self._start(ax)
        self.line_, self.band_ = None, None
        if self.line is not None:
            style = {"color": COLORS[0], "linewidth": 1.8, "label": self.label}
            (self.line_,) = ax.plot(grid, line, **{**style, **line_kwargs})
            if interval is not None and np.isfinite(interval).all():
                self.band_ = ax.fill_between(
                    grid,
                    *interval.T,
                    color=self.line_.get_color(),
                    alpha=0.14,
                    linewidth=0,
                    label="prediction interval" if level is None else f"{100 * level:g}% prediction interval",
                )
            handles = [
                each for each in (self.line_ if self.label is not None else None, self.band_) if each is not None
            ]
            if handles:
                ax.legend(handles=handles, frameon=False, fontsize="small", loc="upper left")
        self.observed_points_ = ax.scatter(
            floors, observed, **scatter_style({**OBSERVED, "label": None}, scatter_kwargs)
        )
        if widths is not None:
            from matplotlib.patheffects import withStroke

            for width, floor, loss in zip(widths.tolist(), floors, observed, strict=True):
                ax.annotate(
                    f"d = {width:,g}",
                    (floor, loss),
                    xytext=(6, -3),
                    textcoords="offset points",
                    va="top",
                    fontsize="x-small",
                    color=INK,
                    path_effects=[withStroke(linewidth=2, foreground="white")],  # legible on top of the line
                )
        ax.set_ylim(bottom=0.0)
        ax.set(xlabel=f"predicted floor L* ({HIDDEN_UNITS})", ylabel=f"observed loss ({NATS})")
        return self

    def _checked(self) -> tuple[Any, ...]:
        """Return floors, losses and widths of the runs; grid, line, interval and level. Absent ones are None."""
        floors = check_array_of_numbers(self.floors, "floors")
        observed = check_array_of_numbers(self.observed, "observed")
        check_lengths({"": observed}, "observed", len(floors), "floors")
        widths = grid = line = interval = None
        if self.observed_widths is not None:
            widths = check_array_of_numbers(self.observed_widths, "observed_widths")
            check_lengths({"": widths}, "observed_widths", len(floors), "floors")
        if check_together(self, "grid", "line"):
            grid, line = check_array_of_numbers(self.grid, "grid"), check_array_of_numbers(self.line, "line")
            check_lengths({"": line}, "line", len(grid), "points of the grid")
        for name, needed in (("label", "line"), ("interval", "line"), ("level", "interval")):
            if getattr(self, name) is not None and getattr(self, needed) is None:
                raise ValueError(f"{name} is given without {needed}, which it describes; give both or neither.")
        if self.interval is not None and grid is not None:
            interval = np.asarray(check_numeric(self.interval, "interval"))  # NaN where there is none
            if interval.shape != (len(grid), 2):
                raise ValueError(
                    f"interval has shape {interval.shape}; give {(len(grid), 2)}, two ends for each point."
                )
            if interval.dtype.kind not in "iuf":
                interval = check_array_of_numbers(interval, "interval", ndim=2)
        level = self.level
        if level is not None:
            level = check_number("level", level, 0, 1, open_low=True, open_high=True)
        return floors, observed, widths, grid, line, interval, level
