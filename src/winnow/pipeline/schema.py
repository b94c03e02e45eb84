"""A recipe: model and data, and stages that follow each other; checked before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from winnow.errors import InputError
from winnow.pipeline.part import Part


class Pipeline(Part):
    """A recipe. Paths are taken as on the command line: from the folder it is run in."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    name: str | None = None
    model: str
    weights: Path | None = None
    data: str | None = None
    eval: str | None = None  # without it a part of data is held out
    column: str | None = None
    label: str | None = None
    task: Literal["auto", "classification", "perplexity", "lm", "similarity", "agreement", "none"] = "auto"
    length: int | None = Field(None, ge=2, le=1 << 22)  # tokens
    seed: int = Field(0, ge=0, lt=1 << 63)
    executor: Literal["local", "ray"] = "local"
    stages: tuple[Any, ...]  # of Stage

    @property
    def trains(self) -> bool:
        """Whether some stage trains on the data."""
        return any(s.trains for s in self.stages)

    def index(self, kind: type[Part], before: int | None = None) -> int | None:
        """The number of the first stage of a kind, of those before stage ``before`` where that is given; None without one."""
        return next((i for i, s in enumerate(self.stages[:before]) if isinstance(s, kind)), None)

    def first(self, kind: type[Part], before: int | None = None) -> Any:
        """The stage of :meth:`index`, or None."""
        number = self.index(kind, before)
        return None if number is None else self.stages[number]

    def check_stage(self, number: int, order: list[str]) -> None:
        """Raises InputError when stage ``number`` is not allowed there. ``order``: the kinds that make a model."""
        stage = self.stages[number]
        if stage.makes:
            work = [s.kind for s in self.stages[:number] if s.makes]
            if stage.kind in work:
                raise InputError(
                    f"there is a {stage.kind} stage before this one: a recipe has one of each, and eval as often as you like"
                )
            later = next((kind for kind in work if order.index(kind) > order.index(stage.kind)), None)
            if later is not None:
                raise InputError(f"{stage.kind} cannot follow {later}: the order is {', '.join(order)}")
        if stage.trains and self.data is None:
            raise InputError(f"{stage.kind} needs data to train on: give data at the top of the recipe")
        if stage.trains and self.task in ("similarity", "agreement", "none"):
            raise InputError(
                f"{stage.kind} trains for classes or running text: leave out task {self.task}, or take winnow.find_ticket in Python"
            )
        stage.check(self, number)
