"""Reading a recipe of stages: every error names the line (or the --set) and the field it is about."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from winnow.errors import InputError, meant
from winnow.pipeline.located import FieldError, Where, in_fields
from winnow.pipeline.schema import Pipeline
from winnow.pipeline.stage import Stage
from winnow.pipeline.stages import KINDS, ORDER
from winnow.run import plain_yaml
from winnow.run.plain_yaml import dotted
from winnow.settings import complaint

ABSENT = "does not exist"


@dataclass
class Document:
    """A YAML mapping, and the line of each of its values."""

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
    """The recipe in a YAML file, with values overridden by ``stage.field=value``.

    ``sets``: "ticket.sparsity=0.9", "ticket.settings.rate=0.1", "seed=3" (top level), "eval.2.max_drop=1" (the second
    eval stage); values are read as YAML.

    Raises:
        InputError: the file cannot be read, is no YAML, or has a value that cannot be used; line and field are named.
    """
    return _validated(_parse(Path(path), sets))


@contextlib.contextmanager
def located(recipe: str | Path, sets: Sequence[str]) -> Iterator[None]:
    """Inside, an InputError that is about a field names the field and its line (or the --set) in the recipe.

    An option that no stage has is a field at the top of the recipe; where that is not written down, the sentence is all there is.
    """
    try:
        yield
    except InputError as error:
        sentence = in_fields(_from_here(error.flagged))
        document = _parse(Path(recipe), sets)
        top = (error.option,) if (error.option,) in document.lines else None
        where = error.where if isinstance(error, FieldError) else top
        raise InputError(sentence) if where is None else document.error(where, sentence) from None


def _from_here(sentence: str) -> str:
    """Of a relative path that does not exist: where it was looked for."""
    path, absent, rest = sentence.partition(f" {ABSENT}")
    if not absent or Path(path).expanduser().is_absolute():
        return sentence
    return f"{path} {ABSENT} in {Path.cwd()}, the current folder, from which relative paths start{rest}"


def _parse(path: Path, sets: Sequence[str]) -> Document:
    """The mapping in a YAML file, with line numbers, and with each --set carried out."""
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
    if isinstance(value.get("stages"), list):  # a kind alone has no fields
        value["stages"] = [_with_fields(entry) for entry in value["stages"]]
    document = Document(str(path), value, lines)
    for text in sets:
        _override(document, text)
    return document


def _with_fields(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {kind: {} if fields is None else fields for kind, fields in entry.items()}
    return {entry: {}} if isinstance(entry, str) else entry


def _validated(document: Document) -> Pipeline:
    given = dict(document.value)
    listed = given.pop("stages", None)
    if not isinstance(listed, list) or not listed:
        raise document.error(("stages",), f"must be a list of one or more of {', '.join(KINDS)}")
    stages = tuple(_stage(document, i, entry) for i, entry in enumerate(listed))
    pipeline = _model(document, Pipeline, {**given, "stages": stages}, (), "a recipe")
    for i, stage in enumerate(stages):
        try:
            pipeline.check_stage(i, ORDER)
        except InputError as error:
            field_ = [error.option] if error.option in stage.model_fields_set else []
            raise document.error(("stages", i, stage.kind, *field_), error.flagged) from None
    if not any(stage.makes for stage in stages):
        raise document.error(("stages",), f"nothing is made: add a {' or '.join(ORDER)} stage, or use winnow eval")
    return pipeline


def _stage(document: Document, number: int, entry: Any) -> Stage:
    where: Where = ("stages", number)
    if not isinstance(entry, dict) or len(entry) != 1:
        raise document.error(where, f"must be one of {', '.join(KINDS)} with its fields below it")
    kind, fields = next(iter(entry.items()))
    if kind not in KINDS:
        raise document.error(
            (*where, kind), f"there is no such stage{meant(kind, KINDS)}: choose one of {', '.join(KINDS)}"
        )
    if not isinstance(fields, dict):
        raise document.error((*where, kind), "must be a mapping of fields")
    article = "an" if kind[0] in "aeiou" else "a"
    checked = KINDS[kind].variant(fields)
    stage = _model(document, checked, fields, (*where, kind), f"{article} {kind} stage{checked.such}")
    for name, (model, what) in stage.nested().items():
        _model(document, model, getattr(stage, name), (*where, kind, name), what)
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
            message = f"is no field of {what}{meant(name, kind.model_fields)}"
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


def _override(document: Document, text: str) -> None:
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
    other = KINDS[at[2]].alternatives.get(keys[-1], "") if len(at) == 3 and at[2] in KINDS else ""
    if document.lines.get((*at, other), "").startswith("line"):
        del target[other]  # of two ways to set the same, the one that --set did not name
    target[keys[-1]] = value
    at = (*at, keys[-1])
    document.lines = {k: v for k, v in document.lines.items() if k[: len(at)] != at} | {at: where}


def _target(document: Document, keys: list[str], where: str) -> tuple[dict[str, Any], Where]:
    """The mapping that the rest of ``keys`` is about; what names the stage is taken off them."""
    if len(keys) == 1:
        return document.value, ()
    stages = document.value.get("stages")
    stages = stages if isinstance(stages, list) else []
    found = [(i, s) for i, s in enumerate(stages) if isinstance(s, dict) and keys[0] in s]
    if not found:
        kinds = [kind for stage in stages if isinstance(stage, dict) for kind in stage]
        raise InputError(f"{where}: the recipe has no stage {keys[0]}{meant(keys[0], kinds)}: name one of its stages.")
    kind, number = keys.pop(0), 1
    if keys[0].isascii() and keys[0].isdigit() and len(keys[0]) < 5 and len(keys) > 1:
        number = int(keys.pop(0))
    elif len(found) > 1:
        raise InputError(
            f"{where}: there are {len(found)} {kind} stages: name one, as in --set {kind}.1.{'.'.join(keys)}=...."
        )
    if not 1 <= number <= len(found):
        raise InputError(f"{where}: there is no {kind} stage number {number}: there are {len(found)}.")
    i, entry = found[number - 1]
    if not isinstance(entry[kind], dict):
        raise InputError(f"{where}: the {kind} stage of the recipe holds no fields: mend the recipe first.")
    return entry[kind], ("stages", i, kind)


def dump(pipeline: Pipeline) -> dict[str, Any]:
    """A recipe as plain values, stages as in the file, without what was left at its default."""
    found = pipeline.model_dump(mode="json", exclude_defaults=True, exclude={"stages"})
    stages = [{s.kind: s.model_dump(mode="json", exclude_defaults=True)} for s in pipeline.stages]
    return {**found, "stages": stages}
