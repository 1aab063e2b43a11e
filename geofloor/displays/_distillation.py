"""Learning curves of distilled students."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geofloor.displays._drawing import OneAxesMixin, check_scale, set_scale
from geofloor.displays._students import STUDENT, check_floors, check_history, check_same_students, tables_of
from geofloor.displays._style import COLORS, DASHES, FAINT, NATS, WIDTH_COLORMAP, check_line_kwargs, key, ramp
from geofloor.displays._tables import sorted_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOSS_LABELS = {"eval_kl": "evaluation KL", "train_kl": "training KL"}


class DistillationDisplay(OneAxesMixin):
    """Loss over training step, one curve per student, with their floors (Figures 6, 16 and 18 of the paper).

    If all students have one width, their seeds are compared: each seed has its own color, and the legend gives the
    difference between floors.

    Parameters
    ----------
    history : DataFrame
        One row per evaluation of a student, with the columns width, step and `loss`, and seed if a width has several.
    floors : DataFrame, default=None
        One row per student, with the columns width and floor, and seed as in `history`. Drawn as dashed horizontals.
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
        Curve of each width and seed. Without seeds, the seed is 0.
    floor_lines_ : dict of (int, int) to matplotlib Line2D
        Floor of each width and seed.
    difference_ : float or None
        Largest difference between the floor of the first seed and another, in percent of the first, for students of
        a single width. None if nothing is compared.

    See Also
    --------
    DistillationDisplay.from_students : Take the histories of fitted students.
    DistilledFloorsDisplay : The floors over width.

    Examples
    --------
    >>> import pandas as pd
    >>> from geofloor.displays import DistillationDisplay
    >>> history = pd.DataFrame({"width": 128, "seed": [0, 0, 1, 1], "step": [0, 100] * 2,
    ...                         "eval_kl": [1.9, 0.3, 1.8, 0.4]})
    >>> floors = pd.DataFrame({"width": 128, "seed": [0, 1], "floor": [0.25, 0.24]})
    >>> display = DistillationDisplay(history=history, floors=floors).plot()
    >>> display.lines_[128, 1].get_ydata(), round(display.difference_, 2)
    (array([1.8, 0.4]), 4.0)
    """

    def __init__(
        self,
        *,
        history: pd.DataFrame,
        floors: pd.DataFrame | None = None,
        loss: str = "eval_kl",
        unit: str = NATS,
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
        unit: str = NATS,
        scale: str = "linear",
        ax: Axes | None = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> DistillationDisplay:
        """Draw the training histories of fitted students.

        Parameters
        ----------
        students : iterable of DistilledStudent
            Fitted, such as those of `distill_widths`. Seeds are their ``random_state``, or counted if that is not a
            number.
        loss : {"eval_kl", "train_kl"}, default="eval_kl"
            Loss to draw from their histories.
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
            If there are no students, two have the same width and seed, a history has no such loss, or `scale` is
            unknown.
        """
        history, floors = tables_of(students, loss)
        display = cls(history=history, floors=floors, loss=loss, unit=unit)
        return display.plot(ax=ax, scale=scale, line_kwargs=line_kwargs)

    def frame(self) -> pd.DataFrame:
        """Return the data behind the figure.

        Returns
        -------
        frame : DataFrame
            One row per student and evaluation, with the columns

            - ``width``: student width, in dimensions;
            - ``seed``: seed, 0 if there are none;
            - ``step``: training step;
            - ``loss``: loss, in `unit`;
            - ``floor``: floor of the student, in `unit`; NaN if it is not given.
        """
        history, floors = self._checked()
        table = history[[*STUDENT, "step", self.loss]].set_axis([*STUDENT, "step", "loss"], axis=1)
        table = table.sort_values([*STUDENT, "step"], ignore_index=True)
        students = table[STUDENT].itertuples(index=False, name=None)
        return table.assign(floor=[floors.get(student, np.nan) for student in students])

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
            Scale of the losses. Losses of zero cannot be drawn on a logarithmic scale.
        line_kwargs : dict, default=None
            Keyword arguments for the ``plot`` call of every curve.

        Returns
        -------
        self : DistillationDisplay
            The display.

        Raises
        ------
        ValueError
            If a table is empty, lacks a column, has a row twice or a value that is not finite, `floors` has a student
            without a history, or `scale` is unknown.
        """
        check_scale(scale)
        line_kwargs = check_line_kwargs(line_kwargs)
        history, floors = self._checked()
        students = sorted(set(history[STUDENT].itertuples(index=False, name=None)))
        widths = sorted_values(history, "width")
        compared = len(widths) == 1 < len(students)
        colors = ramp(widths, WIDTH_COLORMAP)

        ax = self._start(ax)
        self.lines_, self.floor_lines_ = {}, {}
        for width, seed in students:
            place = [each for of_width, each in students if of_width == width].index(seed)
            curve = history[(history["width"] == width) & (history["seed"] == seed)].sort_values("step")
            style = {
                "color": COLORS[place % len(COLORS)] if compared else colors[width],
                "linestyle": "-" if compared else (DASHES[0], *DASHES[2:])[place % (len(DASHES) - 1)],
                "linewidth": 1.6,
                "label": _label((width, seed), students, floors),
                **line_kwargs,
            }
            (self.lines_[width, seed],) = ax.plot(curve["step"].to_numpy(), curve[self.loss].to_numpy(), **style)
            if (width, seed) in floors:
                self.floor_lines_[width, seed] = ax.axhline(
                    floors[width, seed], color=style["color"], linestyle=DASHES[1], linewidth=0.9, zorder=1
                )
        set_scale(ax, scale, from_zero=True)
        handles = list(self.lines_.values())
        if self.floor_lines_:
            handles.append(key("floor", color=FAINT, linestyle=DASHES[1], linewidth=0.9))
        self.difference_: float | None = None
        title = None
        if compared and len(self.floor_lines_) > 1:
            first, *others = (floors[student] for student in self.floor_lines_)
            farthest = max(abs(floor - first) for floor in others)
            self.difference_ = 100.0 * farthest / first if first > 0 else np.nan
            title = f"floors differ by {farthest:.3g} ({self.difference_:.1f}%)"
        beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}
        look: dict[str, Any] = {"frameon": False, "fontsize": "small", "title_fontsize": "small"}
        ax.legend(handles=handles, title=title, **look, **(beside if len(widths) > 1 else {}))
        ax.set(xlabel="training step", ylabel=f"{_LOSS_LABELS.get(self.loss, self.loss)} ({self.unit})")
        return self

    def _checked(self) -> tuple[pd.DataFrame, dict[Any, float]]:
        """Return the history, and the floors by width and seed."""
        history = check_history(self.history, self.loss)
        if self.floors is None:
            return history, {}
        floors = check_floors(self.floors)
        check_same_students(history, floors)
        return history, floors.set_index(STUDENT)["floor"].to_dict()


def _label(student: tuple[Any, Any], students: list[tuple[Any, Any]], floors: Mapping[Any, float]) -> str:
    """Name a student by its width, its seed where there are several, and its floor."""
    width, seed = student
    several = sum(each == width for each, _ in students) > 1
    alone = len({each for each, _ in students}) == 1
    names = [f"d = {width:g}"] if not (several and alone) else []
    names += [f"seed {seed:g}"] if several else []
    return ", ".join(names) + (f": {floors[student]:.3g}" if student in floors else "")
