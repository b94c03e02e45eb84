"""What a recipe is going to do: its stages in words, their steps, and what is finished already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from winnow.disk.work import work_of
from winnow.pipeline.inputs import Inputs


@dataclass(frozen=True)
class PlannedStage:
    """A stage before the start. ``steps``: optimizer steps it will take, None where it takes none or they are unknown."""

    number: int  # from 1
    kind: str
    what: str
    steps: int | None
    finished: bool
    key: str


def plan_stages(inputs: Inputs, out: Path | None) -> list[PlannedStage]:
    """The stages of a recipe, and which of them are finished in what ``out`` left behind."""
    rows = []
    for i, (stage, key) in enumerate(zip(inputs.pipeline.stages, inputs.keys())):
        finished = out is not None and (work_of(out) / f"{key}{stage.finished}").exists()
        steps = stage.planned_steps(inputs)
        rows.append(PlannedStage(i + 1, stage.kind, stage.describe(inputs, i), steps, finished, key))
    return rows
