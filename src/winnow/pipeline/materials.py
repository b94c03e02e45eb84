"""What the stages of a recipe share: the model as given and the data, opened and checked before any work."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from winnow.data import Records, disjoint, open_data, split_disjoint
from winnow.errors import InputError
from winnow.models.kind import model_kind
from winnow.models.source import ModelSource, open_model
from winnow.pipeline.located import Where, blamed
from winnow.pipeline.schema import Evaluate, Fitting, Pipeline
from winnow.seeding import torch_seed

HELD_OUT = {True: (0.8, 0.2), False: (0.3, 0.7)}  # a recipe that trains needs the data itself; calibration needs little


@dataclass(frozen=True)
class Standing:
    """A model between two stages: how it is opened, what it is called, and the key of the stage that made it."""

    spec: str
    weights: Path | None
    key: str
    made_by: str

    def source(self) -> ModelSource:
        return open_model(self.spec, self.weights)


@dataclass
class Materials:
    """What the stages share: the model as given and the data, opened and checked."""

    pipeline: Pipeline
    given: Standing
    kind: str  # of the model: see winnow.measure.prepare
    data: Records | None
    held_out: Records | None
    own: dict[str, Records]  # by key: data that an eval stage names for itself
    notes: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """A file name for the models that are made."""
        named = self.pipeline.name or Path(self.pipeline.model).name.rpartition(":")[2]
        return re.sub(r"[^\w.-]+", "-", named).strip("-.") or "model"

    def measured_on(self, stage: Evaluate) -> Records:
        return self.own[data_key(stage)] if stage.data is not None else self.held_out  # type: ignore[return-value]


def open_materials(pipeline: Pipeline) -> Materials:
    """Opens the model and all data of a recipe. Trains nothing, writes nothing.

    Raises:
        InputError: something cannot be read, training and evaluation data overlap, or the task is none for a recipe.
    """
    with blamed(("model",), **_given(pipeline, "weights")):
        source = open_model(pipeline.model, pipeline.weights)
    with torch_seed(pipeline.seed):
        given = Standing(pipeline.model, pipeline.weights, source.sha256(), "the model given")
    kind = model_kind(source)
    data = _opened(pipeline, pipeline.data, ("data",))
    held_out = _opened(pipeline, pipeline.eval, ("eval",))
    found = Materials(pipeline, given, kind, data, held_out, {})
    if held_out is None and data is not None and pipeline.task != "none":
        found.data, found.held_out = split_disjoint(data, pipeline.seed, HELD_OUT[pipeline.fits])
        found.notes.append(
            f"no eval given: {len(found.held_out):,} of the records of {data.name} were held out for it."
        )
    measured: list[tuple[Where, Records | None]] = [(("eval",), found.held_out)]
    for number, stage in enumerate(pipeline.stages):
        if isinstance(stage, Evaluate) and stage.data is not None:
            where: Where = ("stages", number, stage.kind)
            own = {name: (*where, name) for name in ("column", "label") if getattr(stage, name) is not None}
            records = _opened(
                pipeline, stage.data, (*where, "data"), column=stage.column, label=stage.label, places=own
            )
            assert records is not None
            found.own[data_key(stage)] = records
            measured.append(((*where, "data"), records))
    for where, other in measured:
        if found.data is not None and other is not None:
            with blamed(where):
                found.data, left_out = disjoint(found.data, other, "training" if pipeline.fits else "calibration")
            found.notes += [left_out] if left_out else []
    if pipeline.fits:
        _check_fits(found)
    elif random := source.untrained():
        found.notes.append(random)
    return found


def _given(pipeline: Pipeline, *names: str) -> dict[str, Where]:
    return {name: (name,) for name in names if getattr(pipeline, name) is not None}


def _opened(
    pipeline: Pipeline,
    spec: str | None,
    where: Where,
    *,
    column: str | None = None,
    label: str | None = None,
    places: dict[str, Where] | None = None,
) -> Records | None:
    """Data that the field ``where`` names; ``places``: fields of its column and label, where they are not the recipe's."""
    if spec is None:
        return None
    with blamed(where, **_given(pipeline, "column", "label") | (places or {})):
        return open_data(spec, column=column or pipeline.column, label=label or pipeline.label)


def _check_fits(found: Materials) -> None:
    """Tasks that a trained model is measured by here are classes and running text."""
    assert found.data is not None
    labels = found.data.labels
    scores = labels is not None and labels.dtype.kind == "f" and bool((labels != labels.round()).any())
    if scores and found.kind != "causal-lm":
        raise InputError(
            f"the labels of {found.data.name} are scores, and a recipe trains for classes or running text: take winnow.find_ticket in Python."
        )
    last = isinstance(found.pipeline.stages[-1], Fitting)
    if found.kind == "clip" and not (last and len(found.pipeline.stages) == 1):
        raise InputError(
            "a CLIP model becomes an image classifier of its own, which no other stage can open: take winnow.find_ticket in Python."
        )


def data_key(stage: Evaluate) -> str:
    return repr((stage.data, stage.column, stage.label))
