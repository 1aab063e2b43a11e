"""Scores of single-feature probes over importance rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geofloor._validation import check_choice, check_flag, check_number
from geofloor.displays._drawing import OneAxesMixin, legend_beside
from geofloor.displays._style import DASHES, FAINT, INK, WIDTH_COLORMAP, check_line_kwargs, key, ramp
from geofloor.displays._tables import check_counts, check_predictor, check_reference, plain_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_BINS = 100_000  # of ranks
# Name of each score, and its value for a probe without information.
_SCORES = {"r2": ("R² of a linear probe", 0.0), "auc": ("area under the ROC curve of firing", 0.5)}


class FeatureStaircaseDisplay(OneAxesMixin):
    """Scores of single-feature probes over importance rank, one curve per model, with the counts kept by Eq. 2.

    Parameters
    ----------
    curves : DataFrame
        One row per model and bin of ranks, with the columns model, width, rank (the middle of the bin) and `score`,
        and with `band` also low and high (the quartiles of the features in the bin).
    score : {"r2", "auc"}, default="r2"
        Column of `curves`: R² of a feature's activation, or area under the ROC curve of its firing.
    kept : mapping of int to float, default=None
        Predicted number of kept features F_S at each width, drawn as dotted verticals.
    statistic : str, default="median"
        Statistic of the scores in a bin, for the label.
    band : bool, default=False
        Whether to shade the band between the quartiles.
    reference : str or None, default=None
        Model drawn in black, such as the teacher.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on. The x axis is logarithmic.
    figure_ : matplotlib Figure
        Figure of the axes.
    lines_ : dict of str to matplotlib Line2D
        Curve of each model.
    bands_ : dict of str to matplotlib PolyCollection
        Band of each model; empty without `band`.
    kept_lines_ : dict of int to matplotlib Line2D
        Vertical of each width.

    See Also
    --------
    FeatureStaircaseDisplay.from_table : Bin the table of `feature_probes` and draw it.
    geofloor.probing.feature_probes : Measures R² of each feature.

    Notes
    -----
    The theory predicts a step at F_S: features to its left are kept and those to its right are lost. A linear probe
    sees less than a student can use: see `feature_probes`. The y axis starts at −0.5 or above for R², and at
    0.5 (chance) or below for areas.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from geofloor.displays import FeatureStaircaseDisplay
    >>> rank = np.arange(1, 101)
    >>> table = pd.DataFrame({"width": 16, "rank": rank, "r2": (rank <= 50) * 0.9})
    >>> display = FeatureStaircaseDisplay.from_table(table, kept={16: 50})
    >>> display.lines_["d = 16"].get_ydata()[[0, -1]]
    array([0.9, 0. ])
    """

    def __init__(
        self,
        *,
        curves: pd.DataFrame,
        score: str = "r2",
        kept: Mapping[int, float] | None = None,
        statistic: str = "median",
        band: bool = False,
        reference: str | None = None,
    ) -> None:
        self.curves = curves
        self.score = score
        self.kept = kept
        self.statistic = statistic
        self.band = band
        self.reference = reference

    @classmethod
    def from_table(
        cls,
        table: pd.DataFrame,
        *,
        score: str = "r2",
        kept: Mapping[int, float] | None = None,
        predictor: Any = None,
        n_bins: int = 30,
        statistic: str = "median",
        band: bool = False,
        reference: str | None = None,
        ax: Axes | None = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> FeatureStaircaseDisplay:
        """Summarize scores in bins of ranks, and draw one curve per model.

        Parameters
        ----------
        table : DataFrame
            One row per feature and model, with the columns width, rank and `score`, and perhaps model, the name of the
            curve, as from `feature_probes`. Rows with a score of NaN are left out.
        score : {"r2", "auc"}, default="r2"
            Score to draw.
        kept : mapping of int to float, default=None
            Predicted number of kept features F_S at each width.
        predictor : FloorPredictor, default=None
            Predicts `kept` for the widths in the table except the width of the reference.
        n_bins : int, default=30
            Number of bins of ranks. They are about equally wide on the logarithmic axis, but no narrower than one rank.
        statistic : {"median", "mean"}, default="median"
            Statistic of the scores in a bin. R² of rare features has a long tail below zero, which pulls the mean down.
        band : bool, default=False
            Whether to shade the band between the quartiles of each bin.
        reference : str or None, default=None
            Model drawn in black, such as the teacher.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of every curve.

        Returns
        -------
        display : FeatureStaircaseDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the table has no row with a score, lacks a column, has ranks below 1, or a model has several widths or a
            rank twice; if `kept` and `predictor` are both given; if a parameter or the reference is unknown.
        """
        check_choice("score", score, tuple(_SCORES))
        table = plain_table(table, "table", ["width", "rank", score], ["width", "rank", score])
        if predictor is not None:
            check_predictor("predictor", predictor, "kept_features")
        if kept is not None and predictor is not None:
            raise ValueError("kept and predictor say the same; give one of them.")
        check_choice("statistic", statistic, ("median", "mean"))
        n_bins = check_number("n_bins", n_bins, 1, _MOST_BINS, whole=True)
        points = table[np.isfinite(table[score].to_numpy())]
        if points.empty or not (points["rank"] >= 1).all():
            raise ValueError(f"table has no row with a finite {score}, or ranks below 1; see feature_probes.")
        if "model" not in points.columns:
            points = points.assign(model=[f"d = {width:g}" for width in points["width"]])
        n_models = len(points.drop_duplicates("model"))
        if points.duplicated(["model", "rank"]).any() or len(points.drop_duplicates(["model", "width"])) > n_models:
            raise ValueError("table has a model with a rank twice or with several widths; name the models apart.")
        check_reference(reference, points["model"])
        if predictor is not None:
            widths = points.loc[points["model"] != reference, "width"].unique()
            kept = dict(zip(widths.tolist(), predictor.kept_features(widths).tolist(), strict=True))
        curves = _binned(points, score, n_bins, statistic)
        display = cls(curves=curves, score=score, kept=kept, statistic=statistic, band=band, reference=reference)
        return display.plot(ax=ax, line_kwargs=line_kwargs)

    def frame(self) -> pd.DataFrame:
        """Return the data behind the figure.

        Returns
        -------
        frame : DataFrame
            One row per model and bin, with the columns

            - ``model``: name of the curve;
            - ``width``: width of the model, in dimensions;
            - ``rank``: importance rank in the middle of the bin, from 1;
            - `score`: statistic of the scores in the bin;
            - ``low``, ``high``: ends of the band, with `band`;
            - ``n_kept``: predicted number of kept features at the width; NaN where none is given.
        """
        curves, kept = self._checked()
        names = ["model", "width", "rank", self.score, *(("low", "high") if self.band else ())]
        n_kept = [
            np.nan if model == self.reference else kept.get(width, np.nan)
            for model, width in zip(curves["model"], curves["width"], strict=True)
        ]
        return curves[names].reset_index(drop=True).assign(n_kept=n_kept)

    def plot(self, ax: Axes | None = None, *, line_kwargs: dict[str, Any] | None = None) -> FeatureStaircaseDisplay:
        """Draw the curves and the verticals.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of every curve.

        Returns
        -------
        self : FeatureStaircaseDisplay
            The display.

        Raises
        ------
        ValueError
            If `curves` is empty or lacks a column, or a parameter or the reference is unknown.
        """
        line_kwargs = check_line_kwargs(line_kwargs)
        curves, kept = self._checked()
        reference = self.reference
        ax = self._start(ax)
        self.lines_, self.bands_, self.kept_lines_ = {}, {}, {}
        width_of = curves.groupby("model", sort=False)["width"].first()
        widths = sorted({*(width for model, width in width_of.items() if model != reference), *kept})
        colors = ramp(widths, WIDTH_COLORMAP)
        last = max(float(curves["rank"].max()), 2.0)
        name, chance = _SCORES[self.score]
        ax.axhline(chance, color=FAINT, linewidth=1.0, zorder=1)
        for model, curve in curves.groupby("model", sort=False):
            ranks, is_reference = curve["rank"].to_numpy(), model == reference
            style = {
                "color": INK if is_reference else colors[width_of[model]],
                "linewidth": 1.6,
                "linestyle": DASHES[1] if is_reference else "-",
                "label": str(model)
                if is_reference or width_of[model] not in kept
                else f"{model}, F_S = {kept[width_of[model]]:,.0f}",
                **line_kwargs,
            }
            (self.lines_[model],) = ax.plot(ranks, curve[self.score].to_numpy(), **style)
            if self.band:
                self.bands_[model] = ax.fill_between(
                    ranks,
                    curve["low"].to_numpy(),
                    curve["high"].to_numpy(),
                    color=style["color"],
                    alpha=0.15,
                    linewidth=0,
                )
        for width, count in kept.items():
            if 1 <= count <= last:
                self.kept_lines_[width] = ax.axvline(count, color=colors[width], linestyle=":", linewidth=1.4, zorder=1)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xlim(curves["rank"].min(), last)
        low = min(float(curves[self.score].min()), chance)
        ax.set_ylim(max(low - 0.03, -0.5), 1.02)
        ax.set(xlabel="importance rank of the feature", ylabel=f"{name} ({self.statistic} in rank bins)")
        handles = list(self.lines_.values())
        if self.kept_lines_:
            handles.append(key("predicted F_S", color=FAINT, linestyle=":", linewidth=1.4))
        legend_beside(ax, handles)
        return self

    def _checked(self) -> tuple[pd.DataFrame, dict[float, float]]:
        """Return the curves and the kept features by width."""
        check_choice("score", self.score, tuple(_SCORES))
        check_flag("band", self.band)
        numeric = ["width", "rank", self.score, *(("low", "high") if self.band else ())]
        curves = plain_table(self.curves, "curves", ["model", *numeric], numeric)
        if curves.empty:
            raise ValueError("curves has no rows; give one for each bin and model.")
        check_reference(self.reference, curves["model"])
        return curves, check_counts(self.kept)


def _binned(points: pd.DataFrame, score: str, n_bins: int, statistic: str) -> pd.DataFrame:
    """Summarize the scores of each model in bins of about equal width in the logarithm of the rank."""
    edges = np.unique(np.rint(np.geomspace(1, points["rank"].max() + 1, n_bins + 1)))
    bins = np.searchsorted(edges, points["rank"].to_numpy(), side="right")
    grouped = points.groupby(["model", "width", bins], sort=False)
    curves = pd.DataFrame(
        {
            "rank": grouped["rank"].agg(lambda ranks: float(np.exp(np.log(ranks).mean()))),
            score: grouped[score].agg(statistic),
            "low": grouped[score].quantile(0.25),
            "high": grouped[score].quantile(0.75),
        }
    )
    in_order = curves.reset_index(level=["model", "width"])
    places = {model: place for place, model in enumerate(points["model"].unique())}
    return (
        in_order.assign(_place=in_order["model"].map(places))
        .sort_values(["_place", "rank"], ignore_index=True)
        .drop(columns="_place")
    )
