"""From outcomes to the report: every number the page shows, and where it comes from."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from winnow.budget import parse_size
from winnow.compression.examples import changed_rows, class_rows
from winnow.compression.keeping import how_to_take
from winnow.compression.otherwise import unrounded
from winnow.compression.outcome import Outcome
from winnow.compression.rest import rest_note
from winnow.compression.sizing import narrower_note
from winnow.compression.verdict import COMMAND, doubtful, how_to_use, judge
from winnow.formats.artifact import read_artifact
from winnow.forward.batch import example_count, token_count
from winnow.machine.facts import machine
from winnow.machine.memory import peak_rss
from winnow.measure.chance import NOTICEABLE, at_chance, too_good
from winnow.measure.evaluation import Evaluation
from winnow.measure.task import Task, written_unit
from winnow.naming import name_of, title_of, without_paths
from winnow.records.allocation import AllocationRecord
from winnow.records.compression import (
    Candidate,
    Cost,
    FilePart,
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


RECALIBRATION = (
    "Add --no-recalibrate, or give calibration data like what the model was trained on: its new batch norms alone cost much of "
    "what is lost, in every row of the table."
)


def build_report(
    setup: Setup,
    outcomes: list[Outcome],
    chosen: list[Outcome],
    folders: dict[str, Path],
    *,
    dense: Evaluation | None,
    timing: dict[str, float],
    started: float,
    command: str | None,
    filled: Path | None = None,
) -> Report:
    """The report of a run. The first of ``chosen`` is the one the first screen speaks of.

    Args:
        folders: where candidates will be, by name.
        dense: what was measured of the dense model.
        timing: seconds by stage.
        filled: where the first of ``chosen`` lies until then.
    """
    from winnow.version import __version__

    main, task, job = chosen[0], setup.prepared.task, setup.job
    assert main.pruned is not None and main.candidate.recipe is not None
    recipe = main.candidate.recipe
    place = str(folders.get(main.name, job.out or "OUT"))
    limit = parse_size(job.size) if job.size is not None else None
    doubts = _doubts(task, dense, [main, *outcomes])
    others = [o for o in outcomes if o is not main]
    written = None if job.out is None else place
    use = how_to_use(written, plain=setup.source.config is None, factory=setup.source.factory)
    options = replace(COMMAND, use=use)
    judged = judge(main, others, task, dense, setup.dense_file, place, limit, job.baselines, options)
    if judged.better is not None:
        judged = replace(judged, next_step=f"Take that model instead: {how_to_take(judged.better, job, folders)}.")
    if (harm := setup.recalibrated) is not None and harm.low > 0 and harm.drop > NOTICEABLE:
        judged = replace(judged, next_step=RECALIBRATION)
    verdict = doubtful(judged, doubts)
    if narrower := narrower_note(setup, recipe):
        verdict = replace(verdict, sentence=f"{verdict.sentence} {narrower[0][:1].upper()}{narrower[0][1:]}")
    classes = class_rows(task, dense, main.evaluation)
    allocation = _allocation(setup, main, classes=len(classes))
    below = None
    if task is not None and main.evaluation is not None:
        below = below_floor(
            task.scale * main.evaluation.value, job.floor, task.metric, written_unit(task), task.higher_is_better
        )
    if below is not None:
        verdict = replace(verdict, sentence=f"{verdict.sentence} {below}", tone="bad", answer=None)
    # An allocation's own warnings speak of the floor where higher is better.
    warned = allocation is not None and task is not None and task.higher_is_better
    floor_note = [below] if below is not None and not warned else []
    why, acts = [f"method {recipe.method}: {setup.reason}."], "--data" in setup.reason
    environment, prepared = machine(), setup.prepared
    texts = prepared.kind in ("causal-lm", "encoder", "seq2seq")
    tokens = token_count(prepared.batches) or None if texts else None
    return Report(
        title=f"{title_of(setup.source.spec)}: {main.candidate.label}",
        created=datetime.fromtimestamp(started, timezone.utc).isoformat(timespec="seconds"),
        verdict=Verdict(sentence=verdict.sentence, tone=verdict.tone, answer=verdict.answer),
        next_step=verdict.next_step,
        undo=f"The original model is unchanged: {_short(setup.source.spec)} (sha256 {setup.source.origin.sha256()[:12]}). "
        f"`winnow export {quote(place)} --out {quote(place + '-dense')}` writes this one for use without winnow.",
        command=command,
        model=ModelInfo(
            name=_short(setup.source.spec),
            architecture=setup.source.architecture,
            kind=getattr(setup.source.config, "model_type", None) or "plain torch",
            parameters=setup.plan.total,
            prunable=setup.scope.numel,
            vocabulary=setup.trimmed.rows_after if setup.trimmed is not None else None,
            vocabulary_before=setup.trimmed.rows_before if setup.trimmed is not None else None,
            prunable_share=setup.scope.numel / max(setup.plan.total, 1),
            hash=setup.source.origin.sha256(),
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
        baseline=verdict.baseline,
        candidates=[
            *([_dense_row(setup, task, dense)] if task is not None and dense is not None else []),
            *(_row(o, o is main, folders.get(o.name), task) for o in outcomes),
        ],
        layers=[Layer.model_validate(x, from_attributes=True) for x in main.pruned.layers],
        allocation=allocation,
        requested=Requested(
            budget=_budget(setup),
            zeros_requested=recipe.zeros,
            zeros_reached=main.pruned.zeros,
            structure=recipe.structure,
            difference=main.pruned.zeros - recipe.zeros,
        ),
        skipped=[
            SkippedTensor(name=s.name, numel=s.numel, reason=s.reason, values=recipe.rest if s.name in main.pruned.rest else None)
            for s in setup.scope.skipped
        ],
        sizes=sizes_of(setup, main, filled),
        memory=Memory(peak_bytes=peak_rss(), limit_bytes=job.memory_limit()),
        timing=[Stage(stage=k, seconds=v) for k, v in timing.items()],
        cost=Cost(seconds_total=time.time() - started, calibration_tokens=tokens, energy="not measured: no meter was read"),
        classes=classes,
        changed=changed_rows(task, dense, main.evaluation),
        notes=list(dict.fromkeys([*floor_note, *doubts, *setup.notes, *rest_note(setup.host, setup.scope, main), *(why if acts else []), *main.notes])),
        remarks=list(dict.fromkeys([*setup.remarks, *_error_note(main), *([] if acts else why), *main.pruned.remarks])),
        machine=environment,
        versions={"winnow": __version__, **{k: v for k, v in environment.items() if k in ("python", "torch", "transformers")}},
        seeds={"seed": job.seed},
        hashes={"model": setup.source.origin.sha256(), **prepared.hashes},
    )  # fmt: skip


def _allocation(setup: Setup, main: Outcome, *, classes: int) -> AllocationRecord | None:
    """The record of the chosen candidate's training, beside the earlier run it is compared with, and what to doubt."""
    from winnow.compression.earlier import compare, earlier_record
    from winnow.fcpts.warnings import warnings_for

    if main.record is None:
        return None
    record, task = AllocationRecord.model_validate(main.record), setup.prepared.task
    if setup.job.compare_with is not None:
        folder = Path(setup.job.compare_with)
        record.comparison = compare(record, earlier_record(folder), str(folder))
    quality = None
    if task is not None and main.evaluation is not None and task.higher_is_better:
        quality = task.scale * main.evaluation.value
    examples = example_count(setup.prepared.batches)
    record.warnings = warnings_for(
        record, quality=quality, floor=setup.job.floor, examples=examples, classes=classes or None
    )
    return record


def _doubts(task: Task | None, dense: Evaluation | None, outcomes: list[Outcome]) -> list[str]:
    """Why not to believe the figures: a dense model at chance, a candidate that beats it."""
    if task is None or dense is None:
        return []
    measured = [o for o in outcomes if o.comparison is not None]
    compared = (
        (o.candidate.label, too_good(o.comparison, len(measured))) for o in measured if o.comparison is not None
    )
    ahead = next((f"{label}: {how}" for label, how in compared if how), None)
    return [found for found in (at_chance(task, dense), ahead) if found is not None]


def _error_note(main: Outcome) -> list[str]:
    """Which data the layers' errors are of."""
    assert main.pruned is not None
    if all(x.error is None for x in main.pruned.layers):
        return []
    if any(x.fitted is not None for x in main.pruned.layers):
        return ["a layer's error is its unit's, on calibration examples that its fit did not see."]
    return ["a layer's error is on the calibration data that it was solved on; quality is measured on other data."]


def below_floor(value: float, floor: float | None, metric: str, unit: str, higher_is_better: bool) -> str | None:
    """A sentence where quality is worse than ``floor``, as NaN is; None where it is not, and without a floor."""
    if floor is None or (value >= floor if higher_is_better else value <= floor):
        return None
    side, unit = "below" if higher_is_better else "above", unit and "\u00a0" + unit
    return f"Its {metric} of {number(value)}{unit} is {side} the floor of {number(floor)}{unit}."


def command_line(argv: list[str] | None = None) -> str:
    """The command that was typed, quoted so that it can be pasted; files of this machine by their way from here or name."""
    argv = sys.argv if argv is None else argv
    return " ".join(["winnow", *(quote(_near(a)) for a in argv[1:])])


def _near(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    return option + equals + without_paths(value, [value]) if value.startswith(("/", "~")) else argument


def _dense_row(setup: Setup, task: Task, dense: Evaluation) -> Candidate:
    bits = sum(p.numel * 8 * setup.host.stored_dtype[n].itemsize for n, p in setup.scope.prunables.items())
    return Candidate(
        name="dense", kind="dense", sparsity=0.0, values="keep", bits_per_weight=bits / setup.scope.numel,
        file_bytes=setup.dense_file, **_quality(task, dense), drop=0.0,
    )  # fmt: skip


def _quality(task: Task | None, measured: Evaluation | None) -> dict[str, Any]:
    """What was measured, with its interval, in the task's unit; nothing of what is not a number."""
    if task is None or measured is None:
        return {}
    found = dict(quality=measured.value, low=measured.low, high=measured.high)
    return {name: known(task.scale * value) for name, value in found.items()}


def _row(o: Outcome, chosen: bool, folder: Path | None, task: Task | None) -> Candidate:
    recipe, e, c = o.candidate.recipe, o.evaluation, o.comparison
    assert recipe is not None and o.pruned is not None
    numel = sum(x.numel for x in o.pruned.layers)
    details = e.details if e is not None else {}
    return Candidate(
        name=o.name,
        kind=o.candidate.kind,
        label=o.candidate.label,
        sparsity=o.pruned.zeros / numel,
        values=recipe.values,
        rest=recipe.rest,
        group_size=recipe.group_size if recipe.values == "int4" else None,
        method=recipe.method,
        bits_per_weight=o.pruned.bits_per_weight,
        file_bytes=o.file_bytes,
        **_quality(task, e),
        drop=known(c.drop) if c else None,
        drop_low=known(c.low) if c else None,
        drop_high=known(c.high) if c else None,
        agreement=known(details.get("agreement")),
        kl=known(details.get("kl")),
        kl_p99=known(details.get("kl_p99")),
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
    names = {"values": "packed_values", "dense": "dense_tensors"}
    parts = {} if folder is None else read_artifact(folder).bytes
    named = {names.get(part, part): bytes_ for part, bytes_ in parts.items()}
    parts_ = [FilePart(what=what, dtype=dtype, bytes=count) for what, dtype, count in main.contents]
    return Sizes(dense_file=setup.dense_file, file=main.file_bytes, contents=parts_, **named)


def _budget(setup: Setup) -> str:
    job = setup.job
    if job.max_drop is not None:
        return f"at most {job.max_drop:g} worse (points, or per cent of perplexity)"
    if job.bits_per_weight is not None:
        return f"{job.bits_per_weight:g} bits per prunable weight"
    if job.size is not None:
        return f"weights file of at most {job.size}"
    rates = [b.value for b in job.budgets() if b.kind == "sparsity"] or [r.sparsity for r in setup.recipes]
    return "sparsity " + ", ".join(f"{value:g}" for value in rates)


def _short(spec: str) -> str:
    return name_of(spec) if "/" in spec else spec


def known(value: float | None) -> float | None:
    """None in place of NaN."""
    return None if value is None or value != value else float(value)
