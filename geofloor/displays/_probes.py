"""Linear probes: accuracies by concept and model, and R² of single features over their importance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geofloor._validation import check_choice, check_flag, check_number, check_object, shown
from geofloor.displays._style import (
    DASHES,
    FAINT,
    INK,
    WIDTH_COLORMAP,
    axes_or_new,
    check_predictor,
    is_among,
    key,
    plain_table,
    ramp,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_BINS = 100_000  # of ranks
_LARGEST_CHANGE = 5.0  # percentage points that the colours of changes reach at least


class ProbeHeatmapDisplay:
    r"""Accuracy of linear probes by concept and model, with the change against the teacher (Figure 8 of the paper).

    Parameters
    ----------
    accuracies : DataFrame of shape (n_concepts, n_models)
        Accuracies between 0 and 1, with concepts as index and models as columns; NaN where there is none.
    changes : DataFrame of shape (n_concepts, n_models), default=None
        Changes against the reference, in the same order; NaN where nothing is to be written.
    p_values : DataFrame of shape (n_concepts, n_models), default=None
        Of tests that the change is none, in the same order.
    level : float, default=0.05
        Changes with a p-value below this are marked with a star.
    colors : {"accuracy", "change"}, default="accuracy"
        What the colours show; the numbers are the same.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure of the axes.
    image_ : matplotlib AxesImage
        The heat map, in per cent or percentage points.
    texts_ : ndarray of shape (n_concepts, n_models) of matplotlib Text
        The numbers in the cells.
    colorbar_ : matplotlib Colorbar
        Scale of the colours. For accuracies it starts at 50%, or at the lowest one below.

    See Also
    --------
    ProbeHeatmapDisplay.from_table : Arrange a probe table and draw it.
    geofloor.probing.probe_table : Makes the table.

    Examples
    --------
    >>> from geofloor.datasets import load_paper_tables
    >>> from geofloor.displays import ProbeHeatmapDisplay
    >>> probes = load_paper_tables().probes
    >>> probes["model"] += " " + probes["width"].astype(str)
    >>> probes["accuracy"] = probes["accuracy_percent"] / 100
    >>> display = ProbeHeatmapDisplay.from_table(probes, reference="teacher 1024")
    >>> display.texts_[0, 3].get_text()
    '75.0\n+1.0'
    """

    def __init__(
        self,
        *,
        accuracies: pd.DataFrame,
        changes: pd.DataFrame | None = None,
        p_values: pd.DataFrame | None = None,
        level: float = 0.05,
        colors: str = "accuracy",
    ) -> None:
        self.accuracies = accuracies
        self.changes = changes
        self.p_values = p_values
        self.level = level
        self.colors = colors

    @classmethod
    def from_table(
        cls,
        table: pd.DataFrame,
        *,
        reference: str | None = "teacher",
        level: float = 0.05,
        colors: str = "accuracy",
        ax: Axes | None = None,
    ) -> ProbeHeatmapDisplay:
        """Arrange a probe table by concept and model, and draw it.

        Parameters
        ----------
        table : DataFrame
            One row a concept and model, with the columns concept, model and accuracy, between 0 and 1, and
            perhaps p_value. Concepts and models keep their order.
        reference : str or None, default="teacher"
            The model that changes are taken against; None writes none.
        level : float, default=0.05
            Changes with a p-value below this are marked with a star. It is the level of each test on its
            own: of twenty without a change, one is marked.
        colors : {"accuracy", "change"}, default="accuracy"
            What the colours show.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        display : ProbeHeatmapDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the table is empty, lacks a column, has a concept and model twice or an accuracy outside
            [0, 1], the reference is not among its models or lacks a concept, or `colors` is unknown.
        """
        check_object("table", table, pd.DataFrame, "give what probe_table returned")
        p_value = [name for name in ("p_value",) if name in table.columns]
        table = plain_table(table, "table", ["concept", "model", "accuracy"], ["accuracy", *p_value])
        if table.empty:
            raise ValueError("table has no rows; see probe_table.")
        if not table["accuracy"].between(0.0, 1.0).all():
            raise ValueError("table['accuracy'] has values outside [0, 1]; give shares, not per cent.")
        if table.duplicated(["concept", "model"]).any():
            raise ValueError("table has a concept and model twice; give one row each.")
        if not (reference is None or is_among(reference, table["model"])):
            raise ValueError(
                f"reference={shown(reference)} is not among the models {table['model'].unique().tolist()}."
            )

        def arranged(column: str) -> pd.DataFrame:
            wide = table.set_index(["concept", "model"])[column].unstack()  # noqa: PD010
            return wide.reindex(index=table["concept"].unique(), columns=table["model"].unique())

        accuracies = arranged("accuracy")
        changes = p_values = None
        if reference is not None:
            if accuracies[reference].isna().any():
                raise ValueError(f"table has no accuracy of the reference {reference!r} for some concept; add it.")
            changes = accuracies.sub(accuracies[reference], axis=0)
            changes[reference] = np.nan
            p_values = arranged("p_value") if "p_value" in table.columns else None
        return cls(accuracies=accuracies, changes=changes, p_values=p_values, level=level, colors=colors).plot(ax=ax)

    def plot(self, ax: Axes | None = None) -> ProbeHeatmapDisplay:
        """Draw the heat map, with the numbers in its cells.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        self : ProbeHeatmapDisplay
            The display.

        Raises
        ------
        ValueError
            If `colors` is unknown, or "change" without changes.
        """
        import matplotlib.pyplot as plt

        level = check_number("level", self.level, 0, 1)
        accuracies = _numbers(self.accuracies, "accuracies")
        if not accuracies.size:
            raise ValueError("accuracies is empty; give at least one concept and model.")
        changes = None if self.changes is None else _numbers(self.changes, "changes", accuracies.shape)
        p_values = None if self.p_values is None else _numbers(self.p_values, "p_values", accuracies.shape)
        percent, points = 100.0 * accuracies, None if changes is None else 100.0 * changes
        written = np.full_like(percent, np.nan) if points is None else points
        starred = np.zeros(percent.shape, dtype=bool)
        if p_values is not None:
            starred = p_values < level
        shown, colormap, scale, label = self._colors(percent, points)
        n_rows, n_columns = percent.shape
        if ax is None:
            size = (1.9 + 0.85 * n_columns + 0.9, 0.9 + 0.48 * n_rows)
            _, ax = plt.subplots(figsize=size, layout="constrained")
        self.ax_ = axes_or_new(ax)
        self.figure_ = self.ax_.figure
        self.image_ = self.ax_.imshow(shown, cmap=colormap, norm=scale, aspect="auto")
        self.texts_ = np.empty(percent.shape, dtype=object)
        for (row, column), value in np.ndenumerate(shown):
            red, green, blue = colormap(scale(value))[:3] if np.isfinite(value) else (1.0, 1.0, 1.0)
            self.texts_[row, column] = self.ax_.text(
                column,
                row,
                _cell(float(percent[row, column]), float(written[row, column]), bool(starred[row, column])),
                ha="center",
                va="center",
                fontsize="small",
                linespacing=1.15,
                color=INK if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white",
            )
        self.ax_.set_xticks(
            range(n_columns), labels=[str(name).replace(" ", "\n", 1) for name in self.accuracies.columns]
        )
        self.ax_.set_yticks(range(n_rows), labels=[str(name).replace("_", " ") for name in self.accuracies.index])
        self.ax_.set_xticks(np.arange(0.5, n_columns - 1), minor=True)
        self.ax_.set_yticks(np.arange(0.5, n_rows - 1), minor=True)
        self.ax_.grid(which="minor", color="white", linewidth=1.5)
        self.ax_.tick_params(which="both", length=0)
        self.ax_.spines[:].set_visible(False)
        self.ax_.set(xlabel="model", ylabel="concept")
        self.colorbar_ = self.figure_.colorbar(self.image_, ax=self.ax_, label=label)
        self.colorbar_.outline.set_visible(False)
        return self

    def _colors(self, percent: np.ndarray, points: np.ndarray | None) -> tuple[np.ndarray, Any, Any, str]:
        import matplotlib as mpl

        if check_choice("colors", self.colors, ("accuracy", "change")) == "accuracy":
            lowest = min(50.0, float(np.nanmin(percent, initial=50.0)))
            colormap = mpl.colormaps["cividis"].with_extremes(bad="#e8e8e8")
            return percent, colormap, mpl.colors.Normalize(lowest, 100.0), "accuracy (%)"
        if points is None:
            raise ValueError("colors='change' needs changes; give a reference, or colors='accuracy'.")
        most = float(np.nanmax(np.abs(points), initial=_LARGEST_CHANGE))
        colormap = mpl.colormaps["RdBu"].with_extremes(bad="#e8e8e8")
        return points, colormap, mpl.colors.Normalize(-most, most), "change (percentage points)"


def _numbers(table: Any, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    check_object(name, table, pd.DataFrame, "give a DataFrame of concepts and models")
    numbers = plain_table(table, name, [], list(table.columns)).to_numpy(dtype=np.float64)
    if shape is not None and numbers.shape != shape:
        raise ValueError(f"{name} has shape {numbers.shape} for accuracies of {shape}; give one for each.")
    return numbers


def _cell(accuracy: float, change: float, starred: bool) -> str:
    if np.isnan(accuracy):
        return "–"
    lines = [f"{accuracy:.1f}"]
    if np.isfinite(change):
        lines.append(f"{change:+.1f}".replace("-", "−") + ("*" if starred else ""))
    return "\n".join(lines)


class FeatureStaircaseDisplay:
    """Scores of single-feature probes over importance rank, a curve a width, beside the features that Eq. 2 keeps.

    Parameters
    ----------
    curves : DataFrame
        One row a bin of ranks and model, with the columns model, width, rank (the middle of the bin),
        the score, low and high (the middle half of the features in it).
    score : {"r2", "auc"}, default="r2"
        R² of a feature's activation, or the area under the ROC curve of its firing, by which column of `curves`.
    kept : mapping of int to float, default=None
        Predicted number of kept features F_S at each width, drawn as dotted verticals.
    statistic : str, default="median"
        What the score is of the features in a bin, for the label.
    band : bool, default=False
        Whether to shade the middle half of the features.
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
        Bands, if asked for.
    kept_lines_ : dict of int to matplotlib Line2D
        Vertical of each width.

    See Also
    --------
    FeatureStaircaseDisplay.from_table : Bin the table of `feature_probes` and draw it.
    geofloor.probing.feature_probes : Measures R² of each feature.

    Notes
    -----
    The theory has a step at F_S: features to its left are kept and those to its right are lost. A linear
    probe sees less than a student can use: see `feature_probes`. The y axis of R² ends at −0.5, that of areas at 0.5,
    which is chance, or below.

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
    ) -> FeatureStaircaseDisplay:
        """Summarise scores in bins of ranks, and draw a curve for each model.

        Parameters
        ----------
        table : DataFrame
            One row a feature and model, with the columns width, rank and the score, and perhaps model, by which
            the curves are named, as from `feature_probes`. Rows whose score is NaN are left out.
        score : {"r2", "auc"}, default="r2"
            What is drawn.
        kept : mapping of int to float, default=None
            Predicted number of kept features F_S at each width.
        predictor : FloorPredictor, default=None
            Predicts `kept` for the widths in the table, all but that of the reference.
        n_bins : int, default=30
            Bins of ranks, about equally wide on the logarithmic axis; single ranks where these are wider.
        statistic : {"median", "mean"}, default="median"
            What is drawn of the features in a bin. R² of rare features has a long tail below zero, which
            the mean follows.
        band : bool, default=False
            Whether to shade the middle half of the features in each bin.
        reference : str or None, default=None
            Model drawn in black, such as the teacher.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        display : FeatureStaircaseDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the table has no row with a score, lacks a column, has ranks below 1, or a model has several
            widths or a rank twice; if `kept` and `predictor` are both given; if a parameter or the
            reference is unknown.
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
        if points.duplicated(["model", "rank"]).any() or len(points.drop_duplicates(["model", "width"])) > len(
            points.drop_duplicates("model")
        ):
            raise ValueError("table has a model with a rank twice or with several widths; name the models apart.")
        if not (reference is None or is_among(reference, points["model"])):
            raise ValueError(
                f"reference={shown(reference)} is not among the models {points['model'].unique().tolist()}."
            )
        if predictor is not None:
            widths = points.loc[points["model"] != reference, "width"].unique()
            kept = dict(zip(widths.tolist(), predictor.kept_features(widths).tolist(), strict=True))
        curves = _binned(points, score, n_bins, statistic)
        display = cls(curves=curves, score=score, kept=kept, statistic=statistic, band=band, reference=reference)
        return display.plot(ax=ax)

    def plot(self, ax: Axes | None = None) -> FeatureStaircaseDisplay:
        """Draw the curves and the verticals.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        self : FeatureStaircaseDisplay
            The display.
        """
        check_choice("score", self.score, tuple(_SCORES))
        check_flag("band", self.band)
        numeric = ["width", "rank", self.score, *(("low", "high") if self.band else ())]
        if plain_table(self.curves, "curves", ["model", *numeric], numeric).empty:
            raise ValueError("curves has no rows; give one for each bin and model.")
        kept = check_object("kept", {} if self.kept is None else self.kept, Mapping, "give a dict of counts by width")
        kept = {check_number("kept: width", width, 0): check_number("kept", count, 0) for width, count in kept.items()}
        reference = self.reference
        if not (reference is None or is_among(reference, self.curves["model"])):
            raise ValueError(
                f"reference={shown(reference)} is not among the models {self.curves['model'].unique().tolist()}."
            )
        self.ax_ = axes_or_new(ax)
        self.figure_ = self.ax_.figure
        self.lines_, self.bands_, self.kept_lines_ = {}, {}, {}
        of_model = self.curves.groupby("model", sort=False)["width"].first()
        colors = ramp(
            sorted({*(width for model, width in of_model.items() if model != reference), *kept}), WIDTH_COLORMAP
        )
        last = max(float(self.curves["rank"].max()), 2.0)
        name, nothing = _SCORES[self.score]
        self.ax_.axhline(nothing, color=FAINT, linewidth=1.0, zorder=1)
        for model, curve in self.curves.groupby("model", sort=False):
            is_reference = model == reference
            color = INK if is_reference else colors[of_model[model]]
            (self.lines_[model],) = self.ax_.plot(
                curve["rank"].to_numpy(),
                curve[self.score].to_numpy(),
                color=color,
                linewidth=1.6,
                linestyle=DASHES[1] if is_reference else "-",
                label=self._label(model, of_model[model]),
            )
            if self.band:
                self.bands_[model] = self.ax_.fill_between(
                    curve["rank"].to_numpy(),
                    curve["low"].to_numpy(),
                    curve["high"].to_numpy(),
                    color=color,
                    alpha=0.15,
                    linewidth=0,
                )
        for width, count in kept.items():
            if 1 <= count <= last:
                self.kept_lines_[width] = self.ax_.axvline(
                    count, color=colors[width], linestyle=":", linewidth=1.4, zorder=1
                )
        self.ax_.set_xscale("log")
        self.ax_.xaxis.set_major_formatter("{x:g}")
        self.ax_.set_xlim(self.curves["rank"].min(), last)
        low = min(float(self.curves[self.score].min()), nothing)
        self.ax_.set_ylim(max(low - 0.03, -0.5), 1.02)
        self.ax_.set(xlabel="importance rank of the feature", ylabel=f"{name} ({self.statistic} in rank bins)")
        handles = list(self.lines_.values())
        if self.kept_lines_:
            handles.append(key("predicted F_S", color=FAINT, linestyle=":", linewidth=1.4))
        self.ax_.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize="small")
        return self

    def _label(self, model: Any, width: int) -> str:
        if model == self.reference or width not in (self.kept or {}):
            return str(model)
        return f"{model}, F_S = {(self.kept or {})[width]:,.0f}"


# What each score is called, and what it is where a probe knows nothing.
_SCORES = {"r2": ("R² of a linear probe", 0.0), "auc": ("area under the ROC curve of firing", 0.5)}


def _binned(points: pd.DataFrame, score: str, n_bins: int, statistic: str) -> pd.DataFrame:
    """Scores of each model in bins of about equal width in the logarithm of the rank."""
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
