"""Arguments that several commands share, and flags made of the options of ``compress``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer

from winnow.compression.job import Job
from winnow.compression.options import OUTPUT, choices_of, flag, names_of, panel_of
from winnow.errors import InputError
from winnow.settings import not_known

JOINED = {"solver": "+"}  # what stands between the names of a field that takes several
F = TypeVar("F", bound=Callable[..., None])
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, a Hugging Face name, or package.module:function.")
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that compress wrote.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Output folder.", rich_help_panel=OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.", rich_help_panel=OUTPUT)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.", rich_help_panel=OUTPUT)]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show details of the work, too.", rich_help_panel=OUTPUT)]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Show no progress, only the result and errors.", rich_help_panel=OUTPUT)
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace the finished result of another command there.", rich_help_panel=OUTPUT),
]


def with_options(*names: str) -> Callable[[F], F]:
    """Gives a command, in place of its ``**options``, a flag for each of these fields of :class:`Job`.

    In each group of the help they stand after the command's own positional parameters and before its keyword-only ones.
    """

    def decorate(command: F) -> F:
        signature = inspect.signature(command, eval_str=True)
        own = list(signature.parameters.values())[:-1]
        last = [p for p in own if p.kind is p.KEYWORD_ONLY]
        made = [_parameter(name) for name in names]
        command.__signature__ = signature.replace(parameters=[*own[: len(own) - len(last)], *made, *last])  # type: ignore[attr-defined]
        return command

    return decorate


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options without those that were left out; a file or a list of settings is read."""
    return {n: READ[n](value) if n in READ else value for n, value in options.items() if value not in (None, [])}


def known(names: Sequence[object], option: str | None = None, joined: str = "") -> dict[str, Any]:
    """Arguments of a flag: the shell completes ``names``; with ``option`` (in Python) the flag takes no others.

    ``joined``: what stands between several names that the flag takes, as in ``--solver swap+lsq``.
    """

    def complete(incomplete: str) -> list[str]:
        before, between, _ = incomplete.rpartition(joined) if joined else ("", "", incomplete)
        return [before + between + str(name) for name in names]  # those that begin otherwise are left out by typer

    def check(value: Any) -> Any:
        if value is not None and value not in names:
            raise InputError(f"{flag(str(option))} {not_known(value, names)}.", option=option)
        return value

    return {"autocompletion": complete, "callback": check if option is not None else None}


def _parameter(name: str) -> inspect.Parameter:
    field, is_set = Job.model_fields[name], name == "settings"
    default = None if field.default in ((), {}) else field.default
    kind = _kind(name, field.annotation)
    off = [flag(name)] if default is False else []  # any other bool has a --no- form, too
    names, choices = names_of(field), choices_of(field)
    extra = known(choices or names, name if choices else None, JOINED.get(name, "")) if names else {}
    if choices and len(names) < len(choices):  # other names of the same are taken and not offered
        extra["autocompletion"] = known(names)["autocompletion"]
    given = typer.Option(
        *(["--set"] if is_set else off),
        help=field.description,
        metavar="NAME=VALUE" if is_set else "<name>" if names or kind == list[str] else None,
        rich_help_panel=panel_of(field),
        **extra,
    )
    annotation: Any = Annotated[kind if default is not None else kind | None, given]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _kind(name: str, annotation: Any) -> Any:
    """What the shell takes for a field of this type; the field checks the rest."""
    parts = get_args(annotation) or (annotation,)
    if name == "table":
        return Path
    if name == "settings" or get_origin(annotation) is tuple:
        return list[str]
    other = type(parts[0]) if get_origin(annotation) is Literal else str
    return next((kind for kind in (Path, str, float, int, bool) if kind in parts), other)


def _settings(texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise InputError(f"--set {text!r} is not NAME=VALUE: write, for example, --set steps=300.")
        if name in found:
            raise InputError(f"--set {name} is given twice: give each setting once.")
        found[name] = value
    return found


def _table(path: Path) -> dict[str, float]:
    from winnow.data.files import require_file

    require_file(path)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return {str(k): float(v) for k, v in table.items()}
    except (OSError, ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON object of sparsities by layer name ({error}).") from None


READ: dict[str, Callable[[Any], Any]] = {"settings": _settings, "table": _table}
