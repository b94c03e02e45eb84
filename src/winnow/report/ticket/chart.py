"""The picture of a search: quality against sparsity; and how every picture of it draws a method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from winnow import words
from winnow.records.ticket import Figure, Row, TicketReport
from winnow.report.compression import phrases
from winnow.report.draw.figures import Canvas, swatch
from winnow.report.draw.labels import Box, fit, text_width
from winnow.report.draw.plot import NARROW, Plot
from winnow.report.ticket.words import measured

COLOURS = 6  # of methods other than the chosen one, the reference and dense; then shapes repeat them
SHAPES = ("dot", "diamond", "rect")


@dataclass(frozen=True)
class Style:
    """How a method is drawn: colour and shape both tell it, so that colour is never the only sign."""

    css: str
    shape: str


def styles(report: TicketReport) -> dict[str, Style]:
    """The chosen method and the one it is compared with have colours of their own, always the same."""
    own = {"dense": Style("dense", "rect"), report.reference: Style("quantized", "diamond")}
    own[report.chosen] = Style("pruned", "dot")
    others = [method for method in report.methods if method not in own]
    looks = {m: Style(f"m{i % COLOURS}", SHAPES[(i + i // COLOURS) % len(SHAPES)]) for i, m in enumerate(others)} | own
    return {method: looks[method] for method in report.methods}


def mark(canvas: Canvas, style: Style, x: float, y: float, radius: float, title: str = "", more: str = "") -> None:
    css = f"ticket {style.css}{more}"
    if style.shape == "dot":
        canvas.dot(x, y, radius, css)
    elif style.shape == "rect":
        canvas.rect(x - 0.88 * radius, y - 0.88 * radius, 1.76 * radius, 1.76 * radius, css)
    else:
        canvas.diamond(x, y, 1.25 * radius, css)
    if title:
        canvas.dot(x, y, radius + 3, "hit", title)


def sample(style: Style) -> Markup:
    """A mark alone, for legends and tables."""
    return swatch(lambda canvas: mark(canvas, style, 7, 7, 4.2))


def legend(report: TicketReport) -> list[tuple[Markup, str]]:
    """Mark and name of every method in the pictures."""
    drawn = {r.method for r in report.rows if r.figure is not None}
    return [(sample(style), report.named(method)) for method, style in styles(report).items() if method in drawn]


def vertical(
    values: Sequence[float], edges: Sequence[float], higher: bool, share: float, reach: float
) -> tuple[float, float]:
    """Ends of an axis that shows where a decision is made: a method far below the others does not flatten it.

    ``reach`` times the loss that ``share`` of the values stay within is shown; ``edges`` (ends of intervals) as far as
    they add no more than half to that.
    """
    sign = 1 if higher else -1
    finite = [v for v in values if math.isfinite(v)]
    best = max(sign * v for v in finite)
    losses = sorted(best - sign * v for v in finite)
    focus = reach * max(losses[math.ceil(share * (len(losses) - 1))], 1e-9)
    shown = [v for v in finite if best - sign * v <= focus]
    worst = max((best - sign * v for v in shown), default=0.0)
    slack = max(0.5 * worst, 1.5)
    shown += [e for e in edges if math.isfinite(e) and -slack <= best - sign * e <= worst + slack]
    low, high = min(shown), max(shown)
    room = max(0.06 * (high - low), 1e-3 * abs(high), 1e-6)
    return low - room, high + room


def edges(figures: Sequence[Figure | None]) -> list[float]:
    return [e for f in figures if f is not None for e in (f.low, f.high) if e is not None]


def heading(report: TicketReport) -> str:
    task = report.task
    unit = f", {task.unit}" if task.unit else ""
    return f"{words.capital(task.metric)}{unit}; {'higher' if task.higher_is_better else 'lower'} is better"


def title(row: Row, report: TicketReport, more: str = "") -> str:
    said = f"{report.named(row.method)} at {words.percent(row.sparsity)}"
    if row.figure is not None:
        said += f": {measured(row.figure, report.task)}"
        said += f", mean of {row.seeds} seeds" if row.seeds > 1 else ""
    return said + more


def by_sparsity(report: TicketReport, canvas: Canvas) -> tuple[str, str] | None:
    """A line a method; sparsity evenly in the logarithm of what is left, as rounds of pruning take it. None for one
    sparsity."""
    rows = [r for r in report.rows if r.figure is not None and math.isfinite(r.figure.value)]
    pruned = [r for r in rows if r.method != "dense"]
    dense, font, width = report.dense, canvas.font, canvas.width
    if len({r.zeros for r in pruned}) < 2:
        return None
    wide = width > NARROW
    canvas.height = canvas.height or (380 if wide else 320)
    values = [r.figure.value for r in pruned if r.figure] + ([dense.value] if dense else [])
    ends = vertical(values, edges([r.figure for r in pruned] + [dense]), report.task.higher_is_better, 0.8, 1.6)
    label = report.named if wide else report.brief
    methods = [m for m in report.methods if any(r.method == m for r in pruned)]
    names = min(12 + max(text_width(label(m), font) for m in methods), width * (0.26 if wide else 0.3))
    plot = Plot(canvas, Box(0, 2.3 * font, width - names, canvas.height - 2.9 * font), ends, room=(0, 14))
    dodge = min(5.0, 40.0 / max(len(methods), 1))
    side = 22 + dodge * len(methods) / 2
    levels = {-math.log(1 - s): s for s in sorted({r.sparsity for r in pruned})}
    x = plot.across(min(levels), max(levels), room=(side, side))
    canvas.text(0, font, fit(heading(report), width, font), "heading")
    plot.rules()
    if dense is not None:
        plot.datum(dense.value, f"dense {phrases.plain(dense.value, report.task)}")
    plot.ticks(list(levels), lambda v: words.percent(levels[v]), "sparsity →", 2.9 * font - 3)
    looks, last = styles(report), {}
    for i, method in enumerate(methods):
        shift = (i - (len(methods) - 1) / 2) * dodge
        own = sorted((r for r in pruned if r.method == method), key=lambda r: r.sparsity)
        line = [(x(-math.log(1 - r.sparsity)) + shift, r.figure.value) for r in own if r.figure]
        for part in _visible(line, ends):
            canvas.polyline([(px, plot.y.clamp(v)) for px, v in part], f"front {looks[method].css}")
        for (px, value), r in zip(line, own, strict=True):
            point(plot, r, report, looks[method], px, plot.y.clamp(value))
        last[method] = line[-1][0], plot.y.clamp(line[-1][1])
    right = plot.area.right
    spots = apart([last[m][1] for m in methods], font * 1.2, plot.area.top, plot.area.bottom)
    for method, at in zip(methods, spots, strict=True):
        px, py = last[method]
        canvas.line(px + 7, py, right + 2, at, "leader")
        css = "name chosen" if method == report.chosen else "name"
        name = fit(label(method), names - 8, font)
        canvas.text(right + 6, at + 0.35 * font, name, css, title=report.named(method))
    said = "; ".join(title(r, report) for r in pruned[:12])
    return f"{words.capital(report.task.metric)} against sparsity", said + "."


def _visible(line: Sequence[tuple[float, float]], ends: tuple[float, float]) -> list[list[tuple[float, float]]]:
    """The stretches of a line that lie on the axis, cut where it leaves it."""
    found = []
    for (x0, v0), (x1, v1) in pairwise(line):
        first, last = 0.0, 1.0
        for edge in ends:
            out0, out1 = (v0 < edge, v1 < edge) if edge == ends[0] else (v0 > edge, v1 > edge)
            if out0 and out1:
                first, last = 1.0, 0.0
            elif out0 or out1:
                at = (edge - v0) / (v1 - v0)
                first, last = (max(first, at), last) if out0 else (first, min(last, at))
        if first < last:
            found.append([(x0 + t * (x1 - x0), v0 + t * (v1 - v0)) for t in (first, last)])
    return found


def point(
    plot: Plot, row: Row, report: TicketReport, style: Style, x: float, y: float, more: str = "", whisker: bool = True
) -> None:
    figure = row.figure
    assert figure is not None
    low, high = (figure.low, figure.high) if whisker else (None, None)
    plot.interval(x, y, figure.value, low, high, style.css)
    mark(plot.canvas, style, x, y, 4.2, title(row, report, more))


def apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places at least ``gap`` apart, in the same order and as near to where they were as a push down and up leaves them."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    gap = min(gap, (high - low) / max(len(places) - 1, 1))
    found = list(places)
    at = low - gap
    for i in order:
        at = found[i] = max(places[i], at + gap)
    at = high + gap
    for i in reversed(order):
        at = found[i] = min(found[i], at - gap)
    return found
