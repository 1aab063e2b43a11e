"""Report the measurements of a training to trackers such as TensorBoard, through transformers' integrations."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geofloor._validation import check_object, shown

_NEEDS = "run `pip install geofloor[accelerate]`, or set report_to=None"


def check_report_to(report_to: Any) -> list[str]:
    """Check names of trackers, before any work.

    Parameters
    ----------
    report_to : str, list of str or None
        Names, as in `transformers.TrainingArguments`; None and ``"none"`` name no tracker.

    Returns
    -------
    names : list of str
        Names of installed trackers.

    Raises
    ------
    TypeError
        If it is neither a name nor a list.
    ValueError
        If transformers does not know a tracker.
    ImportError
        If a tracker, or what transformers needs to report to it, is not installed.
    """
    if report_to is None or (isinstance(report_to, str) and report_to == "none"):
        return []
    check_object("report_to", report_to, (str, list, tuple), "give a name, a list of names, or None")
    names = [report_to] if isinstance(report_to, str) else list(report_to)
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )
    from transformers.utils import is_accelerate_available

    for name in names:
        if not isinstance(name, str) or name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ValueError(
                f"report_to={shown(report_to)} is no tracker that transformers knows; use {known}, or None."
            )
        if name not in get_available_reporting_integrations():
            raise ImportError(f"report_to={shown(report_to)} needs {name}, which is not installed; install it.")
    if names and not is_accelerate_available():
        raise ImportError(f"report_to={shown(report_to)} needs accelerate; {_NEEDS}.")
    return names


def _tensorboard(name: str) -> Any:
    """Make the tracker of TensorBoard with a folder per run, since fits that start in one second would share one."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    folder = Path(os.environ.get("TENSORBOARD_LOGGING_DIR", "runs")).expanduser()
    return TensorBoardCallback(SummaryWriter(str(folder / name)))


class Reports:
    """Reports of one fit to trackers, closed as a context; without trackers every method does nothing.

    A run begins with the first measurements, so that a fit that only reads its checkpoint leaves none.

    Parameters
    ----------
    report_to : str, list of str or None, default=None
        Names of trackers, as in `transformers.TrainingArguments`.
    name : str, default=""
        Name of the run, to which time and a random number are added.
    settings : mapping, default=None
        Settings of the run, which trackers show.
    """

    def __init__(self, report_to: Any = None, name: str = "", settings: Mapping[str, Any] | None = None) -> None:
        self._names = check_report_to(report_to)
        self._name = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        self._settings = dict(settings or {})
        self._trackers: list[Any] = []
        self._owns_wandb = False

    def __bool__(self) -> bool:
        return bool(self._names)

    def __enter__(self) -> Reports:
        return self

    def _begin(self) -> None:
        from transformers import TrainerControl, TrainerState, TrainingArguments
        from transformers.integrations import get_reporting_integration_callbacks

        # Without trackers of its own, because only the names asked for are to be used.
        arguments = TrainingArguments(output_dir=".", report_to="none", run_name=self._name)
        arguments.to_dict = lambda: self._settings  # not those of a Trainer
        self._state = TrainerState()
        self._given = arguments, self._state, TrainerControl()
        wandb = sys.modules.get("wandb")
        self._owns_wandb = "wandb" in self._names and getattr(wandb, "run", None) is None
        others = [name for name in self._names if name != "tensorboard"]
        self._trackers = [tracker() for tracker in get_reporting_integration_callbacks(others)]
        if "tensorboard" in self._names:
            self._trackers.append(_tensorboard(self._name))
        for tracker in self._trackers:
            tracker.on_train_begin(*self._given, model=None)

    def __exit__(self, *error: object) -> None:
        for tracker in self._trackers:
            tracker.on_train_end(*self._given, model=None)
        self._trackers = []
        if self._owns_wandb:
            sys.modules["wandb"].finish()  # or the next fit would go on with this run

    def log(self, measured: Mapping[str, Any], label: str = "") -> None:
        """Report measurements.

        Parameters
        ----------
        measured : mapping
            Numbers by name, among them ``step``; those that are None are left out.
        label : str, default=""
            Addition to each name, to tell models apart that train together.
        """
        if self._names and not self._trackers:
            self._begin()
        numbers = {name: value for name, value in measured.items() if name != "step" and value is not None}
        # The trackers of transformers put all but eval_ under train/.
        logs = {f"{name.removeprefix('train_')}{label and '/'}{label}": value for name, value in numbers.items()}
        for tracker in self._trackers:
            self._state.global_step = measured["step"]
            tracker.on_log(*self._given, logs=logs)
