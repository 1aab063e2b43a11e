"""Figures of distilled students: learning curves, and floors over width beside predicted ones.

All take two tables. One has a row for each student, with the columns width and floor, and perhaps seed and
floor_error; the other, the history, a row for each evaluation, with width, step, a loss, and perhaps seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from geofloor._validation import check_choice, check_flag, check_iterable, check_object, shown
from geofloor.displays._floors import FloorDisplay
from geofloor.displays._style import (
    COLORS,
    DASHES,
    FAINT,
    INK,
    WIDTH_COLORMAP,
    axes_or_new,
    check_figure,
    check_line_kwargs,
    check_predictor,
    key,
    numbers_of,
    panels,
    ramp,
)
from geofloor.displays._sweeps import _checked, _values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_NATS = "nats per token"
_LOSS_LABELS = {"eval_kl": "evaluation KL", "train_kl": "training KL"}
_STUDENT = ["width", "seed"]


class DistillationDisplay:
    """Loss over training step, a curve a student, with their floors (Figures 6, 16 and 18 of the paper).

    Several seeds of a single width are compared: each has a colour of its own, and the legend says by how much their
    floors differ.

    Parameters
    ----------
    history : DataFrame
        One row an evaluation of a student, with the columns width, step and that of `loss`, and seed where a width
        has several.
    floors : DataFrame, default=None
        One row a student, with the columns width and floor, and seed as in `history`. Drawn as dashed horizontals.
    loss : str, default="eval_kl"
        Column of the losses.
    unit : str, default="nats per token"
        Unit of losses and floors, for the label of the axis.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure of the axes.
    lines_ : dict of (int, int) to matplotlib Line2D
        Curve of each width and seed, where there are no seeds with seed 0.
    floor_lines_ : dict of (int, int) to matplotlib Line2D
        Their floors.
    difference_ : float or None
        How far the floors of several seeds of a single width lie from that of the first, in per cent of it; the
        farthest, if there are more than two. None where nothing is compared.

    See Also
    --------
    DistillationDisplay.from_students : Take the histories of fitted students.
    DistillationDisplay.from_history : Check a table and draw it.
    DistilledFloorsDisplay : The floors over width.

    Examples
    --------
    >>> import pandas as pd
    >>> from geofloor.displays import DistillationDisplay
    >>> history = pd.DataFrame({"width": 128, "seed": [0, 0, 1, 1], "step": [0, 100] * 2,
    ...                         "eval_kl": [1.9, 0.3, 1.8, 0.4]})
    >>> floors = pd.DataFrame({"width": 128, "seed": [0, 1], "floor": [0.25, 0.24]})
    >>> display = DistillationDisplay.from_history(history, floors=floors)
    >>> display.lines_[128, 1].get_ydata(), round(display.difference_, 2)
    (array([1.8, 0.4]), 4.0)
    """

    def __init__(
        self,
        *,
        history: pd.DataFrame,
        floors: pd.DataFrame | None = None,
        loss: str = "eval_kl",
        unit: str = _NATS,
    ) -> None:
        self.history = history
        self.floors = floors
        self.loss = loss
        self.unit = unit

    @classmethod
    def from_students(
        cls,
        students: Iterable[Any],
        *,
        loss: str = "eval_kl",
        unit: str = _NATS,
        scale: str = "linear",
        ax: Axes | None = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> DistillationDisplay:
        """Draw what fitted students recorded while they were trained.

        Parameters
        ----------
        students : iterable of DistilledStudent
            Fitted, such as those of `distill_widths`. Seeds are their ``random_state``, or are counted where it is
            not a number.
        loss : {"eval_kl", "train_kl"}, default="eval_kl"
            What to draw of their histories. Students of toy models have a ``"loss"``.
        unit : str, default="nats per token"
            Unit of losses and floors.
        scale : {"linear", "log"}, default="linear"
            Scale of the losses.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of every curve.

        Returns
        -------
        display : DistillationDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If there are no students, two have the same width and seed, or a history has no such loss.
        """
        history, floors = _tables(students, loss)
        return cls.from_history(
            history, floors=floors, loss=loss, unit=unit, scale=scale, ax=ax, line_kwargs=line_kwargs
        )

    @classmethod
    def from_history(
        cls,
        history: pd.DataFrame,
        *,
        floors: pd.DataFrame | None = None,
        loss: str = "eval_kl",
        unit: str = _NATS,
        scale: str = "linear",
        ax: Axes | None = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> DistillationDisplay:
        """Check the tables and draw them.

        Parameters
        ----------
        history : DataFrame
            One row an evaluation of a student, with the columns width, step and that of `loss`, and seed where a
            width has several.
        floors : DataFrame, default=None
            One row a student, with the columns width and floor, and seed as in `history`.
        loss : str, default="eval_kl"
            Column of the losses.
        unit : str, default="nats per token"
            Unit of losses and floors.
        scale : {"linear", "log"}, default="linear"
            Scale of the losses.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of every curve.

        Returns
        -------
        display : DistillationDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If a table is empty, lacks a column, has a row twice or a value that is not finite, `floors` has a student
            that `history` has not, or `scale` is unknown.
        """
        _check_scale(scale)
        history, floors = _checked_tables(history, floors, loss)
        return cls(history=history, floors=floors, loss=loss, unit=unit).plot(
            ax=ax, scale=scale, line_kwargs=line_kwargs
        )

    def plot(
        self,
        ax: Axes | None = None,
        *,
        scale: str = "linear",
        line_kwargs: dict[str, Any] | None = None,
    ) -> DistillationDisplay:
        """Draw a curve and a floor for each student.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        scale : {"linear", "log"}, default="linear"
            Scale of the losses.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of every curve.

        Returns
        -------
        self : DistillationDisplay
            The display.

        Raises
        ------
        ValueError
            If `scale` is unknown.
        """
        _check_scale(scale)
        line_kwargs = check_line_kwargs(line_kwargs)
        _checked_tables(self.history, self.floors, self.loss)
        history = _with_seeds(self.history)
        floors: dict[Any, float] = {}
        if self.floors is not None:
            floors = _with_seeds(self.floors).set_index(_STUDENT)["floor"].to_dict()
        students = sorted(set(history[_STUDENT].itertuples(index=False, name=None)))
        widths = _values(history, "width")
        compared = len(widths) == 1 < len(students)
        colors = ramp(widths, WIDTH_COLORMAP)

        self.ax_ = axes_or_new(ax)
        self.figure_ = self.ax_.figure
        self.lines_, self.floor_lines_ = {}, {}
        self.difference_: float | None = None
        for width, seed in students:
            place = [each for of_width, each in students if of_width == width].index(seed)
            curve = history[(history["width"] == width) & (history["seed"] == seed)].sort_values("step")
            style = {
                "color": COLORS[place % len(COLORS)] if compared else colors[width],
                "linestyle": "-" if compared else (DASHES[0], *DASHES[2:])[place % (len(DASHES) - 1)],
                "linewidth": 1.6,
                "label": _student_label((width, seed), students, floors),
                **line_kwargs,
            }
            (self.lines_[width, seed],) = self.ax_.plot(curve["step"].to_numpy(), curve[self.loss].to_numpy(), **style)
            if (width, seed) in floors:
                self.floor_lines_[width, seed] = self.ax_.axhline(
                    floors[width, seed], color=style["color"], linestyle=DASHES[1], linewidth=0.9, zorder=1
                )
        _set_scale(self.ax_, scale)
        handles = list(self.lines_.values())
        if self.floor_lines_:
            handles.append(key("floor", color=FAINT, linestyle=DASHES[1], linewidth=0.9))
        title = None
        if compared and len(self.floor_lines_) > 1:
            title = self._compare([floors[student] for student in self.floor_lines_])
        beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}
        look: dict[str, Any] = {"frameon": False, "fontsize": "small", "title_fontsize": "small"}
        self.ax_.legend(handles=handles, title=title, **look, **(beside if len(widths) > 1 else {}))
        self.ax_.set(xlabel="training step", ylabel=f"{_LOSS_LABELS.get(self.loss, self.loss)} ({self.unit})")
        return self

    def _compare(self, floors: list[float]) -> str:
        """What the legend says of seeds; sets `difference_`."""
        farthest = max(abs(floor - floors[0]) for floor in floors)
        self.difference_ = 100.0 * farthest / floors[0] if floors[0] > 0 else np.nan
        return f"floors differ by {farthest:.3g} ({self.difference_:.1f}%)"


class DistilledFloorsDisplay:
    """Floors of distilled students over width, with standard errors, beside predictions (Figures 6, 17 and 18).

    Parameters
    ----------
    floors : DataFrame
        One row a student, with the columns width and floor, and perhaps seed, where a width has several, and
        floor_error, the standard error of the floor.
    predicted : mapping of str to array-like of shape (n_widths,), default=None
        Predicted floors by label, at the different widths of the students in ascending order; in the unit of the
        floors unless `normalized`.
    critical_widths : float or mapping of str to float, default=None
        Critical width d*, or that of each prediction by its label, drawn as a dotted vertical; see `FloorDisplay`.
    normalized : bool, default=False
        Whether to divide floors, and each prediction, by their own value at the narrowest width.
    unit : str, default="nats per token"
        Unit of the floors, for the label of the axis.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure of the axes.
    line_ : matplotlib Line2D
        Observed floors, where a width has several seeds their mean.
    errorbars_ : matplotlib ErrorbarContainer
        A point for each student, with a bar of one standard error where it is known.
    predicted_lines_ : dict of str to matplotlib Line2D
        Predicted floors.
    critical_lines_ : list of matplotlib Line2D
        Verticals at the critical widths that lie within the axes.

    See Also
    --------
    DistilledFloorsDisplay.from_students : Take the floors of fitted students.
    DistilledFloorsDisplay.from_floors : Check a table, predict and draw.
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
        unit: str = _NATS,
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
        unit: str = _NATS,
        scale: str = "linear",
        ax: Axes | None = None,
    ) -> DistilledFloorsDisplay:
        """Draw the floors of fitted students.

        Parameters
        ----------
        students : iterable of DistilledStudent
            Fitted, such as those of `distill_widths`.
        predictor : estimator, or mapping of str to estimators, default=None
            As in `from_floors`.
        critical_widths : float or mapping of str to float, default=None
            As in `from_floors`.
        normalized : bool, default=False
            Whether to divide floors, and each prediction, by their own value at the narrowest width.
        unit : str, default="nats per token"
            Unit of the floors.
        scale : {"linear", "log"}, default="linear"
            Scale of the floors.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        display : DistilledFloorsDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If there are no students, or two have the same width and seed.
        """
        _, floors = _tables(students, None)
        return cls.from_floors(
            floors,
            predictor=predictor,
            critical_widths=critical_widths,
            normalized=normalized,
            unit=unit,
            scale=scale,
            ax=ax,
        )

    @classmethod
    def from_floors(
        cls,
        floors: pd.DataFrame,
        *,
        predictor: Any = None,
        critical_widths: float | Mapping[str, float] | None = None,
        normalized: bool = False,
        unit: str = _NATS,
        scale: str = "linear",
        ax: Axes | None = None,
    ) -> DistilledFloorsDisplay:
        """Check a table of floors, predict them and draw both.

        Parameters
        ----------
        floors : DataFrame
            One row a student, with the columns width and floor, and perhaps seed and floor_error.
        predictor : estimator, or mapping of str to estimators, default=None
            Fitted, with a ``predict`` from widths to floors. Without `normalized` it must predict in the unit of the
            floors, as a pipeline of a frozen `FloorPredictor` and an `AffineCalibrator` does.
        critical_widths : float or mapping of str to float, default=None
            Critical width d*, or that of each predictor by its label; by default the ``critical_width_`` of those
            predictors that have one.
        normalized : bool, default=False
            Whether to divide floors, and each prediction, by their own value at the narrowest width.
        unit : str, default="nats per token"
            Unit of the floors.
        scale : {"linear", "log"}, default="linear"
            Scale of the floors. Floors of zero have no place on a logarithmic one.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        display : DistilledFloorsDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the table is empty, lacks a column, has a student twice or a floor that is not finite, floors are to be
            normalised by one that is not above zero, critical widths have other labels than the predictions, or
            `scale` is unknown.
        """
        _check_scale(scale)
        floors = _checked_floors(floors)
        predicted = None
        if predictor is not None:
            predictors = predictor if isinstance(predictor, Mapping) else {"predicted": predictor}
            for label, each in predictors.items():
                check_predictor(f"predictor[{label!r}]" if predictor is predictors else "predictor", each)
            widths = np.asarray(_values(floors, "width"))
            predicted = {label: each.predict(widths) for label, each in predictors.items()}
            if critical_widths is None:
                critical_widths = {
                    label: each.critical_width_
                    for label, each in predictors.items()
                    if hasattr(each, "critical_width_")
                } or None
        display = cls(
            floors=floors, predicted=predicted, critical_widths=critical_widths, normalized=normalized, unit=unit
        )
        return display.plot(ax=ax, scale=scale)

    def plot(self, ax: Axes | None = None, *, scale: str = "linear") -> DistilledFloorsDisplay:
        """Draw observed and predicted floors, and the critical widths.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        scale : {"linear", "log"}, default="linear"
            Scale of the floors.

        Returns
        -------
        self : DistilledFloorsDisplay
            The display.

        Raises
        ------
        ValueError
            If floors are to be normalised by one that is not above zero, predictions have another number of widths,
            critical widths have other labels than the predictions, or `scale` is unknown.
        """
        _check_scale(scale)
        check_flag("normalized", self.normalized)
        _checked_floors(self.floors)
        means = self.floors.groupby("width")["floor"].mean().sort_index()
        widths = means.index.to_numpy()
        unit = self._in_unit(means.iloc[0], "observed")
        observed = means.to_numpy() / unit
        if self.predicted is not None:
            check_object("predicted", self.predicted, Mapping, "give a dict of predicted floors by label")
        predicted = numbers_of(self.predicted, "predicted") if self.predicted else {}
        for label, each in predicted.items():
            if each.shape != widths.shape:
                raise ValueError(
                    f"predicted[{label!r}] has the shape {each.shape}, but there are {len(widths)} widths."
                )
            predicted[label] = each / self._in_unit(each[0], label)

        critical = self.critical_widths
        if predicted and critical is not None and not isinstance(critical, Mapping):
            critical = dict.fromkeys(list(predicted)[:1], critical)
        style: dict[str, Any] = {"color": INK, "linewidth": 1.6}
        display = FloorDisplay(
            widths=widths,
            floors=predicted or observed,
            critical_widths=critical,
        ).plot(ax=ax, line_kwargs={"marker": None, **({} if predicted else style)})
        self.ax_, self.figure_ = display.ax_, display.figure_
        self.critical_lines_ = display.critical_lines_
        self.predicted_lines_ = dict(zip(predicted, display.lines_, strict=False))
        self.line_ = self.ax_.plot(widths, observed, label="_mean", **style)[0] if predicted else display.lines_[0]
        errors = self.floors["floor_error"] / unit if "floor_error" in self.floors.columns else None
        self.errorbars_ = self.ax_.errorbar(
            self.floors["width"].to_numpy(),
            (self.floors["floor"] / unit).to_numpy(),
            yerr=None if errors is None else errors.to_numpy(dtype=np.float64),
            fmt="o",
            markersize=5.5,
            markerfacecolor="white",
            color=INK,
            capsize=2.5,
            zorder=4,
            label="observed",
        )
        if predicted:
            # White, since verticals run behind it.
            self.ax_.legend(facecolor="white", edgecolor="none", framealpha=0.85, fontsize="small")
        self.ax_.set_ylabel(f"floor (relative to d = {widths[0]:g})" if self.normalized else f"floor ({self.unit})")
        _set_scale(self.ax_, scale)
        return self

    def _in_unit(self, narrowest: float, label: str) -> float:
        """What floors are divided by."""
        if not self.normalized:
            return 1.0
        if not narrowest > 0:
            raise ValueError(
                f"normalized=True divides by the {label} floor of the narrowest width, which is {narrowest:g}; "
                "it must be above 0."
            )
        return float(narrowest)


class DistillationSummaryDisplay:
    """Learning curves, floors, normalised floors and seeds of distilled students (Figure 18 of the paper).

    Parameters
    ----------
    history : DataFrame
        One row an evaluation of a student, with the columns width, step and that of `loss`, and seed where a width
        has several.
    floors : DataFrame
        One row a student, with the columns width and floor, and perhaps seed and floor_error.
    predicted : array-like of shape (n_widths,), default=None
        Predicted floors at the different widths of the students in ascending order. Their unit is of no account,
        since they are drawn normalised.
    critical_width : float, default=None
        Critical width d* of the prediction.
    loss : str, default="eval_kl"
        Column of the losses.
    unit : str, default="nats per token"
        Unit of losses and floors.

    Attributes
    ----------
    figure_ : matplotlib Figure or SubFigure
        Figure drawn in.
    axes_ : ndarray of shape (2, 2) of matplotlib Axes
        Panels.
    curves_ : DistillationDisplay
        Top left: all students' losses over the steps, with their floors.
    floors_ : DistilledFloorsDisplay
        Top right: floors over width.
    normalized_ : DistilledFloorsDisplay
        Bottom left: observed and predicted floors relative to the narrowest width.
    seeds_ : DistillationDisplay or None
        Bottom right: the seeds of the narrowest width that has several. None, and the panel empty, where none has.

    See Also
    --------
    DistillationSummaryDisplay.from_students : Take fitted students.
    DistillationSummaryDisplay.from_history : Check two tables, predict and draw.

    Examples
    --------
    >>> import pandas as pd
    >>> from geofloor.displays import DistillationSummaryDisplay
    >>> students = {"width": [8, 8, 16, 16], "seed": [0, 1, 0, 1]}
    >>> floors = pd.DataFrame({**students, "floor": [0.50, 0.51, 0.25, 0.26]})
    >>> start = pd.DataFrame({**students, "step": 0, "eval_kl": 2.0})
    >>> end = floors.rename(columns={"floor": "eval_kl"}).assign(step=100)
    >>> display = DistillationSummaryDisplay.from_history(pd.concat([start, end]), floors)
    >>> round(display.seeds_.difference_, 2)
    2.0
    """

    def __init__(
        self,
        *,
        history: pd.DataFrame,
        floors: pd.DataFrame,
        predicted: ArrayLike | None = None,
        critical_width: float | None = None,
        loss: str = "eval_kl",
        unit: str = _NATS,
    ) -> None:
        self.history = history
        self.floors = floors
        self.predicted = predicted
        self.critical_width = critical_width
        self.loss = loss
        self.unit = unit

    @classmethod
    def from_students(
        cls,
        students: Iterable[Any],
        *,
        predictor: Any = None,
        loss: str = "eval_kl",
        unit: str = _NATS,
        scale: str = "linear",
        figure: Figure | SubFigure | None = None,
    ) -> DistillationSummaryDisplay:
        """Draw fitted students beside a prediction.

        Parameters
        ----------
        students : iterable of DistilledStudent
            Fitted, such as those of `distill_widths`.
        predictor : estimator, default=None
            Fitted, with a ``predict`` from widths to floors in any unit, such as a `FloorPredictor`.
        loss : {"eval_kl", "train_kl"}, default="eval_kl"
            What to draw of their histories. Students of toy models have a ``"loss"``.
        unit : str, default="nats per token"
            Unit of losses and floors.
        scale : {"linear", "log"}, default="linear"
            Scale of the losses over the steps; floors over width have a linear one.
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.

        Returns
        -------
        display : DistillationSummaryDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If there are no students, two have the same width and seed, or a history has no such loss.
        """
        history, floors = _tables(students, loss)
        return cls.from_history(history, floors, predictor=predictor, loss=loss, unit=unit, scale=scale, figure=figure)

    @classmethod
    def from_history(
        cls,
        history: pd.DataFrame,
        floors: pd.DataFrame,
        *,
        predictor: Any = None,
        loss: str = "eval_kl",
        unit: str = _NATS,
        scale: str = "linear",
        figure: Figure | SubFigure | None = None,
    ) -> DistillationSummaryDisplay:
        """Check the tables, predict the floors and draw all.

        Parameters
        ----------
        history : DataFrame
            One row an evaluation of a student, with the columns width, step and that of `loss`, and seed where a
            width has several.
        floors : DataFrame
            One row a student, with the columns width and floor, and perhaps seed and floor_error.
        predictor : estimator, default=None
            Fitted, with a ``predict`` from widths to floors in any unit, such as a `FloorPredictor`.
        loss : str, default="eval_kl"
            Column of the losses.
        unit : str, default="nats per token"
            Unit of losses and floors.
        scale : {"linear", "log"}, default="linear"
            Scale of the losses over the steps; floors over width have a linear one.
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.

        Returns
        -------
        display : DistillationSummaryDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If a table is empty, lacks a column, has a row twice or a value that is not finite, `floors` has a student
            that `history` has not, or `scale` is unknown.
        """
        _check_scale(scale)
        check_figure(figure)
        check_object("floors", floors, pd.DataFrame, "give a pandas DataFrame")
        if predictor is not None:
            check_predictor("predictor", predictor)
        history, checked = _checked_tables(history, floors, loss)
        floors = floors if checked is None else checked
        predicted = None if predictor is None else predictor.predict(np.asarray(_values(floors, "width")))
        display = cls(
            history=history,
            floors=floors,
            predicted=predicted,
            critical_width=getattr(predictor, "critical_width_", None),
            loss=loss,
            unit=unit,
        )
        return display.plot(figure=figure, scale=scale)

    def plot(self, figure: Figure | SubFigure | None = None, *, scale: str = "linear") -> DistillationSummaryDisplay:
        """Draw the four panels.

        Parameters
        ----------
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.
        scale : {"linear", "log"}, default="linear"
            Scale of the losses over the steps.

        Returns
        -------
        self : DistillationSummaryDisplay
            The display.
        """
        import matplotlib.pyplot as plt

        _check_scale(scale)
        check_figure(figure)
        check_object("floors", self.floors, pd.DataFrame, "give a pandas DataFrame")
        _checked_tables(self.history, self.floors, self.loss)
        self.figure_ = plt.figure(figsize=(9.4, 6.8), layout="constrained") if figure is None else figure
        # A layout for each row, or the legend above would narrow the panel below.
        rows = self.figure_.subfigures(2, 1, squeeze=False).flat
        self.axes_ = np.concatenate([panels(row, 1, 2, size=(4.4, 3.0), sharex=False, sharey=False)[1] for row in rows])
        common: dict[str, Any] = {"unit": self.unit}
        history, floors = _with_seeds(self.history), _with_seeds(self.floors)
        self.curves_ = DistillationDisplay(history=history, floors=floors, loss=self.loss, **common).plot(
            self.axes_[0, 0], scale=scale
        )
        self.floors_ = DistilledFloorsDisplay(floors=floors, critical_widths=self.critical_width, **common).plot(
            self.axes_[0, 1]
        )
        predicted = None if self.predicted is None else {"predicted": self.predicted}
        self.normalized_ = DistilledFloorsDisplay(floors=floors, predicted=predicted, normalized=True).plot(
            self.axes_[1, 0]
        )
        self.seeds_ = None
        several = floors.groupby("width")["seed"].nunique()
        if (several > 1).any():
            width = several.index[several > 1].min()
            self.seeds_ = DistillationDisplay(
                history=history[history["width"] == width],
                floors=floors[floors["width"] == width],
                loss=self.loss,
                **common,
            ).plot(self.axes_[1, 1], scale=scale)
        else:
            self.axes_[1, 1].set_axis_off()
        return self


def _tables(students: Iterable[Any], loss: str | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """History and floors of fitted students; no history without the name of a loss."""
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    check_object("loss", loss, (str, type(None)), "give the name of a column")
    for student in check_iterable("students", students, "give a list of fitted students"):
        if not (hasattr(student, "fit") and hasattr(student, "width")):
            raise TypeError(f"students holds {shown(student)}; give fitted DistilledStudents.")
        check_is_fitted(student)
        width, seed = int(student.width), student.random_state
        if not isinstance(seed, int | np.integer):
            seed = sum(row["width"] == width for row in rows)
        which = {"width": width, "seed": int(seed)}
        if which in [{name: row[name] for name in _STUDENT} for row in rows]:
            raise ValueError(f"students has two of width={width} and random_state={seed}; give one of them.")
        rows.append({**which, "floor": student.floor_, "floor_error": student.floor_error_})
        if loss is None:
            continue
        if loss not in student.history_[-1]:
            raise ValueError(f"loss={loss!r} is not in the history, which has {sorted(student.history_[-1])}.")
        curves += [{**which, "step": each["step"], loss: each[loss]} for each in student.history_]
    if not rows:
        raise ValueError("students is empty; give at least one that is fitted.")
    # Before the first step there is no training loss.
    history = pd.DataFrame(curves).dropna(ignore_index=True) if curves else pd.DataFrame()
    return history, pd.DataFrame(rows)


def _checked_tables(
    history: pd.DataFrame, floors: pd.DataFrame | None, loss: str
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Both tables, if they are whole and each floor has its curve."""
    check_object("history", history, pd.DataFrame, "give a pandas DataFrame")
    seeds = [name for name in ["seed"] if name in history.columns]
    history = _checked(history, ["width", *seeds, "step", loss], unique=["width", *seeds, "step"], argument="history")
    if floors is None:
        return history, None
    floors = _checked_floors(floors)
    known = set(_with_seeds(history)[_STUDENT].itertuples(index=False, name=None))
    for student in _with_seeds(floors)[_STUDENT].itertuples(index=False, name=None):
        if student not in known:
            raise ValueError(f"floors has width={student[0]:g}, seed={student[1]:g}, which history has not.")
    return history, floors


def _checked_floors(floors: pd.DataFrame) -> pd.DataFrame:
    check_object("floors", floors, pd.DataFrame, "give a pandas DataFrame")
    students = [name for name in _STUDENT if name in floors.columns]
    return _checked(floors, ["width", *students[1:], "floor"], unique=students or ["width"], argument="floors")


def _with_seeds(table: pd.DataFrame) -> pd.DataFrame:
    return table if "seed" in table.columns else table.assign(seed=0)


def _check_scale(scale: str) -> None:
    check_choice("scale", scale, ("linear", "log"))


def _student_label(student: tuple[Any, Any], students: list[tuple[Any, Any]], floors: Mapping[Any, float]) -> str:
    width, seed = student
    several = sum(each == width for each, _ in students) > 1
    alone = len({each for each, _ in students}) == 1
    names = [f"d = {width:g}"] if not (several and alone) else []
    names += [f"seed {seed:g}"] if several else []
    return ", ".join(names) + (f": {floors[student]:.3g}" if student in floors else "")


def _set_scale(ax: Axes, scale: str) -> None:
    """From 0 on; or logarithmic, with ticks at 1, 2 and 5 times each power of ten, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.set_yscale(scale)
    if scale == "linear":
        ax.set_ylim(bottom=0.0)
        return
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
