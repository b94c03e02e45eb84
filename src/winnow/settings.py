"""Reads the settings of a method."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from winnow.errors import InputError

S = TypeVar("S", bound=BaseModel)


def read_settings(kind: type[S], given: dict[str, Any], method: str) -> S:
    """Checks settings a user gave (values may be text). Raises InputError naming the setting and what it takes."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            known = ", ".join(kind.model_fields)
            raise InputError(f"method {method} has no setting {name!r}: choose one of {known}.") from None
        if not name:  # two settings that do not go together
            raise InputError(f"method {method}: {first['msg'].removeprefix('Value error, ')}.") from None
        raise InputError(f"--set {name}={given.get(name)}: {first['msg'].lower()}.") from None
