"""What the stages of a recipe share: the model as given and the data, opened and checked before any work."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from winnow.data import Records, disjoint, open_data, split_disjoint
from winnow.errors import InputError
from winnow.formats import is_artifact
from winnow.models.kind import model_kind
from winnow.models.source import ModelSource, open_model
from winnow.pipeline.located import Where, about
from winnow.pipeline.part import Part, Source
from winnow.pipeline.schema import Pipeline
from winnow.seeding import torch_seed

HELD_OUT = {True: (0.8, 0.2), False: (0.3, 0.7)}  # a recipe that trains needs the data itself; calibration needs little


@dataclass(frozen=True)
class Checkpoint:
    """A model between two stages: how it is opened, the key of the stage that made it, and what it is called."""

    spec: str
    weights: Path | None
    key: str
    made_by: str

    def source(self) -> ModelSource:
        return open_model(self.spec, self.weights)

    def load(self, seed: int) -> torch.nn.Module:
        """The model in float32."""
        with torch_seed(seed):
            return self.source().load().to(torch.float32)


@dataclass
class RecipeInputs:
    """The model as given and the data of a recipe, opened and checked."""

    pipeline: Pipeline
    model: Checkpoint
    kind: str  # of the model: see winnow.measure.prepare
    data: Records | None
    held_out: Records | None  # the evaluation data
    own: dict[Part, Records] = field(default_factory=dict)  # data that a stage names for itself
    notes: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """A file name for the models that are made."""
        named = self.pipeline.name or Path(self.pipeline.model).name.rpartition(":")[2]
        return re.sub(r"[^\w.-]+", "-", named).strip("-.") or "model"

    def keys(self) -> list[str]:
        """The key of every stage: all that its result depends on, the keys before it included."""
        made, at = [], self.model.key
        for number, stage in enumerate(self.pipeline.stages):
            made.append(stage.key(self, number, at))
            at = made[-1] if stage.makes else at
        return made

    def checkpoint(self, folder: Path, number: int, key: str) -> Checkpoint:
        """The model that a stage left in ``folder``: a folder of its own, or weights for the recipe's factory."""
        made_by = f"stage {number + 1} ({self.pipeline.stages[number].kind})"
        if self.model.source().factory is None:
            return Checkpoint(str(folder), None, key, made_by)
        weights = folder if is_artifact(folder) else folder / "model.safetensors"
        return Checkpoint(self.pipeline.model, weights, key, made_by)


def open_inputs(pipeline: Pipeline) -> RecipeInputs:
    """Opens the model and all data of a recipe. Trains nothing, writes nothing.

    Raises:
        InputError: something cannot be read, training and evaluation data overlap, or the task is none for a recipe.
    """
    with about(("model",), *([("weights",)] if pipeline.weights is not None else [])):
        source = open_model(pipeline.model, pipeline.weights)
    with torch_seed(pipeline.seed):
        model = Checkpoint(pipeline.model, pipeline.weights, source.sha256(), "the model given")
    data, held_out = (
        None if spec is None else _opened(pipeline, (spec, None, None), (name,))
        for name, spec in (("data", pipeline.data), ("eval", pipeline.eval))
    )
    inputs = RecipeInputs(pipeline, model, model_kind(source), data, held_out)
    if held_out is None and data is not None and pipeline.task != "none":
        inputs.data, inputs.held_out = split_disjoint(data, pipeline.seed, HELD_OUT[pipeline.trains])
        inputs.notes.append(
            f"no eval given: {len(inputs.held_out):,} of the records of {data.name} were held out for it."
        )
    measured: list[tuple[Where, Records | None]] = [(("eval",), inputs.held_out)]
    for number, stage in enumerate(pipeline.stages):
        if (own := stage.own_data()) is not None:
            where: Where = ("stages", number, stage.kind, "data")
            inputs.own[stage] = _opened(pipeline, own, where)
            measured.append((where, inputs.own[stage]))
    for where, other in measured:
        if inputs.data is not None and other is not None:
            with about(where):
                inputs.data, left_out = disjoint(inputs.data, other, "training" if pipeline.trains else "calibration")
            inputs.notes += [left_out] if left_out else []
    if pipeline.trains:
        _check_training(inputs)
    elif random := source.untrained():
        inputs.notes.append(random)
    return inputs


def _opened(pipeline: Pipeline, given: Source, where: Where) -> Records:
    """Data that the field ``where`` names; its column and label are fields beside it, else those of the recipe."""
    spec, *own = given
    columns: dict[str, Any] = {name: value or getattr(pipeline, name) for name, value in zip(("column", "label"), own)}
    places = [(*where[:-1], name) if value else (name,) for name, value in zip(columns, own) if columns[name]]
    with about(where, *places):
        return open_data(spec, **columns)


def _check_training(inputs: RecipeInputs) -> None:
    """Tasks that a trained model is measured by here are classes and running text."""
    assert inputs.data is not None
    labels = inputs.data.labels
    scores = labels is not None and labels.dtype.kind == "f" and bool((labels != labels.round()).any())
    if scores and inputs.kind != "causal-lm":
        raise InputError(
            f"the labels of {inputs.data.name} are scores, and a recipe trains for classes or running text: take winnow.find_ticket in Python."
        )
    if inputs.kind == "clip" and len(inputs.pipeline.stages) > 1:
        raise InputError(
            "a CLIP model becomes an image classifier of its own, which no other stage can open: take winnow.find_ticket in Python."
        )
