"""What ``winnow``, ``winnow --help`` and ``winnow COMMAND --help`` print: options in groups, examples, a first step."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

from winnow.cli.examples import EXAMPLES, FIRST_STEPS
from winnow.compression.options import ADVANCED, PANELS
from winnow.errors import meant

MORE = "winnow --help lists all commands; winnow COMMAND --help has options and examples."
FEW = 8  # options that need no groups
WIDEST = {"max_content_width": 100}  # columns: longer lines are hard to read


class Command(TyperCommand):
    """A command whose help has its options in groups, and examples at the end."""

    def __init__(self, name: str | None, **given: Any) -> None:
        given["context_settings"] = WIDEST | (given.get("context_settings") or {})
        super().__init__(name, **given)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        arguments, options = [], []
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is None:
                continue
            if param.param_type_name == "argument":
                arguments.append(record)
            else:
                options.append((getattr(param, "rich_help_panel", None) or ADVANCED, record))
        _section(formatter, "Arguments", arguments)
        if len(options) <= FEW:
            _section(formatter, "Options", (record for _, record in options))
        else:
            for panel in PANELS:
                _section(formatter, panel, (record for at, record in options if at == panel))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        if examples := EXAMPLES.get(self.name or ""):
            with formatter.section("Examples"):
                for number, (about, line) in enumerate(examples):
                    if number:
                        formatter.write_paragraph()
                    formatter.write_text(f"# {about}")
                    indent = " " * formatter.current_indent
                    formatter.write("".join(f"{indent}{part}\n" for part in line.splitlines()))  # as it can be copied


class Group(TyperGroup):
    """All commands, each with its whole sentence."""

    def __init__(self, **given: Any) -> None:
        given["context_settings"] = WIDEST | (given.get("context_settings") or {})
        super().__init__(**given)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        shown = [(name, command) for name, command in self.commands.items() if not command.hidden]
        _section(formatter, "Commands", ((name, " ".join((command.help or "").split())) for name, command in shown))


def _section(formatter: Any, title: str, rows: Iterable[tuple[str, str]]) -> None:
    if listed := list(rows):
        with formatter.section(title):
            formatter.write_dl(listed)


def greeting(promise: str) -> str:
    """What ``winnow`` alone says."""
    width = min(shutil.get_terminal_size().columns, WIDEST["max_content_width"])
    above, below = (textwrap.fill(text, width) for text in (promise, MORE))
    steps = "\n".join(f"  {line:<28}{about}" for line, about in FIRST_STEPS)
    return f"{above}\n\nTo begin with:\n\n{steps}\n\n{below}"


def no_number(error: Any, argv: Sequence[str]) -> str | None:
    """One sentence for a usage error about a value of ``argv`` that is no number; None of any other error."""
    flags = getattr(getattr(error, "param", None), "opts", [])
    kind = re.search(r"valid (integer|number|float)", getattr(error, "message", ""))
    if kind is None or not flags:
        return None
    given = ""
    for at, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name in flags:
            given = value if equals else "".join(argv[at + 1 : at + 2])
    said = f"{flags[0]} must be {'a whole number' if kind[1] == 'integer' else 'a number'}, not {given!r}"
    try:
        return f"{said}: write {int(float(given))}" if float(given).is_integer() else said  # 1e3
    except (ValueError, OverflowError):
        return said


def nearest(error: Any) -> None:
    """Makes a usage error about a flag that does not exist name the nearest one that does."""
    name, params = getattr(error, "option_name", None), getattr(getattr(error.ctx, "command", None), "params", [])
    known = [flag for p in params for flag in (*p.opts, *p.secondary_opts) if flag.startswith("--")]
    if name and hasattr(error, "possibilities"):
        error.message = error.message.rstrip(".") + meant(name, known)
        error.possibilities = None
