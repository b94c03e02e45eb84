"""The answer of a search in one sentence, and what to keep in mind when reading it."""

from __future__ import annotations

import math
from typing import Literal

from winnow import words
from winnow.records.compression import Verdict
from winnow.records.ticket import COLLAPSE, Figure, Row, TicketReport, collapsed
from winnow.report.compression import phrases
from winnow.report.ticket.words import change, change_span, passes, unit

SMALL_DROP, LARGE_DROP = 1.0, 5.0  # points, or per cent of perplexity
FEW_SEEDS = 3
NAMES, METHODS = 3, 4  # tensors and methods that a warning names


def judge(report: TicketReport) -> tuple[Verdict, float]:
    """The verdict on the chosen method, and the sparsity it is about: the highest that costs at most one point, else the lowest."""
    rows, task, reference = report.rows, report.task, report.reference
    if report.training is not None:
        return _trained(report), report.rows[0].sparsity
    name = report.named(report.chosen)
    own = [r for r in rows if r.method == report.chosen]
    if not own:
        return Verdict(sentence=f"{name} found no ticket.", tone="bad"), 0.0
    fine = [r for r in own if r.drop is not None and r.drop.value <= SMALL_DROP]
    row = fine[-1] if fine else own[0]
    took = f"in {passes(row.passes)} ({words.count(round(row.steps))} steps)"
    full = f"full IMP takes {passes(row.imp_steps / report.steps)}" if row.zeros else ""
    head = f"{words.capital(name)} at {words.percent(row.sparsity)} sparsity"
    if row.figure is None:
        said = f"{head}, found and trained {took}; its quality was not measured"
        sentence = _whole(f"{said}{'; ' + full if full else ''}.")
        return Verdict(sentence=sentence, tone="mixed", answer="Quality not measured"), row.sparsity
    said = f"{head}: {task.metric} {phrases.quality(row.figure.value, task)}"
    if row.drop is not None:
        against = f"{words.amount(change(row.drop, task), unit(task))} against dense"
        said += f", {phrases.with_interval(against, change_span(row.drop, task))}"
    said += f", {took}"
    theirs = next((r for r in rows if r.method == reference and r.zeros == row.zeros), None)
    if theirs is not None and theirs.figure is not None and reference is not None:
        value = phrases.quality(theirs.figure.value, task)
        said += f"; {report.named(reference)} reaches {value} in {passes(theirs.passes)}"
        full = "" if reference == "imp" else full
    tone = _tone(row.drop)
    depends = _depends(row.drop, report) if tone == "mixed" else ""
    return Verdict(sentence=_whole(f"{said}{'; ' + full if full else ''}.{depends}"), tone=tone), row.sparsity


def _trained(report: TicketReport) -> Verdict:
    """Of a sparse training: what it reached. A dense training to compare with is another one's business."""
    row, task = report.rows[0], report.task
    said = f"{words.capital(report.named(report.chosen))}, {words.percent(row.sparsity)} sparsity: "
    if row.figure is None:
        said += "its quality was not measured"
    else:
        span = "" if row.figure.low is None or row.figure.high is None else (
            f"{phrases.plain(row.figure.low, task)} to {phrases.plain(row.figure.high, task)}"
        )  # fmt: skip
        said += f"{task.metric} {phrases.with_interval(phrases.quality(row.figure.value, task), span)}"
    return Verdict(
        sentence=f"{said}, after {words.count(round(row.steps))} steps. No dense training was measured beside it.",
        tone="mixed",
        answer="Trained sparse",
    )


def _depends(drop: Figure | None, report: TicketReport) -> str:
    """What a mixed verdict depends on."""
    task = report.task
    if drop is None:
        return " It depends on what is lost against the dense model, which was not measured."
    if drop.value > SMALL_DROP:
        price = words.amount(change(drop, task), unit(task)).lstrip("+" + words.MINUS)
        lost = f"{price} of {task.metric}" if task.higher_is_better else f"{task.metric} {price} higher"
        return f" It depends on whether that sparsity is worth {lost}."
    bound = f"{SMALL_DROP:g} point" if task.higher_is_better else f"{SMALL_DROP:g}%"
    return f" It depends on whether more than {bound} is lost, which these runs leave open."


def _whole(sentence: str) -> str:
    """No line ends between a figure and its unit."""
    return sentence.replace(" T", "\u00a0T")


def _tone(drop: Figure | None) -> Literal["good", "mixed", "bad"]:
    if drop is None:
        return "mixed"
    if not math.isfinite(drop.value) or drop.value > LARGE_DROP:
        return "bad"
    sure = drop.value <= 0 or (drop.high is not None and drop.high <= SMALL_DROP)
    return "good" if sure else "mixed"


def warnings(report: TicketReport) -> list[str]:
    """Layers nearly emptied, rules not kept, figures that are not numbers, and too few seeds."""
    found = _collapse(report)
    for row in report.rows:
        lines = report.lines(row.method, row.sparsity)
        where = _where(report, row)
        rule = next((line.cost.isp for line in lines if line.cost.isp is not None and not line.cost.isp.kept), None)
        if rule is not None:
            found.append(
                f"{where}: {words.percent(rule.share)} of T had gone before the last mask (at most 25% is the rule): little learning rate was left for the fine-tuning."
            )
        if any(line.figure is not None and not math.isfinite(line.figure.value) for line in lines):
            found.append(f"{where}: the model put out values that are not numbers.")
    fewest = min((r.seeds for r in report.rows), default=0)
    if len(report.methods) > 1 and 0 < fewest < FEW_SEEDS:
        seeds = "one seed" if fewest == 1 else f"{fewest} seeds"
        found.append(
            f"Some figures come from {seeds}: differences between methods of the size of the intervals may turn round with another."
        )
    return found


def _where(report: TicketReport, row: Row) -> str:
    return f"{words.capital(report.named(row.method))} at {words.percent(row.sparsity)}"


def _collapse(report: TicketReport) -> list[str]:
    """The tensors that the verdict's ticket nearly emptied by name, those of other results as a count."""
    empty = {}
    for row in report.rows:
        lines = report.lines(row.method, row.sparsity)
        if emptied := {t.name: t for line in lines for t in collapsed(line.tensors)}:
            empty[row.method, row.sparsity] = emptied
    mine = empty.pop((report.chosen, report.sparsity), {})
    less = f"less than {words.percent(COLLAPSE)} of the weights"
    found = []
    if mine:
        names = [f"`{n}` ({words.count(t.kept)} of {words.count(t.numel)})" for n, t in mine.items()]
        count = "one tensor keeps" if len(mine) == 1 else f"{len(mine)} tensors keep"
        found.append(
            f"{_where(report, report.picked)}: {count} {less}: {words.listed(names, NAMES)}; a layer this empty passes next to nothing on."
        )
    if empty:
        most = {method: [s for m, s in empty if m == method] for method, _ in empty}
        shown = list(most.items())[:METHODS]
        told = "; ".join(f"{report.named(m)} at {', '.join(words.percent(s) for s in at)}" for m, at in shown)
        told += f"; and {len(most) - METHODS} more methods" if len(most) > METHODS else ""
        found.append(f"{'Other tickets' if mine else 'Some tickets'} have tensors with {less} left: {told}.")
    return found
