"""Importance spectra."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from geofloor._validation import check_array_of_numbers, check_flag, check_number, check_object, shown
from geofloor.displays._drawing import OneAxesMixin, check_scale
from geofloor.displays._style import COLORS, DASHES, FAINT, HIDDEN_UNITS, INK, check_line_kwargs
from geofloor.displays._tables import check_capacity, check_counts
from geofloor.features import PowerLawTail, power_law_tail
from geofloor.theory import kept_features
from geofloor.theory._capacity import CapacityMethod

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_DRAWN = 2000  # points of a spectrum; more enlarge the file and change nothing that can be seen


class SpectrumDisplay(OneAxesMixin):
    """Importance over rank, with the number of features kept at each width (Figures 5 and 12 of the paper).

    Parameters
    ----------
    importances : array-like of shape (n_features,)
        Importances, in any order. Zeros are left out.
    tail : PowerLawTail, default=None
        Power law of the largest importances, drawn as a dashed line.
    kept : mapping of float to int, default=None
        Number of features that each width keeps, drawn as dotted verticals.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure of the axes.
    line_ : matplotlib Line2D
        The spectrum, at no more than 2,000 log-spaced ranks.
    tail_line_ : matplotlib Line2D or None
        The power law.
    kept_lines_ : list of matplotlib Line2D
        One vertical for each width that drops features.

    See Also
    --------
    SpectrumDisplay.from_importances : Fit the tail, compute the kept features and draw.
    SpectrumDisplay.from_statistics : Draw the spectrum of fitted `FeatureStatistics`.
    geofloor.features.power_law_tail : Fits the power law.

    Notes
    -----
    Let importances have density p(I) ∝ I^−β above I₀, and let k of them lie there. The importance at rank r is then
    I₀ (r/k)^(−1/(β − 1)): on logarithmic axes, a straight line of slope −1/(β − 1).

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor.displays import SpectrumDisplay
    >>> display = SpectrumDisplay(importances=1 / np.arange(1, 101), kept={4: 30}).plot()
    >>> display.ax_.get_xscale(), len(display.kept_lines_)
    ('log', 1)
    """

    def __init__(
        self,
        *,
        importances: ArrayLike,
        tail: PowerLawTail | None = None,
        kept: Mapping[float, int] | None = None,
    ) -> None:
        self.importances = importances
        self.tail = tail
        self.kept = kept

    @classmethod
    def from_importances(
        cls,
        importances: ArrayLike,
        *,
        widths: ArrayLike | None = None,
        alpha: float | None = None,
        capacity: CapacityMethod = "asymptotic",
        fit_tail: bool = True,
        scale: str = "log",
        ax: Axes | None = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> SpectrumDisplay:
        """Fit the tail, count the features kept at each width, and draw.

        Parameters
        ----------
        importances : array-like of shape (n_features,)
            Importances, in any order.
        widths : array-like of shape (n_widths,), default=None
            Student widths, for the verticals between kept and dropped features.
        alpha : float, default=None
            Sparsity, in [0, 1); needed with `widths` and refused without.
        capacity : {"asymptotic", "minimax", "minimax_nonnegative"} or callable, default="asymptotic"
            Features per dimension, as in `geofloor.theory.capacity`; refused without `widths`.
        fit_tail : bool, default=True
            Whether to fit and draw the power law of the largest importances.
        scale : {"log", "linear"}, default="log"
            Scale of both axes.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of the spectrum.

        Returns
        -------
        display : SpectrumDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If `widths` are given without `alpha`, or `alpha` or `capacity` without `widths`; or as `power_law_tail` and
            `capacity` do.
        """
        importances = check_array_of_numbers(importances, "importances", low=0)
        check_capacity(capacity)
        kept = None
        if widths is not None:
            if alpha is None:
                raise ValueError("alpha=None: kept features depend on the sparsity; give alpha with widths.")
            alpha = check_number("alpha", alpha, 0, 1, open_high=True)
            at = check_array_of_numbers(widths, "widths", low=0).tolist()
            kept = {width: kept_features(width, alpha, capacity) for width in at}
        elif alpha is not None or capacity != "asymptotic":
            given = f"alpha={shown(alpha)}" if alpha is not None else f"capacity={shown(capacity)}"
            raise ValueError(f"{given} counts only with widths; give widths, or leave it out.")
        tail = power_law_tail(importances) if check_flag("fit_tail", fit_tail) else None
        return cls(importances=importances, tail=tail, kept=kept).plot(ax=ax, scale=scale, line_kwargs=line_kwargs)

    @classmethod
    def from_statistics(
        cls,
        statistics: Any,
        *,
        widths: ArrayLike | None = None,
        scale: str = "log",
        ax: Axes | None = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> SpectrumDisplay:
        """Draw the spectrum of measured features, with their fitted tail and their capacity.

        Parameters
        ----------
        statistics : FeatureStatistics
            Fitted statistics.
        widths : array-like of shape (n_widths,), default=None
            Student widths, for the verticals between kept and dropped features.
        scale : {"log", "linear"}, default="log"
            Scale of both axes.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of the spectrum.

        Returns
        -------
        display : SpectrumDisplay
            The display, drawn.
        """
        if not (hasattr(statistics, "fit") and hasattr(statistics, "capacity")):
            raise TypeError(f"statistics={shown(statistics)} has no table of features; give fitted FeatureStatistics.")
        check_is_fitted(statistics)
        importances = statistics.table_[:, 0]
        kept = None
        if widths is not None:
            kept = {
                width: kept_features(width, statistics.alpha_, statistics.capacity)
                for width in check_array_of_numbers(widths, "widths", low=0).tolist()
            }
        tail = PowerLawTail(
            exponent=statistics.tail_exponent_,
            interval=statistics.tail_exponent_interval_,
            start=statistics.tail_start_,
            n_tail=int(np.count_nonzero(importances > statistics.tail_start_)),
        )
        return cls(importances=importances, tail=tail, kept=kept).plot(ax=ax, scale=scale, line_kwargs=line_kwargs)

    def frame(self) -> pd.DataFrame:
        """Return the data behind the figure.

        Returns
        -------
        frame : DataFrame
            One row per point or vertical, with the columns

            - ``source``: ``"features"``, ``"power law"`` or ``"kept"``;
            - ``rank``: rank of the feature from 1, or number of kept features;
            - ``importance``: importance, in hidden-space units; NaN for kept features;
            - ``width``: student width of kept features, in dimensions; NaN elsewhere.
        """
        ranks, importances, kept = self._checked()
        rows = [("features", *point, np.nan) for point in zip(ranks, importances, strict=True)]
        rows += [("power law", *point, np.nan) for point in zip(*self._law(2), strict=True)]
        rows += [("kept", count, np.nan, width) for width, count in kept.items()]
        return pd.DataFrame(rows, columns=["source", "rank", "importance", "width"])

    def plot(
        self,
        ax: Axes | None = None,
        *,
        scale: str = "log",
        line_kwargs: dict[str, Any] | None = None,
    ) -> SpectrumDisplay:
        """Draw the spectrum, its tail and the number of features kept at each width.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        scale : {"log", "linear"}, default="log"
            Scale of both axes.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of the spectrum.

        Returns
        -------
        self : SpectrumDisplay
            The display.

        Raises
        ------
        ValueError
            If no importance is above zero, or `scale` is unknown.
        """
        check_scale(scale)
        line_kwargs = check_line_kwargs(line_kwargs)
        ranks, importances, kept = self._checked()
        # A power law is a straight line on logarithmic axes and a curve on linear ones.
        law = self._law(2 if scale == "log" else 200)

        ax = self._start(ax)
        style = {"color": COLORS[0], "linewidth": 1.8, "label": "features"}
        (self.line_,) = ax.plot(ranks, importances, **{**style, **line_kwargs})
        ax.set(xscale=scale, yscale=scale)
        self.tail_line_ = None
        if self.tail is not None and len(law[0]):
            low, high = self.tail.interval
            label = f"power law, β = {self.tail.exponent:.2f} [{low:.2f}, {high:.2f}]"
            (self.tail_line_,) = ax.plot(*law, color=COLORS[1], linestyle=DASHES[1], label=label)
            ax.legend(frameon=False, fontsize="small", loc="lower left" if scale == "log" else "upper right")
        self.kept_lines_ = []
        for width, count in kept.items():
            self.kept_lines_.append(ax.axvline(count, color=FAINT, linestyle=":", linewidth=1.0, zorder=1))
            ax.text(
                count,
                1.01,
                f"d = {width:,g}",
                transform=ax.get_xaxis_transform(),
                rotation=90,
                ha="center",
                va="bottom",
                fontsize="x-small",
                color=INK,
            )
        ax.set(xlabel="rank of the feature", ylabel=f"importance ({HIDDEN_UNITS})")
        return self

    def _checked(self) -> tuple[np.ndarray, np.ndarray, dict[float, float]]:
        """Return ranks and importances to draw, and the counts of widths that drop features."""
        check_object("tail", self.tail, (PowerLawTail, type(None)), "give a PowerLawTail, or None")
        kept = check_counts(self.kept)
        importances = np.sort(check_array_of_numbers(self.importances, "importances", low=0))[::-1]
        n_positive = int(np.count_nonzero(importances > 0))
        if n_positive == 0:
            raise ValueError("importances has no value above zero, so there is no spectrum to draw.")
        ranks = np.arange(1, n_positive + 1)
        if n_positive > _MAX_DRAWN:
            ranks = np.unique(np.rint(np.geomspace(1, n_positive, _MAX_DRAWN)).astype(int))
        drawn = {width: count for width, count in sorted(kept.items()) if 0 < count < len(importances)}
        return ranks, importances[ranks - 1], drawn

    def _law(self, n_points: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ranks and importances of the power law, empty without one."""
        if self.tail is None or self.tail.n_tail <= 0:
            return np.empty(0), np.empty(0)
        ranks = np.geomspace(1.0, self.tail.n_tail, n_points)
        return ranks, self.tail.start * (ranks / self.tail.n_tail) ** (-1.0 / (self.tail.exponent - 1.0))
