"""Loss floors of several dictionaries over student width."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from geofloor._validation import check_array_of_numbers, check_flag, shown
from geofloor.displays._drawing import OneAxesMixin, check_scale, legend_beside, set_scale
from geofloor.displays._style import ALPHA_COLORMAP, FAINT, HIDDEN_UNITS, WIDTH_LABEL, check_line_kwargs, key, ramp

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHARE = "share of the variance"


class FloorBandDisplay(OneAxesMixin):
    """Loss floors of several dictionaries over student width, and the band between the lowest and the highest.

    Parameters
    ----------
    widths : array-like of shape (n_widths,)
        Student widths, in dimensions.
    floors : array-like of shape (n_dictionaries, n_widths)
        Floor of each dictionary at each width.
    critical_widths : array-like of shape (n_dictionaries,)
        Critical width d* of each dictionary, in dimensions.
    l0 : array-like of shape (n_dictionaries,)
        Codes per row of each dictionary. It sets the color of its curve, equal for the same two digits.
    explained_variance : array-like of shape (n_dictionaries,)
        Share of the variance that each dictionary explains.
    unit : str, default="hidden-space units"
        Unit of the floors.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure of the axes.
    lines_ : list of matplotlib Line2D
        Curve of each dictionary.
    band_ : matplotlib PolyCollection
        Area between the lowest and the highest floor.
    marks_ : list of matplotlib Line2D
        Triangle at the critical width of each dictionary, at the bottom of the axes.

    See Also
    --------
    FloorBandDisplay.from_band : Draw a measured band.
    geofloor.language_models.measure_band : Measure one.

    Notes
    -----
    The axis ends near the largest width. The legend names critical widths beyond it, too.

    Examples
    --------
    >>> from geofloor.displays import FloorBandDisplay
    >>> display = FloorBandDisplay(
    ...     widths=[32, 64, 128], floors=[[40.0, 22.0, 5.0], [48.0, 33.0, 16.0]], critical_widths=[160.0, 270.0],
    ...     l0=[32.0, 64.0], explained_variance=[0.91, 0.96],
    ... )
    >>> display.plot()
    <geofloor.displays...FloorBandDisplay object at ...>
    >>> [text.get_text() for text in display.ax_.get_legend().get_texts()]
    ['L0 = 32, EV = 91%, d* = 160', 'L0 = 64, EV = 96%, d* = 270']
    """

    def __init__(
        self,
        *,
        widths: ArrayLike,
        floors: Any,
        critical_widths: ArrayLike,
        l0: ArrayLike,
        explained_variance: ArrayLike,
        unit: str = HIDDEN_UNITS,
    ) -> None:
        self.widths = widths
        self.floors = floors
        self.critical_widths = critical_widths
        self.l0 = l0
        self.explained_variance = explained_variance
        self.unit = unit

    @classmethod
    def from_band(
        cls,
        band: Any,
        widths: ArrayLike | None = None,
        *,
        relative: bool = True,
        scale: str = "linear",
        ax: Axes | None = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> FloorBandDisplay:
        """Draw a measured band.

        Parameters
        ----------
        band : FloorBand
            Band of `measure_band <geofloor.language_models.measure_band>`.
        widths : array-like of shape (n_widths,), default=None
            Student widths; by default those of the band.
        relative : bool, default=True
            Whether to draw floors as shares of the variance of the activations, not in hidden-space units.
        scale : {"linear", "log"}, default="linear"
            Scale of the floors.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of every curve.

        Returns
        -------
        display : FloorBandDisplay
            The display, drawn.

        Raises
        ------
        TypeError
            If `band` is an object of another kind.
        """
        relative = check_flag("relative", relative)
        if isinstance(band, type) or not hasattr(band, "critical_width_range"):
            raise TypeError(f"band={shown(band)} is a {type(band).__name__}; give a FloorBand, from measure_band.")
        if widths is not None:
            band = dataclasses.replace(band, widths=check_array_of_numbers(widths, "widths", low=0))
        display = cls(
            widths=band.widths,
            floors=band.floors(relative=relative),
            critical_widths=band.critical_widths,
            l0=band.l0,
            explained_variance=band.explained_variance,
            unit=_SHARE if relative else HIDDEN_UNITS,
        )
        return display.plot(ax=ax, scale=scale, line_kwargs=line_kwargs)

    def frame(self) -> pd.DataFrame:
        """Return the data behind the figure.

        Returns
        -------
        frame : DataFrame
            One row per point of a curve, with the columns

            - ``dictionary``: place of the dictionary, from 0;
            - ``l0``, ``explained_variance`` and ``critical_width`` of the dictionary;
            - ``width``: student width, in dimensions;
            - ``floor``: floor, in `unit`.
        """
        widths, floors, critical, l0, explained = self._checked()
        n_dictionaries, n_widths = floors.shape
        places = np.repeat(np.arange(n_dictionaries), n_widths)
        return pd.DataFrame(
            {
                "dictionary": places,
                "l0": l0[places],
                "explained_variance": explained[places],
                "critical_width": critical[places],
                "width": np.tile(widths, n_dictionaries),
                "floor": floors.ravel(),
            }
        )

    def plot(
        self, ax: Axes | None = None, *, scale: str = "linear", line_kwargs: dict[str, Any] | None = None
    ) -> FloorBandDisplay:
        """Draw the curves, the band and the critical widths.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        scale : {"linear", "log"}, default="linear"
            Scale of the floors. Floors of zero cannot be drawn on a logarithmic scale.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of every curve.

        Returns
        -------
        self : FloorBandDisplay
            The display.

        Raises
        ------
        ValueError
            If the arrays differ in their number of dictionaries or widths, or `scale` is unknown.
        """
        check_scale(scale)
        line_kwargs = check_line_kwargs(line_kwargs)
        widths, floors, critical, l0, explained = self._checked()
        order = np.argsort(widths)
        widths, floors = widths[order], floors[:, order]
        groups = [float(f"{each:.2g}") for each in l0]
        colors = ramp(sorted(set(groups)), ALPHA_COLORMAP)

        ax = self._start(ax, size=(6.4, 3.4))
        self.band_ = ax.fill_between(
            widths, floors.min(axis=0), floors.max(axis=0), color=FAINT, alpha=0.2, linewidth=0, zorder=1
        )
        self.lines_, self.marks_ = [], []
        for group, curve in zip(groups, floors, strict=True):
            style = {"color": colors[group], "linewidth": 1.4, "marker": "o" if len(widths) <= 12 else None}
            self.lines_ += ax.plot(widths, curve, **{**style, "markersize": 3.5, **line_kwargs})
        last = widths.max() + 0.1 * (widths.max() - widths.min())
        for group, width in zip(groups, critical, strict=True):
            if width <= last:
                self.marks_ += ax.plot(
                    width, 0.0, "^", color=colors[group], transform=ax.get_xaxis_transform(), clip_on=False, zorder=4
                )
        legend_beside(
            ax,
            [
                key(_label(*(values[np.equal(groups, group)] for values in (l0, explained, critical))), color=color)
                for group, color in colors.items()
            ],
        )
        if scale == "linear":
            ax.update_datalim([(widths[0], 0.0)], updatex=False)
            ax.autoscale_view()
        ax.set(xlabel=WIDTH_LABEL, ylabel=f"floor L* ({self.unit})")
        set_scale(ax, scale)
        return self

    def _checked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return widths, floors, critical widths, L0 and explained variances as arrays of fitting shapes."""
        widths = check_array_of_numbers(self.widths, "widths", low=0)
        floors = check_array_of_numbers(self.floors, "floors", ndim=2, low=0)
        if floors.shape[1] != len(widths):
            raise ValueError(
                f"floors has {floors.shape[1]} columns for {len(widths)} widths; give one row per dictionary, of one "
                "floor per width."
            )
        of_dictionaries = []
        for name, low, high in (
            ("critical_widths", 0, np.inf),
            ("l0", 0, np.inf),
            ("explained_variance", -np.inf, 1),
        ):
            values = check_array_of_numbers(getattr(self, name), name, low=low, high=high)
            if len(values) != len(floors):
                raise ValueError(f"{name} has {len(values)} values, and floors {len(floors)} rows; give one per row.")
            of_dictionaries.append(values)
        critical, l0, explained = of_dictionaries
        return widths, floors, critical, l0, explained


def _label(l0: np.ndarray, explained: np.ndarray, critical: np.ndarray) -> str:
    """Write the sparsity, explained variance and critical width of curves of one color, as ranges if they differ."""
    of_l0 = _span(l0, "{:.3g}")
    return f"L0 = {of_l0}, EV = {_span(100 * explained, '{:.0f}')}%, d* = {_span(critical, '{:,.0f}')}"


def _span(values: np.ndarray, form: str) -> str:
    low, high = form.format(values.min()), form.format(values.max())
    return low if low == high else f"{low}–{high}"
