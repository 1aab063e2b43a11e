"""Forecasts of student losses, with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from geofloor._validation import check_array_of_numbers, check_number
from geofloor.displays._drawing import OneAxesMixin, check_scale, set_scale
from geofloor.displays._style import (
    COLORS,
    FAINT,
    INK,
    NATS,
    WIDTH_LABEL,
    check_line_kwargs,
    check_scatter_kwargs,
    scatter_style,
)
from geofloor.displays._tables import check_lengths, check_predictor, check_together

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RUNS = {"s": 36.0, "facecolor": INK, "edgecolor": INK, "linewidth": 1.0, "label": "distilled", "zorder": 3}


class ForecastDisplay(OneAxesMixin):
    """Forecast loss over student width with its interval, and the runs behind the forecast.

    Parameters
    ----------
    widths : array-like of shape (n_widths,)
        Student widths, in dimensions.
    losses : array-like of shape (n_widths,)
        Forecast loss at each width, in nats per token.
    interval : array-like of shape (n_widths, 2)
        Lower and upper end of the interval, in nats per token.
    observed_widths, observed : array-like of shape (n_runs,), default=None
        Widths and losses of the runs behind the forecast.
    least : array-like of shape (n_widths,), default=None
        Lower bound on the loss at each width, in nats per token; the region below is shaded.
    target : float, default=None
        Loss to reach, in nats per token, drawn as a dotted horizontal.
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
        Interval of the forecast.
    observed_points_ : matplotlib PathCollection or None
        The runs.
    least_band_ : matplotlib FillBetweenPolyCollection or None
        Region below the lower bound.
    target_line_ : matplotlib Line2D or None
        The target.

    See Also
    --------
    ForecastDisplay.from_forecaster : Compute the forecast and draw it.
    geofloor.LossForecaster : Makes the forecast.

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
        observed_widths: ArrayLike | None = None,
        observed: ArrayLike | None = None,
        least: ArrayLike | None = None,
        target: float | None = None,
        level: float = 0.9,
    ) -> None:
        self.widths = widths
        self.losses = losses
        self.interval = interval
        self.observed_widths = observed_widths
        self.observed = observed
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
        scale: str = "linear",
        ax: Axes | None = None,
        line_kwargs: dict[str, Any] | None = None,
        scatter_kwargs: dict[str, Any] | None = None,
    ) -> ForecastDisplay:
        """Forecast the loss at each width and draw it.

        Parameters
        ----------
        forecaster : LossForecaster
            Fitted. If its law has a bound, that is drawn too.
        widths : array-like of shape (n_widths,)
            Student widths, in dimensions.
        target : float, default=None
            Loss to reach, in nats per token.
        level : float, default=0.9
            Probability of the interval.
        scale : {"linear", "log"}, default="linear"
            Scale of the losses.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of the forecast.
        scatter_kwargs : dict, default=None
            Keyword arguments for the ``scatter`` call of the runs.

        Returns
        -------
        display : ForecastDisplay
            The display, drawn.

        Examples
        --------
        >>> import numpy as np
        >>> from geofloor import FloorPredictor, LossForecaster
        >>> from geofloor.displays import ForecastDisplay
        >>> from geofloor.forecasting import Calibrated
        >>> floor = FloorPredictor(alpha=0.992).fit(np.exp(-np.arange(30_000) / 6_000))
        >>> forecaster = LossForecaster(Calibrated(floor)).fit([128, 1024], [1.32, 0.586])
        >>> display = ForecastDisplay.from_forecaster(forecaster, np.arange(64, 1200, 8))
        >>> display.observed_points_.get_offsets()[:, 0].tolist()
        [128.0, 1024.0]
        """
        check_predictor("forecaster", forecaster, "decide", "law")
        check_is_fitted(forecaster)
        widths = check_array_of_numbers(widths, "widths")
        losses, interval = forecaster.predict(widths, return_interval=True, level=level)
        if not np.isfinite(losses).all():
            wrong = widths[~np.isfinite(losses)][0]
            raise ValueError(f"widths holds {wrong:g}, where the forecast is infinite; give widths above 0.")
        display = cls(
            widths=widths,
            losses=losses,
            interval=interval,
            observed_widths=forecaster.widths_,
            observed=forecaster.losses_,
            least=forecaster.law_.least(widths),
            target=target,
            level=level,
        )
        return display.plot(ax, scale=scale, line_kwargs=line_kwargs, scatter_kwargs=scatter_kwargs)

    def frame(self) -> pd.DataFrame:
        """Return the data behind the figure.

        Returns
        -------
        frame : DataFrame
            One row per point, with the columns

            - ``source``: ``"forecast"``, ``"observed"`` or ``"target"``;
            - ``width``: student width, in dimensions; NaN for the target;
            - ``loss``: forecast, observed or target loss, in nats per token;
            - ``low``, ``high``: ends of the interval, in nats per token; NaN for runs and target;
            - ``least``: lower bound on the loss, in nats per token; NaN if there is none.
        """
        widths, losses, interval, (at, observed), least, goal = self._checked()
        low, high = interval.T
        forecast = pd.DataFrame(
            {
                "source": "forecast",
                "width": widths,
                "loss": losses,
                "low": low,
                "high": high,
                "least": np.nan if least is None else least,
            }
        )
        runs = pd.DataFrame({"source": "observed", "width": at, "loss": observed})
        target = pd.DataFrame({"source": "target", "loss": [] if goal is None else [goal]})
        rest = [each.reindex(columns=forecast.columns) for each in (runs, target) if len(each)]
        return pd.concat([forecast, *rest], ignore_index=True)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        scale: str = "linear",
        line_kwargs: dict[str, Any] | None = None,
        scatter_kwargs: dict[str, Any] | None = None,
    ) -> ForecastDisplay:
        """Draw the forecast, its interval, the runs, the bound and the target.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        scale : {"linear", "log"}, default="linear"
            Scale of the losses. Losses of zero cannot be drawn on a logarithmic scale.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of the forecast.
        scatter_kwargs : dict, default=None
            Keyword arguments for the ``scatter`` call of the runs.

        Returns
        -------
        self : ForecastDisplay
            The display.

        Raises
        ------
        ValueError
            If widths, losses, interval and bound differ in length or are empty, `scatter_kwargs` is given without
            runs, or `scale` is unknown.
        """
        check_scale(scale)
        line_kwargs = check_line_kwargs(line_kwargs)
        level = check_number("level", self.level, 0, 1, open_low=True, open_high=True)
        widths, losses, interval, runs, least, target = self._checked()
        if scatter_kwargs is not None and self.observed is None:
            raise ValueError("scatter_kwargs is for the runs, and there are none; leave it out.")
        scatter_kwargs = check_scatter_kwargs(scatter_kwargs)
        ax = self._start(ax)
        style = {"color": COLORS[0], "label": "forecast", **line_kwargs}
        self.band_ = ax.fill_between(
            widths,
            *interval.T,
            color=style["color"],
            alpha=0.18,
            linewidth=0,
            label=f"{100 * level:g}% interval",
        )
        self.least_band_ = None
        if least is not None:
            self.least_band_ = ax.fill_between(
                widths, 0.0, least, color=FAINT, alpha=0.35, linewidth=0, label="no student gets here"
            )
        (self.line_,) = ax.plot(widths, losses, **style)
        self.observed_points_ = None
        if self.observed is not None:
            self.observed_points_ = ax.scatter(*runs, **scatter_style(_RUNS, scatter_kwargs))
        self.target_line_ = None
        if target is not None:
            label = f"target, {target:g}"
            self.target_line_ = ax.axhline(target, color=FAINT, linestyle=":", label=label)
        ax.set(xlabel=WIDTH_LABEL, ylabel=f"loss ({NATS})")
        set_scale(ax, scale, from_zero=True)
        ax.legend(frameon=False, fontsize="small", scatteryoffsets=[0.5])
        return self

    def _checked(
        self,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray], np.ndarray | None, float | None]:
        """Return widths, losses and interval in ascending order of width; runs, bound and target."""
        widths, losses, interval = (
            check_array_of_numbers(getattr(self, name), name, ndim=None, column=False, empty=True)
            for name in ("widths", "losses", "interval")
        )
        if widths.ndim != 1 or not widths.size or losses.shape != widths.shape or interval.shape != (*widths.shape, 2):
            raise ValueError(
                f"widths, losses and interval have the shapes {widths.shape}, {losses.shape} and {interval.shape}; "
                "give (n_widths,), (n_widths,) and (n_widths, 2), with at least one width."
            )
        order = np.argsort(widths)
        least = None
        if self.least is not None:
            least = check_array_of_numbers(self.least, "least")
            check_lengths({"": least}, "least", len(widths), "widths")
            least = least[order]
        runs = np.empty(0), np.empty(0)
        if check_together(self, "observed_widths", "observed"):
            runs = (
                check_array_of_numbers(self.observed_widths, "observed_widths"),
                check_array_of_numbers(self.observed, "observed"),
            )
            check_lengths({"": runs[1]}, "observed", len(runs[0]), "observed_widths")
        target = None if self.target is None else check_number("target", self.target)
        return widths[order], losses[order], interval[order], runs, least, target
