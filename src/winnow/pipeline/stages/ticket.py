"""``ticket``: a sparse subnetwork, found and trained."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, ValidationInfo, field_validator

from winnow.budget import parse_sparsity
from winnow.data import Records
from winnow.errors import InputError, meant
from winnow.measure.evaluation import Evaluation
from winnow.pipeline.execution import Execution
from winnow.pipeline.inputs import Checkpoint, RecipeInputs
from winnow.pipeline.part import require_no_truth, require_settings
from winnow.pipeline.schema import Pipeline
from winnow.pipeline.stage import Publication
from winnow.pipeline.stages.train import DENSE, PAGES, SPARSE, FineTuning, Train
from winnow.records.ticket import TicketReport
from winnow.report.ticket.page import PAGE, read, write
from winnow.report.ticket.verdict import judge, warnings
from winnow.seeding import torch_seed
from winnow.tickets import audit
from winnow.tickets.methods.registry import METHODS, known
from winnow.tickets.reporting import METRICS
from winnow.train.methods import METHODS as TRAINING
from winnow.train.task.training import Training

TRAIN_STAGE = (DENSE, SPARSE)  # methods that a train stage has


class Ticket(FineTuning):
    """A sparse subnetwork, found and trained."""

    kind = "ticket"

    sparsity: float  # of the prunable weights; 0.8 or 80%
    method: str = "ticket"
    settings: dict[str, Any] = Field(default_factory=dict)  # of the method: see src/winnow/tickets/methods
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    start: Literal["before", "model"] = "before"  # weights to start from: of the stage before, or the recipe's model

    @field_validator("sparsity", mode="before")
    @classmethod
    def _share(cls, value: Any) -> float:
        require_no_truth(value, float)
        found = parse_sparsity(value)
        if not found:
            raise ValueError("a ticket of no zeros is dense: give a sparsity above 0, or use a train stage")
        return found

    @field_validator("method")
    @classmethod
    def _known(cls, value: str) -> str:
        known = dict.fromkeys(["ticket", *(m for m in METHODS if m not in TRAIN_STAGE)])
        if value not in known:
            found = (
                " (it is one of a train stage: write train in place of ticket)"
                if value in (*TRAINING, *TRAIN_STAGE)
                else meant(value, known)
            )
            raise ValueError(f"there is no method {value!r}{found}: choose one of {', '.join(known)}")
        return value

    @field_validator("settings")
    @classmethod
    def _numbers(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if (method := info.data.get("method")) is not None:
            require_settings(value, METHODS[known(method)].settings_class)
        return value

    def check(self, pipeline: Pipeline, number: int) -> None:
        train = pipeline.first(Train, before=number)
        if train is not None and train.method != DENSE:
            raise InputError(
                "a ticket is compared with a dense training: leave out the method of the train stage, or the ticket"
            )
        if self.start == "model" and pipeline.index(Train, before=number) is None:
            raise InputError("start model is for a ticket after a train stage: leave it out", option="start")

    def nested(self) -> dict[str, tuple[type[BaseModel], str]]:
        return {"settings": (METHODS[known(self.method)].settings_class, f"the settings of method {self.method}")}

    def describe(self, inputs: RecipeInputs, number: int) -> str:
        return f"{self.method}, {100 * self.sparsity:.4g}% sparsity"

    def planned_steps(self, inputs: RecipeInputs) -> int | None:
        total = self.training_steps(inputs)
        if total is None:
            return None
        name, examples = known(self.method), None
        if inputs.data is not None and inputs.kind not in ("causal-lm", "seq2seq"):
            from winnow.train.task.batches import Fetched

            examples = Fetched(len(inputs.data), self.batch, _Labels(inputs.data))
        # All that is used of a training: how many examples there are counts, and of which class each is.
        one: Any = SimpleNamespace(steps=total, kind=inputs.kind, seed=0, examples=examples)
        settings = METHODS[name].read_settings(self.settings, name, inputs.kind)
        return METHODS[name].planned_steps(settings, one, self.sparsity)

    def key(self, inputs: RecipeInputs, number: int, model: str) -> str:
        return super().key(inputs, number, inputs.model.key if self.start == "model" else model)

    def run(self, execution: Execution, number: int) -> dict[str, Any]:
        start = execution.inputs.model if self.start == "model" else execution.model
        search = dict(sparsity=self.sparsity, method=self.method, settings=self.settings)
        return self.fine_tune(execution, number, start, **search)

    def training_options(self, start: Checkpoint, inputs: RecipeInputs) -> dict[str, Any]:
        return super().training_options(start, inputs) | dict(include=self.include, exclude=self.exclude)

    def training(self, start: Checkpoint, inputs: RecipeInputs) -> Training:
        """The training that the search repeats, as :meth:`run` has it made."""
        from winnow.train.task.from_data import training_from

        with torch_seed(inputs.pipeline.seed):
            return training_from(start.spec, inputs.data, **self.training_options(start, inputs))

    def publish(self, execution: Execution, number: int) -> Publication:
        """The report of the search, with the recipe's dense training to compare with.

        It is completed here and not when the stage ends: a ticket that starts from the recipe's model does not depend on
        the dense training, which may be another one the next time.
        """
        inputs, report = execution.inputs, read(execution.folder(number))
        report.model.name, report.title = inputs.label, f"Ticket of {inputs.label}"
        report.command = execution.command
        report.task.evaluation_data = None if inputs.held_out is None else inputs.held_out.name
        dense = inputs.pipeline.index(Train)
        if dense is not None:
            files = execution.evaluation_file(number), execution.evaluation_file(dense)
            if all(file.exists() for file in files):
                _compare(report, *map(Evaluation.load, files))
        return Publication(PAGES, report, (write,), ("Ticket", PAGE))


def _compare(report: TicketReport, ticket: Evaluation, dense: Evaluation) -> None:
    line, row = report.tickets[0], report.rows[0]  # a recipe's stage is one ticket
    scale = METRICS[dense.metric][3] if dense.metric in METRICS else 1.0
    report.dense = audit.figure(dense, scale)
    line.drop = row.drop = audit.drop(dense, ticket, report.task.higher_is_better)
    line.changes, line.classes = audit.changes(dense, ticket), audit.classes(dense, ticket)
    report.verdict, report.sparsity = judge(report)
    report.warnings = warnings(report)


class _Labels:
    """Stands for the examples of records: batches of none, but their class numbers."""

    def __init__(self, records: Records) -> None:
        self.labels = None if records.labels is None else torch.from_numpy(records.labels)

    def __call__(self, numbers: list[int]) -> list[int]:
        return numbers
