"""The command ``geofloor``. Nothing heavy is imported before a command runs, so that help comes at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import click

from geofloor.planning._cli_click import NO_GO, Command, FileName, Group, JsonObject, Mistake, Numbers, Run, joined

if TYPE_CHECKING:
    from geofloor.planning._plan import Plan

_Function = TypeVar("_Function", bound=Callable[..., Any])
_TARGET = 0.25  # nats per token, for the embedded teacher
_ASK = 600.0  # estimated seconds above which a person is asked before the work
_REPORT, _FIGURE = "report.html", "forecast.png"

_EXIT_CODES = """\b
Exit codes:
  0    done, whatever the answer is
  1    the work failed, for example because the model can't be loaded
  2    a mistake in the command, or in a file that it names
  3    with --check, and the answer is not "go at this budget"
  130  stopped by Ctrl-C; the same command resumes"""
_EPILOG = f"""{_EXIT_CODES}

\b
Completion in bash (for zsh and fish put their names in place of bash):
  eval "$(_GEOFLOOR_COMPLETE=bash_source geofloor)"

An error is one line. --traceback, or GEOFLOOR_TRACEBACK=1, shows where it was raised."""


def _options(*options: Callable[[Any], Any]) -> Callable[[_Function], _Function]:
    """Join options to one decorator, in their order."""

    def decorate(function: _Function) -> _Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


# Parameters are called as arguments of the library, which is how errors find their option.

_teacher = _options(
    click.argument("teacher", metavar="[MODEL]", required=False, type=FileName()),
    click.option(
        "--text",
        "texts",
        multiple=True,
        type=FileName(),
        metavar="FILE...",
        help="Files of text, one or several: UTF-8, one document each; or .jsonl, .json, .csv or .parquet with a "
        "column 'text'. MODEL goes before it.  [default: Python source of this machine]",
    ),
    click.option(
        "--model-kwargs",
        type=JsonObject(),
        metavar="JSON",
        help="""More arguments for from_pretrained, such as '{"dtype": "bfloat16"}'.""",
    ),
    click.option("--tokenizer", type=FileName(), metavar="NAME", help="Its name or folder.  [default: MODEL's own]"),
    click.option("--tokens", "n_tokens", type=int, default=200_000, help="Tokens to measure on."),
    click.option("--length", type=int, default=256, help="Tokens per sequence."),
)
_widths = click.option(
    "--widths",
    type=Numbers(),
    multiple=True,
    callback=joined,
    metavar="N,N...",
    help="Widths of the table.  [default: fractions of the teacher's]",
)
_students = _options(
    click.option(
        "--target-kl",
        type=float,
        metavar="NATS",
        help=f"Loss to reach: KL at temperature 2, in nats per token.  [default: {_TARGET} without MODEL, else none]",
    ),
    click.option("--width", type=int, help="Width to decide on."),
    _widths,
    click.option(
        "--run-widths",
        type=Numbers(or_none=True),
        multiple=True,
        callback=joined,
        metavar="N,N...",
        help="Widths of the students to train; 'none' trains none.  [default: 1/4 and 3/4 of the teacher's]",
    ),
    click.option(
        "--steps",
        "budgets",
        type=Numbers(),
        multiple=True,
        callback=joined,
        metavar="N,N...",
        help="Numbers of steps that each of these is trained for.  [default: 150,300,600]",
    ),
    click.option("--batch-size", type=int, default=8, help="Sequences per step."),
    click.option(
        "--init", type=click.Choice(["auto", "principal", "random"]), default="auto", help="How students start."
    ),
    click.option("--head-dim", type=int, help="Dimensions of the students' heads.  [default: the teacher's]"),
    click.option("--no-features", is_flag=True, help="Leave features out; the decision does not rest on them."),
)
_features = _options(
    click.option("--layer", type=int, help="Block, from 0, after which features are measured.  [default: the middle]"),
    click.option(
        "--sae",
        "autoencoder",
        type=FileName(),
        metavar="PATH",
        help="Trained sparse autoencoder of this block: a file or a published one.  [default: train one]",
    ),
)
_folder = click.option(
    "--output",
    "checkpoint_dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("plan"),
    help="Folder for results; the same command resumes from it.",
)
_reports = click.option(
    "--report-to",
    metavar="NAME",
    help="Tracker for the losses of trainings: tensorboard, wandb, trackio or another of transformers.",
)
_traceback = click.option(
    "--traceback", is_flag=True, envvar="GEOFLOOR_TRACEBACK", help="Show where an error was raised."
)
_running = _options(
    click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps."),
    click.option("--seed", "random_state", type=int, default=0, help="Seed of everything."),
    click.option("-v", "--verbose", is_flag=True, help="Show progress bars even if this is no terminal."),
    _traceback,
)
_check = click.option("--check", is_flag=True, help="""Exit with code 3 unless the answer is "go at this budget".""")


@click.group(
    "geofloor",
    cls=Group,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110},
)
@click.version_option(package_name="geofloor", message="%(prog)s %(version)s")
def main() -> None:
    """Tell which width of student reaches a loss, before distilling it.

    Begin with "geofloor plan", which needs no arguments: it plans students of the small teacher that comes with the
    library.
    """


@main.command(epilog=_EXIT_CODES, short_help="Plan a distillation: which width reaches a loss.")
@_teacher
@_students
@_features
@click.option(
    "--add-run",
    "runs",
    type=Run(),
    multiple=True,
    metavar="WIDTH=LOSS",
    help="Loss of a student trained elsewhere as these are, for the most steps. Give it each time.",
)
@_folder
@_reports
@_running
@click.option("--dry-run", is_flag=True, help="Print the checks and the cost, and stop.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask before long work.")
@_check
@click.pass_context
def plan(ctx: click.Context, *, dry_run: bool, yes: bool, check: bool, runs: Any, **options: Any) -> None:
    """Plan a distillation: which width reaches a loss, how sure that is, and at what cost.

    MODEL is the name or folder of a causal language model of transformers; by default it is the small teacher that
    comes with the library. The bound from the teacher comes first, then two short runs of students and forecasts from
    them, then features. It ends with the answer, a report and a figure in the folder of --output.
    """
    if options["teacher"] is None and options["target_kl"] is None:
        options["target_kl"] = _TARGET
    if check and options["target_kl"] is None:
        raise Mistake("--check needs a target; give --target-kl.")
    _plan(ctx, dry_run=dry_run, yes=yes, check=check, runs=dict(runs), **options)


@main.command()
@_teacher
@_students
@_features
@_folder
@_running
@click.pass_context
def cost(ctx: click.Context, **options: Any) -> None:
    """Print what a plan would cost, as "geofloor plan --dry-run"."""
    if options["teacher"] is None and options["target_kl"] is None:
        options["target_kl"] = _TARGET
    _plan(ctx, dry_run=True, yes=True, check=False, runs={}, **options)


@main.command(short_help="Print the loss that no student gets below.")
@_teacher
@_widths
@click.option(
    "--output",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="File for the bound, in JSON. 'geofloor forecast --bound' and BottleneckPredictor.load read it.",
)
@_running
def bound(*, path: Path | None, **options: Any) -> None:
    """Print the loss that no student of a width gets below, from the teacher alone."""
    if path is not None:
        from geofloor._files.atomic import check_writable

        check_writable("path", path)
    made = _make(**options, run_widths=(), no_features=True, stages=["bottleneck"])
    assert made.bound is not None
    click.echo(f"A student of width 0 ends at {made.bound.zero_width_loss_:.3g} nats per token.")
    if path is not None:
        made.bound.save(path)
        click.echo(f"Written: {path}")


@main.command(short_help="Print what students of each width would drop.")
@_teacher
@_widths
@_features
@click.option(
    "--output",
    "checkpoint_dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for results, such as that of a plan; the same command resumes from it.  [default: none]",
)
@_reports
@_running
def features(**options: Any) -> None:
    """Print the features of a teacher, and what students of each width would drop."""
    _make(**options, run_widths=(), stages=["features"])


class _Forecast(Command):
    also: ClassVar = {"X": "the column width", "y": "the column loss", "n_steps": "the column n_steps"}


@main.command(cls=_Forecast, epilog=_EXIT_CODES, short_help="Forecast losses from runs that you have.")
@click.argument("path", metavar="RUNS", type=click.Path(path_type=Path))
@click.option("--target", "--target-kl", "target", type=float, metavar="NATS", help="Loss to reach, in nats per token.")
@click.option("--width", type=int, help="Width to decide on.  [default: the narrowest of the table that is a go]")
@click.option(
    "--widths",
    type=Numbers(),
    multiple=True,
    callback=joined,
    metavar="N,N...",
    help="Widths of the table.  [default: those of the runs, and some around them]",
)
@click.option("--teacher-width", type=float, help="The teacher's own width, where students can equal it.")
@click.option(
    "--students", type=click.Choice(["principal", "random"]), help="How the students started, if they did alike."
)
@click.option("--zero-width-loss", type=float, metavar="NATS", help="Loss of a student of width 0.")
@click.option("--bound", type=FileName(), metavar="FILE", help="The teacher's bound, from 'geofloor bound --output'.")
@_check
@_traceback
@click.pass_context
def forecast(
    ctx: click.Context,
    *,
    path: Path,
    target: float | None,
    width: int | None,
    widths: Sequence[int] | None,
    bound: str | None,
    check: bool,
    traceback: bool,
    **known: Any,
) -> None:
    """Forecast the loss of students of any width from runs that you have.

    RUNS is a table with the columns width, loss (in nats per token) and, if it is known, n_steps: a file .csv, .tsv,
    .jsonl (JSON lines) or .parquet. Runs of several n_steps must each have ended their learning-rate schedule. Losses
    that rise with width are refused.
    """
    if target is None and (check or width is not None):
        raise Mistake(f"{'--check' if check else '--width'} needs a target; give --target.")
    from geofloor.forecasting import LossForecaster
    from geofloor.forecasting._limits import teacher_end
    from geofloor.planning._cli_runs import (
        choose_decision,
        forecast_lines,
        read_runs,
        refusing_rise,
        runs_line,
        table_widths,
    )

    runs = read_runs(path)
    if bound is not None:
        from geofloor.language_models import BottleneckPredictor

        try:
            known["bound"] = BottleneckPredictor.load(bound)
        except (OSError, ValueError) as error:
            raise Mistake(f"--bound: {error}") from error
    with refusing_rise(path):
        forecaster = LossForecaster(**known).fit(runs.widths, runs.losses, n_steps=runs.n_steps)
    end, _ = teacher_end(forecaster, forecaster.law_)
    rows = tuple(sorted({*(widths or table_widths(runs, end)), *(() if width is None else (width,))}))
    decision = None if target is None else choose_decision(forecaster, rows, width, target)
    click.echo(runs_line(path, runs))
    click.echo("\n".join(forecast_lines(forecaster, rows, target, decision)))
    if check and (decision is None or decision.answer != "go at this budget"):
        ctx.exit(NO_GO)


# The work


def _plan(ctx: click.Context, *, dry_run: bool, yes: bool, check: bool, runs: dict[int, float], **options: Any) -> None:
    """Make a plan, print its answer, and write its report and its figure."""
    began = []

    def proceed(made: Plan) -> bool:
        if runs:  # refused here if they can't be, and not after the work
            _with_runs(made, runs)
        seconds = sum(each.seconds for each in made.costs)
        if not dry_run and (yes or seconds <= _ASK or not _is_terminal() or click.confirm("Continue?", default=True)):
            began.append(True)
        return bool(began)

    folder = options["checkpoint_dir"]
    if dry_run and not folder.exists():
        options["checkpoint_dir"] = None  # which leaves no folder behind
    made = _make(**options, proceed=proceed)
    if not began:
        click.echo("Nothing was measured.")
        return
    if runs:
        made = _with_runs(made, runs)
    from geofloor.planning._console import answer_lines

    click.echo("\n" + "\n".join(answer_lines(made)))
    click.echo(f"\nWritten: {', '.join(str(each) for each in _write(made, folder))}")
    if check and (made.decision is None or made.decision.answer != "go at this budget"):
        ctx.exit(NO_GO)


def _with_runs(made: Plan, runs: dict[int, float]) -> Plan:
    """Return a copy of a plan with more runs."""
    from dataclasses import replace

    return replace(made, runs=list(made.runs)).add_runs(runs)


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _make(
    *,
    teacher: str | None,
    texts: Sequence[str],
    model_kwargs: dict[str, Any] | None,
    tokenizer: str | None,
    device: str,
    verbose: bool,
    traceback: bool,
    autoencoder: str | None = None,
    checkpoint_dir: Path | None = None,
    report_to: str | None = None,
    no_features: bool = False,
    budgets: Sequence[int] | None = None,
    proceed: Callable[[Plan], bool] = lambda made: True,
    stages: Sequence[str] = ("bottleneck", "students", "features"),
    **given: Any,
) -> Plan:
    """Check the options and the text, and then load the teacher and run stages of a plan."""
    from dataclasses import fields

    from geofloor.planning._cli_inputs import find_teacher, find_texts
    from geofloor.planning._settings import PlanSettings

    if budgets is not None:
        given["budgets"] = budgets
    defaults = {each.name: each.default for each in fields(PlanSettings)}
    settings = PlanSettings.read(**(defaults | given | {"features": not no_features}))
    if autoencoder is not None and not Path(autoencoder).exists():
        raise Mistake(f"--sae '{autoencoder}' is not there; give the file or folder of a sparse autoencoder.")
    source, embedded = find_teacher(teacher, model_kwargs)
    documents, which = find_texts(texts, embedded=embedded)
    click.echo(which)
    bars = verbose or sys.stderr.isatty()
    from geofloor.planning._distillation import make_plan

    with _bars_of_transformers(bars):
        return make_plan(
            source,
            documents,
            settings,
            autoencoder=autoencoder,
            tokenizer=tokenizer,
            model_kwargs=model_kwargs,
            folder=checkpoint_dir,
            proceed=proceed,
            stages=stages,
            device=device,
            verbose=2 if bars else 1,
            report_to=report_to,
        )


@contextmanager
def _bars_of_transformers(shown: bool) -> Iterator[None]:
    """Let transformers show progress bars only where we do."""
    from transformers.utils import logging

    hides = not shown and logging.is_progress_bar_enabled()
    if hides:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hides:
            logging.enable_progress_bar()


def _write(made: Plan, folder: Path) -> list[Path]:
    """Write the report and, where there are forecasts, their figure; return their paths."""
    from geofloor._files.atomic import atomic_path

    made.report(folder / _REPORT)
    if made.forecaster is None:
        with suppress(FileNotFoundError):  # of an earlier plan in this folder
            (folder / _FIGURE).unlink()
        return [folder / _REPORT]
    os.environ.setdefault("MPLBACKEND", "Agg")  # no window is opened
    with atomic_path(folder / _FIGURE) as path:
        made.plot().figure_.savefig(path, dpi=150, bbox_inches="tight")
    return [folder / _REPORT, folder / _FIGURE]
