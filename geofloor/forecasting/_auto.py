"""Choice of the law by the runs, with optional knowledge of the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from geofloor._validation import check_choice, check_number
from geofloor.forecasting._candidates import Known
from geofloor.forecasting._law import Law
from geofloor.forecasting._laws import AboveBottleneck
from geofloor.forecasting._priors import STUDENTS
from geofloor.forecasting._runs import LARGEST


@dataclass(frozen=True)
class Auto(Law):
    """Several laws, weighed by the runs: ``law="auto"`` of `LossForecaster`, whose arguments it takes.

    Parameters
    ----------
    bound : BottleneckPredictor or None, default=None
        Fitted on the teacher, at the temperature of the runs.
    students : {"principal", "random"} or None, default=None
        Kind of start.
    zero_width_loss : float or None, default=None
        Loss at width 0, in nats per token.
    teacher_width : float or None, default=None
        The teacher's own width, in dimensions.
    chosen : Law or None, default=None
        After the fit, the most probable law.
    """

    bound: Any = None
    students: str | None = None
    zero_width_loss: float | None = None
    teacher_width: float | None = None
    chosen: Law | None = None

    parameters = ()
    bounds = ()

    def __post_init__(self) -> None:
        if self.bound is not None:
            AboveBottleneck(self.bound)
        if self.students is not None:
            check_choice("students", self.students, STUDENTS)
        for name, high in (("zero_width_loss", LARGEST), ("teacher_width", np.inf)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, check_number(name, value, 0, high, open_low=True))

    @property
    def _zero_name(self) -> str:  # type: ignore[override]
        return "zero_width_loss" if self.zero_width_loss is not None else "bound.zero_width_loss_"

    @property
    def _end_name(self) -> str:  # type: ignore[override]
        return "teacher_width" if self.end_width == self.teacher_width else "bound.critical_width_"

    @property
    def loss_at_zero(self) -> float:
        if self.zero_width_loss is not None:
            return self.zero_width_loss
        return np.inf if self.bound is None else AboveBottleneck(self.bound).loss_at_zero

    @property
    def end_width(self) -> float:
        rank = np.inf if self.bound is None else AboveBottleneck(self.bound).end_width
        return min(rank, np.inf if self.teacher_width is None else float(self.teacher_width))

    def knowledge(self) -> Known:
        """Return what the laws may know besides the runs."""
        zero, end = self.loss_at_zero, self.end_width
        return Known(self.bound, zero if np.isfinite(zero) else None, end if np.isfinite(end) else None)

    def without_end(self, widths: np.ndarray) -> Auto:
        """Forget the teacher's width if runs reach it. Students from random weights lose something even there."""
        if self.teacher_width is None or self.students == "principal" or widths.max() < self.teacher_width:
            return self
        return replace(self, teacher_width=None)

    def least(self, widths: np.ndarray) -> np.ndarray | None:
        return None if self.bound is None else AboveBottleneck(self.bound).least(widths)

    def check_runs(self, widths: np.ndarray, losses: np.ndarray) -> None:
        super().check_runs(widths, losses)
        if self.bound is not None:
            AboveBottleneck(self.bound).check_runs(widths, losses)

    def describe(self, params: Mapping[str, float]) -> str:
        return "auto" if self.chosen is None else self.chosen.describe(params)
