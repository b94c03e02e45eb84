"""Reading a recipe of stages: every error names the line (or the --set) and the field it is about."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from winnow.errors import InputError
from winnow.pipeline.schema import KINDS, Pipeline, Stage, Ticket
from winnow.run import plain_yaml
from winnow.run.plain_yaml import Where, dotted
from winnow.settings import complaint
from winnow.tickets.methods.registry import METHODS

LENGTHS = {"steps": "epochs", "epochs": "steps"}


@dataclass
class Document:
    """A YAML mapping, and where each of its values stands."""

    name: str
    value: dict[str, Any]
    lines: dict[Where, str] = field(default_factory=dict)

    def error(self, where: Where, message: str) -> InputError:
        """One sentence about the value at ``where``, or about the nearest that is written down."""
        at = where
        while at not in self.lines and at:
            at = at[:-1]
        field_ = dotted(where)
        return InputError(
            f"{self.name}, {self.lines.get(at, 'line 1')}: {field_ + ': ' if field_ else ''}{message.rstrip('.')}."
        )


def read_recipe(path: str | Path, sets: Sequence[str] = ()) -> Pipeline:
    """The recipe in a YAML file, with ``stage.field=value`` put in place of what it says.

    ``sets``: "ticket.sparsity=0.9", "ticket.settings.rate=0.1", "seed=3" (top level), "eval.2.max_drop=1" (the second
    eval stage); values are read as YAML.

    Raises:
        InputError: the file cannot be read, is no YAML, or says something that cannot be; line and field are named.
    """
    document = parse(Path(path))
    for text in sets:
        put(document, text)
    return _validated(document)


def parse(path: Path) -> Document:
    """The mapping in a YAML file, with line numbers."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file: give a recipe file.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"{path} cannot be read ({reason}): give a recipe file.") from None
    value, lines = plain_yaml.read(text, str(path))
    if not isinstance(value, dict):
        raise Document(str(path), {}, lines).error((), "a recipe is a mapping: begin with model, data and stages")
    return Document(str(path), value, lines)


def _validated(document: Document) -> Pipeline:
    given = dict(document.value)
    listed = given.pop("stages", None)
    if listed is None and "stages" not in document.value:
        raise document.error((), f"stages is missing: list one or more of {', '.join(KINDS)}")
    if not isinstance(listed, list) or not listed:
        raise document.error(("stages",), f"must be a list of one or more of {', '.join(KINDS)}")
    stages = tuple(_stage(document, i, entry) for i, entry in enumerate(listed))
    pipeline = _model(document, Pipeline, {**given, "stages": stages}, (), "a recipe")
    for i, stage in enumerate(stages):
        try:
            pipeline.check_order(i)
        except InputError as error:
            raise document.error(("stages", i, stage.kind), str(error)) from None
    if not any(stage.kind != "eval" for stage in stages):
        raise document.error(("stages",), "nothing is made: add a train, ticket or compress stage, or use winnow eval")
    return pipeline


def _stage(document: Document, number: int, entry: Any) -> Stage:
    where: Where = ("stages", number)
    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise document.error(where, f"must be one of {', '.join(KINDS)} with its fields below it")
    kind, fields = next(iter(entry.items()))
    if kind not in KINDS:
        raise document.error(
            (*where, kind), f"there is no such stage{_meant(kind, KINDS)}: choose one of {', '.join(KINDS)}"
        )
    if fields is not None and not isinstance(fields, dict):
        raise document.error((*where, kind), "must be a mapping of fields")
    what = f"{'an' if kind == 'eval' else 'a'} {kind} stage"
    stage = _model(document, KINDS[kind], fields or {}, (*where, kind), what)
    if isinstance(stage, Ticket):
        from winnow.tickets.verb import DEFAULT

        known = METHODS[DEFAULT if stage.method == "ticket" else stage.method].settings_class
        _model(document, known, stage.settings, (*where, kind, "settings"), f"the settings of method {stage.method}")
    return stage


def _model(document: Document, kind: type[Any], given: dict[str, Any], where: Where, what: str) -> Any:
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        # A misspelt field explains the one that is missing.
        first = min(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
        at = (*where, *_written(first["loc"], given))
        message = complaint(first)
        if first["type"] == "extra_forbidden":
            name = str(first["loc"][-1])
            message = f"is no field of {what}{_meant(name, kind.model_fields)}"
        elif first["type"] == "missing":
            message = "is missing"
        raise document.error(at, message) from None


def _written(place: Sequence[Any], given: Any) -> Where:
    """The part of an error's place that is in the recipe; pydantic adds names of its own inside unions."""
    found: list[Any] = []
    for part in place:
        inside = part in given if isinstance(given, dict) else isinstance(given, list) and isinstance(part, int)
        if not inside:
            return (*found, part) if isinstance(given, dict) and not found else tuple(found)
        found.append(part)
        given = given[part]
    return tuple(found)


def _meant(name: str, known: Any) -> str:
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def put(document: Document, text: str) -> None:
    """Carries out one --set."""
    path, equals, written = text.partition("=")
    keys = path.strip().split(".")
    where = f"--set {text}"
    if not equals or not all(keys):
        raise InputError(f"{where} is not stage.field=value: write, for example, --set ticket.sparsity=0.9.")
    value, _ = plain_yaml.read(written, where)
    target, at = _target(document, keys, where)
    for key in keys[:-1]:
        if target.get(key) is None:
            target[key] = {}
        target, at = target[key], (*at, key)
        if not isinstance(target, dict):
            raise InputError(f"{where}: {key} holds a value, no fields: name a field of a stage.")
    other = LENGTHS.get(keys[-1], "")
    if len(at) == 3 and document.lines.get((*at, other), "").startswith("line"):
        del target[other]  # of the recipe's two ways to say how long, the one that was meant here
    target[keys[-1]] = value
    at = (*at, keys[-1])
    document.lines = {k: v for k, v in document.lines.items() if k[: len(at)] != at} | {at: where}


def _target(document: Document, keys: list[str], where: str) -> tuple[dict[str, Any], Where]:
    """The mapping that the rest of ``keys`` is about; what names the stage is taken off them."""
    stages = document.value.get("stages")
    if len(keys) == 1:
        return document.value, ()
    found = [
        (i, s)
        for i, s in enumerate(stages if isinstance(stages, list) else [])
        if s == keys[0] or (isinstance(s, dict) and keys[0] in s)
    ]
    if not found:
        raise InputError(f"{where}: the recipe has no stage {keys[0]}: name one of its stages.")
    kind, number = keys.pop(0), 1
    if keys[0].isascii() and keys[0].isdigit() and len(keys[0]) < 5 and len(keys) > 1:
        number = int(keys.pop(0))
    elif len(found) > 1:
        raise InputError(
            f"{where}: there are {len(found)} {kind} stages: say which, as in --set {kind}.1.{'.'.join(keys)}=...."
        )
    if not 1 <= number <= len(found):
        raise InputError(f"{where}: there is no {kind} stage number {number}: there are {len(found)}.")
    i, entry = found[number - 1]
    if entry == kind or entry[kind] is None:
        entry = {kind: {}}
        document.value["stages"][i] = entry
    if not isinstance(entry[kind], dict):
        raise InputError(f"{where}: the {kind} stage of the recipe holds no fields: mend the recipe first.")
    return entry[kind], ("stages", i, kind)


def dump(model: BaseModel) -> dict[str, Any]:
    """What a recipe came to, stages as in the file, without what was left at its default."""
    found = model.model_dump(mode="json", exclude_defaults=True, exclude={"stages"})
    stages = [{s.kind: s.model_dump(mode="json", exclude_defaults=True)} for s in model.stages]  # type: ignore[attr-defined]
    return {**found, "stages": stages}
