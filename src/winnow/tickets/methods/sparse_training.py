"""One training under masks that a method of :mod:`winnow.train.methods` sets, moves or trains through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field, ValidationInfo, create_model, field_validator

from winnow.errors import InputError
from winnow.settings import read_settings
from winnow.tickets.method import Method, Settings
from winnow.tickets.search import Search, Ticket
from winnow.train.method import unfinished
from winnow.train.methods.by_name import asks, combines, fields_of, known, make, title
from winnow.train.task.train_mode import training_batches

BATCHES = 8  # mini-batches for a method that scores weights before the first step


class SparseTrainingSettings(Settings):
    """Which of the training methods, and what is set about it."""

    by: str = "sign-in"  # by its name in winnow.train.methods
    # Of that method, as a train stage of a recipe has them: {"masks": "rigl", "beta": 1}; the sparsity is the search's.
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("by")
    @classmethod
    def _known(cls, value: str) -> str:
        return known(value)

    @field_validator("options")
    @classmethod
    def _checked(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if (name := info.data.get("by")) is None:
            return value
        fields = fields_of(name, *([value["masks"]] if "masks" in value and combines(name) else []))
        if "sparsity" in fields:
            if "sparsity" in value:
                raise ValueError("the sparsity is that of the search: give it as sparsity, not among the options")
            fields.pop("sparsity")
        given: Any = create_model("Options", __base__=Settings, **fields)
        return read_settings(given, value, name).model_dump(mode="json", exclude_unset=True)


def sparse_training(search: Search) -> Iterator[Ticket]:
    """T steps of training under one method, for each sparsity; of a method that takes none, the sparsity that it comes to."""
    name, options, total = search.settings.by, search.settings.options, search.training.steps
    takes = "sparsity" in fields_of(name, *([options["masks"]] if "masks" in options else []))
    if takes and not all(search.sparsities):
        raise InputError(f"{name} needs a sparsity: give one above 0, such as 90%.", option="sparsity")
    training = search.training
    given: dict[str, Any] = {"seed": training.seed, "loss": training.loss}
    if "batches" in asks(name, options):
        given["batches"] = training_batches(training, BATCHES)
    for number, sparsity in enumerate(search.sparsities):
        target = {"sparsity": sparsity} if takes else {}
        method = make(name, target | options, steps=total, **given)
        run = search.run(f"run-{number}", f"train by {title(name, options)}", method=method)
        if not run.attached.zeros and not takes:
            raise InputError(f"the model has no zeros for {name} to keep: give one that is sparse, or other masks.")
        late = unfinished(run.attached, total)
        run.advance_to(total)
        notes = [f"{late[0].upper()}{late[1:]}"] if late else []
        yield search.ticket(run, run.attached.zeros, notes=notes, losses=run.losses)


SPARSE_TRAINING = Method(
    sparse_training, "sparse training", "trained under masks from its first step", SparseTrainingSettings, open_ended=True,
)  # fmt: skip
