"""Files of runs, and what is forecast from them on the command line."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from geofloor.forecasting import Decision, LossForecaster
from geofloor.forecasting._decision import verdicts
from geofloor.planning._cli_click import Mistake, one_line

_TEXT_WIDTH = 110
_GO = "go at this budget"
_LONGER = 2  # times the longest budget
_READERS: dict[str, Any] = {
    ".csv": lambda path: pd.read_csv(path, skipinitialspace=True),
    ".tsv": lambda path: pd.read_csv(path, sep="\t"),
    ".jsonl": lambda path: pd.read_json(path, lines=True),
    ".parquet": pd.read_parquet,
}
_SEPARATED = {".csv": "commas between them", ".tsv": "tabs between them"}


class Runs(NamedTuple):
    """Students and their losses."""

    widths: tuple[int, ...]
    losses: tuple[float, ...]  # nats per token
    n_steps: tuple[int, ...] | None


def read_runs(path: Path) -> Runs:
    """Read runs from a table with the columns width, loss and, if it is known, n_steps.

    Raises
    ------
    Mistake
        If the file can't be read, a column is missing, or a value is out of range.
    """
    table = _read_table(path)
    table.columns = [str(name).strip().lower() for name in table.columns]
    for name in ("width", "loss"):
        if name not in table:
            found = ", ".join(map(repr, table.columns))
            raise Mistake(
                f"'{path}' has no column '{name}' among {found}; it needs width and loss, and may have n_steps, with "
                f"{_SEPARATED.get(path.suffix.lower(), 'these names')}."
            )
    if table.empty:
        raise Mistake(f"'{path}' holds no run; give a line for each student, with its width and loss.")
    widths, losses = _whole(path, table["width"]), _positive(path, table["loss"])
    n_steps = None
    if "n_steps" in table and not table["n_steps"].isna().all():
        n_steps = _whole(path, table["n_steps"])
    return Runs(widths, losses, n_steps)


@contextmanager
def refusing_rise(path: Path) -> Iterator[None]:
    """Make a mistake of losses that rise with width: the forecast from them is not to be trusted."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "The loss rises with width")
            yield
    except UserWarning as error:
        raise Mistake(f"'{path}': {error}") from error


def _read_table(path: Path) -> pd.DataFrame:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise Mistake(f"'{path}' must be a file of runs, {', '.join(sorted(_READERS))}; JSON has one line per run.")
    try:
        return reader(path)
    except FileNotFoundError as error:
        raise Mistake(f"'{path}' is not there; give a file of runs.") from error
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise Mistake(f"'{path}' can't be read ({one_line(str(error))}); give a table with width and loss.") from error


def _positive(path: Path, column: pd.Series) -> tuple[float, ...]:
    """Return a column of finite numbers above 0."""
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = np.flatnonzero(~(np.isfinite(numbers) & (numbers > 0)))
    if len(wrong):
        at = int(wrong[0])
        value = repr(column.iloc[at]) if isinstance(column.iloc[at], str) else column.iloc[at]
        raise Mistake(f"'{path}' holds {value} as {column.name} of run {at + 1}; give a finite number above 0.")
    return tuple(float(each) for each in numbers)


def _whole(path: Path, column: pd.Series) -> tuple[int, ...]:
    """Return a column of whole numbers from 1 on."""
    numbers = _positive(path, column)
    wrong = next((at for at, each in enumerate(numbers) if each != int(each)), None)
    if wrong is not None:
        raise Mistake(f"'{path}' holds {numbers[wrong]:g} as {column.name} of run {wrong + 1}; give a whole number.")
    return tuple(int(each) for each in numbers)


def table_widths(runs: Runs, teacher_width: float | None) -> tuple[int, ...]:
    """Return the widths of the runs, others between them, half the narrowest and twice the widest."""
    there = sorted(set(runs.widths))
    between = [round((a * b) ** 0.5) for a, b in pairwise(there)]
    around = [max(there[0] // 2, 1), 2 * there[-1]]
    end = np.inf if teacher_width is None else teacher_width
    return tuple(each for each in sorted({*there, *between, *around}) if each < end or each in there)


def choose_decision(forecaster: LossForecaster, widths: Sequence[int], width: int | None, target: float) -> Decision:
    """Decide on the width asked about, or on the narrowest that is a go, or else on the widest."""
    with _quiet():
        if width is None:
            answers = verdicts(forecaster, np.array(widths), target).answers
            width = widths[answers.index(_GO) if _GO in answers else -1]
        return forecaster.decide(width, target)


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore warnings that the decision tells, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=UserWarning)
        yield


def runs_line(path: Path, runs: Runs) -> str:
    """Say what a file holds."""
    steps = "" if runs.n_steps is None else f", {_range(runs.n_steps)} steps"
    n, different = len(runs.widths), len(set(runs.widths))
    widths = f"width{'s' if different > 1 else ''} {_range(runs.widths)}"
    several = f", {n - different} of them at the width of another" if different < n and runs.n_steps is None else ""
    alone = "" if n > 1 else "; a second run makes intervals much narrower"
    return f"{path.name}: {n} run{'s' if n > 1 else ''}, {widths}{steps}{several}{alone}"


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def forecast_lines(
    forecaster: LossForecaster, widths: Sequence[int], target: float | None, decision: Decision | None
) -> list[str]:
    """Return the decision and the table of the forecasts."""
    lines = []
    if decision is not None:
        sentences = textwrap.wrap(str(decision), _TEXT_WIDTH, initial_indent="  ", subsequent_indent="  ")
        lines += ["", "WHAT TO DO", *sentences]
    longest = forecaster.budget_.longest
    with _quiet():
        losses, interval = forecaster.predict(widths, return_interval=True)
        columns: dict[str, Any] = {
            "width": list(widths),
            "forecast": [f"{loss:.3f}" for loss in losses],
            "90% interval": [f"{low:.3f} to {high:.3f}" for low, high in interval],
        }
        if longest is not None and forecaster.budget_.several:
            longer = forecaster.predict(widths, n_steps=_LONGER * longest)
            columns[f"{_LONGER}x steps"] = [f"{loss:.3f}" for loss in longer]
        if target is not None:
            columns["answer"] = verdicts(forecaster, np.array(widths), target).answers
    budget = "" if longest is None else f" for {longest:,.0f} steps"
    lines += ["", f"Forecast for students trained like these runs{budget}, in nats per token (KL from the teacher):"]
    return [*lines, pd.DataFrame(columns).to_string(index=False)]
