"""From outcomes to the report: every number the page shows, and where it comes from."""

from __future__ import annotations

import base64
import io
import sys
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import numpy as np
import torch

from winnow.budget import parse_size
from winnow.compression.otherwise import unrounded
from winnow.compression.outcome import Outcome
from winnow.compression.runner import Runner
from winnow.compression.verdict import doubtful, judge
from winnow.data.records import first_tensor
from winnow.formats.artifact import read_artifact
from winnow.forward.batch import example_count, token_count
from winnow.machine.facts import machine
from winnow.machine.memory import peak_rss
from winnow.measure.chance import at_chance, too_good
from winnow.measure.compare import changed_examples, class_changes
from winnow.measure.task import Task, written_unit
from winnow.naming import name_of, without_paths
from winnow.records.allocation import AllocationRecord
from winnow.records.compression import (
    Candidate,
    ChangedExample,
    ClassQuality,
    Cost,
    Layer,
    Memory,
    ModelInfo,
    Report,
    Requested,
    Sizes,
    SkippedTensor,
    Stage,
    TaskInfo,
    Verdict,
)
from winnow.words import number

if TYPE_CHECKING:
    from winnow.compression.setup import Setup

EXAMPLES = 8  # changed answers shown


def build_report(
    setup: Setup,
    runner: Runner,
    outcomes: list[Outcome],
    chosen: list[Outcome],
    folders: dict[str, Path],
    *,
    started: float,
    command: str | None,
    filled: Path | None = None,
) -> Report:
    """The report of a run. The first of ``chosen`` is the one the first screen speaks of.

    ``folders``: where candidates will be, by name; ``filled``: where the first of ``chosen`` lies until then.
    """
    from winnow.version import __version__

    main, task, job = chosen[0], runner.task, setup.job
    assert main.pruned is not None and main.candidate.recipe is not None
    recipe = main.candidate.recipe
    place = str(folders.get(main.name, job.out or "OUT"))
    limit = parse_size(job.size) if job.size is not None else None
    verdict = judge(main, [o for o in outcomes if o is not main], task, runner.dense, setup.dense_file, place, limit)
    doubts = _doubts(runner, main, outcomes)
    verdict = doubtful(verdict, doubts)
    allocation = _allocation(setup, runner, main)
    below = _below_floor(setup, main, task)
    if below is not None:
        verdict = replace(verdict, sentence=f"{verdict.sentence} {below}", tone="bad")
    # An allocation's own warnings speak of the floor where higher is better.
    warned = allocation is not None and task is not None and task.higher_is_better
    floor_note = [below] if below is not None and not warned else []
    environment = machine()
    info = setup.source.config
    prepared = setup.prepared
    dense = runner.dense
    written = prepared.kind in ("causal-lm", "encoder", "seq2seq")
    tokens = token_count(prepared.batches) or None if written else None
    return Report(
        title=f"{_short(setup.source.spec)}: {main.candidate.label}",
        created=datetime.fromtimestamp(started, timezone.utc).isoformat(timespec="seconds"),
        verdict=Verdict(sentence=verdict.sentence, tone=verdict.tone),
        next_step=verdict.next_step,
        undo=f"The original model is unchanged: {_short(setup.source.spec)} (sha256 {setup.source.sha256()[:12]}). "
        f"`winnow export {quote(place)} --out {quote(place + '-dense')}` writes this one for use without winnow.",
        command=command,
        model=ModelInfo(
            name=_short(setup.source.spec),
            architecture=setup.source.architecture,
            kind=getattr(info, "model_type", None) or "plain torch",
            parameters=setup.plan.total,
            prunable=setup.scope.numel,
            prunable_share=setup.scope.numel / max(setup.plan.total, 1),
            hash=setup.source.sha256(),
        ),
        task=TaskInfo()
        if task is None
        else TaskInfo(
            name=task.name,
            metric=task.metric,
            higher_is_better=task.higher_is_better,
            unit=written_unit(task),
            evaluation_data=task.data_name,
            calibration_data=prepared.calibration.name if prepared.calibration is not None else None,
            n=task.n,
            segment_length=getattr(task, "length", None) if task.metric == "perplexity" else None,
            disjoint=True if prepared.calibration is not None else None,
            calibration_tokens=tokens,
        ),
        chosen=main.name,
        candidates=[
            *([_dense_row(setup, runner)] if dense is not None else []),
            *(_row(o, o is main, folders.get(o.name), task.scale if task else 1.0) for o in outcomes),
        ],
        layers=[
            Layer(
                name=x.name, block=x.block, kind=x.kind, rows=x.rows, cols=x.cols, zeros=x.zeros, sparsity=x.sparsity,
                error=x.error, bits_per_weight=x.bits_per_weight, seconds=x.seconds, method=x.method,
            )
            for x in main.pruned.layers
        ],
        allocation=allocation,
        requested=Requested(
            budget=_budget(setup),
            zeros_requested=recipe.zeros,
            zeros_reached=main.pruned.zeros,
            structure=recipe.structure,
            difference=main.pruned.zeros - recipe.zeros,
        ),
        skipped=[SkippedTensor(name=s.name, numel=s.numel, reason=s.reason) for s in setup.scope.skipped],
        sizes=sizes_of(setup, main, filled),
        memory=Memory(peak_bytes=peak_rss(), limit_bytes=job.memory_limit()),
        timing=[Stage(stage=k, seconds=v) for k, v in runner.timing.items()],
        cost=Cost(
            seconds_total=time.time() - started,
            calibration_tokens=tokens,
            energy="not measured: no meter was read",
        ),
        classes=_classes(runner, main),
        changed=_changed(runner, main),
        notes=list(dict.fromkeys([*floor_note, *doubts, *setup.notes, *runner.notes, *_error_note(main), f"method {recipe.method}: {setup.reason}.", *main.notes])),
        machine=environment,
        versions={"winnow": __version__, **{k: v for k, v in environment.items() if k in ("python", "torch", "transformers")}},
        seeds={"seed": job.seed},
        hashes={"model": setup.source.sha256(), **prepared.hashes},
    )  # fmt: skip


def _allocation(setup: Setup, runner: Runner, main: Outcome) -> AllocationRecord | None:
    """The record of the chosen candidate's training, beside the earlier run it is compared with, and what to doubt."""
    from winnow.compression.earlier import compare, earlier_record
    from winnow.fcpts.warnings import warnings_for

    if main.record is None:
        return None
    record = AllocationRecord.model_validate(main.record)
    if setup.job.compare_with is not None:
        folder = Path(setup.job.compare_with)
        record.comparison = compare(record, earlier_record(folder), str(folder))
    quality = None
    if runner.task is not None and main.evaluation is not None and runner.task.higher_is_better:
        quality = runner.task.scale * main.evaluation.value
    record.warnings = warnings_for(
        record,
        quality=quality,
        floor=setup.job.floor,
        examples=example_count(setup.prepared.batches),
        classes=len(_classes(runner, main)) or None,
    )
    return record


def _doubts(runner: Runner, main: Outcome, outcomes: list[Outcome]) -> list[str]:
    """Why not to believe the figures: a dense model at chance, a candidate that beats it."""
    if runner.task is None or runner.dense is None:
        return []
    found = [at_chance(runner.task, runner.dense)]
    ahead = next((o for o in (main, *outcomes) if o.comparison is not None and too_good(o.comparison)), None)
    if ahead is not None and ahead.comparison is not None:
        found.append(f"{ahead.candidate.label}: {too_good(ahead.comparison)}")
    return [f for f in found if f is not None]


def _error_note(main: Outcome) -> list[str]:
    """Which data the layers' errors are of."""
    assert main.pruned is not None
    if all(x.error is None for x in main.pruned.layers):
        return []
    if any(x.fitted is not None for x in main.pruned.layers):
        return ["a layer's error is its unit's, on calibration examples that its fit did not see."]
    return ["a layer's error is on the calibration data that it was solved on; quality is measured on other data."]


def _below_floor(setup: Setup, main: Outcome, task: Task | None) -> str | None:
    """A sentence where quality is worse than --floor; NaN is."""
    floor = setup.job.floor
    if floor is None or task is None or main.evaluation is None:
        return None
    value = task.scale * main.evaluation.value
    if value >= floor if task.higher_is_better else value <= floor:
        return None
    side = "below" if task.higher_is_better else "above"
    unit = written_unit(task) and "\u00a0" + written_unit(task)
    return f"Its {task.metric} of {number(value)}{unit} is {side} the floor of {number(floor)}{unit}."


def command_line(argv: list[str] | None = None) -> str:
    """The command that was typed, quoted so that it can be pasted; files of this machine by their way from here or name."""
    argv = sys.argv if argv is None else argv
    return " ".join(["winnow", *(quote(_near(a)) for a in argv[1:])])


def _near(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    return option + equals + without_paths(value, [value]) if value.startswith(("/", "~")) else argument


def _dense_row(setup: Setup, runner: Runner) -> Candidate:
    e = runner.dense
    assert e is not None and runner.task is not None
    scale = runner.task.scale
    bits = (
        sum(p.numel * 8 * setup.host.stored_dtype[n].itemsize for n, p in setup.scope.prunables.items())
        / setup.scope.numel
    )
    return Candidate(
        name="dense", kind="dense", sparsity=0.0, values="keep", bits_per_weight=bits, file_bytes=setup.dense_file,
        quality=_number(scale * e.value), low=_number(scale * e.low), high=_number(scale * e.high), drop=0.0,
    )  # fmt: skip


def _row(o: Outcome, chosen: bool, folder: Path | None, scale: float) -> Candidate:
    recipe, e, c = o.candidate.recipe, o.evaluation, o.comparison
    assert recipe is not None and o.pruned is not None
    numel = sum(x.numel for x in o.pruned.layers)
    details = e.details if e is not None else {}
    return Candidate(
        name=o.name,
        kind=o.candidate.kind,
        sparsity=o.pruned.zeros / numel,
        values=recipe.values,
        method=recipe.method,
        bits_per_weight=o.pruned.bits_per_weight,
        file_bytes=o.file_bytes,
        quality=_number(scale * e.value) if e else None,
        low=_number(scale * e.low) if e else None,
        high=_number(scale * e.high) if e else None,
        drop=_number(c.drop) if c else None,
        drop_low=_number(c.low) if c else None,
        drop_high=_number(c.high) if c else None,
        agreement=_number(details.get("agreement")),
        kl=_number(details.get("kl")),
        seconds=o.seconds,
        folder=str(folder) if folder is not None else None,
        chosen=chosen,
        note="the outputs hold NaN" if e is not None and e.value != e.value else _kept_type(o),
    )


def _kept_type(o: Outcome) -> str | None:
    assert o.candidate.recipe is not None and o.pruned is not None
    kept = unrounded(o.candidate.recipe.values, o.pruned.layers)
    return f"{len(kept)} of {len(o.pruned.layers)} tensors keep their type" if kept else None


def sizes_of(setup: Setup, main: Outcome, folder: Path | None) -> Sizes:
    if folder is None:
        return Sizes(dense_file=setup.dense_file, file=main.file_bytes)
    parts = read_artifact(folder).bytes
    return Sizes(
        dense_file=setup.dense_file,
        file=main.file_bytes,
        packed_values=parts["values"],
        masks=parts["masks"],
        scales=parts["scales"],
        dense_tensors=parts["dense"],
        other=parts["other"],
    )


def _classes(runner: Runner, main: Outcome) -> list[ClassQuality]:
    if runner.dense is None or main.evaluation is None or runner.task is None or runner.task.metric != "accuracy":
        return []
    rows = class_changes(runner.dense, main.evaluation)
    return [ClassQuality(name=r["name"], n=r["n"], dense=100 * r["before"], pruned=100 * r["after"]) for r in rows]


def _changed(runner: Runner, main: Outcome) -> list[ChangedExample]:
    if runner.dense is None or main.evaluation is None or runner.task is None:
        return []
    rows = changed_examples(runner.task, runner.dense, main.evaluation, k=EXAMPLES)
    return [
        ChangedExample(
            input=r["input"] or f"example {r['index']}",
            truth=r["truth"],
            dense=r["dense"],
            pruned=r["pruned"],
            image=image_of(runner.task, r["index"]) if r["input"] is None else None,
        )
        for r in rows
    ]


def image_of(task: Task, index: int) -> str | None:
    """A changed image as a data URI of at most 96 pixels a side; None for inputs that are not images."""
    records = getattr(task, "records", None)
    if records is None or records.kind not in ("images", "tensors"):
        return None
    given = records.inputs[index] if records.kind == "images" else first_tensor(records.inputs)[index]
    if isinstance(given, torch.Tensor) and given.is_floating_point():
        given = given.float()  # numpy does not know bfloat16
    array = np.asarray(given)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3)) or max(array.shape[:2]) > 1024:
        return None
    if array.dtype != np.uint8:
        low, high = float(array.min()), float(array.max())
        array = ((array - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    from PIL import Image as Picture

    buffer = io.BytesIO()
    picture = Picture.fromarray(array.squeeze())
    picture.thumbnail((96, 96))
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _budget(setup: Setup) -> str:
    job = setup.job
    if job.max_drop is not None:
        return f"at most {job.max_drop:g} worse (points, or per cent of perplexity)"
    if job.bits_per_weight is not None:
        return f"{job.bits_per_weight:g} bits per prunable weight"
    if job.size is not None:
        return f"weights file of at most {job.size}"
    asked = [b.value for b in job.budgets() if b.kind == "sparsity"] or [r.sparsity for r in setup.recipes]
    return "sparsity " + ", ".join(f"{value:g}" for value in asked)


def _short(spec: str) -> str:
    return name_of(spec) if "/" in spec else spec


def _number(value: float | None) -> float | None:
    return None if value is None or value != value else float(value)
