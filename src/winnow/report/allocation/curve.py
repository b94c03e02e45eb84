"""The loss over the steps of a training run, as a small picture."""

from __future__ import annotations

import math

from winnow.records.allocation import AllocationRecord
from winnow.report.allocation.words import small
from winnow.report.draw.figures import Canvas
from winnow.report.draw.labels import Box
from winnow.report.draw.plot import Plot


def draw(record: AllocationRecord, canvas: Canvas) -> tuple[str, str] | None:
    """The curve, or None when fewer than two losses are known."""
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
    ends = (low / room, high * room) if log else (low - room, high + room)
    font, width, canvas.height = canvas.font, canvas.width, 190
    plot = Plot(canvas, Box(0, font * 2.2, width, canvas.height - font * 1.9), ends, log=log, spacing=26)
    x = plot.across(1, max(steps, 2), room=(2, 4))
    canvas.text(0, font, "Loss" + (", log scale" if log else ""), "heading")
    canvas.text(width, font, "steps →", anchor="end")
    plot.rules()
    plot.ticks(x.ticks(64), lambda v: f"{v:,.0f}")
    known = [(x(s), plot.y(v)) for s, v in zip(at, record.losses, strict=True) if math.isfinite(v)]
    canvas.polyline(known, "curve")
    said = f"from {small(record.losses[0])} to {small(record.losses[-1])} in {steps:,} steps"
    return "Loss over steps", said + "."
