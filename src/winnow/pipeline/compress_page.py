"""The report of a recipe's compress stage, speaking of the recipe: its model, its dense training, its options."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from winnow.compression.reporting import EXAMPLES, image_of
from winnow.measure.compare import changed_examples, class_changes, compare
from winnow.pipeline.compress_verdict import Dense, judge_recipe
from winnow.records.compression import Candidate, ChangedExample, ClassQuality, Report
from winnow.report.compression.page import DATA, read
from winnow.words import percent, size

if TYPE_CHECKING:
    from winnow.measure.evaluation import Evaluation
    from winnow.pipeline.execution import Execution
    from winnow.pipeline.inputs import Inputs
    from winnow.pipeline.stages.compress import Compress
    from winnow.pipeline.stages.ticket import Ticket

FIGURES = "run.json has the figures of all stages."


def compress_report(execution: Execution, number: int, ticket: int | None, dense: Dense | None) -> Report | None:
    """The report that compress stage ``number`` left, speaking of the folder that is published; None where it left none.

    It is completed here and not when the stage ends: a ticket that starts from the recipe's model does not depend on the
    dense training that it is compared with.

    Args:
        ticket: the stage whose ticket was packed; None where a dense model was.
        dense: what the recipe measured of a dense model before that ticket.
    """
    inputs, made, out = execution.inputs, execution.folder(number), execution.out
    if not (made / DATA).is_file():
        return None
    report = read(made)
    for c in report.candidates:
        c.folder = str(out) if c.chosen and c.folder is not None else None
    stage: Compress = inputs.pipeline.stages[number]
    sparse: Ticket | None = None if ticket is None else inputs.pipeline.stages[ticket]
    judged = judge_recipe(report, stage, sparse, str(out), dense)
    report.verdict.sentence, report.verdict.tone, report.next_step = judged.sentence, judged.tone, judged.next_step
    report.undo = _undo(inputs, out)
    if ticket is not None and sparse is not None:
        if stage.method is None and stage.options(sparse)["method"] == "zeros":
            report.requested.budget = f"{percent(sparse.sparsity, 4)} zeros, of the ticket stage"
        _name_ticket(report, execution.results[ticket].figures["sparsity"])
        if dense is not None:
            _compare(report, dense)
        notes = _ticket_notes(dense)
    else:
        trained = number > 0 and execution.models[number - 1].key != inputs.model.key
        notes = [(f"“Dense” is the model of {execution.models[number - 1].made_by}; " if trained else "") + FIGURES]
    report.notes = [*notes, *_stored_smaller(report, inputs), *report.notes]
    return report


def _undo(inputs: Inputs, out: Path) -> str:
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
    """The dense model in the table, and every loss against it: with an interval where answers are still known."""
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
    for c, evaluation in ((picked, dense.packed), (given, dense.ticket)):
        paired = dense.evaluation.metric, dense.evaluation.n
        if evaluation is not None and (evaluation.metric, evaluation.n) == paired:
            _measured(c, evaluation, dense.task.scale)
            loss = compare(dense.evaluation, evaluation, higher_is_better=dense.task.higher_is_better)
            c.drop, c.drop_low, c.drop_high = _known(loss.drop), _known(loss.low), _known(loss.high)
    report.candidates.insert(0, row)
    if dense.task.metric == "accuracy":
        rows = class_changes(dense.evaluation, dense.packed)
        report.classes = [
            ClassQuality(name=r["name"], n=r["n"], dense=100 * r["before"], pruned=100 * r["after"]) for r in rows
        ]
    report.changed = [
        ChangedExample(
            input=r["input"] or f"example {r['index']}", truth=r["truth"], dense=r["dense"], pruned=r["pruned"],
            image=image_of(dense.task, r["index"]) if r["input"] is None else None,
        )
        for r in changed_examples(dense.task, dense.evaluation, dense.packed, k=EXAMPLES)
    ]  # fmt: skip


def _measured(row: Candidate, evaluation: Evaluation, scale: float) -> None:
    row.quality, row.low, row.high = (_known(scale * v) for v in (evaluation.value, evaluation.low, evaluation.high))


def _known(value: float) -> float | None:
    return None if value != value else float(value)


def _difference(dense: Candidate, other: Candidate, higher: bool) -> float | None:
    if dense.quality is None or other.quality is None:
        return None
    return dense.quality - other.quality if higher else 100 * (other.quality / dense.quality - 1)


def _ticket_notes(dense: Dense | None) -> list[str]:
    if dense is None:
        return [
            "The dense model was not measured: what the ticket itself lost is not in these figures. A train stage and an "
            f"eval stage before the ticket measure it. {FIGURES}"
        ]
    return [f"“Dense” is {dense.made_by}; plain quantization here is of the ticket before packing. {FIGURES}"]


def _stored_smaller(report: Report, inputs: Inputs) -> list[str]:
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
