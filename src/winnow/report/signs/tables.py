"""Arms, their paired differences, and the signs of every training and tensor, in figures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from winnow import words
from winnow.records.signs import SignArm, SignContrast, SignCounts, SignLayer, SignReport, SignRun
from winnow.records.ticket import Figure
from winnow.report.allocation.words import small
from winnow.report.compression import phrases
from winnow.report.draw.table import Column, Row, Table
from winnow.report.signs.verdict import difference, interval

share = partial(words.percent, fixed=True)


def level(sparsity: float | None) -> str:
    return f"{words.percent(sparsity)} sparsity" if sparsity is not None else ""


def results(report: SignReport) -> Table:
    """A row for each arm."""
    task = report.task

    def spread(figure: Figure, show: Callable[[float], str]) -> str:
        return "" if figure.low is None or figure.high is None else f"{show(figure.low)} to {show(figure.high)}"

    def gain(arm: SignArm) -> SignContrast | None:
        return report.contrast(arm.name, "random", arm.sparsity)

    columns: list[Column[SignArm]] = [
        Column(
            words.capital(task.metric), lambda a: phrases.quality(a.figure.value, task),
            below=lambda a: spread(a.figure, lambda v: phrases.plain(v, task)),
        ),
        Column("Training loss", lambda a: small(a.loss.value), below=lambda a: spread(a.loss, small), under_room="roomy"),
        Column(
            "Against random start", lambda a: "" if (c := gain(a)) is None else difference(c.gain.model_copy(update={"low": None}), task),
            "extra", below=lambda a: "" if (c := gain(a)) is None else interval(c.gain), under_title="95% interval, paired",
        ),
    ]  # fmt: skip
    return Table.of(
        "Start under the learned mask",
        report.arms,
        columns,
        lambda a: Row(report.title_of(a.name), group=(level(a.sparsity), "")),
    )


def contrasts(report: SignReport) -> Table:
    """Paired differences; positive is better for the first."""
    columns: list[Column[SignContrast]] = [
        Column(words.capital(report.task.metric), lambda c: difference(c.gain.model_copy(update={"low": None}), report.task), below=lambda c: interval(c.gain)),
        Column("Training loss", lambda c: words.signed(-c.loss.value, 3), "extra", below=lambda c: _loss(c.loss), under_room="roomy"),
    ]  # fmt: skip

    def row(c: SignContrast) -> Row:
        return Row(f"{report.brief_of(c.first)}, less {report.brief_of(c.second)}", group=(level(c.sparsity), ""))

    return Table.of("Difference", report.contrasts, columns, row)


def _loss(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return ""
    return f"{words.signed(-figure.high, 3)} to {words.signed(-figure.low, 3)}"


def trainings(report: SignReport) -> Table:
    """A row for each training: where its signs ended."""

    def lowest(run: SignRun) -> str:
        known = [p.health for p in run.points if p.health is not None]
        return f"{min(known):.3f}" if known else ""

    def transitions(run: SignRun) -> str:
        known = [p.change_share for p in run.points[1:] if p.change_share is not None]
        return share(sum(known) / len(known), digits=2) if known else ""

    columns: list[Column[SignRun]] = [
        Column("Flipped since the start", lambda r: share(r.points[-1].flip_share)),
        Column("Transitions an interval", transitions, "extra"),
        Column("Aligned at the start", lambda r: share(r.points[0].alignment), "extra"),
        Column("At the end", lambda r: share(r.points[-1].alignment)),
        Column("Lowest beta", lowest),
    ]
    return Table.of(
        "Training", report.runs, columns, lambda r: Row(report.title_of(r.name), group=(level(r.sparsity), ""))
    )


def layers(report: SignReport, runs: list[SignRun]) -> Table:
    """A row for each tensor of some trainings, at their end."""

    def of(get: Callable[[SignCounts], str]) -> Callable[[tuple[SignRun, SignLayer]], str]:
        return lambda pair: get(pair[1].last)

    columns: list[Column[tuple[SignRun, SignLayer]]] = [
        Column("Kept", of(lambda c: words.count(c.kept)), "extra"),
        Column("Flipped", of(lambda c: share(c.flip_share))),
        Column("In the last interval", of(lambda c: share(c.change_share, digits=2)), "extra"),
        Column("Aligned", of(lambda c: share(c.alignment))),
        Column("Beta", of(lambda c: f"{c.health:.3f}" if c.health is not None else "")),
    ]
    pairs = [(run, layer) for run in runs for layer in run.layers]
    several = len(report.runs) > 1

    def row(pair: tuple[SignRun, SignLayer]) -> Row:
        run, layer = pair
        group = ", ".join(filter(None, (report.title_of(run.name), level(run.sparsity)))) if several else ""
        return Row(layer.name, group=(group, ""))

    return Table.of("Tensor", pairs, columns, row, "paths")
