"""The tables of a search for tickets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from winnow import words
from winnow.records.ticket import ClassLine, Row, TicketLine, TicketReport
from winnow.report.compression import phrases
from winnow.report.draw import table
from winnow.report.draw.table import Column, Table
from winnow.report.ticket.chart import sample, styles
from winnow.report.ticket.words import change, change_span, flops, passes, signed, span, steps, unit

Lines = tuple[Row, Sequence[TicketLine]]  # a row of results and the tickets it is the mean of


def full_imp(row: Row, report: TicketReport) -> str:
    return f"full IMP: {passes(row.imp_steps / report.steps)}, {words.count(row.imp_steps)} steps"


def level(sparsity: float) -> str:
    return f"{words.percent(sparsity)} sparsity" if sparsity else "Dense"


def results(report: TicketReport) -> Table:
    """Method by sparsity, with what each took."""
    task, looks = report.task, styles(report)
    uneven = len({r.seeds for r in report.rows}) > 1
    columns: list[Column[Row]] = [
        Column(words.capital(task.metric), lambda r: phrases.quality(r.figure.value, task) if r.figure else "", below=lambda r: span(r.figure, task)),
        Column(f"Vs dense, {unit(task)}", lambda r: change(r.drop, task), below=lambda r: change_span(r.drop, task)),
        Column(f"Vs {report.named(report.reference)}" if report.reference else "", lambda r: change(r.against, task), "extra", lambda r: change_span(r.against, task)),
        Column("Cost", lambda r: passes(r.passes), below=lambda r: steps(r.steps)),
        Column("Training FLOPs", lambda r: flops(r.dense_flops), "extra", lambda r: f"{flops(r.sparse_flops)} sparse" if r.sparse_flops < r.dense_flops else ""),
        Column("Forward FLOPs", lambda r: words.percent(r.forward_share), "roomy"),
        Column("Time", lambda r: words.duration(r.seconds) if r.seconds else "", "roomy"),
    ]  # fmt: skip

    def row(r: Row) -> table.Row:
        seeds = f"{r.seeds} seed{'' if r.seeds == 1 else 's'}"
        return table.Row(
            report.named(r.method),
            sample(looks[r.method]),
            [seeds] if uneven else [],
            r.method == report.chosen and near(level(r.sparsity), report),
            group=(level(r.sparsity), full_imp(r, report) if r.zeros else ""),
        )

    return Table.of("Method", report.rows, columns, row)


def near(group: str, report: TicketReport) -> bool:
    """Whether a group of rows is of the verdict's sparsity."""
    return group == level(report.sparsity)


def rounds(line: TicketLine, report: TicketReport) -> Table:
    """What each pruning round did."""
    columns: list[Column] = [  # type: ignore[type-arg]
        Column("Sparsity", lambda r: words.percent(r.sparsity, 2, fixed=True)),
        Column("At step", lambda r: words.count(r.step)),
        Column("Total steps", lambda r: words.count(r.steps) if r.steps else ""),
        Column("Candidates differ", lambda r: words.percent(r.disagreement, 2, fixed=True) if r.disagreement is not None else ""),
        Column("Pruned by all", lambda r: words.percent(r.unanimous) if r.unanimous is not None else "", "extra"),
        Column(words.capital(report.task.metric), lambda r: phrases.quality(r.quality, report.task), "extra"),
    ]  # fmt: skip
    return Table.of("Round", line.rounds, columns, lambda r: table.Row(str(r.number)), "slim")


def _mean(parts: Iterable[object], name: str) -> float:
    values = [getattr(part, name) for part in parts]
    return sum(values) / len(values)


def _per_result(
    report: TicketReport, first: str, has: Callable[[TicketLine], object], columns: Sequence[Column[Lines]]
) -> Table:
    """A row for each result of which some tickets have what is asked for."""

    def row(pair: Lines) -> table.Row:
        return table.Row(report.named(pair[0].method), group=(level(pair[0].sparsity), ""))

    found = [(r, [t for t in report.lines(r.method, r.sparsity) if has(t) is not None]) for r in report.rows]
    return Table.of(first, [pair for pair in found if pair[1]], columns, row, "slim")


def overlaps(report: TicketReport) -> Table:
    """How alike each method's masks are to the reference's, and how alike chance would make them."""

    def share(name: str) -> Callable[[Lines], str]:
        return lambda pair: words.percent(_mean((t.overlap for t in pair[1]), name), fixed=True)

    columns: list[Column[Lines]] = [
        Column("Cosine", share("cosine")),
        Column("by chance", share("chance_cosine"), "extra"),
        Column("Kept by both, of either", share("iou")),
        Column("by chance", share("chance_iou"), "extra"),
    ]
    return _per_result(report, "Mask of", lambda t: t.overlap if t.sparsity else None, columns)


def flips(report: TicketReport) -> Table:
    """Answers that changed against the dense model; means over seeds."""

    def mean(name: str, show: Callable[[float], str] = "{:,.0f}".format) -> Callable[[Lines], str]:
        return lambda pair: show(_mean((t.changes for t in pair[1]), name))

    columns: list[Column[Lines]] = [
        Column("Right to wrong", mean("right_to_wrong")),
        Column("Wrong to right", mean("wrong_to_right")),
        Column("Wrong to wrong", mean("wrong_to_wrong"), "extra"),
        Column("Total changed", mean("changed"), "extra"),
        Column("Agreement", mean("agreement", partial(words.percent, fixed=True))),
    ]
    return _per_result(report, "Method", lambda t: t.changes, columns)


def classes(report: TicketReport) -> Table:
    """Recall of each class under the verdict's ticket, means over seeds, the largest loss first."""
    by_name: dict[str, list[ClassLine]] = {}
    for line in report.lines(report.chosen, report.sparsity):
        for c in line.classes:
            by_name.setdefault(c.name, []).append(c)

    def moved(members: list[ClassLine]) -> float:
        return _mean(members, "ticket") - _mean(members, "dense")

    columns: list[Column[list[ClassLine]]] = [
        Column("Examples", lambda m: words.count(m[0].n), "extra"),
        Column("Dense", lambda m: f"{_mean(m, 'dense'):.1f}%"),
        Column("Now", lambda m: f"{_mean(m, 'ticket'):.1f}%"),
        Column("Points", lambda m: signed(moved(m))),
        Column("Right to wrong", lambda m: f"{_mean(m, 'right_to_wrong'):,.0f}", "extra"),
        Column("Wrong to right", lambda m: f"{_mean(m, 'wrong_to_right'):,.0f}", "extra"),
    ]
    order = sorted(by_name.values(), key=lambda m: (moved(m), m[0].name))
    return Table.of("Class", order, columns, lambda m: table.Row(m[0].name))
