"""Four figures of distilled students in one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from geofloor._validation import check_object
from geofloor.displays._distillation import DistillationDisplay
from geofloor.displays._distilled_floors import DistilledFloorsDisplay
from geofloor.displays._drawing import check_figure, check_scale, panels
from geofloor.displays._students import check_floors, check_history, check_same_students, tables_of
from geofloor.displays._style import NATS
from geofloor.displays._tables import check_predictor, sorted_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure


class DistillationSummaryDisplay:
    """Learning curves, floors, normalized floors and seeds of distilled students (Figure 18 of the paper).

    Parameters
    ----------
    history : DataFrame
        One row per evaluation of a student, with the columns width, step and `loss`, and seed if a width has several.
    floors : DataFrame
        One row per student, with the columns width and floor, and perhaps seed and floor_error.
    predicted : array-like of shape (n_widths,), default=None
        Predicted floors at the distinct student widths in ascending order, in any unit, because they are drawn
        normalized.
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
        Top left: losses of all students over training steps, with their floors.
    floors_ : DistilledFloorsDisplay
        Top right: floors over width.
    normalized_ : DistilledFloorsDisplay
        Bottom left: observed and predicted floors relative to the narrowest width.
    seeds_ : DistillationDisplay or None
        Bottom right: the seeds of the narrowest width with several. None, with an empty panel, if no width has.

    See Also
    --------
    DistillationSummaryDisplay.from_students : Take fitted students.
    DistillationSummaryDisplay.from_predictor : Predict the floors of a table and draw.

    Examples
    --------
    >>> import pandas as pd
    >>> from geofloor.displays import DistillationSummaryDisplay
    >>> students = {"width": [8, 8, 16, 16], "seed": [0, 1, 0, 1]}
    >>> floors = pd.DataFrame({**students, "floor": [0.50, 0.51, 0.25, 0.26]})
    >>> start = pd.DataFrame({**students, "step": 0, "eval_kl": 2.0})
    >>> end = floors.rename(columns={"floor": "eval_kl"}).assign(step=100)
    >>> display = DistillationSummaryDisplay(history=pd.concat([start, end]), floors=floors).plot()
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
        unit: str = NATS,
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
        unit: str = NATS,
        scale: str = "linear",
        figure: Figure | SubFigure | None = None,
    ) -> DistillationSummaryDisplay:
        """Draw fitted students beside a prediction.

        Parameters
        ----------
        students : iterable of DistilledStudent
            Fitted, such as those of `distill_widths`.
        predictor : estimator, default=None
            As in `from_predictor`; by default nothing is predicted.
        loss : {"eval_kl", "train_kl"}, default="eval_kl"
            Loss to draw from their histories.
        unit : str, default="nats per token"
            Unit of losses and floors.
        scale : {"linear", "log"}, default="linear"
            Scale of the losses over training steps; the floors over width have a linear scale.
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.

        Returns
        -------
        display : DistillationSummaryDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If there are no students, two have the same width and seed, a history has no such loss, or `scale` is
            unknown.
        """
        history, floors = tables_of(students, loss)
        if predictor is None:
            return cls(history=history, floors=floors, loss=loss, unit=unit).plot(figure=figure, scale=scale)
        return cls.from_predictor(predictor, history, floors, loss=loss, unit=unit, scale=scale, figure=figure)

    @classmethod
    def from_predictor(
        cls,
        predictor: Any,
        history: pd.DataFrame,
        floors: pd.DataFrame,
        *,
        loss: str = "eval_kl",
        unit: str = NATS,
        scale: str = "linear",
        figure: Figure | SubFigure | None = None,
    ) -> DistillationSummaryDisplay:
        """Predict the floors of the students in a table and draw all panels.

        Parameters
        ----------
        predictor : estimator
            Fitted, with a ``predict`` from widths to floors in any unit, such as a `FloorPredictor`.
        history : DataFrame
            One row per evaluation of a student, with the columns width, step and `loss`, and seed if a width has
            several.
        floors : DataFrame
            One row per student, with the columns width and floor, and perhaps seed and floor_error.
        loss : str, default="eval_kl"
            Column of the losses.
        unit : str, default="nats per token"
            Unit of losses and floors.
        scale : {"linear", "log"}, default="linear"
            Scale of the losses over training steps; the floors over width have a linear scale.
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
            without a history, or `scale` is unknown.
        """
        check_predictor("predictor", predictor)
        widths = np.asarray(sorted_values(check_floors(floors), "width"))
        display = cls(
            history=history,
            floors=floors,
            predicted=predictor.predict(widths),
            critical_width=getattr(predictor, "critical_width_", None),
            loss=loss,
            unit=unit,
        )
        return display.plot(figure=figure, scale=scale)

    def frame(self) -> pd.DataFrame:
        """Return the data behind the figure.

        Returns
        -------
        frame : DataFrame
            The frames of the panels one below the other, with NaN where a panel lacks a column. The first column,
            ``panel``, is ``"curves"``, ``"floors"``, ``"normalized"`` or ``"seeds"``. The others are those of
            `DistillationDisplay.frame` and `DistilledFloorsDisplay.frame`.
        """
        frames = [part.frame().assign(panel=name) for name, part in self._parts().items() if part is not None]
        table = pd.concat(frames, ignore_index=True)
        return table[["panel", *(name for name in table.columns if name != "panel")]]

    def plot(self, figure: Figure | SubFigure | None = None, *, scale: str = "linear") -> DistillationSummaryDisplay:
        """Draw the four panels.

        Parameters
        ----------
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw in, with constrained layout; by default a new one.
        scale : {"linear", "log"}, default="linear"
            Scale of the losses over training steps; the floors over width have a linear scale.

        Returns
        -------
        self : DistillationSummaryDisplay
            The display.

        Raises
        ------
        ValueError
            If a table is empty, lacks a column, has a row twice or a value that is not finite, `floors` has a student
            without a history, or `scale` is unknown.
        """
        import matplotlib.pyplot as plt

        check_scale(scale)
        check_figure(figure)
        parts = self._parts()
        self.figure_ = plt.figure(figsize=(9.4, 6.8), layout="constrained") if figure is None else figure
        # Each row has its own layout; in a common one, the legend of the upper row would narrow the lower row.
        rows = self.figure_.subfigures(2, 1, squeeze=False).flat
        self.axes_ = np.concatenate([panels(row, 1, 2, size=(4.4, 3.0), sharex=False, sharey=False)[1] for row in rows])
        self.curves_ = parts["curves"].plot(self.axes_[0, 0], scale=scale)
        self.floors_ = parts["floors"].plot(self.axes_[0, 1])
        self.normalized_ = parts["normalized"].plot(self.axes_[1, 0])
        self.seeds_ = None
        if parts["seeds"] is None:
            self.axes_[1, 1].set_axis_off()
        else:
            self.seeds_ = parts["seeds"].plot(self.axes_[1, 1], scale=scale)
        return self

    def _parts(self) -> dict[str, Any]:
        """Return the display of each panel, not drawn. The seeds are None if no width has several."""
        check_object("floors", self.floors, pd.DataFrame, "give a pandas DataFrame")
        history, floors = check_history(self.history, self.loss), check_floors(self.floors)
        check_same_students(history, floors)
        losses: dict[str, Any] = {"loss": self.loss, "unit": self.unit}
        seeds = None
        repeated = floors.loc[floors.duplicated("width"), "width"]
        if len(repeated):
            width = repeated.min()
            seeds = DistillationDisplay(
                history=history[history["width"] == width], floors=floors[floors["width"] == width], **losses
            )
        predicted = None if self.predicted is None else {"predicted": self.predicted}
        return {
            "curves": DistillationDisplay(history=history, floors=floors, **losses),
            "floors": DistilledFloorsDisplay(floors=floors, critical_widths=self.critical_width, unit=self.unit),
            "normalized": DistilledFloorsDisplay(floors=floors, predicted=predicted, normalized=True),
            "seeds": seeds,
        }
