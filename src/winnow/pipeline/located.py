"""Errors about a field of a recipe: which one, and in a recipe's words."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from winnow.errors import InputError
from winnow.run.plain_yaml import Where

# Options that a recipe has no field for: those of ``winnow run`` itself, and those it does without.
NO_FIELD = (
    "out", "overwrite", "executor", "keep-work", "dry-run", "poc", "json", "keep", "compare-with", "push-to-hub", "trust-remote-code",
    "limit",
)  # fmt: skip


class FieldError(InputError):
    """An error about the field ``where`` of a recipe."""

    def __init__(self, where: Where, sentence: str) -> None:
        super().__init__(sentence, option=str(where[-1]))
        self.where = where


@contextlib.contextmanager
def about(where: Where | None, *options: Where) -> Iterator[None]:
    """Inside, an InputError is about the field among ``options`` that its option names, else about ``where`` (None: unknown)."""
    try:
        yield
    except FieldError:
        raise
    except InputError as error:
        place = next((o for o in options if o[-1] == error.option), where)
        if place is None:
            raise
        raise FieldError(place, error.flagged) from None


def in_fields(sentence: str) -> str:
    """A sentence about options of the command line as one about fields of a recipe: --max-drop is max_drop there."""

    def field(found: re.Match[str]) -> str:
        return found[0] if found[1] in NO_FIELD else found[1].replace("-", "_")

    return re.sub(r"--([a-z][a-z-]*[a-z])", field, re.sub(r"--set (?=\w)", "settings.", sentence))
