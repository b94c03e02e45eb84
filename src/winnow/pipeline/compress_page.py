"""The report of a recipe's compress stage, speaking of the recipe: its model, its dense training, its options."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from winnow.compression.examples import changed_rows, class_rows
from winnow.measure.compare import compare
from winnow.pipeline.compress_verdict import Dense, judge_recipe
from winnow.pipeline.schema import Compress, Ticket, Train
from winnow.records.compression import Candidate, Report
from winnow.report.compression.page import DATA, read
from winnow.words import percent, size

if TYPE_CHECKING:
    from winnow.measure.evaluation import Evaluation
    from winnow.pipeline.materials import Materials

RECORD = "run.json"


def compress_page(
    made: Path, out: Path, found: Materials, sparsity: float | None, dense: Dense | None
) -> Report | None:
    """The report that a compress stage left in ``made``, with ``out`` for where it goes; None where it left none.

    It is completed here and not when the stage ends: a ticket that starts from the recipe's model does not depend on the
    dense training that it is compared with.

    Args:
        sparsity: of the ticket that was packed; None where a dense model was.
        dense: what the recipe measured of a dense model before that ticket.
    """
    if not (made / DATA).is_file():
        return None
    report = Report.model_validate(_moved(read(made).model_dump(), str(made), str(out)))
    for c in report.candidates:
        c.folder = str(out) if c.chosen and c.folder is not None else c.folder
    stage = next(s for s in found.pipeline.stages if isinstance(s, Compress))
    ticket = next((s for s in found.pipeline.stages if isinstance(s, Ticket)), None)
    judged = judge_recipe(report, stage, ticket, str(out), dense)
    report.verdict.sentence, report.verdict.tone, report.next_step = judged.sentence, judged.tone, judged.next_step
    report.undo = _undo(found, out)
    if ticket is not None:
        _own_zeros(report, stage, ticket)
        _name_ticket(report, sparsity)
        if dense is not None:
            _against(report, dense)
    report.notes = [*_notes(found, ticket, dense), *_stored_smaller(report, found), *report.notes]
    return report


def _moved(value: Any, before: str, after: str) -> Any:
    """A report's values with another place in every text."""
    if isinstance(value, str):
        return value.replace(before, after)
    if isinstance(value, dict):
        return {k: _moved(v, before, after) for k, v in value.items()}
    return [_moved(v, before, after) for v in value] if isinstance(value, list) else value


def _undo(found: Materials, out: Path) -> str:
    given, path = found.pipeline.model, Path(found.pipeline.model)
    name = path.resolve().name if path.exists() else given
    return (
        f"The model given is unchanged: {name} (sha256 {found.given.key[:12]}). "
        f"`winnow export {shlex.quote(str(out))} --out {shlex.quote(f'{out}-dense')}` writes this one for use without winnow."
    )


def _own_zeros(report: Report, stage: Compress, ticket: Ticket) -> None:
    """A stage without a budget took the zeros that the ticket was asked for; nobody named the method."""
    if stage.method is None and stage.options(ticket)["method"] == "zeros":
        report.requested.budget = f"{percent(ticket.sparsity, 4)} zeros, of the ticket stage"
        report.notes = [
            "method zeros: exactly the ticket’s zeros are kept." if note.startswith("method zeros: ") else note
            for note in report.notes
        ]


def _name_ticket(report: Report, sparsity: float | None) -> None:
    """What compress calls dense, the model it was given, is sparse; where nothing was measured it has no row yet."""
    given = report.dense
    if given is None:
        given = Candidate(name="dense", kind="dense", values="keep", file_bytes=report.sizes.dense_file)
        report.candidates.insert(0, given)
    given.kind, given.name, given.sparsity, given.drop = "ticket", "ticket", sparsity, None


def _against(report: Report, dense: Dense) -> None:
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
        if evaluation is not None and (evaluation.metric, evaluation.n) == (
            dense.evaluation.metric,
            dense.evaluation.n,
        ):
            _measured(c, evaluation, dense.task.scale)
            loss = compare(dense.evaluation, evaluation, higher_is_better=dense.task.higher_is_better)
            c.drop, c.drop_low, c.drop_high = _known(loss.drop), _known(loss.low), _known(loss.high)
    report.candidates.insert(0, row)
    report.classes = class_rows(dense.task, dense.evaluation, dense.packed) or report.classes
    report.changed = changed_rows(dense.task, dense.evaluation, dense.packed)


def _measured(row: Candidate, evaluation: Evaluation, scale: float) -> None:
    row.quality, row.low, row.high = (_known(scale * v) for v in (evaluation.value, evaluation.low, evaluation.high))


def _known(value: float) -> float | None:
    return None if value != value else float(value)


def _difference(dense: Candidate, other: Candidate, higher: bool) -> float | None:
    if dense.quality is None or other.quality is None:
        return None
    return dense.quality - other.quality if higher else 100 * (other.quality / dense.quality - 1)


def _notes(found: Materials, ticket: Ticket | None, dense: Dense | None) -> list[str]:
    rest = f"{RECORD} has the figures of all stages."
    if ticket is None:
        number = next((i for i, s in enumerate(found.pipeline.stages, 1) if isinstance(s, Train)), None)
        return [rest if number is None else f"“Dense” is the model of stage {number} (train); {rest}"]
    if dense is None:
        return [
            "The dense model was not measured: what the ticket itself lost is not in these figures. A train stage and an "
            f"eval stage before the ticket measure it. {rest}"
        ]
    return [f"“Dense” is {dense.made_by}; plain quantization here is of the ticket before packing. {rest}"]


def _stored_smaller(report: Report, found: Materials) -> list[str]:
    """Files of 16-bit values are half of what a training, in 32 bits, leaves."""
    stored = sum(f.stat().st_size for f in found.given.source().weight_files())
    before, after = report.sizes.dense_file, report.sizes.file
    if not stored or before is None or after is None or stored > 0.95 * before:
        return []
    than = "less than what is written" if stored < after else "and so not as much is saved as “smaller” says"
    return [
        f"The weights given take {size(stored)} on disk, {than}: sizes here compare with {size(before)}, the same model as "
        "the stages hold it, in wider values."
    ]
