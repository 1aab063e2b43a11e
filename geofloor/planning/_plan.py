"""A plan: what was measured of a teacher, and its answers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from geofloor._validation import check_number, check_object, check_path, shown
from geofloor.forecasting import LossForecaster
from geofloor.forecasting._decision import MARGIN, Decision, verdicts
from geofloor.language_models import BottleneckPredictor
from geofloor.planning._checks import Check, check_features, check_runs, failed
from geofloor.planning._cost import StageCost, cost_table
from geofloor.planning._settings import PlanSettings
from geofloor.planning._stages import Features, StudentRun, TeacherFacts

_LONGER = 2  # times the longest budget: as far as the trend over the steps is shown
_CANDIDATES = 12  # widths that the next run is chosen among


class NextRun(NamedTuple):
    """The student that would make an answer surest. As text it is a sentence."""

    width: int
    n_steps: int | None
    asked: int  # the width whose interval it narrows
    factor: float  # high over low of that interval now, at 90%
    factor_then: float  # and with one more run, if that run ends where it is forecast to

    def __str__(self) -> str:
        steps = "" if self.n_steps is None else f" for {self.n_steps:,} steps"
        return (
            f"To be surer, train one more student of width {self.width}{steps}. At width {self.asked} the interval's "
            f"ends would be a factor of {self.factor_then:.2f} apart, in place of {self.factor:.2f}."
        )


@dataclass(repr=False)
class Plan:
    """What `plan_distillation` measured of a teacher, and the answers that follow.

    Attributes
    ----------
    settings : PlanSettings
        Settings of the plan.
    teacher : TeacherFacts
        Named tuple of the teacher's name, kind, width, numbers of blocks, heads, tokens and parameters.
    bound : BottleneckPredictor or None
        Fitted; None if a plan was only to print its cost.
    runs : list of StudentRun
        Students with their losses: those trained for the plan, and those of `add_runs`.
    features : Features or None
        The dictionary, and what students of each width drop.
    texts : list of Check
        Checks of the text.
    notes : list of Check
        Other checks that were made before a stage, such as the reason why no students are trained.
    costs : list of StageCost
        Estimated and actual cost of each stage.

    See Also
    --------
    plan_distillation : Makes a plan.
    LossForecaster : Makes its forecasts.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import plan_distillation
    >>> from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    >>> config = GPTNeoXConfig(
    ...     vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    ...     initializer_range=0.2,
    ... )
    >>> tokens = np.random.default_rng(0).integers(32, size=(400, 12))
    >>> plan = plan_distillation(
    ...     GPTNeoXForCausalLM(config), tokens, widths=[4, 8], run_widths=[], n_tokens=2_000, features=False
    ... )
    >>> list(plan.table.columns)
    ['width', 'heads', 'parameters', 'impossible_below']
    >>> plan.decide(4, 1e-6).answer
    'impossible'
    """

    settings: PlanSettings
    teacher: TeacherFacts
    texts: list[Check]
    notes: list[Check] = field(default_factory=list)
    sizes: dict[int, tuple[int | None, int | None]] = field(default_factory=dict)  # heads and parameters, by width
    bound: BottleneckPredictor | None = None
    runs: list[StudentRun] = field(default_factory=list)
    features: Features | None = None
    costs: list[StageCost] = field(default_factory=list)

    # What was measured

    @property
    def checks(self) -> pd.DataFrame:
        """Table of the checks, with the columns ``stage``, ``status`` and ``message``.

        What rests on a stage that failed is withheld.
        """
        return pd.DataFrame(self._checks(), columns=list(Check._fields))

    def _checks(self) -> list[Check]:
        found = [*self.texts, *self.notes]
        if self.runs and self.bound is not None:
            found += check_runs(self._rows(), self.bound.zero_width_loss_)[0]
        if self.features is not None:
            each = self.features
            found += check_features(
                each.explained_variance, each.alpha, each.critical_width, self.teacher.width, each.warnings
            )
        return found

    def _rows(self) -> list[tuple[int, float, int]]:
        """Return width, loss and steps of each run, those of most steps last."""
        longest = max(self.settings.budgets)
        rows = [(run.width, run.loss, run.n_steps or longest) for run in self.runs]
        return sorted(rows, key=lambda row: (row[2], row[0]))

    @property
    def n_steps(self) -> int:
        """Number of steps that forecasts are for: those of the longest runs."""
        return max([n for *_, n in self._rows()], default=max(self.settings.budgets))

    @property
    def cost(self) -> pd.DataFrame:
        """Table of the cost of each stage: estimated and actual seconds, memory and disk in bytes."""
        return cost_table(self.costs)

    # Answers

    @property
    def withheld(self) -> str | None:
        """Reason why the plan forecasts nothing, or None if it does."""
        reason = failed(self._checks(), "text", "students", "runs")
        if reason is None and self.bound is None:
            reason = "Nothing was measured."
        if reason is None and not self.runs:
            reason = "No student was trained."
        return reason

    @property
    def forecaster(self) -> LossForecaster | None:
        """Forecaster fitted to the runs; None if forecasts are withheld."""
        if self.withheld is not None:
            return None
        key = tuple(self.runs)
        if self.__dict__.get("_fitted_to") != key:
            self.__dict__.update(_fitted_to=key, _forecaster=self._fit(self.runs), _decided={}, _next={})
        forecaster: LossForecaster = self.__dict__["_forecaster"]
        return forecaster

    def _fit(self, runs: Iterable[StudentRun]) -> LossForecaster:
        """Fit a forecaster to runs whose budget left no student untrained."""
        assert self.bound is not None
        zero = self.bound.zero_width_loss_
        longest = max(self.settings.budgets)
        rows = [(run.width, run.loss, run.n_steps or longest) for run in runs]
        untrained = check_runs(rows, zero)[1]
        used = [row for row in rows if row[2] not in untrained]
        widths, losses, steps = ([row[place] for row in used] for place in range(3))
        kinds = {run.init for run in runs} - {None}
        known: dict[str, Any] = {"students": kinds.pop() if len(kinds) == 1 else None}
        if max(widths) < self.bound.rank_:
            known["bound"] = self.bound
        else:
            known["zero_width_loss"] = zero
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=UserWarning)  # the checks say it
            return LossForecaster(**known).fit(widths, losses, n_steps=steps, n_tokens=self.settings.step_tokens)

    def decide(self, width: int, target: float | None = None) -> Decision:
        """Decide whether a student of a width reaches a loss.

        Parameters
        ----------
        width : int
            Width of the student, in dimensions, at most the teacher's.
        target : float or None, default=None
            Loss to reach, in nats per token. None stands for the plan's own.

        Returns
        -------
        decision : Decision
            As from `LossForecaster.decide`. Where forecasts are withheld the answer is ``"impossible"`` by the bound,
            or ``"unknown"``.

        Raises
        ------
        ValueError
            If `width` or `target` is out of range, or there is no target.
        """
        width = check_number("width", width, 0, self.teacher.width, whole=True)
        target = self.settings.target_kl if target is None else check_number("target", target, 0)
        if target is None:
            raise ValueError("target=None, and the plan has no target_kl; give a target, in nats per token.")
        forecaster = self.forecaster
        if forecaster is not None and width < self.teacher.width:
            decided: dict[tuple[int, float], Decision] = self.__dict__["_decided"]
            if (width, target) not in decided:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", category=UserWarning)
                    decided[width, target] = forecaster.decide(width, target)
            return decided[width, target]
        least = None if self.bound is None or failed(self._checks(), "text") else self._least([width])[0]
        answer = "impossible" if least is not None and target < (1.0 - MARGIN) * least else "unknown"
        return Decision(width, target, answer, np.nan, np.nan, np.nan, 0.9, -1, -1, least)

    def _least(self, widths: Iterable[int]) -> list[float]:
        assert self.bound is not None
        return [float(each) for each in self.bound.predict(list(widths), return_bounds=True)[1][:, 0]]

    @property
    def decision(self) -> Decision | None:
        """Answer for the width asked about; None without a target.

        If no width was asked about, it is for the narrowest width of the table that is a go, or else for the widest.
        """
        if self.settings.target_kl is None:
            return None
        if self.settings.width is not None:
            return self.decide(self.settings.width)
        widths = [width for width in self.settings.widths or () if width < self.teacher.width]
        if not widths:
            return self.decide(self.teacher.width)
        answers = self._answers(widths)
        return self.decide(widths[answers.index("go at this budget") if "go at this budget" in answers else -1])

    def _answers(self, widths: list[int]) -> list[str]:
        """Return the plan's answers for several widths at once."""
        forecaster, target = self.forecaster, self.settings.target_kl
        if forecaster is None or target is None or not widths or max(widths) >= self.teacher.width:
            return [self.decide(width).answer for width in widths]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=UserWarning)
            return verdicts(forecaster, np.array(widths), target).answers

    @property
    def table(self) -> pd.DataFrame:
        """Table of the widths.

        Its columns are ``width``, ``heads`` and ``parameters`` of the student; ``forecast`` with its 90% interval from
        ``low`` to ``high``, and ``longer`` after twice the steps, where several budgets tell; ``impossible_below``,
        which no student of this width gets below; the ``answer``, where there is a target; and ``kept``, ``dropped``
        and ``floor`` of Eq. 2 with ``nats``, where features were measured. Losses are in nats per token, floors in
        squared units of the activations.
        """
        widths = list(self.settings.widths or ())
        sizes = [self.sizes.get(width, (None, None)) for width in widths]
        table = pd.DataFrame(
            {"width": widths, "heads": [heads for heads, _ in sizes], "parameters": [n for _, n in sizes]}
        ).astype({"heads": "Int64", "parameters": "Int64"})
        forecaster = self.forecaster
        if forecaster is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", category=UserWarning)
                losses, interval = forecaster.predict(widths, return_interval=True)
                table["forecast"], table["low"], table["high"] = losses, interval[:, 0], interval[:, 1]
                if forecaster.budgets_ is not None:
                    table["longer"] = forecaster.predict(widths, n_steps=_LONGER * self.n_steps)
        if self.bound is not None and failed(self._checks(), "text") is None:
            table["impossible_below"] = self._least(widths)
        if self.settings.target_kl is not None and self.bound is not None:
            table["answer"] = self._answers(widths)
        if self.features is not None and failed(self._checks(), "text", "features") is None:
            measured = pd.DataFrame(
                {
                    "width": self.features.widths,
                    "kept": self.features.kept,
                    "dropped": self.features.n_features - np.array(self.features.kept),
                    "floor": self.features.floors,
                    "nats": self.features.nats,
                }
            )
            table = table.merge(measured, on="width", how="left")
        return table

    def next_run(self, width: int | None = None) -> NextRun | None:
        """Choose the student whose loss would narrow an interval most.

        Parameters
        ----------
        width : int or None, default=None
            Width whose interval is to shrink. None stands for the width asked about, or else for the widest of the
            table without an answer, the narrowest that is forecast to reach the target, or the one with the widest
            interval.

        Returns
        -------
        next_run : NextRun or None
            Named tuple; ``print`` shows it as a sentence. None if forecasts are withheld.

        Raises
        ------
        ValueError
            If `width` is not below the teacher's.

        Notes
        -----
        Every width of the table, and others between, are tried: the forecaster is fitted again as if a student of that
        width had ended where it is forecast to. The choice takes a few seconds.
        """
        forecaster = self.forecaster
        if width is not None:
            width = check_number("width", width, 1, self.teacher.width - 1, whole=True)
        widths = [each for each in self.settings.widths or () if each < self.teacher.width]
        if forecaster is None or not widths:
            return None
        if width is None:
            width = self._most_doubtful(forecaster, widths)
        chosen: dict[int, NextRun] = self.__dict__["_next"]
        if width not in chosen:
            chosen[width] = self._choose_run(forecaster, width, widths)
        return chosen[width]

    def _choose_run(self, forecaster: LossForecaster, width: int, widths: list[int]) -> NextRun:
        """Try a run of each width, and return the one that narrows the interval of a width most."""
        between = np.geomspace(min(widths), max(widths), _CANDIDATES).round().astype(int)
        candidates = sorted({*widths, *between.tolist(), width} - {run.width for run in self.runs})
        longest = self.n_steps
        now = _factor(forecaster, width)
        best = (now, width)
        for candidate in candidates:
            loss = float(forecaster.predict([candidate])[0])
            then = self._fit([*self.runs, StudentRun(candidate, longest, loss, init=self.runs[0].init)])
            best = min(best, (_factor(then, width), candidate))
        return NextRun(best[1], longest, width, now, best[0])

    def _most_doubtful(self, forecaster: LossForecaster, widths: list[int]) -> int:
        """Return the width asked about, or the widest without an answer, the narrowest go, or the least sure."""
        if self.settings.width is not None and self.settings.width < self.teacher.width:
            return self.settings.width
        if self.settings.target_kl is not None:
            doubtful = [width for width, each in zip(widths, self._answers(widths), strict=True) if each == "uncertain"]
            if doubtful:
                return max(doubtful)
            narrowest = int(forecaster.min_width(self.settings.target_kl))
            if min(widths) <= narrowest <= max(widths):
                return narrowest
        return max(widths, key=lambda width: _factor(forecaster, width))

    # Changes

    def add_runs(self, runs: Mapping[int, float], *, n_steps: int | None = None) -> Plan:
        """Add losses of students that were trained elsewhere as those of the plan were.

        Parameters
        ----------
        runs : dict of int to float
            Loss by width, in nats per token: the KL at temperature 2, without the factor T², on held-out text. See
            `geofloor.students.evaluate_student`.
        n_steps : int or None, default=None
            Their number of steps; None stands for the longest budget of the plan.

        Returns
        -------
        self : Plan
            The plan, with new answers.

        Raises
        ------
        ValueError
            If a width or loss is out of range, or a loss is below what any student of its width can reach.
        """
        check_object("runs", runs, Mapping, "give a dict of width to loss")
        if not runs:
            raise ValueError("runs={} must hold at least one width and its loss.")
        steps = max(self.settings.budgets)
        if n_steps is not None:
            steps = check_number("n_steps", n_steps, 1, whole=True)
        added = []
        for given_width, given_loss in runs.items():
            width = check_number("runs", given_width, 1, self.teacher.width, whole=True)
            loss = check_number(f"runs[{width}]", given_loss, 0, open_low=True)
            if self.bound is not None and loss < (1.0 - MARGIN) * self._least([width])[0]:
                raise ValueError(
                    f"runs={shown(dict(runs))}: a student of width {width} can't lose {loss:g}, below "
                    f"{self._least([width])[0]:.3g}; measure its KL at temperature 2 on text of this plan, as "
                    "geofloor.students.evaluate_student does."
                )
            added.append(StudentRun(width, steps, loss, source="given"))
        replaced = {run.key for run in added}
        self.runs = [run for run in self.runs if run.key not in replaced or run.source == "plan"] + added
        return self

    # Shown

    def plot(self, ax: Any = None, *, scale: str = "linear") -> Any:
        """Draw the forecast over the width, with its interval, the runs, the bound and the target.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        scale : {"linear", "log"}, default="linear"
            Scale of the losses.

        Returns
        -------
        display : ForecastDisplay
            The figure.

        Raises
        ------
        ValueError
            If forecasts are withheld.
        """
        from geofloor.displays import ForecastDisplay

        forecaster = self.forecaster
        if forecaster is None:
            raise ValueError(f"there is no forecast to draw: {self.withheld}")
        widths = {*(self.settings.widths or ()), *(run.width for run in self.runs)}
        at = np.arange(min(widths), min(max(widths), self.teacher.width - 1) + 1)
        at = at if len(at) <= 512 else np.unique(np.linspace(at[0], at[-1], 512).round().astype(int))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=UserWarning)
            return ForecastDisplay.from_forecaster(forecaster, at, target=self.settings.target_kl, scale=scale, ax=ax)

    def __repr__(self) -> str:
        target = self.settings.target_kl
        goal = "no target" if target is None else f"target {target:g} nats per token"
        return f"Plan of {self.teacher.name} (width {self.teacher.width}): {len(self.runs)} runs, {goal}"

    def __str__(self) -> str:
        from geofloor.planning._console import plan_text

        return plan_text(self)

    def _repr_html_(self) -> str:
        from geofloor.planning._report import report_html

        return report_html(self, whole=False)

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as one HTML file that needs no network.

        Parameters
        ----------
        path : str or path
            The file, written atomically. With plotly (``geofloor[interactive]``) its figure is interactive.

        Raises
        ------
        OSError
            If it can't be written.
        """
        from geofloor.planning._report import write_report

        write_report(self, check_path("path", path))

    # Files

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the plan to a folder: ``plan.json``, ``bound.json`` and ``cost.json``.

        Parameters
        ----------
        folder : str or path
            The folder; it is made if it is not there.

        Raises
        ------
        OSError
            If it can't be written.
        """
        from geofloor.planning._files import write_plan

        write_plan(self, check_path("folder", folder))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Plan:
        """Read a plan from the folder of `save`, or from the checkpoint_dir of `plan_distillation`.

        Parameters
        ----------
        folder : str or path
            The folder.

        Returns
        -------
        plan : Plan
            The plan.

        Raises
        ------
        ValueError
            If the files are damaged, or not those of a plan.
        FileNotFoundError
            If there is none.
        """
        from geofloor.planning._files import read_plan

        return read_plan(check_path("folder", folder))


def _factor(forecaster: LossForecaster, width: int) -> float:
    """Return the upper end of a forecast's interval over its lower end."""
    low, high = forecaster.predict([width], return_interval=True)[1][0]
    return float(high / max(low, 1e-300))
