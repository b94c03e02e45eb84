"""The page of a search, as finished words and pictures: the template only arranges them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from markupsafe import Markup

from winnow import words
from winnow.records.ticket import ClassLine, Row, TicketLine, TicketReport
from winnow.report.compression import phrases
from winnow.report.draw.figures import Canvas
from winnow.report.template import plain_rows, renditions
from winnow.report.ticket import chart as ticket_chart
from winnow.report.ticket import cost_chart as ticket_cost_chart
from winnow.report.ticket import heat as ticket_heat
from winnow.report.ticket.facts import facts
from winnow.report.ticket.words import change, change_span, flops, passes, signed, span, steps, unit

TONES = {"good": "Worth it", "mixed": "It depends", "bad": "Not worth it"}
UNFOLDED = 24  # rows of results shown at once: of more, those of the verdict's sparsity
HEAT = (("wide", 900, 12.0), ("narrow", 358, 10.5))  # name, width and font of both renditions
CLASSES = 12  # shown at once: those that lost most
T = TypeVar("T")
Columns = list[tuple[str, str, Callable[[T], str], Callable[[T], str]]]  # css, title, value, what stands below it


def view(report: TicketReport) -> dict[str, Any]:
    """Everything the template prints. Values are plain text (escaped by the template) or ready-made markup."""
    first = next(iter(report.lines(report.chosen, report.sparsity)), None)
    found = classes(report)
    by_round = [
        None if first is None else ticket_heat.by_round(report, first, f"rounds-{name}", width, font)
        for name, width, font in HEAT
    ]
    by_method = [ticket_heat.by_method(report, f"layers-{name}", width, font) for name, width, font in HEAT]
    return {
        "report": report,
        "tone": TONES[report.verdict.tone],
        "created": words.when(report.created),
        "subtitle": subtitle(report),
        "tiles": tiles(report),
        "legend": ticket_chart.legend(report),
        "sparsity_figure": renditions(
            ticket_chart.by_sparsity(report, "levels-wide", 900, 380, 12.5),
            ticket_chart.by_sparsity(report, "levels-narrow", 358, 320, 11.0),
        ),
        "steps_figure": renditions(
            ticket_cost_chart.by_steps(report, "steps-wide", 900, 12.0), ticket_cost_chart.by_steps(report, "steps-narrow", 358, 11.0)
        ),
        "flops_figure": renditions(
            ticket_cost_chart.by_flops(report, "flops-wide", 900, 12.0), ticket_cost_chart.by_flops(report, "flops-narrow", 358, 11.0)
        ),
        "table": results(report),
        "seeds": max((r.seeds for r in report.rows), default=1),
        "even": len({r.seeds for r in report.rows}) == 1,
        "reference": report.named(report.reference) if report.reference else "",
        "measured": any(r.figure is not None for r in report.rows),
        "heat_rounds": renditions(*by_round),
        "unit_rounds": _unit(by_round),
        "heat_methods": renditions(*by_method),
        "unit_methods": _unit(by_method),
        "heat_caption": "The stronger the colour, the more is left; the other colour marks "
        + ("a block with a tensor" if first and len(first.tensors) > ticket_heat.ROWS else "a tensor")
        + " that has less than 1 % left.",
        "picked": f"{report.named(report.chosen)} at {words.percent(report.sparsity)} zeros",
        "level": words.percent(report.sparsity),
        "rounds": rounds(report),
        "overlaps": overlaps(report),
        "flips": flips(report),
        "examples": words.count(report.task.n),
        "classes": found[:CLASSES],
        "classes_rest": found[CLASSES:],
        "facts_rows": facts(report),
        "settings": plain_rows(report.settings),
        "machine": plain_rows({**report.machine, "ram": words.size(report.machine.get("ram"))}),
    }  # fmt: skip


def _unit(pictures: Sequence[Markup | None]) -> str:
    """What the figures in the cells of a heat map are; nothing where they have no room."""
    return ", in per cent" if any(p is not None and 'class="cell"' in p for p in pictures) else ""


def subtitle(report: TicketReport) -> list[str]:
    m, task = report.model, report.task
    parts = [
        m.architecture if m.architecture != m.name else "",
        f"{words.bulk(m.parameters)} parameters" if m.parameters else "",
        task.evaluation_data or "",
        f"{words.count(task.n)} test examples" if task.n else "",
    ]
    return [words.clip_middle(part, 80) for part in parts if part]


def tiles(report: TicketReport) -> list[dict[str, Any]]:
    """The four figures of the verdict: quality, zeros, steps, FLOPs."""
    r, task = report.picked, report.task
    found = []
    if r.figure is not None:
        details = [f"{change(r.drop, task)} {unit(task)} against dense" if r.drop is not None else ""]
        details.append(f"95 % interval {change_span(r.drop, task)}" if change_span(r.drop, task) else "")
        label = f"{words.capital(task.metric)} of {report.named(report.chosen)}"
        found.append((label, phrases.quality(r.figure.value, task), details))
    weights = f"{words.count(r.zeros)} of {words.count(report.model.prunable)} prunable weights"
    left = f"{words.percent(r.forward_share)} of a forward's FLOPs left, if zeros cost nothing"
    found.append(("Zeros", words.percent(r.sparsity, 2), [weights, left]))
    full = f"full IMP: {passes(r.imp_steps / report.steps)}, {words.count(r.imp_steps)} steps"
    found.append(
        (
            "Training, look-ahead included",
            passes(r.passes),
            [f"{steps(r.steps)} steps; T is {words.count(report.steps)}", full],
        )
    )
    less = f"{flops(r.sparse_flops)} if zeros cost nothing"
    found.append(
        ("Training FLOPs", flops(r.dense_flops), [less, f"in {words.duration(r.seconds)}" if r.seconds else ""])
    )
    return [{"label": label, "value": value, "details": [d for d in details if d]} for label, value, details in found]


def _below(_: Any) -> str:
    return ""


def grid(items: Iterable[T], columns: Columns[T]) -> tuple[list[tuple[str, str]], list[list[tuple[str, str, str]]]]:
    """Titles and cells; a column nobody has a value for is left out."""
    given = list(items)
    kept = [column for column in columns if any(column[2](item) for item in given)]
    cells = [[(css, show(item), below(item)) for css, _, show, below in kept] for item in given]
    return [(css, title) for css, title, _, _ in kept], cells


def results(report: TicketReport) -> dict[str, Any]:
    """Method by sparsity, with what each took."""
    task = report.task
    columns: Columns[Row] = [
        ("", words.capital(task.metric), lambda r: phrases.quality(r.figure.value, task) if r.figure else "", lambda r: span(r.figure, task)),
        ("", f"Against dense, {unit(task)}", lambda r: change(r.drop, task), lambda r: change_span(r.drop, task)),
        ("extra", f"Against {report.named(report.reference)}" if report.reference else "", lambda r: change(r.against, task), lambda r: change_span(r.against, task)),
        ("", "Steps", lambda r: passes(r.passes), lambda r: steps(r.steps)),
        ("extra", "Training FLOPs", lambda r: flops(r.dense_flops), lambda r: f"{flops(r.sparse_flops)} sparse" if r.sparse_flops < r.dense_flops else ""),
        ("roomy", "Forward left", lambda r: words.percent(r.forward_share), _below),
        ("roomy", "Time", lambda r: words.duration(r.seconds) if r.seconds else "", _below),
    ]  # fmt: skip
    titles, cells = grid(report.rows, columns)
    looks = ticket_chart.styles(report)
    uneven = len({r.seeds for r in report.rows}) > 1
    groups: dict[float, list[dict[str, Any]]] = {}
    for r, own in zip(report.rows, cells, strict=True):
        canvas = Canvas(14, 10)
        ticket_chart.mark(canvas, looks[r.method], 7, 7, 4.2)
        line = {
            "mark": canvas.swatch(),
            "name": report.named(r.method),
            "under": f"{r.seeds} seed{'' if r.seeds == 1 else 's'}" if uneven else "",
            "chosen": r.method == report.chosen and abs(r.sparsity - report.sparsity) < 1e-9,
            "cells": own,
        }
        groups.setdefault(r.sparsity, []).append(line)
    tables = []
    for sparsity, lines in groups.items():
        row = next(r for r in report.rows if r.sparsity == sparsity)
        full = f"full IMP: {passes(row.imp_steps / report.steps)}, {words.count(row.imp_steps)} steps"
        name = f"{words.percent(sparsity)} zeros" if row.zeros else "No zeros"
        first = abs(sparsity - report.sparsity) < 1e-9
        tables.append({"name": name, "full": full if row.zeros else "", "rows": lines, "first": first})
    whole = len(report.rows) <= UNFOLDED
    shown = [g for g in tables if whole or g["first"]]
    folded = [g for g in tables if not (whole or g["first"])]
    told = [report.described[m] for m in report.methods if m in report.described]
    meanings = [f"{m.title}: {m.meaning}" for m in told if m.meaning]
    return {
        "columns": titles, "groups": shown, "folded": folded, "width": 1 + len(titles),
        "meanings": "; ".join(meanings) + "." if meanings else "",
    }  # fmt: skip


def rounds(report: TicketReport) -> list[dict[str, Any]]:
    """The rounds of every ticket that had several, the one of the verdict first; first seeds only."""
    several: dict[tuple[str, float], TicketLine] = {}
    for t in report.tickets:
        if len(t.rounds) > 1:
            several.setdefault((t.method, t.sparsity), t)
    order = sorted(several, key=lambda k: (k != (report.chosen, report.sparsity), k[0] != report.chosen))
    return [_rounds(several[key], report) for key in order]


def _rounds(line: TicketLine, report: TicketReport) -> dict[str, Any]:
    columns: Columns[Any] = [
        ("", "Zeros", lambda r: words.percent(r.sparsity, 2, fixed=True), _below),
        ("", "At step", lambda r: words.count(r.step), _below),
        ("", "Steps in all", lambda r: words.count(r.steps) if r.steps else "", _below),
        ("", "Candidates differ", lambda r: words.percent(r.disagreement, 2, fixed=True) if r.disagreement is not None else "", _below),
        ("extra", "Pruned by all", lambda r: words.percent(r.unanimous) if r.unanimous is not None else "", _below),
        ("extra", words.capital(report.task.metric), lambda r: phrases.quality(r.quality, report.task), _below),
    ]  # fmt: skip
    titles, cells = grid(line.rounds, columns)
    rows = [{"name": str(r.number), "cells": own} for r, own in zip(line.rounds, cells, strict=True)]
    name = f"{report.named(line.method)} at {words.percent(line.sparsity)}"
    differ = any(r.disagreement is not None for r in line.rounds)
    return {"name": name, "columns": titles, "rows": rows, "first": "Round", "differ": differ}


def _mean(lines: Sequence[TicketLine], get: Callable[[TicketLine], float]) -> float:
    return sum(get(line) for line in lines) / len(lines)


def overlaps(report: TicketReport) -> list[dict[str, Any]]:
    """How alike each method's masks are to the reference's, and how alike chance would make them."""
    found = []
    for r in report.rows:
        lines = [line for line in report.lines(r.method, r.sparsity) if line.overlap is not None]
        if lines and r.zeros:
            found.append((r, lines))
    if not found:
        return []

    def share(name: str) -> Callable[[Any], str]:
        return lambda pair: words.percent(_mean(pair[1], lambda line: getattr(line.overlap, name)), fixed=True)

    columns: Columns[Any] = [
        ("", "Zeros", lambda pair: words.percent(pair[0].sparsity), _below),
        ("", "Cosine", share("cosine"), _below),
        ("extra", "by chance", share("chance_cosine"), _below),
        ("", "Kept by both, of either", share("iou"), _below),
        ("extra", "by chance", share("chance_iou"), _below),
    ]
    return _by_method(found, columns, report, "Mask of")


def flips(report: TicketReport) -> list[dict[str, Any]]:
    """Answers that turned, against the dense model; means over seeds."""
    found = []
    for r in report.rows:
        lines = [line for line in report.lines(r.method, r.sparsity) if line.changes is not None]
        if lines:
            found.append((r, lines))
    if not found:
        return []

    def mean(name: str) -> Callable[[Any], str]:
        return lambda pair: f"{_mean(pair[1], lambda line: getattr(line.changes, name)):,.0f}"

    def same(pair: Any) -> str:
        known = [line.changes.agreement for line in pair[1] if line.changes is not None]
        return words.percent(sum(known) / len(known), fixed=True)

    columns: Columns[Any] = [
        ("", "Zeros", lambda pair: words.percent(pair[0].sparsity), _below),
        ("", "Right to wrong", mean("right_to_wrong"), _below),
        ("", "Wrong to right", mean("wrong_to_right"), _below),
        ("extra", "Wrong to wrong", mean("wrong_to_wrong"), _below),
        ("extra", "Changed in all", mean("changed"), _below),
        ("", "Same answer", same, _below),
    ]  # fmt: skip
    return _by_method(found, columns, report, "Method")


def _by_method(
    found: Sequence[tuple[Row, Sequence[TicketLine]]], columns: Columns[Any], report: TicketReport, first: str
) -> list[dict[str, Any]]:
    """One table, or two where it is long: the verdict's sparsity, and the others."""
    titles, cells = grid(found, columns)
    shown: list[dict[str, Any]] = []
    folded: list[dict[str, Any]] = []
    for (r, _), own in zip(found, cells, strict=True):
        near = len(found) <= UNFOLDED or abs(r.sparsity - report.sparsity) < 1e-9
        (shown if near else folded).append({"name": report.named(r.method), "cells": own})
    return [{"columns": titles, "rows": rows, "first": first} for rows in (shown, folded) if rows]


def classes(report: TicketReport) -> list[dict[str, str]]:
    """Recall of each class under the verdict's ticket, means over seeds, the largest loss first."""
    lines = [line for line in report.lines(report.chosen, report.sparsity) if line.classes]
    by_name: dict[str, list[ClassLine]] = {}
    for line in lines:
        for c in line.classes:
            by_name.setdefault(c.name, []).append(c)
    rows = []
    for name, members in by_name.items():
        k = len(members)
        dense, now = sum(c.dense for c in members) / k, sum(c.ticket for c in members) / k
        lost, won = sum(c.right_to_wrong for c in members) / k, sum(c.wrong_to_right for c in members) / k
        rows.append((now - dense, name, members[0].n, dense, now, lost, won))
    return [
        {
            "name": name, "n": words.count(n), "dense": f"{dense:.1f} %", "now": f"{now:.1f} %", "change": signed(moved),
            "lost": f"{lost:,.0f}", "won": f"{won:,.0f}",
        }
        for moved, name, n, dense, now, lost, won in sorted(rows)
    ]  # fmt: skip
