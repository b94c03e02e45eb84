"""Checked parts of a recipe."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

Source = tuple[str, str | None, str | None]  # data, its column, its label


class Part(BaseModel):
    """A part of a recipe: no unknown fields, no truth values for numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python takes true for 1: in a recipe it is a mistake."""
        require_no_truth(value, cls.model_fields[str(info.field_name)].annotation)
        return value


def require_no_truth(value: Any, annotation: Any) -> None:
    """Raises ValueError for true and false, alone or in a mapping, where ``annotation`` has none."""
    for name, one in value.items() if isinstance(value, dict) else [("", value)]:
        if isinstance(one, bool) and not _has(annotation, bool, Any):
            what = "a number" if _has(annotation, int, float) else "text"
            raise ValueError(f"{f'{name} ' if name else ''}must be {what}, not {str(one).lower()}")


def require_settings(given: dict[str, Any], *kinds: type[BaseModel]) -> None:
    """:func:`require_no_truth` for settings of methods: ``kinds`` are those that the names may belong to."""
    for name, value in given.items():
        found = [kind.model_fields[name].annotation for kind in kinds if name in kind.model_fields]
        if found and not any(_has(a, bool) for a in found):
            require_no_truth({name: value}, found[0])


def _has(annotation: Any, *kinds: Any) -> bool:
    return annotation in kinds or type(annotation) in kinds or any(_has(a, *kinds) for a in get_args(annotation))
