"""The tables of a compression, for its page and the terminal."""

from __future__ import annotations

import math

from markupsafe import Markup

from winnow import words
from winnow.records.compression import Candidate, ClassQuality, Layer, Report, Sizes
from winnow.report.compression import phrases
from winnow.report.compression.frontier import KINDS
from winnow.report.draw import table
from winnow.report.draw.figures import sample
from winnow.report.draw.page import Block, breakdown
from winnow.report.draw.table import Column, Table


def bits(item: Candidate | Layer) -> str:
    return f"{item.bits_per_weight:.2f}" if item.bits_per_weight is not None else ""


def candidates(report: Report) -> Table:
    task, ticket = report.task, report.ticket is not None
    tokens = task.metric == "perplexity"
    given, unit = " from ticket" if ticket else "", "nats/token" if tokens else "nats"

    tailed = tokens and any(c.kl_p99 is not None for c in report.candidates)

    def moved(c: Candidate) -> str:
        return phrases.change(c, task)

    def tail(c: Candidate) -> str:
        return _divergence(c.kl_p99) if tailed else ""

    columns: list[Column[Candidate]] = [
        Column("File size", lambda c: words.size(c.file_bytes), below=lambda c: f"{bits(c)} bits" if bits(c) else "", under_room="", under_title="Per weight"),
        Column(words.capital(words.clip(task.metric, 16)), lambda c: phrases.quality(c.quality, task), below=lambda c: phrases.span(c.low, c.high, task), under_room="roomy", brief=moved),
        Column("Change", moved, "elsewhere", lambda c: phrases.change_span(c, task), under_room="extra"),
        Column("Recovered", lambda c: phrases.recovered(c, report), "extra"),
        Column("Sparsity", lambda c: words.percent(c.sparsity), "extra"),
        Column(f"Agreement{' with ticket' if ticket else ''}", lambda c: words.percent(c.agreement, fixed=True), "extra"),
        Column(f"KL divergence{given} ({unit})", lambda c: _divergence(c.kl), "roomy", tail, under_room="roomy", under_title="99th percentile"),
        Column("Time", lambda c: words.duration(c.seconds), "roomy"),
    ]  # fmt: skip

    def row(c: Candidate) -> table.Row:
        method = c.method if c.method and c.method.lower() not in c.name.lower() else None
        under = [text for text in (method, c.note, c.folder) if text]
        mark = Markup('<span title="{}">{}</span>').format(KINDS[c.kind], sample(c.kind))
        return table.Row(c.name, mark, under, c is report.picked)

    return Table.of("Model", report.ranked, columns, row, "ranked")


def _divergence(nats: float | None) -> str:
    if nats is None:
        return ""
    if abs(nats) < 0.00005:  # rounding may leave it below zero
        return "< 0.0001"
    return words.number(nats) if nats >= 1 else f"{nats:.4f}"


def layers(report: Report) -> Table:
    usual = report.picked.method if report.picked is not None else None
    differ = any(x.method for x in report.layers)
    columns: list[Column[Layer]] = [
        Column("Shape", lambda x: f"{x.rows} × {x.cols}" if x.rows is not None and x.cols is not None else "", "extra"),
        Column("Zeros", lambda x: words.count(x.zeros), "extra"),
        Column("Sparsity", lambda x: f"{100 * x.sparsity:.2f}%" if x.sparsity is not None else ""),
        Column("Error", lambda x: f"{words.number(100 * x.error)}%" if x.error is not None else ""),
        Column("Method", lambda x: (x.method or usual or "") if differ else ""),
        Column("Bits per weight", bits, "extra"),
        Column("Time", lambda x: words.duration(x.seconds), "extra"),
    ]
    return Table.of("Layer", report.layers, columns, lambda x: table.Row(x.name), "paths")


def lost(c: ClassQuality) -> float:
    return c.dense - c.pruned if c.dense is not None and c.pruned is not None else -math.inf


def classes(report: Report) -> Table:
    """Classes, the biggest losers first."""
    task = report.task.model_copy(update={"higher_is_better": True})

    def change(c: ClassQuality) -> str:
        return phrases.change(Candidate(name="", kind="pruned", drop=lost(c)), task) if math.isfinite(lost(c)) else ""

    columns: list[Column[ClassQuality]] = [
        Column("Examples", lambda c: words.count(c.n), "extra"),
        Column(words.capital(phrases.against(report)), lambda c: phrases.quality(c.dense, task)),
        Column("Now", lambda c: phrases.quality(c.pruned, task)),
        Column("Change", change),
    ]
    return Table.of("Class", sorted(report.classes, key=lambda c: -lost(c)), columns, lambda c: table.Row(c.name))


def sizes(report: Report) -> list[Block | Table]:
    """What the new file is made of, below the dense one."""
    s = report.sizes
    if not s.file:
        return []
    parts = [
        ("Packed values", s.packed_values or 0),
        ("Masks", s.masks or 0),
        ("Scales", s.scales or 0),
        ("Dense tensors", s.dense_tensors or 0),
        ("Header", _header(s)),
    ]
    inside = sum(n for _, n in parts)
    if s.file - inside > 0.002 * s.file:
        parts.append(("Not itemized" if inside else "File", s.file - inside))
    whole = max(s.file, inside, s.dense_file or 0)
    given = "Before packing" if report.ticket is not None else "Dense"
    dense = [("dense", given, 100 * (s.dense_file or 0) / whole)]
    before = [(f"{given}: {words.size(s.dense_file)}", dense)] if s.dense_file else []
    label = ", ".join(filter(None, (f"Compressed: {words.size(s.file)}", words.ratio(s.dense_file, s.file))))
    rows = [(name, words.size(n), n) for name, n in parts]
    return breakdown("In the weights file", "Size", label, rows, whole, before)


def beside(sizes: Sizes) -> str:
    """The size of the folder's other files."""
    other = (sizes.other or 0) - _header(sizes)
    return words.size(other) if other > 0 else ""


def _header(sizes: Sizes) -> int:
    """Bytes of the weights file that hold no tensor; ``other`` counts the other files of the folder too."""
    if sizes.file is None or sizes.other is None:
        return 0
    tensors = (sizes.packed_values, sizes.masks, sizes.scales, sizes.dense_tensors)
    return min(sizes.other, max(0, sizes.file - sum(n or 0 for n in tensors)))
