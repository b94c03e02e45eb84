"""The pictures of what a search cost: quality against steps and against training FLOPs, a panel a sparsity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from winnow import words
from winnow.records.ticket import Row, TicketReport
from winnow.report.compression import phrases
from winnow.report.draw.figures import Canvas
from winnow.report.draw.labels import Box, Wanted, fit
from winnow.report.draw.plot import NARROW, Plot
from winnow.report.ticket.chart import edges, heading, mark, point, styles, title, vertical
from winnow.report.ticket.words import flops, power

PANELS = 4  # sparsities drawn: the highest


@dataclass(frozen=True)
class Cost:
    """One kind of cost: its two figures of a row (the second may be none), and how to write it."""

    what: str
    axis: str
    get: Callable[[Row], tuple[float, float | None]]
    tick: Callable[[float], str]
    said: Callable[[Row], str]
    training: float | None = None  # what one ordinary training costs


def by_steps(report: TicketReport, canvas: Canvas) -> tuple[str, str] | None:
    """A panel a sparsity: quality against optimizer steps, look-ahead and scoring included."""
    cost = Cost(
        "steps", "total steps, log scale →", lambda r: (r.steps, None), lambda v: f"{v:,.0f}",
        lambda r: f", {words.count(round(r.steps))} steps", float(report.steps),
    )  # fmt: skip
    return _panels(report, canvas, cost)


def by_flops(report: TicketReport, canvas: Canvas) -> tuple[str, str] | None:
    """A panel a sparsity: quality against training FLOPs; filled at dense cost, hollow assuming sparse compute."""
    unit, name = power(max((r.dense_flops for r in report.rows), default=1.0))
    cost = Cost(
        "training FLOPs", f"training {name}, log scale →", lambda r: (r.dense_flops / unit, r.sparse_flops / unit), words.short,
        lambda r: f", {flops(r.dense_flops)} at dense cost, {flops(r.sparse_flops)} assuming sparse compute",
    )  # fmt: skip
    return _panels(report, canvas, cost)


def _panels(report: TicketReport, canvas: Canvas, cost: Cost) -> tuple[str, str] | None:
    rows = [r for r in report.rows if r.figure is not None and math.isfinite(r.figure.value) and cost.get(r)[0] > 0]
    levels = sorted({r.sparsity for r in rows if r.method != "dense"})[-PANELS:]
    rows = [r for r in rows if r.sparsity in levels]
    if len(rows) < 2:
        return None
    font, width = canvas.font, canvas.width
    known = [v for r in rows for v in cost.get(r) if v] + ([cost.training] if cost.training else [])
    room = max(1.18, (max(known) / min(known)) ** 0.12)
    ends = min(known) / room, max(known) * room
    across = 2 if width > NARROW and len(levels) > 1 else 1
    gap, tall = 34.0, 250.0 if across == 2 or width <= NARROW else 300.0
    wide, head = (width - gap * (across - 1)) / across, 1.9 * font
    canvas.text(0, font, fit(heading(report), width, font), "heading")
    for i, level in enumerate(levels):
        at, down = (i % across) * (wide + gap), head + (i // across) * (tall + 2.4 * font)
        box = Box(at, down, at + wide, down + tall)
        _panel(report, canvas, cost, [r for r in rows if r.sparsity == level], box, ends)
    canvas.height = head + math.ceil(len(levels) / across) * (tall + 2.4 * font) - 0.6 * font
    said = "; ".join(title(r, report, cost.said(r)) for r in rows[:12])
    return f"{words.capital(report.task.metric)} against {cost.what}", said + "."


def _panel(
    report: TicketReport, canvas: Canvas, cost: Cost, rows: Sequence[Row], box: Box, ends: tuple[float, float]
) -> None:
    font, dense, looks = canvas.font, report.dense, styles(report)
    leading = [m for m in (report.chosen, report.reference) if m is not None]
    values = [r.figure.value for r in rows if r.figure] + ([dense.value] if dense is not None else [])
    yard = edges([r.figure for r in rows if r.method in leading] + [dense])
    top, bottom = box.top + (3.0 if cost.training else 2.0) * font, box.bottom - 1.6 * font
    limits = vertical(values, yard, report.task.higher_is_better, 0.5, 4.0)
    plot = Plot(canvas, Box(box.left, top, box.right, bottom), limits, room=(0, 14), spacing=28)
    area, x, y = plot.area, plot.across(*ends, log=True), plot.y
    canvas.text(area.left, box.top + font, f"{words.percent(rows[0].sparsity)} sparsity", "label")
    plot.rules()
    plot.ticks(x.ticks(46), cost.tick, cost.axis, 7 + 2.1 * font)
    if cost.training is not None:
        at = x(cost.training)
        canvas.line(at, top - 0.6 * font, at, bottom, "edge")
        canvas.text(at, top - 0.8 * font, "T", anchor="middle")
    taken = [] if dense is None else [plot.datum(dense.value, f"dense {phrases.plain(dense.value, report.task)}")]
    wanted, lines = [], []
    for r in sorted(rows, key=lambda r: r.method == report.chosen):
        assert r.figure is not None
        full, less = cost.get(r)
        px, py, style = x(full), y.clamp(r.figure.value), looks[r.method]
        if less is not None and less < full:
            canvas.line(x(less), py, px, py, f"whisker {style.css}")
            mark(canvas, style, x(less), py, 3.4, more=" hollow")
            lines.append([(x(less), py), (px, py)])
        point(plot, r, report, style, px, py, cost.said(r), r.method in leading)
    for r in sorted(rows, key=lambda r: (r.method != report.chosen, r.method != report.reference)):
        assert r.figure is not None
        name = report.brief(r.method)
        if not y.low <= r.figure.value <= y.high:
            name += f" ({phrases.plain(r.figure.value, report.task)})"
        whole = Box(area.left + 2, top - 4, area.right + 2, bottom - 2)
        spot = x(cost.get(r)[0]), y.clamp(r.figure.value)
        wanted.append(Wanted(report.methods.index(r.method), *spot, (name,), whole, 6.0, r.method == report.chosen))
    plot.names(wanted, lines, taken, {i: report.named(method) for i, method in enumerate(report.methods)})
