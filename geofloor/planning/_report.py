"""A plan as HTML: one file that needs no network, or a part of a notebook."""

from __future__ import annotations

import html
import math
import os
import platform
from collections.abc import Iterable, Sequence
from importlib import metadata, resources
from string import Template
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from geofloor._files.atomic import atomic_path
from geofloor.planning._checks import failed
from geofloor.planning._console import duration, size, title_lines
from geofloor.planning._report_figure import figure_html
from geofloor.planning._report_rerun import command_line, needs_python, python_call, was_named

if TYPE_CHECKING:
    from geofloor.forecasting._decision import Decision
    from geofloor.planning._plan import Plan

_ANSWERS = {  # style, symbol and words
    "go at this budget": ("go", "✓", "Go at this budget"),
    "uncertain": ("uncertain", "?", "Uncertain"),
    "not at this budget": ("no", "✕", "Not at this budget"),
    "impossible": ("impossible", "⊘", "Impossible"),
    "unknown": ("unknown", "–", "No answer"),
}
_STATUS = {"ok": ("go", "✓"), "warning": ("uncertain", "!"), "failed": ("impossible", "✕")}
_CITATION = (
    "N. Sarkar and D. J. Deka (2026), Geometric Limits of Knowledge Distillation: A Minimum-Width Theorem via "
    "Superposition Theory."
)
_PAPER = "https://arxiv.org/abs/2604.04037"
_NONE = "–"  # in a cell without a value


class _Html(str):
    """Text that is HTML already. All other text is escaped."""

    __slots__ = ()


class _Verdict(NamedTuple):
    """The verdict in words."""

    style: str
    symbol: str
    label: str
    headline: str
    more: list[str]  # paragraphs


class _Facts(NamedTuple):
    """What is computed once for a report, since it takes seconds."""

    table: pd.DataFrame
    decision: Decision | None
    next_run: Any


def report_html(plan: Plan, *, whole: bool = True) -> str:
    """Return a plan as HTML that loads nothing from elsewhere.

    Parameters
    ----------
    plan : Plan
        The plan.
    whole : bool, default=True
        Whether to return a page. Otherwise it is a part of one, for notebooks: its style holds for nothing else,
        details are folded, and the figure is a picture.

    Returns
    -------
    text : str
        The HTML.
    """
    facts = _Facts(plan.table, plan.decision, plan.next_run())
    level = 1 if whole else 3
    verdict = _verdict(plan, facts)
    style = resources.files("geofloor.planning").joinpath("report.css").read_text(encoding="utf-8")
    first = [
        _figure(plan, facts, verdict, interactive=whole),
        _section(level, "Widths", _widths(plan, facts)),
        _section(level, "Checks", _checks(plan)),
        _section(level, "How sure, and why", _sureness(plan)),
        _section(level, "What to run next", _next(plan, facts)),
    ]
    details = [
        _section(level, "Students", _students(plan)),
        _section(level, "Features that students drop", _features(plan)),
        _section(level, "Cost", _costs(plan)),
        _section(level, "Make this plan again", _rerun(plan)),
        _section(level, "Versions and citation", _versions()),
    ]
    rest = "\n".join(filter(None, details))
    if not whole:
        rest = f"<details>\n<summary>Students, features, cost and settings</summary>\n{rest}\n</details>"
    parts = [
        "" if whole else f"<style>\n{style}</style>",
        _paragraph(f"Plan of a distillation from {title_lines(plan)[0]}", "teacher"),
        _verdict_html(verdict, level),
        *first,
        rest,
    ]
    body = "\n".join(filter(None, parts))
    tag = "main" if whole else "div"
    body = f'<{tag} class="geofloor-report">\n{body}\n</{tag}>'
    if not whole:
        return body
    page = resources.files("geofloor.planning").joinpath("report.html").read_text(encoding="utf-8")
    title = f"{verdict.label}: {title_lines(plan)[0]}"
    version = _escape(metadata.version("geofloor"))
    return Template(page).substitute(title=_escape(title), version=version, style=style, body=body)


def write_report(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write a plan as one HTML file, atomically.

    Parameters
    ----------
    plan : Plan
        The plan.
    path : str or path
        The file.

    Raises
    ------
    OSError
        If it can't be written.
    """
    page = report_html(plan)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


# Verdict


def _verdict(plan: Plan, facts: _Facts) -> _Verdict:
    decision, withheld = facts.decision, plan.withheld
    if decision is None or plan.bound is None:
        style, symbol, _ = _ANSWERS["unknown"]
        label, headline, paragraphs = _without_target(plan, facts)
        return _Verdict(style, symbol, label, headline, paragraphs)
    # Its text is "answer: first sentence. More sentences."
    headline, _, more = str(decision).partition(": ")[2].partition(". ")
    paragraphs = [more]
    if decision.answer == "unknown":
        own = f"Students as wide as the teacher, {plan.teacher.width}, are not forecast."
        paragraphs.insert(0, own if withheld is None else f"No forecasts: {withheld}")
    if decision.answer == "impossible":
        paragraphs.append(_least_possible(facts))
    if plan.settings.width is None:
        is_go = decision.answer == "go at this budget"
        which = "narrowest of the table that is a go" if is_go else "widest of the table"
        paragraphs.append(f"No width was asked about. Width {decision.width} is the {which}.")
    return _Verdict(*_ANSWERS[decision.answer], _sentence(headline), [each for each in paragraphs if each])


def _without_target(plan: Plan, facts: _Facts) -> tuple[str, str, list[str]]:
    """Return label, headline and paragraphs where there is nothing to decide."""
    withheld = plan.withheld
    if plan.bound is None:
        reason = [] if withheld in (None, "Nothing was measured.") else [f"What is known already: {withheld}"]
        return "Not measured", "Nothing was measured yet.", [*reason, "Run the plan without dry_run for an answer."]
    if withheld is not None:
        return "No target", "There is no forecast, and no target.", [f"No forecasts: {withheld}"]
    widths, losses = (facts.table[name].tolist() for name in ("width", "forecast"))
    headline = (
        f"Students of width {widths[0]} to {widths[-1]} are forecast to end at {losses[0]:.3g} to {losses[-1]:.3g} "
        "nats per token."
    )
    ask = f"No target was given. Ask plan.decide({widths[-1]}, target), or give target_kl."
    return "No target", headline, [f"That is after {plan.n_steps:,} steps of training.", ask]


def _least_possible(facts: _Facts) -> str:
    possible = facts.table[facts.table["answer"] != "impossible"]
    if possible.empty:
        return "The target is impossible at every width of the table."
    return f"Width {possible['width'].iloc[0]} is the narrowest of the table where the target is not impossible."


def _verdict_html(verdict: _Verdict, level: int) -> str:
    lines = [
        f'<div class="verdict {verdict.style}">',
        f'<p class="label">{_symbol(verdict.symbol)} {_escape(verdict.label)}</p>',
        f'<h{level} class="headline">{_escape(verdict.headline)}</h{level}>',
        *(_paragraph(each) for each in verdict.more),
        "</div>",
    ]
    return "\n".join(lines)


# Sections


def _figure(plan: Plan, facts: _Facts, verdict: _Verdict, *, interactive: bool) -> str:
    figure = figure_html(plan, facts.table, verdict.headline, interactive=interactive)
    return f"<section>\n{figure}\n</section>" if figure else ""


def _widths(plan: Plan, facts: _Facts) -> str:
    table = facts.table
    columns: dict[str, list[Any]] = {"Width": [f"{width}" for width in table["width"]]}
    if "answer" in table:
        columns["Verdict"] = [_badge(*_ANSWERS[each]) for each in table["answer"]]
    if "forecast" in table:
        columns["Forecast"] = [_loss(each) for each in table["forecast"]]
        ends = zip(table["low"], table["high"], strict=True)
        columns["90% interval"] = [f"{_loss(low)} to {_loss(high)}" for low, high in ends]
    if "longer" in table:
        columns["After twice the steps"] = [_loss(each) for each in table["longer"]]
    if "impossible_below" in table:
        columns["Impossible below"] = [_loss(each) for each in table["impossible_below"]]
    columns["Heads"] = [_NONE if pd.isna(each) else f"{each}" for each in table["heads"]]
    columns["Parameters"] = [_millions(each) for each in table["parameters"]]
    asked = -1 if facts.decision is None else int(facts.decision.width)
    if "impossible_below" not in table:
        caption = "Students of these widths."
    elif plan.forecaster is None:
        caption = "The least loss of any student of a width, however it is trained, in nats per token."
    else:
        caption = f"Losses in nats per token, of students trained for {plan.n_steps:,} steps."
    return _table(
        caption,
        columns,
        numbers=set(columns) - {"Verdict"},
        marked=[width == asked for width in table["width"]],
    )


def _checks(plan: Plan) -> str:
    checks = plan.checks
    columns = {
        "Stage": [each.capitalize() for each in checks["stage"]],
        "Status": [_badge(*_STATUS[each], each) for each in checks["status"]],
        "Finding": list(checks["message"]),
    }
    return _table("What rests on a stage that failed is withheld.", columns, words={"Finding"}) if len(checks) else ""


def _sureness(plan: Plan) -> str:
    bound = ""
    if plan.bound is not None and failed(plan._checks(), "text") is None:
        bound = (
            "The losses called impossible hold for any student of a width, however it is trained: they follow from the "
            "teacher's own predictions. They come from a sample of text, so that only a target 5% below is called "
            "impossible."
        )
    if plan.forecaster is None:
        return "" if plan.bound is None else "\n".join(map(_paragraph, filter(None, (_why_none(plan), bound))))
    runs = sorted({run.width for run in plan.runs})
    forecast = (
        "An interval holds for the loss of one new student that is trained like these runs: the same start, text like "
        f"theirs, {plan.settings.step_tokens:,} tokens per step and {plan.n_steps:,} steps. Nine in ten such students "
        "should end inside it. Students that are trained otherwise can end elsewhere."
    )
    rests = (
        f"The forecasts rest on {_count(len(plan.runs), 'run')} of {_count(len(runs), 'width')} ({_listed(runs)}). "
        "Intervals are narrow near these and wide far from them, where several laws of the width fit the runs."
    )
    longer = plan.forecaster.budgets_ is not None
    trend = "Losses after twice the steps follow the trend over the steps of these runs." if longer else ""
    return "\n".join(map(_paragraph, filter(None, (forecast, f"{rests} {trend}".strip(), bound))))


def _why_none(plan: Plan) -> str:
    return f"There are no forecasts. {plan.withheld}"


def _next(plan: Plan, facts: _Facts) -> str:
    if facts.next_run is None:
        return ""
    add = f"Then add its loss: plan.add_runs({{{facts.next_run.width}: loss}})."
    return _paragraph(str(facts.next_run)) + "\n" + _paragraph(add, "note")


def _students(plan: Plan) -> str:
    if not plan.runs:
        return ""
    runs = plan.runs
    columns = {
        "Width": [f"{run.width}" for run in runs],
        "Steps": [_NONE if run.n_steps is None else f"{run.n_steps:,}" for run in runs],
        "Loss": [f"{run.loss:.4f}" for run in runs],
        "Standard error": [_NONE if run.error is None else f"{run.error:.4f}" for run in runs],
        "Start": [run.init or _NONE for run in runs],
        "Trained": ["for this plan" if run.source == "plan" else "elsewhere" for run in runs],
    }
    caption = "Losses on held-out text, in nats per token: KL from the teacher at temperature 2, without the factor T²."
    return _table(caption, columns, numbers={"Width", "Steps", "Loss", "Standard error"})


def _features(plan: Plan) -> str:
    each = plan.features
    if each is None:
        return ""
    explained = (
        "" if each.explained_variance is None else f" It explains {each.explained_variance:.1%} of the variance."
    )
    about = (
        f"After block {each.layer} the dictionary has {each.n_features:,} features, and {each.mean_l0:.1f} of them "
        f"fire per token. Their sparsity is α = {each.alpha:.4f}. By Eq. 1 a student keeps g(α) = {each.capacity:.2f} "
        f"of them per dimension, and all from a width of d* = {each.critical_width:.1f} on.{explained}"
    )
    reason = failed(plan._checks(), "features", "text")
    if reason is not None:
        return "\n".join((_paragraph(about), _paragraph(f"What students drop is withheld: {reason}")))
    columns = {
        "Width": [f"{width}" for width in each.widths],
        "Kept": [f"{kept:,}" for kept in each.kept],
        "Dropped": [f"{each.n_features - kept:,}" for kept in each.kept],
        "Floor": [f"{floor / each.total:.1%}" if each.total else _NONE for floor in each.floors],
        "Teacher without them": [_loss(nats) for nats in each.nats],
    }
    caption = (
        "Features that students keep and drop by Eq. 2, the floor as a share of that of width 0, and the loss of the "
        "teacher itself without the dropped features, in nats per token. The decision does not rest on them."
    )
    return "\n".join((_paragraph(about), _table(caption, columns, numbers=set(columns))))


def _costs(plan: Plan) -> str:
    costs = plan.costs
    if not costs:
        return ""
    actual = [each.actual_seconds for each in costs]
    took = [_NONE if seconds is None else duration(seconds) for seconds in actual]
    known = [seconds for seconds in actual if seconds is not None]
    columns = {
        "Stage": [*(each.stage.capitalize() for each in costs), "In all"],
        "Estimate": [duration(each.seconds) for each in costs] + [duration(math.fsum(each.seconds for each in costs))],
        "Actual": [*took, duration(math.fsum(known)) if len(known) == len(costs) else _NONE],
        "Memory": [size(each.memory) for each in costs] + [size(max(each.memory for each in costs))],
        "Disk": [size(each.disk) for each in costs] + [size(math.fsum(each.disk for each in costs))],
    }
    caption = "Estimated from short timings on the machine that made the plan, and what each stage took there."
    return _table(caption, columns, numbers=set(columns) - {"Stage"})


def _rerun(plan: Plan) -> str:
    stand_in = ["texts and TEXT stand for the text, which a plan does not keep."]
    if not was_named(plan):
        stand_in.append("teacher is the loaded model, TEACHER the folder that its save_pretrained wrote.")
    stand_in.append("A tokenizer, a dictionary or model_kwargs that were given are to be given again.")
    if needs_python(plan):
        stand_in.append("The command adds runs of the longest budget only; add the others in Python.")
    code = [f'<pre tabindex="0"><code>{_escape(each)}</code></pre>' for each in (python_call(plan), command_line(plan))]
    return "\n".join((_paragraph("In Python:"), code[0], _paragraph("On the command line:"), code[1])) + _paragraph(
        " ".join(stand_in), "note"
    )


def _versions() -> str:
    versions = [f"{name} {metadata.version(name)}" for name in ("geofloor", "torch", "transformers", "numpy")]
    versions.append(f"Python {platform.python_version()}")
    cite = f'{_escape(_CITATION)} <a href="{_PAPER}" rel="noreferrer">arXiv:2604.04037</a>'
    return f"{_paragraph('Written by ' + _listed(versions) + '.')}\n<p>The theory is that of {cite}</p>"


# Pieces of HTML


def _section(level: int, heading: str, content: str) -> str:
    """Return a section, or an empty string without content."""
    if not content:
        return ""
    tag = f"h{level + 1}"
    return f'<section>\n<{tag} class="heading">{_escape(heading)}</{tag}>\n{content}\n</section>'


def _table(
    caption: str,
    columns: dict[str, list[Any]],
    *,
    numbers: Iterable[str] = (),
    words: Iterable[str] = (),
    marked: Sequence[bool] = (),
) -> str:
    """Return a table in a box of its own that scrolls.

    Parameters
    ----------
    caption : str
        What it shows.
    columns : dict of str to list of str
        Cells by heading. The first column heads its rows.
    numbers, words : iterable of str
        Columns set to the right, and columns that break into lines.
    marked : sequence of bool, default=()
        Whether each row is the one asked about.
    """
    styles = {name: "number" if name in set(numbers) else "words" if name in set(words) else "" for name in columns}

    def cell(tag: str, name: str, content: str, scope: str = "") -> str:
        attributes = (f' scope="{scope}"' if scope else "") + (f' class="{styles[name]}"' if styles[name] else "")
        return f"<{tag}{attributes}>{_escape(content)}</{tag}>"

    head = "".join(cell("th", name, name, "col") for name in columns)
    lines = [
        f'<div class="scroll" role="region" tabindex="0" aria-label="{_escape(caption)}">',
        f"<table>\n<caption><span>{_escape(caption)}</span></caption>",
        f"<thead>\n<tr>{head}</tr>\n</thead>\n<tbody>",
    ]
    for number, row in enumerate(zip(*columns.values(), strict=True)):
        cells = [
            cell(*(("th", name, each, "row") if not place else ("td", name, each)))
            for place, (name, each) in enumerate(zip(columns, row, strict=True))
        ]
        is_marked = number < len(marked) and marked[number]
        lines.append(f"<tr{' class=' + chr(34) + 'asked' + chr(34) if is_marked else ''}>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody>\n</table>\n</div>"])


def _badge(style: str, symbol: str, label: str) -> _Html:
    return _Html(f'<span class="badge {style}">{_symbol(symbol)} {_escape(label)}</span>')


def _symbol(symbol: str) -> str:
    return f'<span class="symbol" aria-hidden="true">{_escape(symbol)}</span>'


def _paragraph(text: str, style: str = "") -> str:
    return f'<p class="{style}">{_escape(text)}</p>' if style else f"<p>{_escape(text)}</p>"


def _escape(text: str) -> str:
    return text if isinstance(text, _Html) else html.escape(text, quote=True)


# Words and numbers


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _listed(values: Sequence[Any]) -> str:
    words = [f"{each}" for each in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _loss(value: float) -> str:
    """Return a loss to three decimals, as the console does; a smaller one is told to be smaller."""
    if np.isnan(value):
        return _NONE
    return f"{value:.3f}" if value >= 5e-4 or value == 0 else "< 0.001"


def _millions(number: Any) -> str:
    if pd.isna(number):
        return _NONE
    return f"{number / 1e6:.3g} M" if number < 1e9 else f"{number / 1e9:.3g} B"
