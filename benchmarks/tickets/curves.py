"""The picture of the test phase: accuracy against sparsity, and at the highest one against steps.

A file of its own on a white ground, made of the charts of winnow's ticket report.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.cells import Row
from benchmarks.paired import interval
from benchmarks.tickets.methods import METHODS
from benchmarks.tickets.studies import trainings
from benchmarks.tickets.subjects import SUBJECTS
from benchmarks.tickets.tables import Group, groups, tickets
from winnow.records.compression import TaskInfo
from winnow.records.ticket import Figure, TicketLine, TicketReport
from winnow.records.ticket import Row as Mean
from winnow.report.compression.phrases import plain
from winnow.report.draw.figures import Canvas
from winnow.report.draw.labels import Box, text_width
from winnow.report.draw.plot import Plot
from winnow.report.ticket.chart import apart, by_sparsity, edges, point, styles, vertical
from winnow.words import percent

LEFT, RIGHT, GAP = 500.0, 420.0, 24.0  # widths of the panels, and what is between them
HEIGHT, HEAD, FOOT, MARGIN = 420.0, 30.0, 66.0, 14.0
FONT = 12.0
COLUMNS = ((0.0, 1.1), (1.1, 3.0), (3.0, math.inf))  # steps in T: names left of the points, right of them, at the edge
ASIDE = 16.0  # pixels from points to their names
SHORT = {
    "isp-plain": "ISP plain", "isp-matched": "ISP matched", "magnitude": "magnitude", "lrr": "LRR", "gradual": "gradual",
    "imp-equal": "IMP equal", "lrr-equal": "LRR equal", "magnitude-equal": "magnitude equal", "snip-equal": "SNIP equal",
    "earlybird-equal": "EarlyBird equal",
}  # fmt: skip
INK, MUTED = "#1b2125", "#5a656c"
COLOURS = {
    "pruned": "#0b7a75", "quantized": "#b45309", "dense": "#454e54", "m0": "#4b53c4", "m1": "#9d2a5b",
    "m2": "#4d7c0f", "m3": "#0369a1", "m4": "#7e22ce", "m5": "#78716c",
}  # fmt: skip
STYLE = f"""
text {{ fill: {MUTED}; font-family: sans-serif; }}
.label, .name, .chosen, .heading {{ fill: {INK}; }}
.chosen, .heading {{ font-weight: 600; }}
.name {{ paint-order: stroke; stroke: #fff; stroke-width: 3px; stroke-linejoin: round; }}
.grid {{ stroke: #eceff0; }}
.axis {{ stroke: {MUTED}; stroke-opacity: 0.6; }}
.leader {{ stroke: {MUTED}; stroke-width: 0.8; stroke-opacity: 0.7; }}
.datum {{ stroke: {INK}; stroke-opacity: 0.7; stroke-dasharray: 5 4; }}
.front {{ fill: none; stroke-width: 1.6; stroke-opacity: 0.6; }}
.whisker {{ stroke-width: 1.2; stroke-opacity: 0.7; }}
.arrow {{ fill: none; stroke-width: 1.6; }}
.hit {{ fill: none; }}
""" + "".join(f".{name} {{ stroke: {c}; }}\n.ticket.{name} {{ fill: {c}; }}\n" for name, c in COLOURS.items())


def write(rows: Mapping[str, Row], models: Iterable[str], folder: Path) -> list[Path]:
    """``tickets-MODEL.svg`` of every model that has enough to draw; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for model in models:
        if (picture := draw(rows.values(), model)) is not None:
            files.append(folder / f"tickets-{model}.svg")
            files[-1].write_text(picture, encoding="utf-8")
    return files


def draw(rows: Iterable[Row], model: str) -> str | None:
    """The SVG file of a model, of the training that most of its tickets had; None below two sparsities."""
    found = tickets(rows, "test", model)
    if not found:
        return None
    most = max(trainings(found), key=len)
    group = groups(most)
    report = means(group)
    canvas = Canvas(LEFT, FONT)
    canvas.height = HEIGHT
    said = by_sparsity(report, canvas)
    if said is None:
        return None
    left = re.sub(
        r"<text [^>]*>dense [^<]*</text>", "", canvas.svg("sparsity", *said)
    )  # it stands where IMP's marks are; the heading tells it
    title = f"{SUBJECTS[model].about}: T = {report.steps} steps"
    words = Canvas(LEFT + GAP + RIGHT, FONT)
    words.height = HEAD + HEIGHT + FOOT
    words.text(0, FONT, title, "heading")
    if report.dense is not None:
        told = f"dense {plain(report.dense.value, report.task)}"
        words.text(words.width, FONT, told, "label", anchor="end")
        end = words.width - text_width(told, FONT) - 6
        words.line(end - 36, 0.7 * FONT, end, 0.7 * FONT, "datum")
    for i, line in enumerate(_notes(group)):
        words.text(0, HEAD + HEIGHT + (1.5 * i + 2) * FONT, line)
    wide, high = words.width + 2 * MARGIN, words.height + 2 * MARGIN
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide:g}" height="{high:g}" viewBox="0 0 {wide:g} {high:g}">',
        f"<style>{STYLE}</style>", '<rect width="100%" height="100%" fill="#fff"/>',
        _placed(words.svg("words", title, "accuracy against sparsity and against steps"), 0, 0, words.width, words.height),
        _placed(left, 0, HEAD, LEFT, HEIGHT), _placed(_against_steps(report), LEFT + GAP, HEAD, RIGHT, HEIGHT), "</svg>\n",
    ])  # fmt: skip


def _placed(svg: str, x: float, y: float, width: float, height: float) -> str:
    place = f'x="{MARGIN + x:g}" y="{MARGIN + y:g}" width="{width:g}" height="{height:g}"'
    return f"<svg {place}>{svg}</svg>"


def name(method: str) -> str:
    return SHORT.get(method, METHODS[method].label)


def means(group: Group) -> TicketReport:
    """The test phase as winnow's charts take it: only what they read, and steps in units of T."""
    rows = []
    for (method, sparsity), found in group.items():
        mean, low, high = interval([t["accuracy"] for t in found])
        passes = statistics.mean(t["cost"]["steps"] / t["settings"]["steps"] for t in found)
        figure = Figure(value=mean, low=low, high=high, seeds=len(found))
        rows.append(Mean.model_construct(
            method=name(method), sparsity=sparsity, zeros=found[0]["zeros_asked"], seeds=len(found), figure=figure, passes=passes,
        ))  # fmt: skip
    dense = [row.figure for row in rows if row.method == "dense"]
    first = next(iter(group.values()))[0]
    drawn = {method for method, _ in group}
    return TicketReport.model_construct(
        task=TaskInfo(metric="test accuracy", unit="%"), chosen=name("isp"), reference=name("imp"),
        dense=dense[0] if dense else None, steps=first["settings"]["steps"], rows=rows,
        tickets=[TicketLine.model_construct(method=name(method)) for method in METHODS if method in drawn],
    )  # fmt: skip


def _against_steps(report: TicketReport) -> str:
    """Accuracy against optimizer steps in T at the highest sparsity; names in columns, so that none hides another."""
    level = max(row.sparsity for row in report.rows)
    rows = [row for row in report.rows if row.sparsity == level]
    values = {row.method: row.figure.value for row in rows if row.figure is not None}
    dense = [report.dense.value] if report.dense is not None else []
    barred = [row for row in rows if row.method in (report.chosen, report.reference)]
    ends = vertical([*values.values(), *dense], edges([*(row.figure for row in barred), report.dense]), True, 0.5, 4.0)
    names = {m: m if ends[0] <= v <= ends[1] else f"{m} ({plain(v, report.task)})" for m, v in values.items()}
    columns = [[row for row in rows if low <= row.passes < high] for low, high in COLUMNS]
    first, _, last = (max((text_width(names[row.method], FONT) for row in column), default=0.0) for column in columns)

    canvas = Canvas(RIGHT, FONT)
    canvas.height = HEIGHT
    area = Box(0, 2.3 * FONT, RIGHT - last - 6 if last else RIGHT, HEIGHT - 2.9 * FONT)  # as in the other panel
    plot = Plot(canvas, area, ends, room=(0, 14))
    passes = [1.0, *(row.passes for row in rows)]
    x = plot.across(min(passes), max(2.0, *passes), log=True, room=(first + ASIDE + 4, ASIDE))
    canvas.text(0, FONT, f"Test accuracy, %, at {percent(level)} sparsity", "heading")
    plot.rules()
    plot.ticks(x.ticks(40), lambda v: f"{v:g} T", "optimizer steps incl. look-ahead, log scale →", 2.9 * FONT - 3)
    for value in dense:
        plot.datum(value)
    looks = styles(report)
    middle = max((x(row.passes) for row in columns[1]), default=0.0)
    places = ((x(min(passes)) - ASIDE, "end"), (middle + ASIDE, "start"), (area.right + 6, "start"))
    for column, (at, anchor) in zip(columns, places, strict=True):
        heights = apart(
            [plot.y.clamp(values[row.method]) for row in column], 1.2 * FONT, area.top, area.bottom - 0.7 * FONT
        )
        for row, height in zip(column, heights, strict=True):
            px, py = x(row.passes), plot.y.clamp(values[row.method])
            away = -1 if anchor == "end" else 1
            canvas.line(px + 6 * away, py, at - 3 * away, height, "leader")
            css = "name chosen" if row.method == report.chosen else "name"
            canvas.text(at, height + 0.35 * FONT, names[row.method], css, anchor=anchor)
    for row in rows:
        spot = x(row.passes), plot.y.clamp(values[row.method])
        point(plot, row, report, looks[row.method], *spot, f", {row.passes:.2f} T", row in barred)
    return canvas.svg("steps", "Test accuracy against optimizer steps", f"At {percent(level)} sparsity.")


def _notes(group: Group) -> list[str]:
    """What the short names and the bars mean."""
    seeds = sorted({len(found) for found in group.values()})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    notes = [
        f"Means over {count} seeds; bars: 95% intervals over them (right: of ISP and IMP). An arrow: beyond the scale."
    ]
    if any(method in ("isp-plain", "isp-matched") for method, _ in group):
        notes.append(
            "ISP plain: without candidates. ISP matched: the same, trained longer by the steps that candidates take."
        )
    if any(method.endswith("-equal") for method, _ in group):
        notes.append("Equal: within the steps of ISP, its candidates' included.")
    return notes
