"""Floors of distilled students over width, beside predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from geofloor._validation import check_flag, check_object
from geofloor.displays._drawing import OneAxesMixin, check_scale, set_scale
from geofloor.displays._floor import FloorDisplay
from geofloor.displays._students import check_floors, tables_of
from geofloor.displays._style import INK, NATS, check_line_kwargs
from geofloor.displays._tables import predict_all, sorted_values, vectors_by_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class DistilledFloorsDisplay(OneAxesMixin):
    """Floors of distilled students over width, with standard errors, beside predictions (Figures 6, 17 and 18).

    Parameters
    ----------
    floors : DataFrame
        One row per student, with the columns width and floor; and perhaps seed, if a width has several, and
        floor_error, the standard error of the floor.
    predicted : mapping of str to array-like of shape (n_widths,), default=None
        Predicted floors by label, at the distinct student widths in ascending order; in the unit of the floors unless
        `normalized`.
    critical_widths : float or mapping of str to float, default=None
        Critical width d*, or one for each prediction by its label, drawn as a dotted vertical; see `FloorDisplay`.
    normalized : bool, default=False
        Whether to divide observed floors, and each prediction, by their own value at the narrowest width.
    unit : str, default="nats per token"
        Unit of the floors, for the label of the axis; refused with `normalized`.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure of the axes.
    line_ : matplotlib Line2D
        Observed floors, averaged over the seeds of each width.
    errorbars_ : matplotlib ErrorbarContainer
        One point per student, with a bar of one standard error where it is known.
    predicted_lines_ : dict of str to matplotlib Line2D
        Predicted floors.
    critical_lines_ : list of matplotlib Line2D
        Verticals at the critical widths within the axes.

    See Also
    --------
    DistilledFloorsDisplay.from_students : Take the floors of fitted students.
    DistilledFloorsDisplay.from_predictor : Predict the floors of a table and draw both.
    CalibrationDisplay : Observed over predicted floors.

    Examples
    --------
    >>> from geofloor.datasets import load_paper_tables
    >>> from geofloor.displays import DistilledFloorsDisplay
    >>> paper = load_paper_tables()
    >>> floors = paper.distillation[["width", "kl"]].rename(columns={"kl": "floor"})
    >>> predicted = {"Eq. 2": paper.predicted_floor["floor"]}
    >>> display = DistilledFloorsDisplay(floors=floors, predicted=predicted, normalized=True).plot()
    >>> display.line_.get_ydata().round(3), display.predicted_lines_["Eq. 2"].get_ydata().round(3)
    (array([1.   , 0.764, 0.555, 0.494, 0.444]), array([1.   , 0.503, 0.14 , 0.02 , 0.001]))
    """

    def __init__(
        self,
        *,
        floors: pd.DataFrame,
        predicted: Mapping[str, ArrayLike] | None = None,
        critical_widths: float | Mapping[str, float] | None = None,
        normalized: bool = False,
        unit: str = NATS,
    ) -> None:
        self.floors = floors
        self.predicted = predicted
        self.critical_widths = critical_widths
        self.normalized = normalized
        self.unit = unit

    @classmethod
    def from_students(
        cls,
        students: Iterable[Any],
        *,
        predictor: Any = None,
        critical_widths: float | Mapping[str, float] | None = None,
        normalized: bool = False,
        unit: str = NATS,
        scale: str = "linear",
        ax: Axes | None = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> DistilledFloorsDisplay:
        """Draw the floors of fitted students.

        Parameters
        ----------
        students : iterable of DistilledStudent
            Fitted, such as those of `distill_widths`.
        predictor : estimator, or mapping of str to estimators, default=None
            As in `from_predictor`; by default nothing is predicted.
        critical_widths : float or mapping of str to float, default=None
            As in `from_predictor`.
        normalized : bool, default=False
            Whether to divide observed floors, and each prediction, by their own value at the narrowest width.
        unit : str, default="nats per token"
            Unit of the floors; refused with `normalized`.
        scale : {"linear", "log"}, default="linear"
            Scale of the floors.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of the observed floors.

        Returns
        -------
        display : DistilledFloorsDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If there are no students, two have the same width and seed, or `scale` is unknown.
        """
        _, floors = tables_of(students, None)
        common: dict[str, Any] = {"critical_widths": critical_widths, "normalized": normalized, "unit": unit}
        drawing: dict[str, Any] = {"scale": scale, "ax": ax, "line_kwargs": line_kwargs}
        if predictor is None:
            return cls(floors=floors, **common).plot(**drawing)
        return cls.from_predictor(predictor, floors, **common, **drawing)

    @classmethod
    def from_predictor(
        cls,
        predictor: Any,
        floors: pd.DataFrame,
        *,
        critical_widths: float | Mapping[str, float] | None = None,
        normalized: bool = False,
        unit: str = NATS,
        scale: str = "linear",
        ax: Axes | None = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> DistilledFloorsDisplay:
        """Predict the floors of the students in a table and draw both.

        Parameters
        ----------
        predictor : estimator, or mapping of str to estimators
            Fitted, with a ``predict`` from widths to floors. Without `normalized` it must predict in the unit of the
            floors, as a pipeline of a frozen `FloorPredictor` and an `AffineCalibrator` does.
        floors : DataFrame
            One row per student, with the columns width and floor, and perhaps seed and floor_error.
        critical_widths : float or mapping of str to float, default=None
            Critical width d*, or one for each predictor by its label; by default their ``critical_width_``, where they
            have one.
        normalized : bool, default=False
            Whether to divide observed floors, and each prediction, by their own value at the narrowest width.
        unit : str, default="nats per token"
            Unit of the floors; refused with `normalized`.
        scale : {"linear", "log"}, default="linear"
            Scale of the floors.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of the observed floors.

        Returns
        -------
        display : DistilledFloorsDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the table is empty, lacks a column, has a student twice or a floor that is not finite; if a floor to
            normalize by is not above zero; if critical widths have other labels than the predictions; or if `scale` is
            unknown.
        """
        widths = np.asarray(sorted_values(check_floors(floors), "width"))
        predicted, critical = predict_all(predictor, widths, default="predicted")
        if critical_widths is None:
            critical_widths = critical or None
        display = cls(
            floors=floors, predicted=predicted, critical_widths=critical_widths, normalized=normalized, unit=unit
        )
        return display.plot(ax=ax, scale=scale, line_kwargs=line_kwargs)

    def frame(self) -> pd.DataFrame:
        """Return the data behind the figure.

        Returns
        -------
        frame : DataFrame
            One row per point, with the columns

            - ``source``: ``"student"``, ``"mean"`` (over the seeds of a width) or ``"predicted"``;
            - ``label``: label of the prediction, empty elsewhere;
            - ``width``: student width, in dimensions;
            - ``seed``: seed of the student, NaN elsewhere;
            - ``floor``: floor, in `unit`, or relative to the narrowest width if `normalized`;
            - ``floor_error``: standard error of the floor, in the same unit; NaN where it is not known.
        """
        students, means, predicted = self._checked()
        frames = [
            students.assign(source="student", label=""),
            pd.DataFrame({"source": "mean", "label": "", "width": means.index, "floor": means.to_numpy()}),
            *(
                pd.DataFrame({"source": "predicted", "label": label, "width": means.index, "floor": values})
                for label, values in predicted.items()
            ),
        ]
        names = ["source", "label", "width", "seed", "floor", "floor_error"]
        return pd.concat(frames, ignore_index=True).reindex(columns=names)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        scale: str = "linear",
        line_kwargs: dict[str, Any] | None = None,
    ) -> DistilledFloorsDisplay:
        """Draw observed and predicted floors, and the critical widths.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        scale : {"linear", "log"}, default="linear"
            Scale of the floors. Floors of zero cannot be drawn on a logarithmic scale.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of the observed floors.

        Returns
        -------
        self : DistilledFloorsDisplay
            The display.

        Raises
        ------
        ValueError
            If the table is empty, lacks a column, has a student twice or a floor that is not finite; if a floor to
            normalize by is not above zero; if predictions have another number of widths; if critical widths have other
            labels than the predictions; or if `scale` is unknown.
        """
        check_scale(scale)
        style: dict[str, Any] = {"color": INK, "linewidth": 1.6, **check_line_kwargs(line_kwargs)}
        students, means, predicted = self._checked()
        widths, observed = means.index.to_numpy(), means.to_numpy()
        critical = self.critical_widths
        if predicted and critical is not None and not isinstance(critical, Mapping):
            critical = dict.fromkeys(list(predicted)[:1], critical)
        display = FloorDisplay(widths=widths, floors=predicted or observed, critical_widths=critical)
        display.plot(ax=ax, line_kwargs={"marker": None, **({} if predicted else style)})
        self.ax_, self.figure_ = display.ax_, display.figure_
        self.critical_lines_ = display.critical_lines_
        self.predicted_lines_ = dict(zip(predicted, display.lines_, strict=False))
        mean = {"label": "_mean", **style}
        self.line_ = self.ax_.plot(widths, observed, **mean)[0] if predicted else display.lines_[0]
        self.errorbars_ = self.ax_.errorbar(
            students["width"].to_numpy(),
            students["floor"].to_numpy(),
            yerr=students["floor_error"].to_numpy(dtype=np.float64) if "floor_error" in students.columns else None,
            fmt="o",
            markersize=5.5,
            markerfacecolor="white",
            color=INK,
            capsize=2.5,
            zorder=4,
            label="observed",
        )
        if predicted:
            # White, because verticals run behind the legend.
            self.ax_.legend(facecolor="white", edgecolor="none", framealpha=0.85, fontsize="small")
        self.ax_.set_ylabel(f"floor (relative to d = {widths[0]:g})" if self.normalized else f"floor ({self.unit})")
        set_scale(self.ax_, scale, from_zero=True)
        return self

    def _checked(self) -> tuple[pd.DataFrame, pd.Series, dict[str, np.ndarray]]:
        """Return floors of the students, their means by width and the predictions, normalized if asked for."""
        if check_flag("normalized", self.normalized) and isinstance(self.unit, str) and self.unit != NATS:
            raise ValueError(f"unit={self.unit!r} counts only without normalized=True; leave it out.")
        students = check_floors(self.floors)
        means = students.groupby("width")["floor"].mean().sort_index()
        names = [name for name in ("width", "seed", "floor", "floor_error") if name in students.columns]
        unit = self._divisor(means.iloc[0], "observed")
        scaled = {name: students[name] / unit for name in names if name.startswith("floor")}
        if self.predicted is not None:
            check_object("predicted", self.predicted, Mapping, "give a dict of predicted floors by label")
        predicted = vectors_by_label(self.predicted, "predicted") if self.predicted else {}
        for label, each in predicted.items():
            if len(each) != len(means):
                raise ValueError(f"predicted[{label!r}] has {len(each)} values for {len(means)} widths; give one each.")
            predicted[label] = each / self._divisor(each[0], label)
        return students[names].assign(**scaled), means / unit, predicted

    def _divisor(self, narrowest: float, label: str) -> float:
        """Return the divisor of a curve, given its floor at the narrowest width."""
        if not self.normalized:
            return 1.0
        if not narrowest > 0:
            raise ValueError(
                f"normalized=True divides by the {label} floor of the narrowest width, which is {narrowest:g}; "
                "it must be above 0."
            )
        return float(narrowest)
