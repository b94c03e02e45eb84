"""``compress``: the model packed, by :func:`winnow.compress`."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from winnow.compression.job import BUDGETS, Job
from winnow.compression.options import Method, Options, Texts, rates_of
from winnow.errors import InputError
from winnow.fcpts.settings import FcptsSettings
from winnow.measure.evaluation import Evaluation
from winnow.pipeline.execution import Execution
from winnow.pipeline.inputs import RecipeInputs
from winnow.pipeline.located import in_fields
from winnow.pipeline.part import require_settings
from winnow.pipeline.schema import Pipeline
from winnow.pipeline.stage import Publication, Stage
from winnow.pipeline.stages.compress_page import Dense, compress_report
from winnow.pipeline.stages.eval import Evaluate
from winnow.pipeline.stages.ticket import Ticket
from winnow.pipeline.stages.train import DENSE, Train
from winnow.report.compression import card, page
from winnow.seeding import torch_seed
from winnow.solve.settings import ReconstructSettings
from winnow.train.distil.settings import DistilSettings

FILES = frozenset({"report.html", "report.json", "README.md"})


class Compress(Options, Stage):
    """A packed folder: the options of :func:`winnow.compress`. After a ticket or a sparse training, without a budget: its own zeros."""

    kind = "compress"

    method: Method | None = None  # type: ignore[assignment]  # None: auto, or the ticket's zeros
    include: Texts | None = None  # type: ignore[assignment]  # None: as the stage has it that made the zeros
    exclude: Texts | None = None  # type: ignore[assignment]

    @field_validator("settings")
    @classmethod
    def _numbers(cls, value: dict[str, Any]) -> dict[str, Any]:
        require_settings(value, DistilSettings, FcptsSettings, ReconstructSettings)
        return value

    def options(self, sparse: Ticket | Train | None) -> dict[str, Any]:
        """Keywords of :func:`winnow.compress`, after a stage whose model is sparse."""
        found = {name: getattr(self, name) for name in Options.model_fields}
        for name in ("include", "exclude"):
            if found[name] is None:
                found[name] = getattr(sparse, name) if sparse is not None else ()
        if self.method is None:
            free = self.structure == "unstructured" and all(found[name] is None for name in BUDGETS)
            own = sparse is not None and free
            found["method"] = "zeros" if own else "auto"
        return found

    def check(self, pipeline: Pipeline, number: int) -> None:
        """What compress would refuse whatever the model and data."""
        try:
            options = self.options(_sparse(pipeline, number))
            if self.sparsity is not None and len(rates_of(self.sparsity)) > 1:
                raise InputError("a recipe ends in one artifact: give one sparsity", option="sparsity")
            Job(pipeline.model, pipeline.data, **options)
        except InputError as error:
            raise InputError(in_fields(error.flagged), option=error.option) from None

    def describe(self, inputs: RecipeInputs, number: int) -> str:
        options = self.depends_on(inputs, number)
        names = {"sparsity": "sparsity", "bits_per_weight": "bits per weight", "size": "size", "max_drop": "max drop"}
        budget = [f"{words} {options[name]}" for name, words in names.items() if options[name] is not None]
        structure = [] if self.structure == "unstructured" else [self.structure]
        rest = [] if self.rest == "keep" else [f"rest {self.rest}"]
        rounded = options["method"] == "zeros" and self.values in ("int8", "int4") and self.solver is None
        how = " rounded on calibration data" if rounded and inputs.data is not None else ""
        return ", ".join([options["method"], *budget, *structure, f"values {self.values}{how}", *rest])

    def depends_on(self, inputs: RecipeInputs, number: int) -> Any:
        return self.options(_sparse(inputs.pipeline, number))

    def run(self, execution: Execution, number: int) -> dict[str, Any]:
        """The packed folder with its report comes to the stage's folder.

        Raises:
            GateError: ``max_drop`` cannot be kept.
        """
        from winnow.compression.verb import compress

        inputs, start = execution.inputs, execution.model
        pipeline = inputs.pipeline
        with torch_seed(pipeline.seed):
            result = compress(
                start.spec, inputs.data, weights=start.weights, eval=inputs.held_out, task=pipeline.task,
                length=pipeline.length, seed=pipeline.seed, out=execution.folder(number), keep_work=False,
                progress=execution.progress(number), command=execution.command, **self.depends_on(inputs, number),
            )  # fmt: skip
        report = result.report
        chosen = report.picked
        copied = ("method", "sparsity", "values", "bits_per_weight", "file_bytes", "low", "high")
        return {name: getattr(chosen, name) for name in copied} | {
            "zeros": report.requested.zeros_reached, "dense_file": report.sizes.dense_file, "value": chosen.quality,
            "metric": report.task.metric if chosen.quality is not None else None, "unit": report.task.unit,
            "verdict": report.verdict.sentence,
        }  # fmt: skip

    def publish(self, execution: Execution, number: int) -> Publication | None:
        """The report of what was packed and its model card, compared with the dense model where the recipe measured one."""
        ticket = execution.inputs.pipeline.index(Ticket, before=number)
        dense = None if ticket is None else self._dense(execution, number, ticket)
        own_zeros = self.method is None and self.depends_on(execution.inputs, number)["method"] == "zeros"
        report = compress_report(execution, number, ticket, dense, own_zeros)
        return None if report is None else Publication(FILES, report, (page.write, card.write))

    def _dense(self, execution: Execution, number: int, ticket: int) -> Dense | None:
        """The dense model that was trained, else the one measured before the ticket, beside the packed one."""
        pipeline, packed = execution.inputs.pipeline, execution.models[number]
        before = pipeline.index(Train), pipeline.index(Evaluate, before=ticket)
        reference = next((execution.models[i] for i in before if i is not None), None)
        if reference is None or execution.inputs.held_out is None:
            return None
        measured = Evaluate(eval_limit=self.eval_limit, max_drop=None)
        task, mine, other = measured.paired(
            execution, packed, reference, execution.progress(number)
        )  # mostly read back
        if other is None or task.of_dense:
            return None
        own = execution.evaluation_file(ticket)
        return Dense(task, other, mine, Evaluation.load(own) if own.exists() else None, reference.made_by)


def _sparse(pipeline: Pipeline, number: int) -> Ticket | Train | None:
    """The stage before stage ``number`` whose model has zeros: a ticket, or a training with a method."""
    ticket, train = pipeline.first(Ticket, before=number), pipeline.first(Train, before=number)
    return ticket or (train if train is not None and train.method != DENSE else None)
