"""What the stages of a recipe have in common: checked fields, and what each kind says about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from winnow.measure.evaluation import Evaluation
from winnow.pipeline.execution import Execution
from winnow.pipeline.inputs import RecipeInputs
from winnow.pipeline.part import Part, Source
from winnow.pipeline.schema import Pipeline
from winnow.run.store import Store, stage_key


class Stage(Part):
    """A stage of a recipe. A kind is a subclass in a file of its own under ``stages/``, and its line in the registry there.

    Its fields are those of the recipe. Stages are numbered from 0 here, and from 1 wherever a person reads it.
    """

    kind: ClassVar[str]  # its name in a recipe
    # It makes a model. Such stages follow the order of the registry, one of each; others come anywhere, as often as you like.
    makes: ClassVar[bool] = True
    trains: ClassVar[bool] = False  # on the recipe's data
    repeats: ClassVar[bool] = False  # even when finished, from what it stored: its figures depend on more than its key
    finished: ClassVar[str] = ".json"  # ending of the file that is there, after the key, once it is finished
    alternatives: ClassVar[dict[str, str]] = {}  # fields that replace each other: with --set the one that is set counts
    such: ClassVar[str] = ""  # what distinguishes it from others of its kind, in words that follow "a train stage"

    @classmethod
    def variant(cls, fields: Mapping[str, Any]) -> type[Stage]:
        """The class that checks these fields: another one where one of them decides which others there are."""
        return cls

    def check(self, pipeline: Pipeline, number: int) -> None:
        """Raises InputError for what can be known to be wrong about stage ``number`` without model and data."""

    def nested(self) -> dict[str, tuple[type[BaseModel], str]]:
        """Of fields that hold settings: the model that checks them, and what they are called."""
        return {}

    def own_data(self) -> Source | None:
        """Data that the stage opens besides the recipe's, by its fields data, column and label; None where there is none."""
        return None

    def describe(self, inputs: RecipeInputs, number: int) -> str:
        """The stage in a few words, for --dry-run."""
        return ""

    def planned_steps(self, inputs: RecipeInputs) -> int | None:
        """Optimizer steps that it will take; None where it takes none or they are not known before the start."""
        return None

    def depends_on(self, inputs: RecipeInputs, number: int) -> Any:
        """The settings that decide its result, as JSON."""
        return self.model_dump(mode="json")

    def key(self, inputs: RecipeInputs, number: int, model: str) -> str:
        """The name of its result, which changes with all that decides it. ``model``: the key of the model before it."""
        pipeline = inputs.pipeline
        return stage_key(
            self.kind, start=model, what=self.depends_on(inputs, number), data=content(inputs.data),
            eval=content(inputs.held_out), label=inputs.label, task=pipeline.task, length=pipeline.length, seed=pipeline.seed,
        )  # fmt: skip

    def stored(self, store: Store, key: str) -> dict[str, Any] | None:
        """Its finished result in ``store``, or None."""
        return store.read(key)

    def run(self, execution: Execution, number: int) -> dict[str, Any]:
        """Does the work on ``execution.model`` and returns figures, as JSON.

        A model that it makes is written to ``execution.folder(number)``, which does not exist yet.
        """
        raise NotImplementedError

    def accept(self, execution: Execution, figures: dict[str, Any], number: int) -> None:
        """Raises GateError where the figures are not good enough for the recipe to go on."""

    def publish(self, execution: Execution, number: int) -> Publication | None:
        """What it adds to the folder that is published, when every stage is finished."""
        return None


@dataclass(frozen=True)
class Publication:
    """A report beside the published model.

    ``replaces``: files of that name in the folder of the last stage are left out. ``page``: a title and a file name.
    """

    replaces: frozenset[str]
    report: BaseModel | None = None
    writers: tuple[Callable[[Any, Path], Any], ...] = ()  # called with the report and a folder
    page: tuple[str, str] | None = None


def content(records: Any) -> Any:
    """What of a data set decides a result."""
    return None if records is None else [records.sha256, records.label_names]


def figures_of(evaluation: Evaluation, scale: float | None = None) -> dict[str, Any]:
    """An evaluation as figures: in per cent, unless it is a perplexity or ``scale`` says otherwise."""
    if scale is None:
        scale = 1.0 if evaluation.metric == "perplexity" else 100.0
    values = {name: scale * getattr(evaluation, name) for name in ("value", "low", "high")}
    unit = "%" if evaluation.metric in ("accuracy", "agreement") else ""
    return {"metric": evaluation.metric, "unit": unit, **values, "n": evaluation.n}
