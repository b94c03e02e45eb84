"""What the charts have in common: both widths of a picture, and axes with their ticks, intervals and names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from winnow import words
from winnow.report.draw.figures import Canvas
from winnow.report.draw.labels import Box, Wanted, place, text_width

WIDTHS = (900.0, 358.0)
NARROW = 600.0  # pixels: a canvas up to this wide is the narrow one
# Draws; title and description, or None where there is nothing to draw.
Paint = Callable[[Canvas], "tuple[str, str] | None"]


def picture(paint: Paint, key: str, width: float, font: float) -> Markup | None:
    """One rendition as SVG."""
    canvas = Canvas(width, font)
    said = paint(canvas)
    return None if said is None else canvas.svg(key, *said)


def renditions(
    paint: Paint, key: str, fonts: tuple[float, float] = (12.0, 11.0), widths: tuple[float, float] = WIDTHS
) -> Markup | None:
    """A wide and a narrow rendition, of which the style sheet shows one."""
    shown = []
    for name, width, font in zip(("wide", "narrow"), widths, fonts, strict=True):
        drawn = picture(paint, f"{key}-{name}", width, font)
        if drawn is None:
            return None
        shown.append(Markup(f'<div class="{name}">{drawn}</div>'))
    return Markup("").join(shown)


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [start, end] pixels, evenly in the value or in its logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def clamp(self, value: float) -> float:
        """Pixels of a value, kept on the axis; infinities land on its ends."""
        return self(min(max(value, self.low), self.high))

    def ticks(self, spacing: float) -> list[float]:
        """Round values, at least ``spacing`` pixels apart."""
        candidates = _log_steps(self.low, self.high) if self.log else _linear_steps(self.low, self.high)
        for values in candidates:
            places = [self(v) for v in values]
            if len(values) >= 2 and all(abs(b - a) >= spacing for a, b in pairwise(places)):
                return values
        return []


def _linear_steps(low: float, high: float) -> list[list[float]]:
    base = 10.0 ** math.floor(math.log10(high - low))
    found = []
    for step in (base / 10, base / 5, base / 4, base / 2, base, 2 * base, 2.5 * base, 5 * base):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        found.append([round(i * step, 12) for i in range(first, last + 1)])
    return found


def _log_steps(low: float, high: float) -> list[list[float]]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = []
    if high / low < 4:
        found += _linear_steps(low, high)
    for marks in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        values = [m * 10.0**d for d in decades for m in marks]
        found.append([float(f"{v:.6g}") for v in values if low <= v <= high])
    return found


class Plot:
    """Axes in a box of a canvas, which holds the figures left of the upright axis and nothing of what stands below it.

    ``room`` is left free at the top and bottom of the upright axis.
    """

    def __init__(
        self,
        canvas: Canvas,
        box: Box,
        ends: tuple[float, float],
        *,
        log: bool = False,
        room: tuple[float, float] = (0.0, 0.0),
        spacing: float = 30,
    ) -> None:
        self.canvas, self.font = canvas, canvas.font
        self.y = Scale(*ends, box.bottom - room[1], box.top + room[0], log)
        self.values = self.y.ticks(spacing)
        left = box.left + 10 + max((text_width(words.short(v), self.font) for v in self.values), default=20.0)
        self.area = Box(left, box.top, box.right, box.bottom)

    def across(self, low: float, high: float, *, log: bool = False, room: tuple[float, float] = (0.0, 0.0)) -> Scale:
        """The axis below, with ``room`` left free at its ends."""
        self.x = Scale(low, high, self.area.left + room[0], self.area.right - room[1], log)
        return self.x

    def rules(self) -> None:
        """A line and a figure at each round value, and the axis below."""
        area = self.area
        for value in self.values:
            self.canvas.line(area.left, self.y(value), area.right, self.y(value), "grid")
            self.canvas.text(area.left - 6, self.y(value) + 0.35 * self.font, words.short(value), anchor="end")
        self.canvas.line(area.left, area.bottom, area.right, area.bottom, "axis")

    def ticks(self, values: Sequence[float], show: Callable[[float], str], label: str = "", down: float = 0.0) -> None:
        """Ticks below, their figures as far as they have room, and under them what the axis is."""
        last = -math.inf
        for value in values:
            x, wide = self.x(value), text_width(show(value), self.font)
            self.canvas.line(x, self.area.bottom, x, self.area.bottom + 4, "axis")
            if x - last > wide + 6:
                middle = min(x, self.canvas.width - wide / 2, self.area.right + 8)
                self.canvas.text(middle, self.area.bottom + 5 + self.font, show(value), anchor="middle")
                last = x
        if label:
            self.canvas.text(self.area.right, self.area.bottom + down, label, "label", anchor="end")

    def datum(self, value: float, text: str = "") -> Box:
        """A line right across at a value to compare with; the place of its text."""
        at, right = self.y.clamp(value), self.area.right
        self.canvas.line(self.area.left, at, right, at, "datum")
        if text:
            self.canvas.text(right, at - 4, text, anchor="end")
        return Box(right - text_width(text, self.font), at - self.font - 4, right, at - 2)

    def interval(self, x: float, y: float, value: float, low: float | None, high: float | None, css: str) -> bool:
        """The whisker of a point, or an arrow where its value is beyond the axis; whether it is on it."""
        if not self.y.low <= value <= self.y.high:
            self.canvas.arrow(x, y, up=value > self.y.high, css=f"arrow {css}")
            return False
        if low is not None and high is not None and not math.isnan(low + high):
            self.canvas.line(x, self.y.clamp(low), x, self.y.clamp(high), f"whisker {css}")
        return True

    def names(
        self,
        wanted: list[Wanted],
        lines: list[list[tuple[float, float]]],
        taken: list[Box],
        titles: Mapping[int, str],
        whiskers: list[list[tuple[float, float]]] | None = None,
    ) -> None:
        """Names beside their points, as far as they find a place."""
        for label in place(wanted, self.font, lines, taken, whiskers or []):
            if label.leader is not None:
                self.canvas.line(*label.leader, "leader")
            css = "name chosen" if label.bold else "name"
            self.canvas.text(label.x, label.y, label.text, css, title=titles[label.key])
