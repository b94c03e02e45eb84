"""The pictures of a bench: how long each contender takes, against the least that memory allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from winnow import words
from winnow.records.speed import Bench, LayerSpeed
from winnow.report.draw.figures import Canvas
from winnow.report.draw.labels import fit, text_width
from winnow.report.draw.plot import Scale
from winnow.report.speed.doubt import unsteady

CSS = {"dense": "dense", "quantized": "quantized", "pruned": "pruned", "pruned+quantized": "both"}
BEYOND = 3.0  # times dense: longer bars are cut there, so that the others can be told apart
ROWS = 24  # layers drawn at most: those that take longest
STACKED = 500.0  # pixels: on a narrower picture names stand above their bars


@dataclass(frozen=True)
class Bar:
    """One time in milliseconds, with what surrounds it."""

    name: str
    css: str
    value: float
    note: str = ""  # behind the value
    q1: float | None = None
    q3: float | None = None
    p95: float | None = None
    limit: float | None = None
    title: str = ""
    thin: bool = False
    first: bool = False  # of several, the fastest
    base: bool = False  # what the others are compared with


def draw_cases(bench: Bench, canvas: Canvas) -> tuple[str, str] | None:
    """Every contender of every case, the fastest first; one scale for each case, from 0."""
    if not bench.measures:
        return None
    about = {c.name: c for c in bench.contenders}
    groups = []
    for case in bench.cases:
        bars: list[Bar] = []
        found = [m for m in bench.ranked(case.name) if m.contender in about]
        for m in found:
            c, t = about[m.contender], m.times
            title = f"{m.contender}: median {milli(t.median)}, p95 {milli(t.p95)}, IQR {milli(t.q1)} to {milli(t.q3)}"
            leads = len(found) > 1 and not bars
            ratio = "" if unsteady(m.ratio_low, m.ratio_high) else times(m.ratio)
            note = "  ".join(filter(None, (ratio, "fastest" if leads else "")))
            base = m.contender == bench.measures[0].contender
            bars.append(
                Bar(c.name, CSS[c.kind], t.median, note, t.q1, t.q3, t.p95, m.limit, title, first=leads, base=base)
            )
        groups.append((words.capital(case.name) + (", one token" if case.what == "decode" else ""), bars))
    _draw(groups, canvas)
    heading, first = groups[0]
    return "Time of one call, by backend", f"{heading}: " + "; ".join(f"{bar.name} {milli(bar.value)}" for bar in first)


def draw_layers(bench: Bench, canvas: Canvas) -> tuple[str, str] | None:
    """Dense and the fastest packed kernel of each distinct layer, the slowest layers first."""
    alike = distinct(bench.layers)
    if not alike:
        return None
    alike.sort(key=lambda pair: -pair[0].times["dense float32"] * pair[1])
    groups = []
    for layer, count in alike[:ROWS]:
        best = fastest(layer)
        dense = layer.times["dense float32"]
        many = f" ({count} alike)" if count > 1 else ""
        shape = f"{layer.rows} × {layer.cols}, {words.percent(layer.sparsity, 0)} sparsity"
        bars = [_thin("dense float32", "dense", dense, "", layer.dense_limit)]
        if best is not None:
            took, css = layer.times[best], "both" if layer.values.startswith("int") else "pruned"
            bars.append(_thin(best, css, took, times(dense / took), layer.limit))
        groups.append((f"{layer.name}{many}: {shape}", bars))
    _draw(groups, canvas, shared=True)
    layer = alike[0][0]
    said = f"dense {milli(layer.times['dense float32'])}, least possible packed {milli(layer.limit)}"
    return "Time of each packed layer", f"{layer.name}: {said}"


def _thin(name: str, css: str, took: float, note: str, limit: float) -> Bar:
    return Bar(name, css, took, note, limit=limit, title=f"{name}: {milli(took)}", thin=True)


def distinct(layers: Sequence[LayerSpeed]) -> list[tuple[LayerSpeed, int]]:
    """Each layer that was timed itself, and how many share its times."""
    counts = Counter(layer.like or layer.name for layer in layers)
    return [(layer, counts[layer.name]) for layer in layers if layer.like is None]


def fastest(layer: LayerSpeed) -> str | None:
    """The fastest packed kernel that computes in the same type as dense float32."""
    packed = [name for name in layer.times if not name.startswith("dense") and not name.endswith(" x")]
    return min(packed, key=layer.times.__getitem__, default=None)


def milli(value: float | None) -> str:
    """Milliseconds as people read them: 0.0213 -> "21.3 µs", 12.345 -> "12.3 ms", 2345 -> "2.35 s"."""
    if value is None:
        return ""
    for scale, unit in ((1e3, "µs"), (1.0, "ms"), (1e-3, "s")):
        if value * scale < 999.5:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e-3:,.0f} s"


def times(ratio: float | None) -> str:
    """1.324 -> "1.32×", from 10 on with one digit: 12.34 -> "12.3×"."""
    if ratio is None:
        return ""
    return f"{ratio:.1f}×" if ratio >= 9.995 else f"{ratio:.2f}×"


def _draw(groups: list[tuple[str, list[Bar]]], canvas: Canvas, shared: bool = False) -> None:
    """Groups of horizontal bars: a heading, then a row a bar. ``shared``: one scale for all groups."""
    width, font = canvas.width, canvas.font
    stacked = width < STACKED
    line = font * 1.35
    names = [bar.name for _, bars in groups for bar in bars]
    left = 0.0 if stacked else min(max(text_width(name, font) for name in names) + 14, 0.34 * width)
    behind = [f"{milli(bar.value)}  {bar.note}" for _, bars in groups for bar in bars]
    right = width - max(text_width(text, font) for text in behind) - 14
    common = _high([bar for _, bars in groups for bar in bars]) if shared else 0.0
    y = 0.0
    for number, (heading, bars) in enumerate(groups, 1):
        scale = Scale(0, common or _high(bars), left, right)
        y += line
        canvas.text(0, y, fit(heading, width, 1.12 * font), "heading", title=heading)
        y += line * 0.45
        top = y
        for bar in bars:
            y = _row(canvas, bar, scale, y, line, left, stacked)
        canvas.line(scale(0), top, scale(0), y, "axis")
        if shared and number < len(groups):  # one scale, one axis: below the last
            y += line * 0.35
            continue
        for value in scale.ticks(56):
            canvas.line(scale(value), y, scale(value), y + 4, "axis")
            said = milli(value) if value else "0"
            canvas.text(scale(value), y + line * 0.95, said, anchor="middle" if value else "start")
        y += line * 1.85
    canvas.height = y


def _row(canvas: Canvas, bar: Bar, scale: Scale, y: float, line: float, left: float, stacked: bool) -> float:
    """A name, a bar and its median behind it; what spreads around the median is drawn below the bar."""
    thick = line * (0.52 if bar.thin else 0.6)
    css = "label chosen" if bar.first else "label"
    if stacked:
        canvas.text(0, y + line * 0.8, fit(bar.name, canvas.width, canvas.font), css, title=bar.name)
        y += line
    middle = y + line * 0.56
    if not stacked:
        canvas.text(0, middle + canvas.font * 0.35, fit(bar.name, left - 8, canvas.font), css, title=bar.name)
    end = scale.clamp(bar.value)
    canvas.rect(scale(0), middle - thick / 2, max(end - scale(0), 1.5), thick, f"bar {bar.css}", bar.title)
    below = middle + thick / 2 + 3.5
    if bar.value > scale.high:  # cut: two strokes of paper say that it goes on
        for shift in (10.0, 15.0):
            canvas.line(end - shift - 2, middle + thick / 2 + 1, end - shift + 2, middle - thick / 2 - 1, "cut")
    elif bar.q1 is not None and bar.q3 is not None:
        low, high = scale.clamp(bar.q1), scale.clamp(bar.q3)
        canvas.line(low, below, high, below, f"spread {bar.css}")
        for x in (low, high):
            canvas.line(x, below - 2, x, below + 2, f"spread {bar.css}")
    if bar.p95 is not None and bar.p95 <= scale.high:
        canvas.dot(scale(bar.p95), below, 2.0, f"p95 {bar.css}", f"95th percentile {milli(bar.p95)}")
    if bar.limit is not None and bar.limit <= scale.high:
        x = scale(bar.limit)
        told = f"its weights over this machine's memory bandwidth: {milli(bar.limit)}"
        canvas.line(x, middle - thick / 2 - 3, x, middle + thick / 2 + 1, "limit", told)
        end = max(end, x)  # the figure stands clear of it
    canvas.text(end + 7, middle + canvas.font * 0.35, milli(bar.value), "value")
    if bar.note:
        canvas.text(end + 7 + text_width(milli(bar.value) + "  ", canvas.font), middle + canvas.font * 0.35, bar.note)
    return y + line * (1.24 if bar.thin else 1.36)


def _high(bars: Sequence[Bar]) -> float:
    """Where the scale of some bars ends: at the longest, or at three times dense where some are beyond."""
    ends = [max(bar.value, bar.p95 or 0.0, bar.q3 or 0.0) for bar in bars]
    base = next((bar for bar in bars if bar.base), bars[0])
    return max(min(end, BEYOND * base.value) for end in ends) or 1.0
