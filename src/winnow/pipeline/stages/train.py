"""``train``: dense fine-tuning, and what every stage that trains has in common."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from winnow.measure.evaluation import store_evaluation
from winnow.pipeline.execution import Execution
from winnow.pipeline.inputs import Checkpoint, RecipeInputs
from winnow.pipeline.stage import Publication, Stage, figures_of
from winnow.report.ticket.page import DATA, PAGE
from winnow.seeding import torch_seed

PAGES = frozenset({PAGE, DATA})  # of a training alone


class FineTuning(Stage):
    """How a model is fine-tuned, for :func:`winnow.find_ticket`; None takes its defaults."""

    trains = True
    alternatives: ClassVar[dict[str, str]] = {"steps": "epochs", "epochs": "steps"}

    steps: int | None = Field(None, ge=1, lt=1 << 40)  # T, optimizer steps
    epochs: float | None = Field(None, gt=0, lt=1 << 20)  # in place of steps
    batch: int = Field(32, ge=1, le=1 << 20)  # examples a step
    lr: float | None = Field(None, gt=0)
    weight_decay: float | None = Field(None, ge=0)
    schedule: Literal["linear", "cosine"] = "linear"
    warmup: float = Field(0.0, ge=0, lt=1)  # share of the steps
    clip: float | None = Field(1.0, gt=0)  # norm of the gradients; null leaves them
    precision: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _one_length(self) -> FineTuning:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs are mutually exclusive: set one")
        return self

    def training_steps(self, inputs: RecipeInputs) -> int | None:
        """Optimizer steps of one training; None where only the length of the text decides it."""
        from winnow.train.task.from_data import EPOCHS

        if self.steps is not None:
            return self.steps
        if inputs.data is None or inputs.kind in ("causal-lm", "seq2seq"):
            return None
        epoch = -(-len(inputs.data) // self.batch)
        return max(1, round(epoch * (EPOCHS if self.epochs is None else self.epochs)))

    def training_options(self, start: Checkpoint, inputs: RecipeInputs) -> dict[str, Any]:
        """Keywords of :func:`winnow.tickets.training_from`."""
        pipeline = inputs.pipeline
        return {name: getattr(self, name) for name in FineTuning.model_fields} | dict(
            weights=start.weights, eval=inputs.held_out, task=pipeline.task, length=pipeline.length, seed=pipeline.seed
        )

    def fine_tune(self, execution: Execution, number: int, start: Checkpoint, **search: Any) -> dict[str, Any]:
        """Trains from ``start`` by :func:`winnow.find_ticket`; a search that was interrupted is resumed.

        The model is written to the stage's folder, its evaluation (where there is one) to the store.
        """
        from winnow.tickets.verb import find_ticket

        inputs = execution.inputs
        with torch_seed(inputs.pipeline.seed):
            result = find_ticket(
                start.spec, inputs.data, out=execution.folder(number), executor=execution.executor,
                progress=execution.progress(number), **search, **self.training_options(start, inputs),
            )  # fmt: skip
        ticket = result.ticket
        figures = {
            "method": ticket.method, "zeros": ticket.zeros, "sparsity": ticket.sparsity, "steps": ticket.cost.steps,
            "cost": vars(ticket.cost), "notes": [*result.training.notes, *ticket.notes],
        }  # fmt: skip
        if ticket.evaluation is not None:
            store_evaluation(execution.store, execution.keys[number], ticket.evaluation)
            figures |= figures_of(ticket.evaluation)
        return figures


class Train(FineTuning):
    """Dense fine-tuning: what a ticket is compared with."""

    kind = "train"

    def describe(self, inputs: RecipeInputs, number: int) -> str:
        return "dense"

    def planned_steps(self, inputs: RecipeInputs) -> int | None:
        return self.training_steps(inputs)

    def run(self, execution: Execution, number: int) -> dict[str, Any]:
        return self.fine_tune(execution, number, execution.model, sparsity=0.0, method="dense")

    def publish(self, execution: Execution, number: int) -> Publication:
        return Publication(PAGES)
