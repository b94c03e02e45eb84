"""``eval``: a measurement, and with ``max_drop`` a quality gate."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from winnow.data import Records
from winnow.errors import GateError, InputError
from winnow.measure.compare import compare
from winnow.measure.evaluation import Evaluation, load_stored, store_evaluation
from winnow.measure.prepare import prepare
from winnow.measure.task import Task, written_unit
from winnow.pipeline.execution import Execution
from winnow.pipeline.inputs import Checkpoint, RecipeInputs
from winnow.pipeline.part import Source
from winnow.pipeline.schema import Pipeline
from winnow.pipeline.stage import Stage, content, figures_of
from winnow.pipeline.stages.ticket import Ticket
from winnow.pipeline.stages.train import Train
from winnow.run.store import Store, stage_key
from winnow.terminal.progress import Progress


class Evaluate(Stage):
    """A measurement, and with ``max_drop`` a gate: exit code 3 when the paired upper 95% bound of the loss is above it."""

    kind = "eval"
    makes = False
    repeats = True
    finished = ".npz"

    data: str | None = None  # None: the recipe's eval
    column: str | None = None
    label: str | None = None
    eval_limit: int | None = Field(None, ge=2)  # examples
    max_drop: float | None = Field(None, gt=0)  # points, or per cent of perplexity

    def own_data(self) -> Source | None:
        return None if self.data is None else (self.data, self.column, self.label)

    def check(self, pipeline: Pipeline, number: int) -> None:
        if pipeline.task == "none":
            raise InputError("an eval stage measures something: leave out task none")
        if self.data is None and pipeline.eval is None and pipeline.data is None:
            raise InputError("there is nothing to measure on: give eval at the top of the recipe, or data here")
        if self.max_drop is None:
            return
        reference = _reference(pipeline, number)
        if reference is None and pipeline.index(Ticket, before=number) is not None:
            raise InputError(
                "max_drop compares with a dense model that knows the task: put a train stage or an eval stage before the ticket",
                option="max_drop",
            )
        since = pipeline.stages[0 if reference is None else reference + 1 : number]
        if not any(stage.makes for stage in since):
            raise InputError(
                "max_drop compares with the first model measured, and this is the one: leave it out", option="max_drop"
            )

    def describe(self, inputs: RecipeInputs, number: int) -> str:
        gate = "" if self.max_drop is None else f", at most {self.max_drop:g} worse"
        return f"on {Path(self._records(inputs).name).name}{gate}"

    def key(self, inputs: RecipeInputs, number: int, model: str) -> str:
        return self._key(inputs, model)

    def stored(self, store: Store, key: str) -> dict[str, Any] | None:
        return None if load_stored(store, key) is None else store.read(key) or {}

    def run(self, execution: Execution, number: int) -> dict[str, Any]:
        """The figures of the model so far, and its paired loss against the reference, if there is one."""
        inputs, model, against = execution.inputs, execution.model, None
        reference = _reference(inputs.pipeline, number)
        if reference is not None:
            against = execution.models[reference]
        elif not inputs.pipeline.trains:
            against = inputs.model
        if against is not None and against.key == model.key:
            against = None
        task, mine, other = self.paired(execution, model, against, execution.progress(number))
        figures = {**figures_of(mine, task.scale), "unit": written_unit(task), "description": task.describe()}
        if against is not None and other is not None:
            drop = compare(other, mine, higher_is_better=task.higher_is_better)
            figures |= {"against": against.made_by, "against_value": task.scale * other.value, "drop": asdict(drop)}
        return figures

    def accept(self, execution: Execution, figures: dict[str, Any], number: int) -> None:
        drop = figures.get("drop")
        if self.max_drop is None or drop is None or drop["high"] <= self.max_drop:  # a NaN never is
            return
        worse = "per cent" if drop["relative"] else "points"
        raise GateError(
            f"stage {number + 1} (eval): {figures['metric']} lost {drop['drop']:.2f} {worse} against {figures['against']}, with 95% confidence "
            f"at most {drop['high']:.2f}, and max_drop is {self.max_drop:g}; {execution.out} is as it was, and {execution.store.root.name} "
            "keeps the finished stages - raise the limit, change a stage, or give more evaluation data to narrow the interval."
        )

    def paired(
        self, execution: Execution, model: Checkpoint, against: Checkpoint | None, progress: Progress
    ) -> tuple[Task, Evaluation, Evaluation | None]:
        """The task, and ``model`` and ``against`` on its examples. What was measured before is read back."""
        inputs, store = execution.inputs, execution.store
        pipeline, source = inputs.pipeline, model.source()
        prepared = prepare(
            source, None, self._records(inputs), task=pipeline.task, column=None, label=None, samples=1,
            length=pipeline.length, batch_size=8, seed=pipeline.seed, eval_limit=self.eval_limit, select=False,
            model=model.load(pipeline.seed) if source.config is None else None,
        )  # fmt: skip
        task = prepared.task
        assert task is not None
        anchor = None

        def evaluation(of: Checkpoint, key: str) -> Evaluation:
            stored = load_stored(store, key)
            if stored is not None:
                return stored
            bar = progress(of.made_by)
            evaluated = task.evaluate(of.load(pipeline.seed), anchor, progress=lambda done, total: bar(done, total, ""))
            store_evaluation(store, key, evaluated)
            return evaluated

        if against is None:
            return task, evaluation(model, self._key(inputs, model.key)), None
        if task.of_dense:
            anchor = task.reference(against.load(pipeline.seed))
            return task, evaluation(model, self._key(inputs, model.key, against.key)), anchor.evaluation
        other = evaluation(against, self._key(inputs, against.key))
        return task, evaluation(model, self._key(inputs, model.key)), other

    def _key(self, inputs: RecipeInputs, model: str, against: str | None = None) -> str:
        """Of the evaluation of one model, also where another stage asks for the same."""
        data, pipeline = content(self._records(inputs)), inputs.pipeline
        return stage_key(
            "eval", of=model, data=data, task=pipeline.task, length=pipeline.length, against=against, eval_limit=self.eval_limit
        )  # fmt: skip

    def _records(self, inputs: RecipeInputs) -> Records:
        return inputs.held_out if self.data is None else inputs.own[self]  # type: ignore[return-value]


def _reference(pipeline: Pipeline, number: int) -> int | None:
    """The stage whose model an eval stage compares with: the first that was measured, else the one that was trained dense."""
    measured = pipeline.index(Evaluate, before=number)
    return pipeline.index(Train, before=number) if measured is None else measured
