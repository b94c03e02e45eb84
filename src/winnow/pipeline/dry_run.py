"""What a recipe is going to do: its stages in words, their steps, and what is finished already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from winnow.data import Records
from winnow.disk.work import work_folder
from winnow.pipeline.materials import Materials
from winnow.pipeline.schema import Compress, Evaluate, Fitting, Stage, Ticket
from winnow.pipeline.stages import keys


@dataclass(frozen=True)
class Planned:
    """A stage before the start. ``steps``: optimizer steps it will take, None where it takes none or they are unknown."""

    number: int
    kind: str
    what: str
    steps: int | None
    finished: bool
    key: str


def planned(found: Materials, out: Path | None) -> list[Planned]:
    """The stages of a recipe, and which of them are finished in what ``out`` left behind."""
    pipeline = found.pipeline
    rows = []
    for number, (stage, key) in enumerate(zip(pipeline.stages, keys(found))):
        mark = f"{key}.npz" if isinstance(stage, Evaluate) else f"{key}.json"
        finished = out is not None and (work_folder(out) / mark).exists()
        steps = _steps(stage, found) if isinstance(stage, Fitting) else None
        rows.append(Planned(number + 1, stage.kind, what(stage, found, number), steps, finished, key))
    return rows


def _steps(stage: Fitting, found: Materials) -> int | None:
    """Optimizer steps of a stage, as far as they can be told before the start; running text is counted in no records."""
    from winnow.tickets.cost import planned_steps
    from winnow.tickets.methods.registry import METHODS
    from winnow.tickets.verb import DEFAULT, default_settings
    from winnow.train.task.batches import Fetched
    from winnow.train.task.from_data import EPOCHS

    records = 0 if found.data is None or found.kind in ("causal-lm", "seq2seq") else len(found.data)
    total = stage.steps
    if total is None:
        if not records:
            return None
        epoch = -(-records // stage.batch)
        total = max(1, round(epoch * (EPOCHS if stage.epochs is None else stage.epochs)))
    if not isinstance(stage, Ticket):
        return total
    name = DEFAULT if stage.method == "ticket" else stage.method
    # All of a training that is asked for; how many examples there are counts, and of which class each is.
    examples = Fetched(records, stage.batch, _Labels(found.data)) if records and found.data is not None else None
    one: Any = SimpleNamespace(steps=total, kind=found.kind, seed=0, examples=examples)
    settings = METHODS[name].settings_class(**(default_settings(name, one) | stage.settings))
    return planned_steps(name, settings, one, stage.sparsity)


class _Labels:
    """Stands for the examples of records: batches of none, but their class numbers."""

    def __init__(self, records: Records) -> None:
        self.labels = None if records.labels is None else torch.from_numpy(records.labels)

    def __call__(self, numbers: list[int]) -> list[int]:
        return numbers


def what(stage: Stage, found: Materials, number: int) -> str:
    """A stage in a few words."""
    if isinstance(stage, Ticket):
        return f"{stage.method}, {100 * stage.sparsity:.4g} % zeros"
    if isinstance(stage, Fitting):
        return "dense"
    if isinstance(stage, Compress):
        options = stage.options(found.pipeline.before(number, Ticket))
        names = {"sparsity": "sparsity", "bits_per_weight": "bits per weight", "size": "size", "max_drop": "max drop"}
        budget = [f"{words} {options[name]}" for name, words in names.items() if options[name] is not None]
        structure = [] if stage.structure == "unstructured" else [stage.structure]
        rounded = options["method"] == "zeros" and stage.values in ("int8", "int4") and stage.solver is None
        how = " rounded on calibration data" if rounded and found.data is not None else ""
        return ", ".join([options["method"], *budget, *structure, f"values {stage.values}{how}"])
    assert isinstance(stage, Evaluate)
    gate = "" if stage.max_drop is None else f", at most {stage.max_drop:g} worse"
    return f"on {Path(found.measured_on(stage).name).name}{gate}"
