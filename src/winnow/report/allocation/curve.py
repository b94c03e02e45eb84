"""The loss over the steps of a training run, as a small picture."""

from __future__ import annotations

import math

from markupsafe import Markup

from winnow import words
from winnow.records.allocation import AllocationRecord
from winnow.report.allocation.words import small
from winnow.report.draw.axes import Scale
from winnow.report.draw.figures import Canvas
from winnow.report.draw.labels import text_width


def draw(record: AllocationRecord, key: str, width: float, height: float, font: float) -> Markup | None:
    """The curve as SVG, or None when fewer than two losses are known."""
    losses = [v for v in record.losses if math.isfinite(v)]
    if len(losses) < 2:
        return None
    steps = max(record.steps or 0, len(record.losses))
    # a point stands for a stretch of steps, and is drawn in its middle
    at = [(i + 0.5) * steps / len(record.losses) + 0.5 for i in range(len(record.losses))]
    low, high = min(losses), max(losses)
    log = low > 0 and high / low > 8
    if high <= low:
        low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    room = (high / low) ** 0.05 if log else 0.05 * (high - low)
    edges = (low / room, high * room) if log else (low - room, high + room)
    canvas = Canvas(width, font)
    canvas.height = height
    top, bottom = font * 2.2, height - font * 1.9
    y = Scale(*edges, bottom, top, log)
    ticks = y.ticks(26)
    left = 8 + max((text_width(words.short(t), font) for t in ticks), default=20.0)
    x = Scale(1, max(steps, 2), left + 2, width - 4)
    canvas.text(0, font, "Loss" + (", log scale" if log else ""), "heading")
    for value in ticks:
        canvas.line(left, y(value), width, y(value), "grid")
        canvas.text(left - 5, y(value) + font * 0.35, words.short(value), anchor="end")
    canvas.line(left, bottom, width, bottom, "axis")
    for value in x.ticks(64):
        canvas.line(x(value), bottom, x(value), bottom + 4, "axis")
        label = f"{value:,.0f}"
        middle = min(x(value), width - text_width(label, font) / 2)
        canvas.text(middle, bottom + 4 + font, label, anchor="middle")
    canvas.text(width, font, "steps →", anchor="end")
    canvas.polyline([(x(s), y(v)) for s, v in zip(at, record.losses, strict=True) if math.isfinite(v)], "curve")
    said = f"from {small(record.losses[0])} to {small(record.losses[-1])} in {steps:,} steps"
    return canvas.svg(key, "Loss over steps", said + ".")
