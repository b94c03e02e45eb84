"""A recipe at work: its stages one after another, and the models between them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.disk.work import work_folder
from winnow.measure.evaluation import stored_path
from winnow.pipeline.inputs import Checkpoint, RecipeInputs
from winnow.pipeline.located import about
from winnow.run.executor import Executor
from winnow.run.store import Store, drop
from winnow.terminal.progress import Expected, Prefixed, Progress, expect


@dataclass
class StageResult:
    """A finished stage: its figures, and the seconds it took in the run that finished it."""

    number: int  # from 1
    kind: str
    key: str
    what: str
    seconds: float
    reused: bool
    figures: dict[str, Any]


@dataclass(frozen=True)
class PlannedStage:
    """A stage before the start. ``steps``: optimizer steps it will take, None where it takes none or they are unknown."""

    number: int  # from 1
    kind: str
    what: str
    steps: int | None
    finished: bool
    key: str


def plan_stages(inputs: RecipeInputs, out: Path | None) -> list[PlannedStage]:
    """The stages of a recipe, and which of them are finished in ``OUT.work``."""
    rows = []
    for i, (stage, key) in enumerate(zip(inputs.pipeline.stages, inputs.keys())):
        finished = out is not None and (work_folder(out) / f"{key}{stage.finished}").exists()
        steps = stage.planned_steps(inputs)
        rows.append(PlannedStage(i + 1, stage.kind, stage.describe(inputs, i), steps, finished, key))
    return rows


class Execution:
    """The stages of a recipe one after another. What is finished in ``OUT.work`` is read back.

    ``model``: the checkpoint that the next stage starts from; ``models``: it after each finished stage. ``results``: of the
    finished stages. ``keys``: of all stages.
    """

    def __init__(
        self, inputs: RecipeInputs, out: Path, executor: Executor | None, progress: Progress, command: str | None
    ) -> None:
        self.inputs, self.out, self.executor, self.command = inputs, out, executor, command
        self._progress = progress
        self.store = Store(work_folder(out))
        self.keys = inputs.keys()
        self.model = inputs.model
        self.models: list[Checkpoint] = []
        self.results: list[StageResult] = []

    def run(self) -> None:
        """All stages.

        Raises:
            GateError: a stage's figures are not good enough.
        """
        stages = self.inputs.pipeline.stages
        expect(self._progress, [Expected(f"{_prefix(n, s.kind)}*", str(n)) for n, s in enumerate(stages)])
        for number, stage in enumerate(stages):
            where = ("stages", number, stage.kind)
            with about(None, *((*where, name) for name in stage.model_fields_set)):
                self._run(number)
            stage.accept(self, self.results[-1].figures, number)

    def _run(self, number: int) -> None:
        stage, key = self.inputs.pipeline.stages[number], self.keys[number]
        done = stage.stored(self.store, key)
        reused, folder = done is not None, self.store.root / key / self.inputs.label
        if done is None or stage.repeats:
            if done is None:
                drop(folder)  # of a stage that was interrupted before its record was written, or of a damaged one
            started = time.perf_counter()
            figures = stage.run(self, number)
            done = {"seconds": time.perf_counter() - started, **(done or {}), "figures": figures}
            files = [p for p in (*folder.rglob("*"), self.evaluation_file(number)) if p.is_file()]
            self.store.write(key, done, files=files)
        what = stage.describe(self.inputs, number)
        self.results.append(StageResult(number + 1, stage.kind, key, what, done["seconds"], reused, done["figures"]))
        if stage.makes:
            self.model = self.inputs.checkpoint(folder, number, key)
        self.models.append(self.model)

    def folder(self, number: int) -> Path:
        """Where the model of a stage is written; its parent is made."""
        return self.store.folder(self.keys[number]) / self.inputs.label

    def evaluation_file(self, number: int) -> Path:
        """Where the evaluation that ended a stage is kept, if there is one."""
        return stored_path(self.store, self.keys[number])

    def progress(self, number: int) -> Progress:
        """Progress of a stage, its parts named by its number and kind."""
        return Prefixed(self._progress, _prefix(number, self.inputs.pipeline.stages[number].kind))


def _prefix(number: int, kind: str) -> str:
    return f"{number + 1} {kind}: "
