"""The options of ``compress`` and ``evaluate`` as keywords: for type checkers, for ``help()`` and for notebooks."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from typing_extensions import TypedDict

from winnow.compression.options import (
    PANELS,
    Allocation,
    AnyTask,
    Baselines,
    Dtype,
    Group,
    GroupSize,
    Method,
    Score,
    Sequential,
    Values,
    panel_of,
)

F = TypeVar("F", bound=Callable[..., Any])


class InputKeywords(TypedDict, total=False):
    """The fields of :class:`winnow.compression.options.Inputs`, with the types they may be given in."""

    task: AnyTask
    column: str | None
    label: str | None
    length: int | None
    eval_limit: int | None
    dtype: Dtype
    weights: str | Path | None
    tokenizer: Any
    trust_remote_code: bool
    mean: float | str | Sequence[float] | None
    std: float | str | Sequence[float] | None


class Keywords(InputKeywords, total=False):
    """The fields of :class:`winnow.compression.job.Job` but ``model``, ``data`` and ``out``."""

    eval: Any
    sparsity: float | str | Sequence[float | str] | None
    bits_per_weight: float | None
    size: str | int | None
    max_drop: float | None
    method: Method
    score: Score | None
    group: Group | None
    allocation: Allocation | None
    table: dict[str, float] | None
    structure: str
    solver: str | None
    values: Values
    rest: Values
    group_size: GroupSize
    baselines: Baselines
    include: Sequence[str]
    exclude: Sequence[str]
    samples: int | None
    batch_size: int
    damp: float
    sequential: Sequential
    recalibrate: bool
    ram: str | int | None
    device: str
    speed: bool
    settings: dict[str, Any]
    time: float | str | None
    floor: float | None
    keep: Sequence[str]
    vocabulary: Any
    keep_work: bool
    overwrite: bool
    push_to_hub: str | None
    seed: int
    compare_with: str | Path | None


def listing(keywords: type, fields: type[BaseModel]) -> Callable[[F], F]:
    """Lists what a function takes as ``**options`` in its signature and docstring: ``help()``, notebooks and editors show it.

    Args:
        keywords: names and types, a TypedDict.
        fields: defaults and help texts of the same names.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        *own, _ = signature.parameters.values()
        made, lines = [], []
        listed = [(fields.model_fields[name], name, kind) for name, kind in keywords.__annotations__.items()]
        for field, name, kind in sorted(listed, key=lambda one: PANELS.index(panel_of(one[0]))):  # as in the help
            kind = getattr(kind, "__forward_arg__", kind)  # as it is written: Method, not its seventeen names
            made.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=kind))
            text = f"{name}: {field.description}"
            lines.append(textwrap.fill(text, 112, initial_indent=" " * 8, subsequent_indent=" " * 12))
        function.__signature__ = signature.replace(parameters=[*own, *made])  # type: ignore[attr-defined]
        if function.__doc__:  # python -OO has none
            function.__doc__ += "\n".join(["", "    Options:", *lines, "    "])
        return function

    return decorate
