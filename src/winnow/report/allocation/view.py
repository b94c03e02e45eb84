"""The chapter of an allocation, and its lines on a terminal."""

from __future__ import annotations

from functools import partial

from winnow import words
from winnow.records.allocation import AllocationRecord
from winnow.report.allocation import chart, curve
from winnow.report.allocation.tables import LAYERS, compact, kinds, layers
from winnow.report.allocation.words import comparison, milliseconds, named, points, stability, step_parts
from winnow.report.draw.page import Block, Facts, Figure, Fold, Section, Text, breakdown, plain_rows
from winnow.report.draw.plot import renditions
from winnow.report.draw.summary import Line
from winnow.report.draw.table import Table


def chapter(record: AllocationRecord | None) -> Section | None:
    """What the page shows of an allocation."""
    if record is None:
        return None
    caption = "Each mark is a layer, in model order; its stem shows how far it is from the target."
    if any(x.sensitivity is not None for x in record.layers):
        caption += " Sensitivity: rise of the loss when this layer alone loses a tenth of its remaining weights."
    thinned = record.steps and record.steps > len(record.losses)
    count, parts = len(record.layers), step_parts(record)
    step = milliseconds(sum(seconds for _, seconds in parts))
    loss = renditions(partial(curve.draw, record), "loss", widths=(430, 358))
    halves: list[Block | None] = [
        Section("Loss against the dense model", Figure(loss), Text("Each point is a mean over several steps." if thinned and loss else "")),
        Section(f"Time per step: {step}", *breakdown("Part", "Time", "", [(name, milliseconds(s), s) for name, s in parts])),
    ]  # fmt: skip
    return Section(
        "Sparsity allocation",
        Facts(_facts(record), "plain pairs"),
        Facts([("Stability", stability(record)), ("Compared with", comparison(record))], "plain after"),
        Figure(renditions(partial(chart.draw, record), "rates"), caption, chart.legend(record)),
        Section("By kind of layer", kinds(record)),
        Fold("The layer in figures" if count == 1 else f"The {count} layers in figures", layers(record), unfolded=count <= LAYERS),
        Section("", *halves, css="halves"),
        Fold("Settings", Facts(plain_rows(record.settings), "plain fine")),
    )  # fmt: skip


def _facts(record: AllocationRecord) -> list[tuple[str, str]]:
    """Target, what was reached, and what it took."""
    r = record
    exact = words.percent(r.exact_rate, 4)
    if exact and r.zeros is not None and r.numel is not None:
        exact += f": {words.count(r.zeros)} of {words.count(r.numel)} prunable weights"
    raw = words.percent(r.raw_rate, 2)
    if raw and r.target is not None and r.raw_rate is not None:
        off = points(r.raw_rate - r.target)
        raw += f" ({off} points from the target)" if off != "0.00" else ", the target"
    every = words.percent(r.exact_rate_all, 2)
    if every and r.total_parameters is not None:
        every += f" of all {words.count(r.total_parameters)} parameters"
    return [
        ("Method", named(r.method)),
        ("Started from", named(r.start)),
        ("Structure", r.structure or ""),
        ("Target", words.percent(r.target, 2)),
        ("Reached", exact),
        ("By thresholds alone", raw),
        ("Whole model", every),
        ("Training", _training(r)),
    ]


def _training(record: AllocationRecord) -> str:
    steps = f"{words.count(record.steps)} steps" if record.steps is not None else ""
    return " in ".join(filter(None, (steps, words.duration(record.seconds))))


def lines(record: AllocationRecord) -> list[str | Table | list[Line]]:
    """What a terminal shows of an allocation."""
    said = [("Stability", stability(record)), ("Compared with", comparison(record))]
    return [headline(record), compact(record), said + [("Warning", warning) for warning in record.warnings]]


def headline(record: AllocationRecord) -> str:
    """Sparsity, steps and time in one line."""
    said = []
    if record.exact_rate is not None:
        said.append(f"{words.percent(record.exact_rate, 2)} sparsity")
        if record.raw_rate is not None:
            said[-1] += f" ({words.percent(record.raw_rate, 2)} by thresholds alone)"
    if record.steps is not None:
        said.append(_training(record))
    parts = dict(step_parts(record))
    if parts:
        total, bridge = sum(parts.values()), parts.get("Bridge from threshold to rate", 0.0)
        said.append(f"{milliseconds(total)} a step" + (f", bridge {words.percent(bridge / total)}" if bridge else ""))
    start = f" from {named(record.start)}" if record.start else ""
    return f"Allocation by {named(record.method)}{start}" + (": " + ", ".join(said) if said else "")
