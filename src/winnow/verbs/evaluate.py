"""``eval``: the quality of one model, packed or dense, alone or against another."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from typing_extensions import Unpack

from winnow.compression.keywords import InputKeywords, listing
from winnow.compression.options import Inputs
from winnow.errors import InputError
from winnow.formats.artifact import read_artifact
from winnow.forward.dtypes import has_half_weights, to_float32
from winnow.masks.unwrap import working_copy
from winnow.measure.compare import Comparison
from winnow.measure.evaluation import Evaluation
from winnow.measure.task import Task
from winnow.models.reference import open_reference
from winnow.models.source import ModelSource, open_model
from winnow.notebook import Card, Shown, figures
from winnow.terminal.progress import Expected, ProgressOption, expect, watch
from winnow.words import change, number

if TYPE_CHECKING:
    from rich.console import RenderableType

    from winnow.measure.prepare import Prepared


@dataclass(frozen=True, repr=False)
class Measured(Shown):
    """A figure with its 95% interval, and the paired change against a reference where one was given."""

    model: str
    metric: str
    unit: str
    value: float
    low: float
    high: float
    n: int
    description: str
    reference: str | None = None
    reference_value: float | None = None
    drop: float | None = None  # points, or per cent of perplexity; positive is worse
    drop_low: float | None = None
    drop_high: float | None = None
    relative: bool = False
    details: dict[str, Any] = field(default_factory=dict)
    harness: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # how images are fed, and what makes the figures doubtful

    @property
    def change(self) -> tuple[str, str]:
        """What it is called, and the paired change against the reference; minus is worse (perplexity: plus)."""
        text = "" if self.drop is None else change(self.drop, self.drop_low, self.drop_high, self.relative)
        return "change (95% interval)", text

    def _card(self) -> Card:
        unit = f" {self.unit}" if self.unit else ""
        sentence = (
            f"{self.model}: {self.metric} {number(self.value)}{unit} (95%: {number(self.low)} to {number(self.high)})"
        )
        facts = [("measured on", self.description)]
        if self.reference is not None:
            facts.append(("against", f"{self.reference}, {number(self.reference_value)}{unit}"))
            facts.append(self.change)
        more = [{"figure": k.replace("_", " "), "value": v} for k, v in figures(self.details).items()]
        return Card("Measured", sentence, facts, [("more", more), ("notes", [{"note": note} for note in self.notes])])


@listing(InputKeywords, Inputs)
def evaluate(
    model: str | Path | nn.Module,
    data: Any,
    *,
    reference: str | Path | nn.Module | None = None,
    harness_tasks: Sequence[str] = (),
    harness_path: Path | None = None,
    progress: ProgressOption = None,
    **options: Unpack[InputKeywords],
) -> Measured:
    """Measures a model on data; see ``winnow eval``.

    Args:
        reference: a dense model to compare with: paired change with its 95% interval, agreement and KL. For a plain
            torch model its dense weights' file will do.
        harness_tasks: local lm-eval tasks to run too, found in ``harness_path``.
        progress: bars or lines by itself, True or False, or a function: see :func:`winnow.terminal.progress.watch`.
        options: fields of :class:`winnow.compression.options.Inputs`, listed below.

    Raises:
        InputError: the model or the data cannot be read, or the task does not fit them.
    """
    from winnow.measure.compare import compare
    from winnow.measure.fits import require_sound
    from winnow.measure.prepare import prepare
    from winnow.measure.task import written_unit

    given = Inputs(**options)
    if harness_tasks and harness_path is None:
        raise InputError("--harness needs the folder of its task files: give --harness-path.", option="harness_path")
    source = open_model(model, given.weights, trust_remote_code=given.trust_remote_code)
    loaded = _load(source, given.dtype)
    require_sound(loaded)
    prepared = prepare(
        source, None, data, task=given.task, column=given.column, label=given.label, samples=1, length=given.length, batch_size=8, seed=0,
        eval_limit=given.eval_limit, select=False, tokenizer=given.tokenizer, model=loaded, mean=given.mean, std=given.std,
    )  # fmt: skip
    if prepared.task is None:
        raise InputError("there is nothing to measure: --task none leaves no figure.", option="task")
    work = prepared.task
    dense = dense_source = anchor = None
    if reference is not None:
        dense_source = open_reference(source, reference, trust_remote_code=given.trust_remote_code)
        other = _tried(_load(dense_source, given.dtype), dense_source, prepared, given.dtype)
    loaded = _tried(loaded, source, prepared, given.dtype)
    with watch(progress) as stages:
        names = ["measuring the reference", "measuring"][reference is None :]
        expect(stages, [Expected(name, "measuring") for name in names])
        if reference is not None:
            before = stages(names[0])
            anchor = work.reference(other, progress=lambda done, total: before(done, total, ""))
            dense = anchor.evaluation
        stage = stages(names[-1])
        found = work.evaluate(loaded, anchor, progress=lambda done, total: stage(done, total, ""))
    against = compare(dense, found, higher_is_better=work.higher_is_better) if dense is not None else None
    figures = {}
    if harness_tasks:
        assert harness_path is not None
        from winnow.measure.harness import harness

        figures = harness(loaded, given.tokenizer or source.tokenizer(), list(harness_tasks), harness_path)
    return Measured(
        model=str(source.spec), metric=work.metric, unit=written_unit(work), value=found.value * work.scale, low=found.low * work.scale, high=found.high * work.scale, n=found.n,
        description=work.describe(), reference=str(dense_source.spec) if dense_source else None, reference_value=dense.value * work.scale if dense else None,
        drop=against.drop if against else None, drop_low=against.low if against else None, drop_high=against.high if against else None,
        relative=bool(against and against.relative), details=dict(found.details), harness=figures,
        notes=[
            *(note for one in (source, dense_source) if one is not None and (note := one.untrained())),
            *prepared.notes, *prepared.remarks, *_doubts(work, found, dense, against, source, dense_source),
        ],
    )  # fmt: skip


def _doubts(
    work: Task,
    found: Evaluation,
    dense: Evaluation | None,
    against: Comparison | None,
    source: ModelSource,
    other: ModelSource | None,
) -> list[str]:
    """What makes the figures doubtful: a yardstick at chance, one that is beaten, one that is another model than it seems."""
    from winnow.measure.chance import at_chance, too_good

    doubts = [at_chance(work, dense or found), too_good(against) if against is not None else None]
    if other is not None and source.is_artifact and source.folder is not None:
        parent = read_artifact(source.folder).manifest.get("parent") or {}
        if parent.get("sha256") not in (None, other.sha256()):
            doubts.append(
                f"{other.spec} is not the model that {source.spec} was made from ({parent.get('model')}, sha256 "
                f"{str(parent['sha256'])[:12]}): the loss is against another model."
            )
    return [d for d in doubts if d is not None]


def _load(source: ModelSource, dtype: str) -> nn.Module:
    """The model in ``dtype``, or for "auto" with 16-bit tensors in float32; a module that was given stays as it is."""
    loaded = source.load()
    if dtype == "auto" and not has_half_weights(loaded):
        return loaded
    own = working_copy(loaded) if source.module is not None else loaded
    return to_float32(own) if dtype == "auto" else own.to(getattr(torch, dtype))


def _tried(model: nn.Module, source: ModelSource, prepared: Prepared, dtype: str) -> nn.Module:
    """The model, once it has taken the first batch; in its stored types where it runs in no others."""
    from winnow.measure.prepare import try_model

    try:
        try_model(prepared, model, source.config)
        return model
    except InputError:
        if dtype != "auto" or not has_half_weights(plain := source.load()):
            raise
        with suppress(InputError):  # a forward that casts its input itself, say
            try_model(prepared, plain, source.config)
            return plain
        raise


def evaluation_table(found: Measured) -> RenderableType:
    """The figure with its interval, what it was measured on, and the change against a reference."""
    from rich.console import Group
    from rich.table import Table

    from winnow.terminal.screen import Text

    unit = f" {found.unit}" if found.unit else ""
    rows = Table.grid("", "", padding=(0, 2))
    interval = f"(95%: {number(found.low)} to {number(found.high)})"
    rows.add_row(Text(found.metric), f"{number(found.value)}{unit}  {interval}")
    rows.add_row("measured on", Text(found.description))
    if found.reference is not None:
        rows.add_row("against", Text(f"{found.reference}: {number(found.reference_value)}{unit}"))
        rows.add_row(*found.change)
    for name, value in found.details.items():
        if isinstance(value, (int, float)):
            rows.add_row(Text(name.replace("_", " ")), number(value))
    for task, values in found.harness.items():
        shown = ", ".join(f"{k} {number(v)}" for k, v in values.items() if isinstance(v, (int, float)))
        rows.add_row(Text(task), Text(shown))
    for note in found.notes:
        rows.add_row("note", Text(note))
    return Group(Text(found.model, style="bold"), rows)
