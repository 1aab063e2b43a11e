"""Measures of dictionaries, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geofloor._validation import check_object, shown
from geofloor.displays._drawing import panels
from geofloor.displays._style import COLORS, FAINT, INK, MARKERS, NATS
from geofloor.displays._tables import check_points, plain_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_ERROR = "kl_div_with_sae_error"
# Label of each panel, and legends of its metrics. Those in _MAY_BE_NAN may be NaN.
_PANELS = {
    f"KL divergence ({NATS})": {
        "kl_div_with_sae": "reconstruction",
        "kl_div_with_mean_ablation": "mean ablation",
        "kl_div_with_ablation": "zero ablation",
    },
    "share recovered": {
        "kl_div_score": "KL, against zero ablation",
        "kl_div_score_above_mean": "KL, against mean ablation",
        "explained_variance": "variance of activations",
    },
    "share of latents": {
        "frac_alive": "alive",
        "freq_over_1_percent": "firing on over 1% of tokens",
        "freq_over_10_percent": "firing on over 10% of tokens",
    },
}
_MAY_BE_NAN = {"kl_div_score", "kl_div_score_above_mean", "explained_variance", _ERROR}
_METRICS = [metric for metrics in _PANELS.values() for metric in metrics]
_FEW_TICKS = 100.0  # ratio of losses up to which ticks at 1, 2 and 5 do not touch
_COLUMNS = ["l0", *_METRICS, _ERROR]


class DictionaryDisplay:
    """Measures of one dictionary or several, from `dictionary_report <geofloor.language_models.dictionary_report>`.

    Three panels have one row per dictionary: losses with replaced activations, shares recovered by the
    reconstruction, and shares of latents by firing rate.

    Parameters
    ----------
    table : DataFrame
        One row per dictionary, with the columns ``dictionary`` (its name), ``l0`` and those fields of
        `DictionaryReport <geofloor.language_models.DictionaryReport>` that are drawn: the KL divergences with
        ``kl_div_with_sae_error``, ``kl_div_score``, ``kl_div_score_above_mean``, ``explained_variance``,
        ``frac_alive``, ``freq_over_1_percent`` and ``freq_over_10_percent``.

    Attributes
    ----------
    figure_ : matplotlib Figure or SubFigure
        Figure drawn in.
    axes_ : ndarray of shape (3,) of matplotlib Axes
        Panels. The first has a logarithmic scale, unless a loss is not above 0.
    points_ : dict of str to matplotlib Line2D
        Points of each measure, by the name of the field, one per dictionary.
    errors_ : matplotlib ErrorbarContainer
        Bars of one standard error to either side of ``kl_div_with_sae``.

    See Also
    --------
    DictionaryDisplay.from_reports : Draw reports.
    geofloor.language_models.dictionary_report : Measure a dictionary.

    Examples
    --------
    >>> import pandas as pd
    >>> from geofloor.displays import DictionaryDisplay
    >>> table = pd.DataFrame({"dictionary": ["k = 16", "k = 64"], "l0": [16.0, 64.0],
    ...                       "kl_div_with_sae": [0.31, 0.12], "kl_div_with_sae_error": [0.02, 0.01],
    ...                       "kl_div_with_mean_ablation": 3.2, "kl_div_with_ablation": 5.1,
    ...                       "kl_div_score": [0.94, 0.98], "kl_div_score_above_mean": [0.90, 0.96],
    ...                       "explained_variance": [0.71, 0.84], "frac_alive": [0.9, 1.0],
    ...                       "freq_over_1_percent": [0.1, 0.4], "freq_over_10_percent": [0.01, 0.05]})
    >>> display = DictionaryDisplay(table=table).plot()
    >>> display.points_["kl_div_score"].get_xdata().tolist()
    [0.94, 0.98]
    """

    def __init__(self, *, table: pd.DataFrame) -> None:
        self.table = table

    @classmethod
    def from_reports(cls, reports: Any, *, figure: Figure | SubFigure | None = None) -> DictionaryDisplay:
        """Draw one report or several.

        Parameters
        ----------
        reports : DictionaryReport, or mapping of str to DictionaryReport
            Reports by the name of the dictionary, from the top down.
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.

        Returns
        -------
        display : DictionaryDisplay
            The display, drawn.

        Raises
        ------
        TypeError
            If `reports` holds other objects.
        ValueError
            If `reports` is empty.
        """
        several = reports if isinstance(reports, Mapping) else {"": reports}
        if not several:
            raise ValueError("reports is empty; give at least one DictionaryReport.")
        for name, report in several.items():
            check_object("reports: name", name, str, "give a dict of reports by name")
            if isinstance(report, type) or not all(hasattr(report, column) for column in _COLUMNS):
                raise TypeError(
                    f"reports holds {shown(report)}, a {type(report).__name__}; give a DictionaryReport, or a dict of "
                    "them by name."
                )
        rows = [
            {"dictionary": name, **{column: getattr(report, column) for column in _COLUMNS}}
            for name, report in several.items()
        ]
        return cls(table=pd.DataFrame(rows)).plot(figure=figure)

    def frame(self) -> pd.DataFrame:
        """Return the data behind the figure.

        Returns
        -------
        frame : DataFrame
            One row per point, panel by panel, with the columns

            - ``dictionary``: name;
            - ``metric``: name of the measure, as in `DictionaryReport <geofloor.language_models.DictionaryReport>`;
            - ``value``: measure; NaN where no point is drawn;
            - ``standard_error``: standard error of ``kl_div_with_sae``, NaN for others.
        """
        table = self._checked()
        frames = [
            pd.DataFrame(
                {
                    "dictionary": table["dictionary"],
                    "metric": metric,
                    "value": table[metric],
                    "standard_error": table[_ERROR] if metric == "kl_div_with_sae" else np.nan,
                }
            )
            for metric in _METRICS
        ]
        return pd.concat(frames, ignore_index=True)

    def plot(self, figure: Figure | SubFigure | None = None) -> DictionaryDisplay:
        """Draw one row per dictionary in each panel.

        Parameters
        ----------
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.

        Returns
        -------
        self : DictionaryDisplay
            The display.
        """
        table = self._checked()
        rows = np.arange(len(table))
        self.figure_, axes = panels(figure, 1, len(_PANELS), size=(3.0, 0.45 * len(table) + 1.3), sharex=False)
        self.axes_, self.points_ = axes[0], {}
        for ax, (label, metrics) in zip(self.axes_, _PANELS.items(), strict=True):
            for index, (metric, text) in enumerate(metrics.items()):
                (self.points_[metric],) = ax.plot(
                    table[metric].to_numpy(dtype=np.float64),
                    rows,
                    linestyle="none",
                    marker=MARKERS[index],
                    markersize=8.0 - 1.5 * index,  # equal values stay visible
                    color=COLORS[index],
                    label=text,
                    zorder=3,
                    clip_on=False,
                )
            ax.set_xlabel(label)
            ax.grid(axis="y", color=FAINT, alpha=0.3, linewidth=0.8)
            ax.tick_params(axis="y", length=0)
            ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False, fontsize="small")
        losses, shares, latents = self.axes_
        self.errors_ = losses.errorbar(
            table["kl_div_with_sae"], rows, xerr=table[_ERROR], fmt="none", ecolor=INK, linewidth=1.0, label="_error"
        )
        _scale_losses(losses, table[list(_PANELS[losses.get_xlabel()])].to_numpy(dtype=np.float64))
        for ax in (shares, latents):
            low, _ = ax.get_xlim()
            ax.set_xlim(min(low, 0.0), 1.0)
        losses.set_yticks(
            rows, labels=[_row_label(*each) for each in zip(table["dictionary"], table["l0"], strict=True)]
        )
        losses.set_ylim(len(table) - 0.5, -0.5)
        return self

    def _checked(self) -> pd.DataFrame:
        """Return the drawn columns of the table, with NumPy dtypes."""
        table = plain_table(self.table, "table", ["dictionary", *_COLUMNS], _COLUMNS)
        names = table["dictionary"].tolist()
        for name in names:
            if not isinstance(name, str) or names.count(name) > 1:
                raise ValueError(f"table has dictionary={shown(name)}; give each row a name of its own.")
        needed = [column for column in _COLUMNS if column not in _MAY_BE_NAN]
        check_points(table, needed, unique=["dictionary"], argument="table")
        return table[["dictionary", *_COLUMNS]].reset_index(drop=True)


def _scale_losses(ax: Axes, losses: np.ndarray) -> None:
    """Set a logarithmic scale if all losses are above 0, else a linear one from 0.

    Over two decades, a logarithmic axis has ticks at 1, 2 and 5 times the powers of ten, as plain numbers.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    if (losses > 0.0).all():
        ax.set_xscale("log")
        if losses.max() / losses.min() < _FEW_TICKS:
            ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.set_xlim(left=min(0.0, losses.min()))


def _row_label(name: Any, l0: float) -> str:
    """Write the name of a dictionary, if it has one, and its L0."""
    return f"{name}\nL0 = {l0:.3g}" if name != "" else f"L0 = {l0:.3g}"
