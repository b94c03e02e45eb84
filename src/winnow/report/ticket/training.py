"""What ticket.html shows of a sparse training: the loss, what is left of each tensor, and what it cost."""

from __future__ import annotations

from functools import partial

from winnow import words
from winnow.records.allocation import AllocationRecord
from winnow.records.ticket import TicketReport
from winnow.report.allocation import chart, curve
from winnow.report.allocation.tables import LAYERS, kinds, layers
from winnow.report.compression import phrases
from winnow.report.draw.page import Bullets, Command, Facts, Figure, Fold, Page, Section, Text, plain_rows
from winnow.report.draw.plot import renditions
from winnow.report.ticket.words import flops, span


def view(report: TicketReport, training: AllocationRecord) -> Page:
    """The page of one training under masks."""
    m, task, row = report.model, report.task, report.picked
    subtitle = [
        m.architecture or "" if m.architecture != m.name else "",
        f"{words.bulk(m.parameters)} parameters" if m.parameters else "",
        task.evaluation_data or "",
        f"{words.count(task.n)} test examples" if task.n else "",
    ]
    quality = []
    if row.figure is not None:
        interval = span(row.figure, task)
        details = [f"95% interval {interval}" if interval else "", "at the last step, not the best"]
        quality.append((words.capital(task.metric), phrases.quality(row.figure.value, task), details))
    left = f"{words.count(row.zeros)} of {words.count(m.prunable)} prunable weights"
    forward = f"Remaining forward FLOPs: {words.percent(row.forward_share)}, assuming sparse compute"
    less = f"{flops(row.sparse_flops)} assuming sparse compute"
    return Page(
        tool="run",
        title=report.title,
        subtitle=[words.clip_middle(part, 80) for part in subtitle],
        created=words.when(report.created),
        tone=report.verdict.tone,
        answer=report.verdict.answer or "",
        sentence=report.verdict.sentence,
        tiles=[
            *quality,
            ("Sparsity", words.percent(row.sparsity, 2), [left, forward]),
            ("Training", f"{words.count(round(row.steps))} steps", [f"in {words.duration(row.seconds)}"]),
            ("Training FLOPs", flops(row.dense_flops), [less]),
        ],
        notes=report.warnings,
        chapters=[_loss(training), _sparsity(training), _setup(report)],
        footer="A multiplication and an addition are two FLOPs; a training step is counted as three forward passes. "
        "Every figure on this page, unrounded, is in ticket-report.json.",
    )


def _loss(training: AllocationRecord) -> Section:
    thinned = training.steps and training.steps > len(training.losses)
    mean = "Each point is a mean over several steps. " if thinned else ""
    picture = Figure(renditions(partial(curve.draw, training), "loss"), f"{mean}On the training data.")
    return Section("Training loss", picture)


def _sparsity(training: AllocationRecord) -> Section:
    count = len(training.layers)
    caption = "Each mark is a tensor, in model order; its stem shows how far it is from the sparsity of all."
    return Section(
        "Sparsity per layer",
        Figure(renditions(partial(chart.draw, training), "rates"), caption),
        Section("By kind of layer", kinds(training)),
        Fold("The tensor in figures" if count == 1 else f"The {count} tensors in figures", layers(training), unfolded=count <= LAYERS),
    )  # fmt: skip


def _setup(report: TicketReport) -> Section:
    m, chosen = report.model, report.described.get(report.chosen)
    about = "" if abs(report.batch - round(report.batch)) < 1e-9 else "about "
    rows = [
        ("Method", report.named(report.chosen) + (f": {chosen.meaning}" if chosen is not None and chosen.meaning else "")),
        ("Training", f"{words.count(report.steps)} steps of {about}{words.count(round(report.batch))} examples"),
        ("Forward of one example", flops(report.forward)),
        ("Prunable weights", words.count(m.prunable) + (f" of {words.count(m.parameters)} parameters" if m.parameters else "")),
    ]  # fmt: skip
    return Section(
        "Setup",
        Facts(rows),
        Bullets(report.notes),
        Command(report.command or ""),
        Fold("Settings", Facts(plain_rows(report.settings), "plain fine")),
        Text("The same training without `method` is the dense one to compare with."),
    )
