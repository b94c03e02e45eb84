"""Which tensors the zeros came to lie in: the share of each that is left, round by round or method by method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from winnow import words
from winnow.records.ticket import COLLAPSE, TensorLine, TicketLine, TicketReport
from winnow.report.allocation.words import block, mean, shortened
from winnow.report.draw.figures import Canvas
from winnow.report.draw.labels import fit, text_width

ROWS = 40  # more tensors than this are summed up by block
COLUMNS = 48  # rounds at most: evenly spaced ones, the last among them


@dataclass(frozen=True)
class Column:
    """One round or method: what stands above it, and the share kept of each tensor."""

    label: str
    title: str
    kept: dict[str, float]


def by_round(report: TicketReport, line: TicketLine, canvas: Canvas) -> tuple[str, str] | None:
    """The picture of one ticket's rounds, or None for a ticket of fewer than two."""
    rounds = [r for r in line.rounds if r.densities]
    if len(rounds) < 2:
        return None
    if len(rounds) > COLUMNS:
        rounds = [rounds[round(i * (len(rounds) - 1) / (COLUMNS - 1))] for i in range(COLUMNS)]
    titles = [f"round {r.number}, {words.percent(r.sparsity)} sparsity" for r in rounds]
    columns = [Column(str(r.number), title, r.densities) for r, title in zip(rounds, titles, strict=True)]
    return _draw(canvas, line.tensors, columns, "Round", f"{report.named(line.method)}, kept of each tensor")


def by_method(report: TicketReport, canvas: Canvas) -> tuple[str, str] | None:
    """The picture of all methods at the report's sparsity, first seeds; None where there is one method only."""
    lines = {t.method: t for t in reversed(report.lines_at(report.sparsity)) if t.method != "dense"}
    if len(lines) < 2:
        return None
    order = [m for m in report.methods if m in lines]
    kept = [{t.name: t.kept / t.numel for t in lines[m].tensors if t.numel} for m in order]
    columns = [Column(report.brief(m), report.named(m), shares) for m, shares in zip(order, kept, strict=True)]
    title = f"Kept of each tensor at {words.percent(report.sparsity)} sparsity"
    return _draw(canvas, lines[order[0]].tensors, columns, "", title)


def _grouped(tensors: Sequence[TensorLine]) -> list[tuple[str, list[TensorLine]]]:
    if len(tensors) <= ROWS:
        return [(t.name, [t]) for t in tensors]
    groups: dict[str, list[TensorLine]] = {}
    for t in tensors:
        groups.setdefault(block(t.name) or t.name, []).append(t)
    return list(groups.items())


def _figure(share: float) -> str:
    value = 100 * share
    return f"{value:.0f}" if value >= 9.95 or value == 0 else f"{value:.1f}"


def _draw(
    canvas: Canvas, tensors: Sequence[TensorLine], columns: Sequence[Column], over: str, title: str
) -> tuple[str, str]:
    font, width = canvas.font, canvas.width
    groups = _grouped(tensors)
    names = shortened([name for name, _ in groups])
    labels = min(max(text_width(n, font) for n in [*names, over]) + 10, width * 0.34)
    pitch = min((width - labels) / len(columns), 96.0)
    row = 20.0 if len(groups) <= 24 else 15.0
    values = [[mean((c.kept.get(t.name), t.numel) for t in members) for c in columns] for _, members in groups]
    known = [v for line in values for v in line if v is not None]
    figured = row >= 18 and all(text_width(_figure(v), font) <= pitch - 3 for v in known)
    slanted = any(text_width(c.label, font) > pitch - 6 for c in columns) and not over
    y = _heads(canvas, columns, labels, pitch, over, slanted)
    for (name, members), short, line in zip(groups, names, values, strict=True):
        middle = y + row / 2 + 0.35 * font
        canvas.text(labels - 8, middle, fit(short, labels - 10, font), anchor="end", title=name)
        for i, (column, share) in enumerate(zip(columns, line, strict=True)):
            if share is None:
                continue
            empty = any(column.kept.get(t.name, 1.0) < COLLAPSE for t in members)
            css = "heat error" if empty else "heat sparsity"
            told = f"{name}, {column.title}: {words.percent(share, 2)} kept" + (", nearly empty" if empty else "")
            strength, figure = 0.45 if empty else share, _figure(share) if figured else ""
            canvas.heat(labels + i * pitch, y, pitch, row, css, strength, told, figure)
        y += row
    canvas.height = y + 4
    low = words.percent(min(known, default=math.nan), 2)
    return title, f"{len(groups)} rows, {len(columns)} columns; the least kept is {low}."


def _heads(canvas: Canvas, columns: Sequence[Column], labels: float, pitch: float, over: str, slanted: bool) -> float:
    """What stands above the columns; names too long for a column stand on steps of a stair, each over its own."""
    font = canvas.font
    if over:
        canvas.text(labels - 8, font, over, "heading", anchor="end")
    if not slanted:
        every = max(1, math.ceil(text_width("000", font) / pitch))
        for i, c in enumerate(columns):
            if i % every == 0 or (i == len(columns) - 1 and i % every > every / 2):
                canvas.text(labels + (i + 0.5) * pitch, font, c.label, "value", anchor="middle", title=c.title)
        return 1.7 * font
    levels: list[float] = []  # where the last name of each step ends
    spots = []
    for i, c in enumerate(columns):
        start = min(labels + i * pitch + 2, canvas.width - text_width(c.label, font))
        level = next((n for n, end in enumerate(levels) if end + 8 < start), len(levels))
        levels[level : level + 1] = [start + text_width(c.label, font)]
        spots.append((start, level))
    top = (len(levels)) * 1.35 * font
    for i, (c, (start, level)) in enumerate(zip(columns, spots, strict=True)):
        base = font + (len(levels) - 1 - level) * 1.35 * font
        canvas.text(start, base, c.label, "value", title=c.title)
        x = labels + (i + 0.5) * pitch
        canvas.line(x, base + 3, x, top + 0.3 * font, "leader")
    return top + 0.45 * font
