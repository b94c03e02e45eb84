"""The per-layer picture: sparsity and reconstruction error, block by block, for six layers or three hundred."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from winnow import words
from winnow.records.compression import Layer, Report
from winnow.report.allocation.words import mean
from winnow.report.draw.figures import Canvas
from winnow.report.draw.labels import fit, text_width
from winnow.report.draw.plot import NARROW

LIST_LIMIT = 40  # more layers than this outside of blocks become a strip
KIND_LIMIT = 28


@dataclass(frozen=True)
class Measure:
    """One quantity of a layer: how to read it, print it, and how strong its colour is."""

    title: str
    css: str  # of the style sheet
    get: Callable[[Layer], float | None]
    show: Callable[[float], str]  # short, without a unit
    full: Callable[[float], str]
    strength: Callable[[float], float]  # of a colour
    length: Callable[[float], float]  # of a bar, always even in the value
    legend: str


@dataclass(frozen=True)
class Grid:
    """Layers by kind (rows) and block (columns); blocks of one stack stand together."""

    kinds: list[str]
    stacks: list[tuple[str, list[str]]]  # path of the stack, its blocks
    cells: dict[tuple[str, str], list[Layer]]


def measures(layers: list[Layer]) -> list[Measure]:
    """The quantities that are known."""
    found = []
    if values := [layer.sparsity for layer in layers if layer.sparsity is not None]:
        digits = 1 if any(abs(100 * v - round(100 * v)) > 0.05 for v in values) else 0
        found.append(
            Measure(
                "Sparsity, %",
                "sparsity",
                lambda layer: layer.sparsity,
                lambda v: f"{100 * v:.{digits}f}",
                lambda v: words.percent(v, 2),
                lambda v: v,
                lambda v: v,
                _extent(values, words.percent),
            )
        )
    if errors := [layer.error for layer in layers if layer.error is not None and math.isfinite(layer.error)]:
        found.append(
            Measure(
                "Reconstruction error, %",
                "error",
                lambda layer: layer.error,
                _two_digits,
                lambda v: f"{_two_digits(v)}%",
                _strength(errors),
                lambda v: min(v / (max(errors) or 1.0), 1.0),
                _extent(errors, lambda v: f"{_two_digits(v)}%"),
            )
        )
    return found


def _two_digits(share: float) -> str:
    value = 100 * share
    if not 0.01 <= value < 1e4:
        return words.short(float(f"{value:.2g}"))
    return f"{value:.{0 if value >= 9.95 else 1 if value >= 0.995 else 2}f}"


def _extent(values: list[float], show: Callable[[float], str]) -> str:
    low, high = show(min(values)), show(max(values))
    return f"{low} everywhere" if low == high else f"{low} to {high}"


def _strength(values: list[float]) -> Callable[[float], float]:
    """Even in the value, or in its logarithm where the values span more than a factor of 30."""
    top = max(values) or 1.0
    positive = [v for v in values if v > 0]
    bottom = min(positive, default=top)
    if top / bottom <= 30:
        return lambda v: 1.0 if v > top else v / top
    span = math.log(top / bottom)
    return lambda v: 0.0 if v < bottom else min(1.0, 0.1 + 0.9 * math.log(v / bottom) / span)


def arrange(layers: list[Layer]) -> tuple[Grid | None, list[Layer]]:
    """Splits layers into a grid of blocks and the rest, when blocks repeat enough for a grid to say something."""
    inside = [layer for layer in layers if layer.block]
    cells: dict[tuple[str, str], list[Layer]] = {}
    for layer in inside:
        cells.setdefault((_kind(layer), layer.block or ""), []).append(layer)
    kinds = list(dict.fromkeys(kind for kind, _ in cells))
    blocks = list(dict.fromkeys(block for _, block in cells))
    if len(blocks) < 2 or len(kinds) > KIND_LIMIT or len(cells) < 0.4 * len(kinds) * len(blocks):
        return None, layers
    stacks: dict[str, list[str]] = {}
    for block in blocks:
        stacks.setdefault(block.rpartition(".")[0], []).append(block)
    if len(stacks) == len(blocks):
        stacks = {"": blocks}
    return Grid(kinds, list(stacks.items()), cells), [layer for layer in layers if not layer.block]


def _kind(layer: Layer) -> str:
    """The layer's path inside its block; numbered siblings (experts) share one row."""
    name = layer.name.removesuffix(".weight")
    block = layer.block or ""
    name = name[len(block) + 1 :] if name.startswith(block + ".") else name
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name) or name


def draw(report: Report, canvas: Canvas) -> tuple[str, str] | None:
    """The picture, or None when nothing is known about any layer."""
    known = measures(report.layers)
    if not known:
        return None
    font, width = canvas.font, canvas.width
    grid, rest = arrange(report.layers)
    y = 0.0
    if grid is not None:
        beside = width > NARROW and len(known) == 2 and sum(len(b) for _, b in grid.stacks) <= 12
        labels = min(max(text_width(k, font) for k in grid.kinds) + 10, width * 0.28)
        if beside:
            half = (width - labels - 28) / 2
            _heat(canvas, grid, known[0], labels, half, y, labels)
            y = _heat(canvas, grid, known[1], labels + half + 28, half, y, 0) + 10
        else:
            for m in known:
                y = _heat(canvas, grid, m, labels, width - labels, y, labels) + 18
    if rest:
        if grid is not None:
            canvas.text(0, y + font, "Outside the blocks", "label")
            y += font * 1.9
        y = (_list if len(rest) <= LIST_LIMIT else _strip)(canvas, rest, known, y)
    canvas.height = y
    said = "; ".join(f"{m.title.split(',')[0].lower()} {m.legend}" for m in known)
    return "Sparsity and reconstruction error of each layer", f"{len(report.layers)} layers: {said}."


def _heat(canvas: Canvas, grid: Grid, m: Measure, x: float, width: float, y: float, labels: float) -> float:
    """One heat map with its heading; returns where it ends."""
    font = canvas.font
    canvas.text(x, y + font, m.title, "heading")
    canvas.text(x + width, y + font, m.legend, "tick", anchor="end")
    y += font * 1.8
    gap = 6.0 if len(grid.stacks) > 1 else 0.0
    columns = sum(len(blocks) for _, blocks in grid.stacks)
    pitch = (width - gap * (len(grid.stacks) - 1)) / columns
    row = 20.0 if len(grid.kinds) <= 14 else 13.0
    places, at = dict[str, float](), x  # where the column of each block begins
    for _, blocks in grid.stacks:
        for block in blocks:
            places[block], at = at, at + pitch
        at += gap
    if gap:
        for path, blocks in grid.stacks:
            room = int(len(blocks) * pitch / (font * 0.62))
            name = path if len(path) <= room else path.rpartition(".")[2]
            if len(name) <= room:
                canvas.text(places[blocks[0]], y + font * 0.8, name, title=path)
        y += font * 1.4
    every = {k: mean((m.get(x), (x.rows or 1) * (x.cols or 1)) for x in members) for k, members in grid.cells.items()}
    means = {key: value for key, value in every.items() if value is not None}
    # Numbers in the cells: all of them or none.
    legible = row >= 18 and all(text_width(m.show(v), font) <= pitch - 4 for v in means.values())
    for r, kind in enumerate(grid.kinds):
        top = y + r * row
        if labels:
            shown = fit(kind, labels - 8, font)
            canvas.text(x - 8, top + row / 2 + font * 0.35, shown, anchor="end", title=kind)
        for block, at in places.items():
            value = means.get((kind, block))
            if value is not None:
                title = _cell_title(grid.cells[kind, block], m, value)
                strength = m.strength(value) if math.isfinite(value) else 1.0
                canvas.heat(at, top, pitch, row, f"heat {m.css}", strength, title, m.show(value) if legible else "")
    y += len(grid.kinds) * row
    step = max(1, math.ceil(text_width("000", font) / pitch))
    for _, blocks in grid.stacks:
        for block in blocks[::step]:
            name = words.clip(block.rpartition(".")[2], max(3, int(pitch * step / font / 0.62)))
            canvas.text(places[block] + pitch / 2, y + font * 1.2, name, anchor="middle", title=block)
    return y + font * 1.7


def _cell_title(members: list[Layer], m: Measure, value: float) -> str:
    name = members[0].name if len(members) == 1 else f"{members[0].block}.{_kind(members[0])}"
    mean = f" (mean of {len(members)})" if len(members) > 1 else ""
    return f"{name}: {m.title.split(',')[0].lower()} {m.full(value)}{mean}"


def _list(canvas: Canvas, layers: list[Layer], known: list[Measure], y: float) -> float:
    """One row a layer: its name and a bar for each quantity."""
    font, row = canvas.font, 22.0
    names = min(max(text_width(layer.name, font) for layer in layers) + 14, canvas.width * 0.36)
    lane = (canvas.width - names) / len(known)
    reserve = text_width("0.0000", font) + 6
    for i, m in enumerate(known):
        fits = text_width(m.title, font, bold=True) < lane
        title = m.title if fits else m.title.replace("Reconstruction error", "Error")
        canvas.text(names + i * lane, y + font, title, "heading")
    y += font * 1.8
    for layer in layers:
        shown = fit(layer.name.removesuffix(".weight"), names - 14, font)
        canvas.text(0, y + row / 2 + font * 0.35, shown, "tick", title=layer.name)
        for i, m in enumerate(known):
            value = m.get(layer)
            if value is None:
                continue
            share = m.length(value) if math.isfinite(value) else 1.0
            left, long = names + i * lane, max((lane - reserve - 10) * share, 1.0)
            canvas.rect(left, y + 4, long, row - 8, f"bar {m.css}", _cell_title([layer], m, value))
            canvas.text(left + long + 5, y + row / 2 + font * 0.35, m.show(value))
        y += row
    return y + 4


def _strip(canvas: Canvas, layers: list[Layer], known: list[Measure], y: float) -> float:
    """Many layers without blocks: one thin column each, in the model's order."""
    font, tall = canvas.font, 70.0
    pitch = canvas.width / len(layers)
    for m in known:
        canvas.text(0, y + font, m.title, "heading")
        canvas.text(canvas.width, y + font, m.legend, "tick", anchor="end")
        y += font * 1.6
        for i, layer in enumerate(layers):
            value = m.get(layer)
            if value is None:
                continue
            height = max(1.0, tall * (m.length(value) if math.isfinite(value) else 1.0))
            wide = max(pitch - (1.0 if pitch >= 4 else 0.0), 0.5)
            title = _cell_title([layer], m, value)
            canvas.rect(i * pitch, y + tall - height, wide, height, f"bar {m.css}", title)
        canvas.line(0, y + tall, canvas.width, y + tall, "axis")
        y += tall + font * 1.3
        canvas.text(0, y, "first layer", "tick")
        canvas.text(canvas.width, y, "last layer", "tick", anchor="end")
        y += font * 1.4
    return y
