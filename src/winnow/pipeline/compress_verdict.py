"""The verdict on what a recipe packed: against its dense model, and with a recipe's words for what to do next."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from winnow.compression.verdict import Judgement, Options, change, tone_of, unmeasured, weigh, winner
from winnow.measure.compare import Comparison, compare
from winnow.measure.evaluation import Evaluation
from winnow.measure.task import Task
from winnow.pipeline.schema import Compress, Ticket
from winnow.report.compression.phrases import quality

if TYPE_CHECKING:
    from winnow.records.compression import Candidate, Report

ORDER = ("good", "mixed", "bad")


@dataclass(frozen=True)
class Dense:
    """The dense model beside the packed one, on the same examples of ``task``. ``ticket``: as it was before packing."""

    task: Task
    evaluation: Evaluation
    packed: Evaluation
    ticket: Evaluation | None
    made_by: str


def judge_recipe(report: Report, stage: Compress, ticket: Ticket | None, place: str, dense: Dense | None) -> Judgement:
    """What to think of a recipe's packed model.

    Args:
        report: as compress left it, every loss against the model it was given.
        ticket: the stage whose ticket was packed, if there was one: the loss of the ticket itself then counts too.
        place: the folder that is written.
        dense: what that loss is told by; without it the sentence says that it is not known.
    """
    options, picked, given = _options(ticket), report.picked, report.dense
    sizes = report.sizes.dense_file or 0, report.sizes.file or 0
    label = report.title.rpartition(": ")[2]
    if picked is None or given is None or picked.quality is None:
        return replace(unmeasured(label, *sizes, options), sentence=report.verdict.sentence)
    better = winner(picked, [c for c in report.candidates if c is not picked and c is not given])
    loss = _loss(picked, report.task.n or 0, not report.task.higher_is_better)
    if dense is not None:
        loss = compare(dense.evaluation, dense.packed, higher_is_better=dense.task.higher_is_better)
        before, after = (dense.task.scale * e.value for e in (dense.evaluation, dense.packed))
        moved = f"{report.task.metric} {_value(before, report)} to {_value(after, report)} ({change(loss)})"
    else:
        moved = (
            f"{report.task.metric} {_value(given.quality, report)} to {_value(picked.quality, report)} ({change(loss)})"
        )
    if ticket is None:
        judged = weigh(label, *sizes, moved, loss, place, options)
        judged = replace(judged, sentence=report.verdict.sentence, tone=report.verdict.tone)
    elif better is not None:
        more = f"Against the dense model: {moved}." if dense is not None else "The dense model was not measured."
        tone = max(report.verdict.tone, tone_of(loss) if dense is not None else "mixed", key=ORDER.index)
        judged = Judgement(f"{report.verdict.sentence} {more}", tone, "", better.name)
    elif dense is not None:
        judged = _floored(weigh(label, *sizes, f"against the dense model {moved}", loss, place, options), report, stage)
    else:
        worse = f"packing alone: {moved}; the dense model was not measured"
        judged = _floored(weigh(label, *sizes, worse, loss, place, options), report, stage)
        if judged.tone == "good":
            step = "Measure what the ticket itself lost: put a train stage and an eval stage before it."
            judged = replace(judged, tone="mixed", next_step=step)
    return judged if better is None else replace(judged, next_step=_take(better, stage))


def _options(ticket: Ticket | None) -> Options:
    less = "fewer zeros, or `max_drop: 1` in the compress stage to let winnow find the smallest file that stays within one point"
    if ticket is not None:
        lower = max(ticket.sparsity - 0.2, ticket.sparsity / 2)
        less = f"a ticket of fewer zeros, e.g. `--set ticket.sparsity={lower:.2g}`, or more steps for it"
    return Options(
        measure="give `eval` in the recipe",
        less=less,
        smaller="`--set compress.values=int8`",
        more="`eval` in the recipe",
    )


def _take(better: Candidate, stage: Compress) -> str:
    """How the recipe makes another candidate; nothing where it asks for a size or a quality, which have rates of their own."""
    own = stage.bits_per_weight, stage.size, stage.max_drop, stage.table, stage.allocation, stage.score, stage.solver
    if any(part is not None for part in own) or better.values is None:
        return ""
    sets = [f"compress.values={better.values}"]
    if better.kind == "quantized":
        if stage.structure != "unstructured" or better.method not in ("rtn", "gptq"):
            return ""
        sets += ["compress.sparsity=0", f"compress.method={'magnitude' if better.method == 'rtn' else 'sparsegpt'}"]
        group = better.name.partition("-g")[2].partition("-")[0]
        if group.isdigit() and int(group) != stage.group_size:
            sets.append(f"compress.group_size={group}")
    words = " ".join(f"--set {s}" for s in sets)
    return f"Make that model instead: add `{words}` to the command and run it again."


def _loss(picked: Candidate, n: int, relative: bool) -> Comparison:
    drop, low, high = (math.nan if v is None else v for v in (picked.drop, picked.drop_low, picked.drop_high))
    return Comparison(drop, low, high, relative, n, "as compress measured it")


def _value(value: float | None, report: Report) -> str:
    return quality(value, report.task).replace(" ", "\u00a0") if value is not None else "not a number"


def _floored(judged: Judgement, report: Report, stage: Compress) -> Judgement:
    """With the sentence that compress added where its own floor was not reached."""
    _, mark, rest = report.verdict.sentence.partition(f" Its {report.task.metric} of ")
    if stage.floor is None or not mark:
        return judged
    return replace(judged, sentence=f"{judged.sentence}{mark}{rest}", tone="bad")
