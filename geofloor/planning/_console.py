"""A plan as text."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

import pandas as pd

from geofloor.planning._checks import failed

if TYPE_CHECKING:
    from geofloor.planning._plan import Plan

_WIDTH = 110
_HEADINGS = {
    "width": "width",
    "heads": "heads",
    "parameters": "parameters",
    "forecast": "forecast",
    "interval": "90% interval",
    "longer": "2x steps",
    "impossible_below": "impossible below",
    "answer": "answer",
}


def plan_text(plan: Plan) -> str:
    """Return the whole plan as text."""
    parts = [title_lines(plan), check_lines(plan), cost_lines(plan)]
    parts += [stage_lines(plan, stage) for stage in ("bottleneck", "students", "features")]
    return "\n\n".join("\n".join(lines) for lines in [*parts, answer_lines(plan)] if lines)


def title_lines(plan: Plan) -> list[str]:
    """Name the teacher and the target."""
    teacher, target = plan.teacher, plan.settings.target_kl
    size = f"{teacher.n_parameters / 1e6:,.3g} M parameters"
    heads = f", {teacher.n_heads} heads" if teacher.n_heads else ""
    goal = "" if target is None else f"; target {target:g} nats per token at temperature 2"
    name = teacher.name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return [f"{name}: {teacher.kind}, {teacher.n_layers} blocks of width {teacher.width}{heads}, {size}{goal}"]


def check_lines(plan: Plan, *stages: str) -> list[str]:
    """List the checks, of all stages by default."""
    found = [each for each in plan._checks() if not stages or each.stage in stages]
    if not found:
        return []
    lines = []
    for each in found:
        lines += _hanging(f"{each.stage:<9}{each.status:<8} ", each.message)
    return lines


def _hanging(head: str, body: str) -> list[str]:
    return textwrap.wrap(body, _WIDTH, initial_indent=f"  {head}", subsequent_indent=" " * (2 + len(head))) or [head]


def cost_lines(plan: Plan) -> list[str]:
    """List what each stage is estimated to cost, and what it took."""
    if not plan.costs:
        return []
    lines = ["Cost of each stage, estimated from short timings on this machine:"]
    for each in plan.costs:
        took = "" if each.actual_seconds is None else f", took {duration(each.actual_seconds)}"
        needs = f"{size(each.memory)} of memory, {size(each.disk)} of disk"
        lines.append(f"  {each.stage:<11}{duration(each.seconds):>10}, {needs}{took}")
    total = math.fsum(each.seconds for each in plan.costs)
    memory, disk = max(each.memory for each in plan.costs), math.fsum(each.disk for each in plan.costs)
    lines.append(f"  {'in all':<11}{duration(total):>10}, {size(memory)} of memory, {size(disk)} of disk")
    return lines


def stage_lines(plan: Plan, stage: str) -> list[str]:
    """Return what a stage gave; "checks" stands for what was checked before the first."""
    if stage == "checks":
        return [*title_lines(plan), *check_lines(plan)]
    if stage == "bottleneck" and plan.bound is not None:
        widths = list(plan.settings.widths or ())
        least = ", ".join(f"{width}: {each:.3g}" for width, each in zip(widths, plan._least(widths), strict=True))
        if failed(plan._checks(), "text") is not None:
            return []
        return ["No student gets below, by width, in nats per token:", *_hanging("", least)]
    if stage == "students" and plan.runs:
        lines = ["Students, nats per token:"]
        for run in plan.runs:
            steps = "" if run.n_steps is None else f", {run.n_steps:,} steps"
            error = "" if run.error is None else f" ± {run.error:.4f}"
            given = " (given)" if run.source == "given" else ""
            lines.append(f"  width {run.width}{steps}: {run.loss:.4f}{error}{given}")
        return [*lines, *check_lines(plan, "runs")]
    if stage == "features" and plan.features is not None:
        return feature_lines(plan)
    return []


def feature_lines(plan: Plan) -> list[str]:
    """Describe the features, and what each width drops."""
    each = plan.features
    assert each is not None
    lines = [
        f"Features after block {each.layer}: F = {each.n_features:,}, L0 = {each.mean_l0:.1f} per token, "
        f"alpha = {each.alpha:.4f}, capacity g = {each.capacity:.2f} per dimension, critical width d* = "
        f"{each.critical_width:.1f}",
        *check_lines(plan, "features"),
    ]
    if failed(plan._checks(), "features", "text") is not None:
        return lines
    table = pd.DataFrame(
        {
            "width": each.widths,
            "kept": each.kept,
            "dropped": [each.n_features - kept for kept in each.kept],
            "floor": [f"{floor / each.total:.1%}" for floor in each.floors],
            "nats": [f"{loss:.3f}" for loss in each.nats],
        }
    )
    lines.append(
        "Features that students drop by Eq. 2, their floor as a share of that of width 0, and the loss of the teacher\n"
        "itself without them:"
    )
    return [*lines, table.to_string(index=False)]


def answer_lines(plan: Plan) -> list[str]:
    """Return the decision, the table, and what to do next."""
    lines: list[str] = []
    if plan.withheld is not None:
        lines += textwrap.wrap(f"No forecasts: {plan.withheld}", _WIDTH)
    decision = plan.decision
    if decision is not None:
        lines += ["", "WHAT TO DO", *textwrap.wrap(str(decision), _WIDTH, initial_indent="  ", subsequent_indent="  ")]
    table = table_text(plan)
    if table:
        lines += ["", *table_legend(plan), table]
    if (next_run := plan.next_run()) is not None:
        lines += ["", *textwrap.wrap(str(next_run), _WIDTH)]
    return lines[1:] if lines and not lines[0] else lines


def table_legend(plan: Plan) -> list[str]:
    """Explain the columns of the table."""
    if plan.forecaster is None:
        return ["The least loss of any student, in nats per token:"]
    text = (
        f"Forecast for students trained for {plan.n_steps:,} steps like those of this plan, in nats per token. No "
        "student of a width gets below the last loss, however it is trained."
    )
    return textwrap.wrap(text, _WIDTH)


def table_text(plan: Plan) -> str:
    """Return the table of the widths, without the columns of the features."""
    table = plan.table
    if "impossible_below" not in table:
        return ""
    if "forecast" in table:
        table["interval"] = [f"{low:.3f} to {high:.3f}" for low, high in zip(table["low"], table["high"], strict=True)]
    shown = table[[name for name in _HEADINGS if name in table]].copy()
    if "parameters" in shown:
        shown["parameters"] = [
            "-" if pd.isna(n) else f"{n / 1e6:.3g} M" if n < 1e9 else f"{n / 1e9:.3g} B" for n in shown["parameters"]
        ]
    if "heads" in shown:
        shown["heads"] = ["-" if pd.isna(n) else str(n) for n in shown["heads"]]
    for name in ("forecast", "longer", "impossible_below"):
        if name in shown:
            shown[name] = [f"{value:.3f}" for value in shown[name]]
    return str(shown.rename(columns=_HEADINGS).to_string(index=False, na_rep="-"))


def duration(seconds: float) -> str:
    """Return seconds in words, to two digits."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}" if seconds < 99.5 * length else f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 0.95 else f"{seconds:.1f} s"


def size(n_bytes: float) -> str:
    """Return bytes in GiB or MiB."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 0.95 * 2**30 else f"{n_bytes / 2**20:.0f} MiB"
