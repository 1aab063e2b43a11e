"""What the command line needs besides click: kinds of values, options of several words, and errors on one line."""

from __future__ import annotations

import json
import math
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import click
from click.shell_completion import CompletionItem

FAILED, USAGE, NO_GO, STOPPED = 1, 2, 3, 130  # exit codes
_TOLD = ValueError, TypeError, OSError, MemoryError, ImportError  # errors that the library raises on purpose


class Mistake(click.ClickException):
    """Mistake of the user, told on one line."""

    exit_code = USAGE


class Failure(click.ClickException):
    """Work that failed, told on one line."""

    exit_code = FAILED


# Values


class Numbers(click.ParamType):
    """Whole numbers, divided by commas; "none" for no number at all, where that is allowed."""

    name = "numbers"

    def __init__(self, *, or_none: bool = False) -> None:
        self.or_none = or_none

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Read the numbers."""
        if isinstance(value, tuple):
            return value
        if self.or_none and value.strip().lower() == "none":
            return ()
        try:
            return tuple(int(each) for each in value.strip().strip(",").split(","))
        except ValueError:
            self.fail(f"{value!r} must be whole numbers, divided by commas, such as 100,200.", param, ctx)


class Run(click.ParamType):
    """A student's width and its loss."""

    name = "run"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float]:
        """Read a run."""
        if isinstance(value, tuple):
            return value
        width, _, loss = value.partition("=")
        try:
            run = int(width), float(loss)
        except ValueError:
            run = 0, 0.0
        if run[0] < 1 or not 0 < run[1] < math.inf:
            self.fail(f"{value!r} must be a width and its loss in nats per token, such as 448=0.21.", param, ctx)
        return run


class JsonObject(click.ParamType):
    """An object in JSON."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """Read the object."""
        if isinstance(value, dict):
            return value
        try:
            content = json.loads(value)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            self.fail(f"""{value!r} must be an object in JSON, such as '{{"dtype": "bfloat16"}}'.""", param, ctx)
        return content


class FileName(click.ParamType):
    """Text that a shell completes as the name of a file or folder."""

    name = "file"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Leave it to the shell."""
        return [CompletionItem(incomplete, type="file")]


def joined(
    ctx: click.Context, param: click.Parameter, value: Sequence[tuple[int, ...]] | None
) -> tuple[int, ...] | None:
    """Join the numbers of an option that was given several times; None if it was not given."""
    return tuple(number for numbers in value for number in numbers) if value else None


# Commands


class Command(click.Command):
    """Command whose errors are one line, and whose `--text` takes as many files as follow it."""

    several = ("--text",)  # options that take all words up to the next option
    folder = "checkpoint_dir"  # parameter whose folder the same command resumes from
    also: ClassVar[Mapping[str, str]] = {"model": "MODEL"}  # more arguments of the library, in the user's words

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat an option before each of its words: a shell puts the files of a pattern after it."""
        return super().parse_args(ctx, list(_repeated(args, self.several)))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            with _plain_warnings(self._names(ctx)):
                return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort):
            folder = ctx.params.get(self.folder)
            resumes = "" if folder is None else f"; the same command resumes from '{folder}'"
            click.echo(f"\ngeofloor: stopped{resumes}.", err=True)
            ctx.exit(STOPPED)
        except BrokenPipeError:
            raise
        except Exception as error:
            damaged = type(error).__name__ == "SafetensorError"
            if ctx.params["traceback"] or not (damaged or isinstance(error, _TOLD)):
                raise
            text, names = one_line(str(error)) or type(error).__name__, self._names(ctx)
            if damaged:
                raise Failure(f"A file of weights is damaged ({text}).") from error
            named = re.match(r"\w+", text)
            usage = isinstance(error, ValueError | TypeError) and named is not None and named[0] in names
            kind = Mistake if usage and not text.startswith("teacher=") else Failure
            raise kind(in_options(text, names)) from error

    def _names(self, ctx: click.Context) -> dict[str, str]:
        """Return the user's word for each argument of the library: parameters here are called as arguments there."""
        names = dict(self.also)
        for param in self.params:
            if param.name is not None:
                names[param.name] = (
                    param.opts[0] if isinstance(param, click.Option) else param.make_metavar(ctx).strip("[]")
                )
        return names


class Group(click.Group):
    """Group of commands that ends all mistakes in one line and an exit code."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands in the order in which they are defined."""
        return list(self.commands)

    def main(self, args: Any = None, prog_name: str | None = None, *rest: Any, **options: Any) -> Any:
        """Run the command line and exit."""
        options.update(standalone_mode=False, complete_var="_GEOFLOOR_COMPLETE")
        try:
            code = super().main(args, prog_name or "geofloor", *rest, **options)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = USAGE
        except click.Abort:  # before a command began
            code = STOPPED
        except click.ClickException as error:
            text = one_line(error.format_message())
            if isinstance(error, click.UsageError) and error.ctx is not None:
                text += f" See '{error.ctx.command_path} --help'."
            click.echo(f"geofloor: error: {text}", err=True)
            code = error.exit_code
        sys.exit(code)


def one_line(text: str) -> str:
    """Return a message on one line."""
    return " ".join(text.split())


def in_options(text: str, names: Mapping[str, str]) -> str:
    """Call arguments of the library by the options of the command line.

    Parameters
    ----------
    text : str
        A message.
    names : dict of str to str
        Option by argument. An argument is recognized before "=", and anywhere if no English word is spelled like it.
    """
    for name, option in names.items():
        end = "" if "_" in name or name in "Xy" else "(?==)"
        text = re.sub(rf"(?<![\w.-]){name}\b{end}", option, text)
    # Values as a shell reads them.
    text = re.sub(r"(--[\w-]+)=(\{'[^{}]*\})", lambda found: f"{found[1]} '{found[2].replace(chr(39), chr(34))}'", text)
    text = re.sub(r"(--[\w-]+)=None\b", r"no \1", text)
    text = re.sub(r"(--[\w-]+)=\[([\d, ]+)\]", lambda found: f"{found[1]}={found[2].replace(' ', '')}", text)
    return re.sub(r"(--[\w-]+)=\(\)", r"\1 none", text)


def _repeated(args: Sequence[str], several: Sequence[str]) -> Iterator[str]:
    option: str | None = None  # whose words are read
    n_words = 0
    for place, word in enumerate(args):
        if word == "--":
            yield from args[place:]
            return
        if word.startswith("-") and len(word) > 1:
            option, n_words = (word if word in several else None), 0
        elif option is not None:
            if n_words:
                yield option
            n_words += 1
        yield word


@contextmanager
def _plain_warnings(names: Mapping[str, str]) -> Iterator[None]:
    """Print warnings on one line, without their place in the source."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        click.echo(f"geofloor: warning: {in_options(one_line(str(message)), names)}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
