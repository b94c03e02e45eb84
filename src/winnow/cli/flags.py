"""Arguments that several commands share, and flags made of the options of ``compress``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer

from winnow.compression.job import Job
from winnow.errors import InputError

F = TypeVar("F", bound=Callable[..., None])
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, a Hugging Face name, or package.module:function.")
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that compress wrote.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Output folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the finished result of another command there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")]


def with_options(*names: str) -> Callable[[F], F]:
    """Gives a command, in place of its ``**options``, a flag for each of these fields of :class:`Job`.

    They stand in the help after the command's own positional parameters and before its keyword-only ones.
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


def _parameter(name: str) -> inspect.Parameter:
    field, is_set = Job.model_fields[name], name == "settings"
    default = None if field.default in ((), {}) else field.default
    kind = _kind(name, field.annotation)
    off = [f"--{name.replace('_', '-')}"] if default is False else []  # any other bool has a --no- form, too
    given = typer.Option(
        *(["--set"] if is_set else off), help=field.description, metavar="NAME=VALUE" if is_set else None
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
