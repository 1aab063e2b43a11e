"""The calls that make a plan again: in Python, and on the command line."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from geofloor.planning._settings import PlanSettings

if TYPE_CHECKING:
    from geofloor.planning._plan import Plan

_OPTIONS = {"n_tokens": "--tokens", "budgets": "--steps", "random_state": "--seed"}
_CLASS = re.compile(
    r"[A-Z]\w*(ForCausalLM|LMHeadModel|ForConditionalGeneration)"
)  # of a language model of transformers


def python_call(plan: Plan) -> str:
    """Return the Python code that makes a plan again. ``texts`` stands for its text, ``teacher`` for a loaded model."""
    teacher = repr(plan.teacher.name) if was_named(plan) else "teacher"
    arguments = [teacher, "texts", *(f"{name}={_plain(value)!r}" for name, value in _told(plan).items())]
    lines = ["from geofloor import plan_distillation", "", "plan = plan_distillation("]
    lines += [*(f"    {each}," for each in arguments), ")"]
    lines += [f"plan.add_runs({losses!r}, n_steps={n_steps})" for n_steps, losses in _given(plan).items()]
    return "\n".join(lines)


def command_line(plan: Plan) -> str:
    """Return the command that makes a plan again. ``TEXT`` stands for files, ``TEACHER`` for a folder."""
    options = [["--text", "TEXT"]]
    for name, value in _told(plan).items():
        option = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
        if name == "features":
            options.append(["--no-features"])
        else:
            options.append([option, (",".join(map(str, value)) or "none") if isinstance(value, tuple) else f"{value}"])
    longest = max(plan.settings.budgets)
    options += [["--add-run", f"{width}={loss!r}"] for width, loss in _given(plan).get(longest, {}).items()]
    command = ["geofloor", "plan", plan.teacher.name if was_named(plan) else "TEACHER"]
    return " \\\n    ".join(shlex.join(each) for each in [command, *options])


def needs_python(plan: Plan) -> bool:
    """Tell whether the command line can't make a plan again: it adds runs of the longest budget only."""
    return bool(_given(plan).keys() - {max(plan.settings.budgets)})


def was_named(plan: Plan) -> bool:
    """Tell whether the teacher was given by name or folder, and not as a loaded model, which has its class's name."""
    return _CLASS.fullmatch(plan.teacher.name) is None


def _told(plan: Plan) -> dict[str, Any]:
    """Return the settings that differ from those that their defaults give for this teacher."""
    settings = plan.settings
    usual = asdict(PlanSettings(target_kl=settings.target_kl, width=settings.width).for_width(plan.teacher.width))
    told = {name: value for name, value in asdict(settings).items() if value != usual[name]}
    asked = {name: getattr(settings, name) for name in ("target_kl", "width") if getattr(settings, name) is not None}
    return asked | told


def _given(plan: Plan) -> dict[int, dict[int, float]]:
    """Return the losses of runs that were given, by steps and width."""
    found: dict[int, dict[int, float]] = {}
    for run in plan.runs:
        if run.source == "given":
            found.setdefault(run.n_steps or plan.n_steps, {})[run.width] = run.loss
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) and value else value
