"""The command line: one command a file, no logic. Exit codes: 0 done, 1 failed, 2 bad arguments, 3 a gate said no."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from winnow.cli.bench import bench
from winnow.cli.compress import compress
from winnow.cli.demo import demo
from winnow.cli.env import env
from winnow.cli.eval import eval
from winnow.cli.export import export
from winnow.cli.help import Command, Group, greeting, nearest, no_number
from winnow.cli.inspect import inspect
from winnow.cli.keep import keep
from winnow.cli.output import put
from winnow.cli.report import report
from winnow.cli.run import run
from winnow.cli.signs import signs
from winnow.errors import WinnowError, sentence_of
from winnow.terminal.legible import legible_logs, visible

INTERRUPTED = 130  # what typer makes of Ctrl-C

PROMISE = "Prune trained neural networks into smaller, faster models, and measure whether it was worth it."

app = typer.Typer(
    cls=Group,
    help=PROMISE,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (compress, keep, run, eval, inspect, bench, report, export):
    app.command(cls=Command, no_args_is_help=True)(command)
app.command(cls=Command)(demo)
app.command(cls=Command)(signs)
app.command(cls=Command)(env)


@app.callback(invoke_without_command=True)
def alone(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """``winnow`` without a command. The help is that of the app."""
    if version:
        from winnow.version import __version__

        put(f"winnow {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(greeting(PROMISE))


def main(argv: list[str] | None = None) -> None:
    """Entry point: every foreseen failure is one sentence on standard error and an exit code."""
    legible_logs()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    try:
        code = app(args=argv, prog_name="winnow", standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code or 0)
    except KeyboardInterrupt:
        _fail("interrupted; finished work is kept: run the same command again to resume.", 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        found = sentence_of(error)
        if found is not None:
            _fail(*found)
        if isinstance(error, WinnowError):
            _fail(error.flagged, error.exit_code)
        show = getattr(error, "show", None)  # a usage error of the command line: it knows how to say itself
        if show is None:
            raise
        if (sentence := no_number(error, sys.argv[1:] if argv is None else argv)) is not None:
            _fail(sentence, 2)
        nearest(error)
        said = io.StringIO()
        show(said)
        print(visible(said.getvalue().rstrip("\n"), keep="\n"), file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))


def _fail(sentence: str, code: int) -> None:
    print(f"winnow: {visible(sentence.strip().rstrip('.'))}.", file=sys.stderr)
    sys.exit(code)
