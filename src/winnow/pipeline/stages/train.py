"""``train``: dense or sparse training, and what every stage that trains has in common."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, create_model, field_validator, model_validator

from winnow.errors import InputError
from winnow.measure.evaluation import store_evaluation
from winnow.pipeline.execution import Execution
from winnow.pipeline.inputs import Checkpoint, RecipeInputs
from winnow.pipeline.located import about
from winnow.pipeline.schema import Pipeline
from winnow.pipeline.stage import Publication, Stage, figures_of
from winnow.report.ticket.page import DATA, PAGE, read, write
from winnow.seeding import torch_seed
from winnow.train.methods import METHODS
from winnow.train.methods.by_name import INNER, fields_of, known, make, title
from winnow.train.task.from_data import training_from
from winnow.train.task.from_scratch import from_scratch

DENSE, SPARSE = "dense", "sparse-training"  # the methods of tickets that this stage is made of
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

    def trained(self, start: Checkpoint, inputs: RecipeInputs) -> tuple[Any, Any, dict[str, Any]]:
        """Model, data and the keywords about them for :func:`winnow.find_ticket`."""
        return start.spec, inputs.data, self.training_options(start, inputs)

    def fine_tune(self, execution: Execution, number: int, start: Checkpoint, **search: Any) -> dict[str, Any]:
        """Trains from ``start`` by :func:`winnow.find_ticket`; a search that was interrupted is resumed.

        The model is written to the stage's folder, its evaluation (where there is one) to the store.
        """
        from winnow.tickets.verb import find_ticket

        inputs = execution.inputs
        with torch_seed(inputs.pipeline.seed):
            model, data, options = self.trained(start, inputs)
            result = find_ticket(
                model, data, out=execution.folder(number), executor=execution.executor,
                progress=execution.progress(number), **search, **options,
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
    """Training: dense, which is what a ticket is compared with, or under the masks of one of :data:`winnow.train.methods.METHODS`.

    As it is, the class is of a dense one. A method brings its options as further fields: see :meth:`variant`.
    """

    kind = "train"
    such = " without a method"
    options: ClassVar[tuple[str, ...]] = ()  # fields of the method

    method: str = DENSE
    from_scratch: bool = False  # from weights that are drawn anew
    include: tuple[str, ...] = ()  # what is prunable as well, for a method
    exclude: tuple[str, ...] = ()

    @classmethod
    def variant(cls, fields: Mapping[str, Any]) -> type[Stage]:
        name = fields.get("method", DENSE)
        if name not in METHODS:
            return cls
        own = fields_of(name, fields.get("masks") or INNER)
        made: Any = create_model("Train", __base__=cls, **own)
        made.such, made.options = f" with method {name}", tuple(own)
        return made

    @field_validator("method")
    @classmethod
    def _known(cls, value: str) -> str:
        return value if value == DENSE else known(value)

    def check(self, pipeline: Pipeline, number: int) -> None:
        if self.method == DENSE:
            if given := [n for n in ("include", "exclude") if getattr(self, n)]:
                raise InputError(
                    f"{given[0]} is of a method: name one, such as method sign-in, or leave it out", option=given[0]
                )
        else:
            self._made(self.steps or 1 << 20, pipeline.seed)

    def settings(self) -> dict[str, Any]:
        """The options of the method that were given, as JSON. Weights of a trained model are not rescaled for their mask."""
        given = self.model_dump(mode="json", include=set(self.options), exclude_unset=True)
        trained = {"rescale": False} if "rescale" in self.options and not self.from_scratch else {}
        return trained | given

    def _made(self, steps: int, seed: int) -> None:
        """Raises InputError, about the field that its words name, where the method cannot use its options."""
        try:
            make(self.method, self.settings(), steps=steps, seed=seed, batches=(), loss=None)  # made only to be checked
        except InputError as error:
            field = next((n for n in self.options if re.search(rf"\b{n}\b", str(error))), "method")
            raise InputError(str(error), option=field) from None

    def describe(self, inputs: RecipeInputs, number: int) -> str:
        settings = self.settings()
        share = [f"{100 * settings['sparsity']:.4g}% sparsity"] if "sparsity" in settings else []
        scratch = ["from scratch"] if self.from_scratch else []
        return ", ".join(["dense" if self.method == DENSE else title(self.method, settings), *share, *scratch])

    def depends_on(self, inputs: RecipeInputs, number: int) -> Any:
        plain = self.model_dump(mode="json", exclude=set(self.options))
        return plain | ({} if self.method == DENSE else {"options": self.settings()})

    def key(self, inputs: RecipeInputs, number: int, model: str) -> str:
        steps = self.training_steps(inputs)
        if self.method != DENSE and steps is not None:  # which epochs have just told
            with about(None, *(("stages", number, self.kind, n) for n in (*self.options, "method"))):
                self._made(steps, inputs.pipeline.seed)
        return super().key(inputs, number, model)

    def planned_steps(self, inputs: RecipeInputs) -> int | None:
        return self.training_steps(inputs)

    def training_options(self, start: Checkpoint, inputs: RecipeInputs) -> dict[str, Any]:
        return super().training_options(start, inputs) | dict(include=self.include, exclude=self.exclude)

    def trained(self, start: Checkpoint, inputs: RecipeInputs) -> tuple[Any, Any, dict[str, Any]]:
        if not self.from_scratch:
            return super().trained(start, inputs)
        if inputs.kind == "clip":
            raise InputError(
                "CLIP's head is made by its trained text tower: leave out from_scratch", option="from_scratch"
            )
        training = training_from(start.spec, inputs.data, **self.training_options(start, inputs))
        own_zeros = self.method == "fixed" or self.settings().get("masks") == "fixed"
        return from_scratch(training, start.source().factory, keep_zeros=own_zeros), None, {}

    def run(self, execution: Execution, number: int) -> dict[str, Any]:
        if self.method == DENSE:
            return self.fine_tune(execution, number, execution.model, sparsity=0.0, method=DENSE)
        settings = self.settings()
        sparsity = settings.pop("sparsity", 0.0)
        found = self.fine_tune(
            execution, number, execution.model, sparsity=sparsity, method=SPARSE, settings={"by": self.method, "options": settings}
        )  # fmt: skip
        return found | {"method": self.method}

    def publish(self, execution: Execution, number: int) -> Publication:
        """The report of a training with a method; a dense one is told by those that compare with it."""
        if self.method == DENSE:
            return Publication(PAGES)
        inputs, report = execution.inputs, read(execution.folder(number))
        report.model.name, report.title = inputs.label, f"Sparse training of {inputs.label}"
        report.command = execution.command
        report.task.evaluation_data = None if inputs.held_out is None else inputs.held_out.name
        return Publication(PAGES, report, (write,), ("Training", PAGE))
