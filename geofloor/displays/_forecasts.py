"""Forecasts of the loss of students, with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from geofloor._validation import check_array_of_numbers, check_number
from geofloor.displays._style import COLORS, FAINT, INK, axes_or_new, check_predictor

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class ForecastDisplay:
    """Forecast loss over student width with its interval, and the runs that it was made from.

    Parameters
    ----------
    widths : array-like of shape (n_widths,)
        Widths of students, in dimensions.
    losses : array-like of shape (n_widths,)
        Forecast loss at each width, in nats per token.
    interval : array-like of shape (n_widths, 2)
        Lower and upper end of its interval.
    run_widths, run_losses : array-like of shape (n_runs,), default=None
        The runs that the forecast was made from.
    least : array-like of shape (n_widths,), default=None
        Loss that no student of each width gets below; what lies under it is shaded.
    target : float, default=None
        Loss to reach, drawn as a horizontal line.
    level : float, default=0.9
        Probability of the interval, for the legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure of the axes.
    line_ : matplotlib Line2D
        The forecast.
    band_ : matplotlib FillBetweenPolyCollection
        Its interval.
    runs_ : matplotlib Line2D or None
        The runs.
    least_band_ : matplotlib FillBetweenPolyCollection or None
        What no student reaches.
    target_line_ : matplotlib Line2D or None
        The target.

    See Also
    --------
    ForecastDisplay.from_forecaster : Compute the forecast and draw it.
    geofloor.LossForecaster : Makes it.

    Examples
    --------
    >>> from geofloor.displays import ForecastDisplay
    >>> display = ForecastDisplay(widths=[128, 256], losses=[1.3, 1.0], interval=[[1.2, 1.4], [0.8, 1.2]]).plot()
    >>> display.ax_.get_ylabel()
    'loss (nats per token)'
    """

    def __init__(
        self,
        *,
        widths: ArrayLike,
        losses: ArrayLike,
        interval: ArrayLike,
        run_widths: ArrayLike | None = None,
        run_losses: ArrayLike | None = None,
        least: ArrayLike | None = None,
        target: float | None = None,
        level: float = 0.9,
    ) -> None:
        self.widths = widths
        self.losses = losses
        self.interval = interval
        self.run_widths = run_widths
        self.run_losses = run_losses
        self.least = least
        self.target = target
        self.level = level

    @classmethod
    def from_forecaster(
        cls,
        forecaster: Any,
        widths: ArrayLike,
        *,
        target: float | None = None,
        level: float = 0.9,
        ax: Axes | None = None,
    ) -> ForecastDisplay:
        """Forecast the loss at each width and draw it.

        Parameters
        ----------
        forecaster : LossForecaster
            Fitted; if it has a bound, that is drawn too.
        widths : array-like of shape (n_widths,)
            Widths of students, in dimensions.
        target : float, default=None
            Loss to reach, in nats per token.
        level : float, default=0.9
            Probability of the interval.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        display : ForecastDisplay
            The display, drawn.

        Examples
        --------
        >>> import numpy as np
        >>> from geofloor import FloorPredictor, LossForecaster
        >>> from geofloor.displays import ForecastDisplay
        >>> floor = FloorPredictor(alpha=0.992).fit(np.exp(-np.arange(30_000) / 6_000))
        >>> forecaster = LossForecaster(floor).fit([128, 1024], [1.32, 0.586])
        >>> display = ForecastDisplay.from_forecaster(forecaster, np.arange(64, 1200, 8))
        >>> display.runs_.get_xdata()
        array([ 128., 1024.])
        """
        check_predictor("forecaster", forecaster, "decide", "bound")
        check_is_fitted(forecaster)
        widths = check_array_of_numbers(widths, "widths")
        losses, interval = forecaster.predict(widths, return_interval=True, level=level)
        least = None
        if forecaster.bound is not None:
            least = forecaster.bound.predict(widths, return_bounds=True)[1][:, 0]
        return cls(
            widths=widths,
            losses=losses,
            interval=interval,
            run_widths=forecaster.widths_,
            run_losses=forecaster.losses_,
            least=least,
            target=target,
            level=level,
        ).plot(ax)

    def plot(self, ax: Axes | None = None) -> ForecastDisplay:
        """Draw the forecast.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        self : ForecastDisplay
            The display.

        Raises
        ------
        ValueError
            If widths, losses, interval and bound differ in length, or are empty.
        """
        widths, losses = (
            check_array_of_numbers(values, name, ndim=None, column=False, empty=True)
            for name, values in (("widths", self.widths), ("losses", self.losses))
        )
        interval = check_array_of_numbers(self.interval, "interval", ndim=None, column=False, empty=True)
        level = check_number("level", self.level, 0, 1, open_low=True, open_high=True)
        target = None if self.target is None else check_number("target", self.target)
        if widths.ndim != 1 or not widths.size or losses.shape != widths.shape or interval.shape != (*widths.shape, 2):
            raise ValueError(
                f"widths, losses and interval have the shapes {widths.shape}, {losses.shape} and {interval.shape}; "
                "give (n_widths,), (n_widths,) and (n_widths, 2), with at least one width."
            )
        least = None if self.least is None else check_array_of_numbers(self.least, "least")
        if least is not None and least.shape != widths.shape:
            raise ValueError(f"least has the shape {least.shape}, and widths {widths.shape}; give one for each width.")
        runs = None
        if (self.run_widths is None) != (self.run_losses is None):
            raise ValueError("run_widths and run_losses belong together; give both or neither.")
        if self.run_widths is not None:
            runs = (
                check_array_of_numbers(self.run_widths, "run_widths"),
                check_array_of_numbers(self.run_losses, "run_losses"),
            )
            if runs[0].shape != runs[1].shape:
                raise ValueError(
                    f"run_losses has {len(runs[1])} values for {len(runs[0])} run_widths; give one for each."
                )
        self.ax_ = ax = axes_or_new(ax)
        self.figure_ = ax.figure
        order = np.argsort(widths)
        self.band_ = ax.fill_between(
            widths[order],
            *interval[order].T,
            color=COLORS[0],
            alpha=0.18,
            linewidth=0,
            label=f"{100 * level:g}% interval",
        )
        self.least_band_ = None
        if least is not None:
            self.least_band_ = ax.fill_between(
                widths[order], 0.0, least[order], color=FAINT, alpha=0.35, linewidth=0, label="no student gets here"
            )
        (self.line_,) = ax.plot(widths[order], losses[order], color=COLORS[0], label="forecast")
        self.runs_ = None
        if runs is not None:
            (self.runs_,) = ax.plot(*runs, "o", color=INK, label="distilled", zorder=3)
        self.target_line_ = None
        if target is not None:
            self.target_line_ = ax.axhline(target, color=FAINT, linestyle=":", label=f"target, {target:g}")
        ax.set_xlabel("student width d (dimensions)")
        ax.set_ylabel("loss (nats per token)")
        ax.set_ylim(bottom=0.0)
        ax.legend(frameon=False, fontsize="small")
        return self
