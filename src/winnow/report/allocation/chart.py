"""The picture of an allocation: the rate of every layer in model order, and beside or under it the sensitivity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from winnow import words
from winnow.records.allocation import AllocationLayer, AllocationRecord
from winnow.report.allocation.tables import MANY
from winnow.report.allocation.words import kind, rate, runs, scaled, shortened
from winnow.report.draw.figures import Canvas, swatch
from winnow.report.draw.labels import fit, text_width
from winnow.report.draw.plot import NARROW, Scale

ROW = 20.0
LINES = 8  # of columns at most: beyond, the columns get thinner
PITCH = (7.0, 5.0)  # least pixels of a column, wide and narrow


def draw(record: AllocationRecord, canvas: Canvas) -> tuple[str, str] | None:
    """The picture, or None for a record without layers: a row a layer, or lines of columns for many."""
    layers = record.layers
    if not layers:
        return None
    chart = _Chart(canvas, record)
    canvas.height = chart.rows() if len(layers) <= MANY else chart.columns()
    low, high = min(x.rate for x in layers), max(x.rate for x in layers)
    said = f"{len(layers)} layers: {words.percent(low, 2)} to {words.percent(high, 2)} of their weights are zero"
    if record.target is not None:
        said += f", the target for all is {words.percent(record.target, 2)}"
    return "Sparsity of each layer", said + "."


def legend(record: AllocationRecord) -> list[tuple[Markup, str]]:
    """What each mark of the picture means, for the marks that are in it."""
    layers = record.layers
    flat, base = len(layers) > MANY, _base(record)  # in columns, marks lie across
    ends = (1, 7, 13, 7) if flat else (7, 1, 7, 13)
    span = (4, 1, 6, 12) if flat else (1, 4, 12, 6)
    started, compared = (any(getattr(x, of) is not None for x in layers) for of in ("start_rate", "earlier_rate"))
    seeds = max((len(x.rates) for x in layers), default=0)
    goal = f"{'target' if record.target is not None else 'over all layers'}: {words.percent(base, 2)}"
    known: list[tuple[bool, Callable[[Canvas], None], str]] = [
        (True, lambda c: c.dot(7, 7, 4, "rate"), "this run"),
        (started, lambda c: c.line(*ends, "start"), "start"),
        (seeds > 1, lambda c: c.rect(*span, "range"), f"range over {seeds} seeds"),
        (compared, lambda c: c.diamond(7, 7, 5, "earlier"), "earlier run"),
        (base is not None, lambda c: c.line(*ends, "target"), goal),
    ]
    return [(swatch(paint), name) for there, paint, name in known if there]


def _base(record: AllocationRecord) -> float | None:
    """Where the stems begin: the rate asked for, else the one reached."""
    return record.target if record.target is not None else record.exact_rate


def extent(record: AllocationRecord) -> tuple[float, float]:
    """Lowest and highest rate of the axis, in per cent: everything drawn is on it, and at least two points."""
    values = [100 * v for x in record.layers for v in (x.rate, x.start_rate, x.earlier_rate, *x.rates) if v is not None]
    base = _base(record)
    if base is not None:
        values.append(100 * base)
    low, high = min(values), max(values)
    room = max(0.05 * (high - low), (2.0 - (high - low)) / 2)
    low, high = max(0.0, low - room), min(100.0, high + room)
    return (low, high) if high - low >= 1 else (max(0.0, high - 2), high) if high > 50 else (low, low + 2)


@dataclass(frozen=True)
class _Marks:
    """The marks of one layer along a line: horizontal rows and vertical columns differ in the direction only."""

    canvas: Canvas
    upright: bool
    radius: float
    half: float  # of a start tick, across

    def _point(self, along: float, across: float) -> tuple[float, float]:
        return (across, along) if self.upright else (along, across)

    def layer(self, x: AllocationLayer, scale: Scale, base: float, across: float) -> None:
        def at(share: float) -> float:
            return scale.clamp(100 * share)

        here = at(x.rate)
        if len(x.rates) > 1:
            a, b = sorted((at(min(x.rates)), at(max(x.rates))))
            a, b = (a, b) if b - a >= 1 else ((a + b - 1) / 2, (a + b + 1) / 2)
            thick = 1.6 * self.half
            self.canvas.rect(*self._point(a, across - thick / 2), *self._point(b - a, thick), "range")
        self.canvas.line(*self._point(base, across), *self._point(here, across), "stem")
        if x.start_rate is not None:
            ends = (self._point(at(x.start_rate), across + side) for side in (-self.half, self.half))
            self.canvas.line(*next(ends), *next(ends), "start")
        if x.earlier_rate is not None:
            self.canvas.diamond(*self._point(at(x.earlier_rate), across), self.radius * 1.25, "earlier")
        self.canvas.dot(*self._point(here, across), self.radius, "rate", _title(x))


def _title(x: AllocationLayer) -> str:
    said = [f"{x.name}: {rate(x.rate)}% of {words.count(x.numel)} are zero"]
    if x.start_rate is not None:
        said.append(f"start {rate(x.start_rate)}%")
    if len(x.rates) > 1:
        said.append(f"{rate(min(x.rates))} to {rate(max(x.rates))}% over {len(x.rates)} seeds")
    if x.earlier_rate is not None:
        said.append(f"earlier {rate(x.earlier_rate)}%")
    return ", ".join(said)


class _Chart:
    """One drawing: which quantities there are, and the two ways to lay them out."""

    def __init__(self, canvas: Canvas, record: AllocationRecord) -> None:
        self.canvas, self.record, self.wide, self.font = canvas, record, canvas.width > NARROW, canvas.font
        self.low, self.high = extent(record)
        known = [x.sensitivity for x in record.layers if x.sensitivity is not None and math.isfinite(x.sensitivity)]
        self.strongest = max(known, default=0.0)
        self.sensed = any(x.sensitivity is not None for x in record.layers)
        self.unit, self.show = scaled([x.sensitivity for x in record.layers])
        base = _base(record)
        self.base = 100 * base if base is not None else self.low

    def _strength(self, x: AllocationLayer) -> float:
        """0 to 1, even in the value; a loss that falls has no bar, one that explodes a full one."""
        if x.sensitivity is None or math.isnan(x.sensitivity) or x.sensitivity <= 0:
            return 0.0
        return 1.0 if x.sensitivity >= self.strongest else x.sensitivity / self.strongest

    def rows(self) -> float:
        """A row a layer: name, rate, sensitivity."""
        canvas, font, layers = self.canvas, self.font, self.record.layers
        short = shortened([x.name for x in layers])
        room = canvas.width * (0.32 if self.wide else 0.33)
        headings = self._headings(short, room - 12)
        room = max(room, 0.4 * canvas.width) if headings else room
        names = min(max(text_width(s, font) for s in short) + 12, room)
        values = max(text_width(rate(x.rate), font) for x in layers) + 8
        # Figures beside the bars; a narrow page has them in its table only.
        figured = self.sensed and self.wide
        figures = max(text_width(self.show(x.sensitivity), font) for x in layers) + 6 if figured else 0.0
        heading = f"Sensitivity{self.unit}" if self.wide else "Sens."
        bars = max(canvas.width * (0.16 if self.wide else 0.12), text_width(heading, font, bold=True) - figures)
        right = canvas.width - (figures + bars + 14 if self.sensed else 0.0)
        plot = Scale(self.low, self.high, names + 6, right - values - 6)
        canvas.text(names, font, "Sparsity, %", "heading")
        if self.sensed:
            canvas.text(right + 14, font, heading, "heading", title=f"Sensitivity{self.unit}")
        top = font * 3.2
        gaps = dict.fromkeys(_breaks([len(members) for _, members in runs(layers)]), 5.0)
        gaps |= dict.fromkeys(headings, font * 1.7)
        bottom = top + ROW * len(layers) + sum(gaps.values())
        for tick in plot.ticks(42):
            canvas.line(plot(tick), top - 3, plot(tick), bottom, "grid")
            canvas.text(plot(tick), top - 7, words.short(tick), anchor="middle")
        if _base(self.record) is not None:
            canvas.line(plot.clamp(self.base), top - 3, plot.clamp(self.base), bottom, "target")
        marks = _Marks(canvas, False, 4.0, 6.0)
        y = top
        for i, (x, name) in enumerate(zip(layers, short, strict=True)):
            y += gaps.get(i, 0.0)
            if i in headings:
                canvas.text(names - 6, y - font * 0.2, fit(headings[i], names - 6, font), "label", anchor="end")
            middle = y + ROW / 2
            base = middle + font * 0.35
            canvas.text(names - 6, base, fit(name, names - 6, font), anchor="end", title=x.name)
            marks.layer(x, plot, plot.clamp(self.base), middle)
            canvas.text(right, base, rate(x.rate), "value", anchor="end")
            if x.sensitivity is not None:
                left, room = right + 14, canvas.width - right - 14 - figures
                length = max(room * self._strength(x), 0.5)
                canvas.rect(left, y + 5, length, ROW - 10, "sense", self._sensed(x))
                if figures:
                    canvas.text(canvas.width, base, self.show(x.sensitivity), anchor="end")
            y += ROW
        return bottom + 4

    def _headings(self, short: list[str], room: float) -> dict[int, str]:
        """Where names have no room: the blocks as headings, by first row; ``short`` then names the layers inside."""
        if all(text_width(s, self.font) <= room for s in short):
            return {}
        groups = runs(self.record.layers)
        named = [name for name, _ in groups if name]
        blocks = dict(zip(named, shortened(named), strict=True))
        found, at = {}, 0
        for name, members in groups:
            if len(members) > 1:
                found[at] = blocks[name]
                short[at : at + len(members)] = [kind(x.name) for x in members]
            at += len(members)
        return found

    def columns(self) -> float:
        """A column a layer, in as many lines as they need; blocks stand on bands and are not torn apart."""
        canvas, font = self.canvas, self.font
        ticks = Scale(self.low, self.high, 0, 110).ticks(24)
        beside = [words.short(t) for t in ticks] + [self.show(self.strongest) if self.sensed else ""]
        left = 10 + max(text_width(text, font) for text in beside)
        room = canvas.width - left
        groups = runs(self.record.layers)
        found = lines([len(m) for _, m in groups], room, PITCH[0] if self.wide else PITCH[1], LINES)
        pitch = room / max(sum(len(groups[i][1][a:b]) for i, a, b in line) for line in found)
        tall, under = (110.0, 42.0) if self.wide else (90.0, 34.0)
        marks = _Marks(canvas, True, min(3.6, max(1.0, pitch * 0.36)), min(6.0, pitch * 0.46))
        canvas.text(0, font, "Sparsity, %", "heading")
        y = font * 2.0
        for n, line in enumerate(found):
            plot = Scale(self.low, self.high, y + tall, y)
            end = left + pitch * sum(b - a for _, a, b in line)
            foot = y + tall + (under + (font * 2.4 if n == 0 else 8) if self.sensed else 0.0)
            x = left
            for i, (group, a, b) in enumerate(line):
                if i % 2 == 0 and groups[group][0]:
                    canvas.rect(x, y - 3, (b - a) * pitch, foot - y + 3, "band")
                x += (b - a) * pitch
            for tick in ticks:
                canvas.line(left, plot(tick), end, plot(tick), "grid")
                canvas.text(left - 5, plot(tick) + font * 0.35, words.short(tick), anchor="end")
            if _base(self.record) is not None:
                canvas.line(left, plot.clamp(self.base), end, plot.clamp(self.base), "target")
            x = left
            for group, a, b in line:
                for layer in groups[group][1][a:b]:
                    marks.layer(layer, plot, plot.clamp(self.base), x + pitch / 2)
                    if self.sensed:
                        self._bar(layer, x, pitch, foot, under)
                    x += pitch
            if self.sensed:
                if n == 0:
                    canvas.text(0, y + tall + font * 1.7, f"Sensitivity{self.unit}", "heading")
                canvas.line(left, foot, end, foot, "axis")
                canvas.text(left - 5, foot - under + font * 0.7, self.show(self.strongest), anchor="end")
            self._labels([(groups[g][0], groups[g][1][a:b]) for g, a, b in line], left, pitch, foot + font * 1.3)
            y = foot + font * 2.9
        return y - font * 1.1

    def _bar(self, layer: AllocationLayer, x: float, pitch: float, foot: float, tall: float) -> None:
        if layer.sensitivity is None:
            return
        height = max(tall * self._strength(layer), 0.5)
        inset = pitch * 0.14 if pitch >= 3 else 0.0
        self.canvas.rect(x + inset, foot - height, pitch - 2 * inset, height, "sense", self._sensed(layer))

    def _sensed(self, x: AllocationLayer) -> str:
        return f"{x.name}: sensitivity {self.show(x.sensitivity)}{self.unit.replace(',', '')}"

    def _labels(self, line: list[tuple[str, list[AllocationLayer]]], x: float, pitch: float, y: float) -> None:
        """The blocks' numbers, where they have room; layers outside of blocks by name where they have."""
        free = 0.0
        for name, members in line:
            wide = len(members) * pitch
            text = name.rpartition(".")[2] if name else fit(_last(members[0].name), wide - 2, self.font)
            half = text_width(text, self.font) / 2
            middle = x + wide / 2
            if text.strip("…") and middle - half >= free and middle + half <= self.canvas.width + 1:
                self.canvas.text(middle, y, text, anchor="middle", title=name or members[0].name)
                free = middle + half + 5
            x += wide


def _last(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]


def _breaks(lengths: list[int]) -> set[int]:
    """Before which rows a gap goes: where a block of several layers begins or ends."""
    found = {sum(lengths[:i]) for i in range(1, len(lengths)) if max(lengths[i - 1 : i + 1]) > 1}
    return found if len(found) <= sum(lengths) / 2 else set()


def lines(lengths: list[int], room: float, pitch: float, limit: int) -> list[list[tuple[int, int, int]]]:
    """Groups over ``limit`` lines at most: (group, first, after last) of each, as evenly as whole groups allow."""
    count = min(limit, math.ceil(sum(lengths) * pitch / room))

    def pack(size: int) -> list[list[tuple[int, int, int]]]:
        lines: list[list[tuple[int, int, int]]] = [[]]
        used = 0
        for i, n in enumerate(lengths):
            a = 0
            while a < n:
                if used and used + n - a > size and (n - a <= size or used == size):
                    lines.append([])
                    used = 0
                b = min(n, a + size - used)
                lines[-1].append((i, a, b))
                used, a = used + b - a, b
        return lines

    size = math.ceil(sum(lengths) / count)
    while len(found := pack(size)) > count:
        size += 1
    return found
