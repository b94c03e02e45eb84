"""Reads the settings of a method, and says what is wrong with a value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from winnow.errors import InputError, meant

S = TypeVar("S", bound=BaseModel)
PLAIN = {"greater than or equal to": "at least", "less than or equal to": "at most", "a valid tuple": "a list"}


def not_known(given: object, names: Sequence[object]) -> str:
    """What is wrong with a value that is none of ``names``, in words that follow the name of the option."""
    *most, last = map(str, names)
    listed = f"one of {', '.join(most)} or {last}" if most else last
    return f"{given!r} is not known{meant(given, names)}: choose {listed}"


def complaint(error: Any) -> str:
    """One of pydantic's errors in words that follow the name of the value: "must be at least 1, not 0"."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"]).rstrip(".")
    if error["type"] == "literal_error" and len(str(error["input"])) <= 120:
        return not_known(error["input"], re.findall(r"[^', ]+", error["ctx"]["expected"].replace(" or ", ", ")))
    given = repr(error["input"])
    given = given if len(given) <= 120 else f"{given[:120]}..."
    words = error["msg"].removeprefix("Input should ")
    for long, short in PLAIN.items():
        words = words.replace(long, short)
    return f"{'' if words == error['msg'] else 'must '}{words[0].lower()}{words[1:]}, not {given}"


def read_settings(kind: type[S], given: dict[str, Any], method: str) -> S:
    """Checks settings a user gave (values may be text). Raises InputError naming the setting and what it takes."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            known = ", ".join(kind.model_fields)
            raise InputError(
                f"method {method} has no setting {name!r}{meant(name, kind.model_fields)}: choose one of {known}.",
                option="settings",
            ) from None
        if not name:  # two settings that do not go together
            raise InputError(f"method {method}: {complaint(first)}.", option="settings") from None
        raise InputError(f"--set {name} {complaint(first)}.", option="settings") from None
