"""The pictures of what a search cost: quality against steps and against training FLOPs, a panel a sparsity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from winnow import words
from winnow.records.ticket import Row, TicketReport
from winnow.report.draw.axes import Scale
from winnow.report.draw.figures import Canvas
from winnow.report.draw.labels import Box, Wanted, fit, place, text_width
from winnow.report.ticket.chart import edges, heading, mark, point, rules, styles, title, vertical
from winnow.report.ticket.words import flops, plain, power

PANELS = 4  # sparsities drawn: the highest


def by_steps(report: TicketReport, key: str, width: float, font: float) -> Markup | None:
    """A panel a sparsity: quality against optimizer steps, look-ahead and scoring included."""
    rule = float(report.steps)
    return _costs(
        report, key, width, font, lambda r: (r.steps, None), "steps in all, log scale →", "steps",
        lambda v: f"{v:,.0f}", lambda r: f", {words.count(round(r.steps))} steps", (rule, "T"),
    )  # fmt: skip


def by_flops(report: TicketReport, key: str, width: float, font: float) -> Markup | None:
    """A panel a sparsity: quality against training FLOPs; filled at dense cost, hollow if zeros cost nothing."""
    most = max((r.dense_flops for r in report.rows), default=1.0)
    unit, name = power(most)

    def told(r: Row) -> str:
        return f", {flops(r.dense_flops)} at dense cost, {flops(r.sparse_flops)} if zeros cost nothing"

    return _costs(
        report, key, width, font, lambda r: (r.dense_flops / unit, r.sparse_flops / unit),
        f"training {name}, log scale →", "training FLOPs", words.short, told, None,
    )  # fmt: skip


def _costs(
    report: TicketReport,
    key: str,
    width: float,
    font: float,
    cost: Callable[[Row], tuple[float, float | None]],
    axis: str,
    what: str,
    tick: Callable[[float], str],
    told: Callable[[Row], str],
    rule: tuple[float, str] | None,
) -> Markup | None:
    rows = [r for r in report.rows if r.figure is not None and math.isfinite(r.figure.value) and cost(r)[0] > 0]
    levels = sorted({r.sparsity for r in rows if r.method != "dense"})[-PANELS:]
    rows = [r for r in rows if r.sparsity in levels]
    if len(rows) < 2:
        return None
    ends = [v for r in rows for v in cost(r) if v] + ([rule[0]] if rule else [])
    room = max(1.18, (max(ends) / min(ends)) ** 0.12)
    across = 2 if width > 600 and len(levels) > 1 else 1
    gap, tall = 34.0, 250.0 if across == 2 or width <= 600 else 300.0
    panel = (width - gap * (across - 1)) / across
    canvas = Canvas(width, font)
    canvas.text(0, font, fit(heading(report), width, font), "heading")
    head = 1.9 * font
    for i, level in enumerate(levels):
        own = [r for r in rows if r.sparsity == level]
        at, down = (i % across) * (panel + gap), head + (i // across) * (tall + 2.4 * font)
        span_x = (min(ends) / room, max(ends) * room)
        box = Box(at, down, at + panel, down + tall)
        _panel(canvas, report, own, level, box, span_x, cost, axis, tick, told, rule)
    canvas.height = head + math.ceil(len(levels) / across) * (tall + 2.4 * font) - 0.6 * font
    said = "; ".join(title(r, report, told(r)) for r in rows[:12])
    return canvas.svg(key, f"{words.capital(report.task.metric)} against {what}", said + ".")


def _panel(
    canvas: Canvas,
    report: TicketReport,
    rows: Sequence[Row],
    level: float,
    box: Box,
    ends: tuple[float, float],
    cost: Callable[[Row], tuple[float, float | None]],
    axis: str,
    tick: Callable[[float], str],
    told: Callable[[Row], str],
    rule: tuple[float, str] | None,
) -> None:
    font, dense = canvas.font, report.dense
    values = [r.figure.value for r in rows if r.figure]
    yard = [r.figure for r in rows if r.method in (report.chosen, report.reference)] + [dense]
    values += [dense.value] if dense is not None else []
    known = vertical(values, edges(yard), report.task.higher_is_better, 0.5, 4.0)
    top, bottom = box.top + (3.0 if rule else 2.0) * font, box.bottom - 1.6 * font
    y = Scale(known.low, known.high, bottom - 14, top)
    ticks = y.ticks(28)
    left = box.left + 10 + max((text_width(words.short(t), font) for t in ticks), default=20.0)
    x = Scale(*ends, left, box.right, log=True)
    canvas.text(left, box.top + font, f"{words.percent(level)} zeros", "label")
    rules(canvas, y, ticks, left, box.right, bottom)
    for value in x.ticks(46):
        canvas.line(x(value), bottom, x(value), bottom + 4, "axis")
        middle = min(x(value), box.right - text_width(tick(value), font) / 2)
        canvas.text(middle, bottom + 5 + font, tick(value), anchor="middle")
    canvas.text(box.right, bottom + 7 + 2.1 * font, axis, "label", anchor="end")
    taken = []
    if rule is not None:
        canvas.line(x(rule[0]), top - 0.6 * font, x(rule[0]), bottom, "edge")
        canvas.text(x(rule[0]), top - 0.8 * font, rule[1], anchor="middle")
    if dense is not None:
        canvas.line(left, y.clamp(dense.value), box.right, y.clamp(dense.value), "datum")
        text = f"dense {plain(dense.value, report.task)}"
        canvas.text(box.right, y.clamp(dense.value) - 4, text, anchor="end")
        wide = text_width(text, font)
        taken.append(Box(box.right - wide, y.clamp(dense.value) - font - 4, box.right, y.clamp(dense.value) - 2))
    looks, wanted, lines = styles(report), [], []
    order = [r for r in rows if r.method != report.chosen] + [r for r in rows if r.method == report.chosen]
    for r in order:
        assert r.figure is not None
        full, less = cost(r)
        px, py, style = x(full), y.clamp(r.figure.value), looks[r.method]
        if less is not None and less < full:
            canvas.line(x(less), py, px, py, f"whisker {style.css}")
            mark(canvas, style, x(less), py, 3.4, hollow=True)
            lines.append([(x(less), py), (px, py)])
        point(canvas, r, report, style, px, py, y, known, told(r), r.method in (report.chosen, report.reference))
    for r in sorted(rows, key=lambda r: (r.method != report.chosen, r.method != report.reference)):
        assert r.figure is not None
        name = report.brief(r.method)
        if known.beyond(r.figure.value):
            name += f" ({plain(r.figure.value, report.task)})"
        area = Box(left + 2, top - 4, box.right + 2, bottom - 2)
        bold = r.method == report.chosen
        spot = (x(cost(r)[0]), y.clamp(r.figure.value))
        wanted.append(Wanted(report.methods.index(r.method), *spot, (name,), area, 6.0, bold))
    for label in place(wanted, font, lines, taken):
        if label.leader is not None:
            canvas.line(*label.leader, "leader")
        css = "name chosen" if label.bold else "name"
        canvas.text(label.x, label.y, label.text, css, title=report.named(report.methods[label.key]))
