"""The report of a recipe's compress stage, speaking of the recipe: its model, its dense training, its options."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from winnow.compression.examples import changed_rows, class_rows
from winnow.compression.options import Options as CompressOptions
from winnow.compression.reporting import below_floor, known
from winnow.compression.rivals import winner
from winnow.compression.sides import Sides
from winnow.compression.verdict import Judgement, Options, how_to_use, moved, tone_of, unmeasured, weigh
from winnow.measure.compare import Comparison, compare
from winnow.measure.evaluation import Evaluation
from winnow.measure.task import Task
from winnow.pipeline.execution import Execution
from winnow.pipeline.inputs import RecipeInputs
from winnow.pipeline.stages.ticket import Ticket
from winnow.records.compression import Baseline, Candidate, Report, Verdict
from winnow.report.compression.page import DATA, read
from winnow.words import percent, size

FIGURES = "run.json has the figures of all stages."
ORDER = ("good", "mixed", "bad")


@dataclass(frozen=True)
class Dense:
    """The dense model beside the packed one, on the same examples of ``task``. ``ticket``: as it was before packing."""

    task: Task
    evaluation: Evaluation
    packed: Evaluation
    ticket: Evaluation | None
    made_by: str


def compress_report(
    execution: Execution, number: int, ticket: int | None, dense: Dense | None, own_zeros: bool
) -> Report | None:
    """The report that compress stage ``number`` left, speaking of the folder that is published; None where it left none.

    It is completed here and not when the stage ends: a ticket that starts from the recipe's model does not depend on the
    dense training that it is compared with.

    Args:
        ticket: the stage whose ticket was packed; None where a dense model was.
        dense: what the recipe measured of a dense model before that ticket.
        own_zeros: the budget was just the zeros of that ticket.
    """
    inputs, made, out = execution.inputs, execution.folder(number), execution.out
    if not (made / DATA).is_file():
        return None
    report = read(made)
    for c in report.candidates:
        c.folder = str(out) if c.chosen and c.folder is not None else None
    stage: CompressOptions = inputs.pipeline.stages[number]
    sparse: Ticket | None = None if ticket is None else inputs.pipeline.stages[ticket]
    judged = judge_recipe(report, stage, sparse, str(out), dense, inputs.model.source().factory)
    report.verdict = Verdict(sentence=judged.sentence, tone=judged.tone, answer=judged.answer)
    report.next_step = judged.next_step
    report.undo = _undo(inputs, out)
    if ticket is not None and sparse is not None:
        if own_zeros:
            report.requested.budget = f"{percent(sparse.sparsity, 4)} sparsity, of the ticket stage"
        _name_ticket(report, execution.results[ticket].figures["sparsity"])
        if dense is not None:
            _compare(report, dense)
            notes = [f"“Dense” is {dense.made_by}; plain quantization here is of the ticket before packing. {FIGURES}"]
        else:
            notes = [
                "The dense model was not measured: what the ticket itself lost is not in these figures. A train stage and an "
                f"eval stage before the ticket measure it. {FIGURES}"
            ]
    else:
        trained = number > 0 and execution.models[number - 1].key != inputs.model.key
        zeros = next((r.figures["sparsity"] for r in execution.results[:number] if r.figures.get("sparsity")), 0.0)
        stored = f" with its {percent(zeros)} of zeros stored like every other weight" if zeros else ""
        notes = [
            (f"“Dense” is the model of {execution.models[number - 1].made_by}{stored}; " if trained else "") + FIGURES
        ]
    report.notes = [*notes, *_stored_smaller(report, inputs), *report.notes]
    return report


def _undo(inputs: RecipeInputs, out: Path) -> str:
    given, path = inputs.pipeline.model, Path(inputs.pipeline.model)
    name = path.resolve().name if path.exists() else given
    return (
        f"The model given is unchanged: {name} (sha256 {inputs.model.key[:12]}). "
        f"`winnow export {shlex.quote(str(out))} --out {shlex.quote(f'{out}-dense')}` writes this one for use without winnow."
    )


def _name_ticket(report: Report, sparsity: float | None) -> None:
    """What compress calls dense, the model it was given, is sparse; where nothing was measured it has no row yet."""
    given = report.dense
    if given is None:
        given = Candidate(name="dense", kind="dense", values="keep", file_bytes=report.sizes.dense_file)
        report.candidates.insert(0, given)
    given.kind, given.name, given.sparsity, given.drop = "ticket", "ticket", sparsity, None


def _compare(report: Report, dense: Dense) -> None:
    """The dense model in the table, and every loss against it: with an interval where the answers are stored."""
    given, picked = report.ticket, report.picked
    if given is None or picked is None:
        return
    row = Candidate(
        name="dense", kind="dense", sparsity=0.0, values="keep", bits_per_weight=given.bits_per_weight,
        file_bytes=given.file_bytes, drop=0.0,
    )  # fmt: skip
    _measured(row, dense.evaluation, dense.task.scale)
    for c in report.candidates:
        c.drop, c.drop_low, c.drop_high = _difference(row, c, dense.task.higher_is_better), None, None
    paired = dense.evaluation.metric, dense.evaluation.n
    for c, evaluation in ((picked, dense.packed), (given, dense.ticket)):
        if evaluation is not None and (evaluation.metric, evaluation.n) == paired:
            _measured(c, evaluation, dense.task.scale)
            loss = compare(dense.evaluation, evaluation, higher_is_better=dense.task.higher_is_better)
            c.drop, c.drop_low, c.drop_high = known(loss.drop), known(loss.low), known(loss.high)
    report.candidates.insert(0, row)
    report.classes = class_rows(dense.task, dense.evaluation, dense.packed) or report.classes
    report.changed = changed_rows(dense.task, dense.evaluation, dense.packed)


def _measured(row: Candidate, evaluation: Evaluation, scale: float) -> None:
    row.quality, row.low, row.high = (known(scale * v) for v in (evaluation.value, evaluation.low, evaluation.high))


def _difference(dense: Candidate, other: Candidate, higher: bool) -> float | None:
    if dense.quality is None or other.quality is None:
        return None
    return dense.quality - other.quality if higher else 100 * (other.quality / dense.quality - 1)


def _stored_smaller(report: Report, inputs: RecipeInputs) -> list[str]:
    """Files of 16-bit values are half of what a training, in 32 bits, leaves."""
    stored = sum(f.stat().st_size for f in inputs.model.source().weight_files())
    before, after = report.sizes.dense_file, report.sizes.file
    if not stored or before is None or after is None or stored > 0.95 * before:
        return []
    than = "less than what is written" if stored < after else "and so not as much is saved as “smaller” says"
    return [
        f"The weights given take {size(stored)} on disk, {than}: sizes here compare with {size(before)}, the same model as "
        "the stages hold it, in wider values."
    ]


def judge_recipe(
    report: Report,
    stage: CompressOptions,
    ticket: Ticket | None,
    place: str,
    dense: Dense | None,
    factory: str | None = None,
) -> Judgement:
    """What to think of a recipe's packed model.

    Args:
        report: as compress left it, every loss against the model it was given.
        ticket: the stage whose ticket was packed, if there was one: the loss of the ticket itself then counts too.
        place: the folder that is written.
        dense: what that loss is measured by; without it the sentence says that it is unknown.
        factory: what builds a plain torch model.
    """
    use = how_to_use(place, plain=report.model.kind == "plain torch", factory=factory)
    options = replace(_options(ticket), use=use)
    picked, given = report.picked, report.dense
    sizes = report.sizes.dense_file or 0, report.sizes.file or 0
    label = "" if picked is None else picked.label or picked.name
    as_made = report.verdict.sentence, report.verdict.tone, report.verdict.answer
    if picked is None or given is None or picked.quality is None:
        return replace(unmeasured(label, *sizes, options), sentence=as_made[0], tone=as_made[1], answer=as_made[2])
    better = winner(picked, [c for c in report.candidates if c is not picked and c is not given])
    loss = _loss(picked, report.task.n or 0, not report.task.higher_is_better)
    before, after = math.nan if given.quality is None else given.quality, picked.quality
    if dense is not None:
        loss = compare(dense.evaluation, dense.packed, higher_is_better=dense.task.higher_is_better)
        before, after = (dense.task.scale * e.value for e in (dense.evaluation, dense.packed))
    lost = moved(report.task, before, after, loss)
    if ticket is None:
        judged = weigh(label, *sizes, lost, loss, options, sides=_sides(report, ""))
        judged = replace(judged, sentence=as_made[0], tone=as_made[1], answer=as_made[2])
    elif better is not None:
        more = "The dense model was not measured." if dense is None else f"Against the dense model: {lost}."
        tone = max(as_made[1], "mixed" if dense is None else tone_of(loss), key=ORDER.index)
        answer = as_made[2] if tone == as_made[1] else None
        judged = Judgement(f"{as_made[0]} {more}", tone, "", better.name, report.baseline, answer)
    else:
        alone = f"packing alone: {lost}; the dense model was not measured"
        worse = alone if dense is None else f"against the dense model {lost}"
        judged = weigh(label, *sizes, worse, loss, options, sides=_sides(report, " of the ticket"))
        below = below_floor(
            picked.quality, stage.floor, report.task.metric, report.task.unit, report.task.higher_is_better
        )
        if below is not None:
            judged = replace(judged, sentence=f"{judged.sentence} {below}", tone="bad")
        if dense is None and judged.tone == "good":
            step = "Measure what the ticket itself lost: put a train stage and an eval stage before it."
            on = " It depends on what the ticket itself lost."
            judged = replace(judged, sentence=judged.sentence + on, tone="mixed", next_step=step)
    return judged if better is None else replace(judged, next_step=_take(better, stage))


def _sides(report: Report, of: str) -> Sides:
    return Sides(report.baseline or Baseline(), report.sizes.file or 0, report.task, of)


def _options(ticket: Ticket | None) -> Options:
    less = "fewer zeros, or `max_drop: 1` in the compress stage to let winnow find the smallest file that stays within one point"
    if ticket is not None:
        lower = max(ticket.sparsity - 0.2, ticket.sparsity / 2)
        less = f"a ticket of fewer zeros, e.g. `--set ticket.sparsity={lower:.2g}`, or more steps for it"
    smaller = "`--set compress.values=int8`"
    return Options(measure="give `eval` in the recipe", less=less, smaller=smaller, more="`eval` in the recipe")


def _take(better: Candidate, stage: CompressOptions) -> str:
    """How the recipe makes another candidate; nothing where it asks for a size or a quality, which have rates of their own."""
    own = stage.bits_per_weight, stage.size, stage.max_drop, stage.table, stage.allocation, stage.score, stage.solver
    if any(part is not None for part in own) or better.values is None:
        return ""
    sets = [f"compress.values={better.values}"]
    if better.kind == "quantized":
        if stage.structure != "unstructured" or better.method not in ("rtn", "gptq"):
            return ""
        sets += ["compress.sparsity=0", f"compress.method={'magnitude' if better.method == 'rtn' else 'sparsegpt'}"]
        if better.group_size not in (None, stage.group_size):
            sets.append(f"compress.group_size={better.group_size}")
    words = " ".join(f"--set {s}" for s in sets)
    return f"Make that model instead: add `{words} --overwrite` to the command and run it again."


def _loss(picked: Candidate, n: int, relative: bool) -> Comparison:
    drop, low, high = (math.nan if v is None else v for v in (picked.drop, picked.drop_low, picked.drop_high))
    return Comparison(drop, low, high, relative, n, "as compress measured it")
