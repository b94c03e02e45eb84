"""Errors that come after a recipe was read, told with the line and the field of the recipe that they are about."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from winnow.errors import InputError
from winnow.pipeline import reading
from winnow.pipeline.part import in_fields

Where = tuple[Any, ...]  # keys and places on the way to a field
ABSENT = "does not exist"


class FieldError(InputError):
    """An error about the field ``where`` of a recipe."""

    def __init__(self, where: Where, sentence: str) -> None:
        super().__init__(sentence)
        self.where = where


@contextlib.contextmanager
def blamed(where: Where, **options: Where) -> Iterator[None]:
    """Inside, an InputError is about the field ``where``, or about that of the option that its sentence names, if given."""
    try:
        yield
    except InputError as error:
        named = next((options[o] for o in _options(error) if o in options), None)
        raise FieldError(where, str(error)) if named is None else FieldError(named, str(error)) from None


@contextlib.contextmanager
def located(recipe: str | Path, sets: Sequence[str]) -> Iterator[None]:
    """Inside, an InputError that is about a field names the field and its line (or the --set) in the recipe.

    Where the sentence speaks of an option of other commands, the field is the one of that name at the top of the recipe;
    a field that is not written there has no line, and the sentence alone is told.
    """
    try:
        yield
    except InputError as error:
        sentence = in_fields(_from_here(str(error)))
        document = reading.parse(Path(recipe))
        for text in sets:
            reading.put(document, text)
        top = [(name,) for name in _options(error) if (name,) in document.lines]
        where = error.where if isinstance(error, FieldError) else next(iter(top), None)
        raise InputError(sentence) if where is None else document.error(where, sentence) from None


def _options(error: InputError) -> list[str]:
    return [name.replace("-", "_") for name in re.findall(r"--([a-z][a-z-]*[a-z])", str(error))]


def _from_here(sentence: str) -> str:
    """Of a relative path that is not there: where it was looked for."""
    path, absent, rest = sentence.partition(f" {ABSENT}")
    if not absent or Path(path).expanduser().is_absolute():
        return sentence
    return f"{path} {ABSENT} in {Path.cwd()}, the current folder, from which relative paths start{rest}"
