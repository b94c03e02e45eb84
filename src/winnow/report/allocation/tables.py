"""The allocation's chapter of the page, as finished words and pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from winnow import words
from winnow.records.allocation import AllocationLayer, AllocationRecord
from winnow.report.allocation import chart as allocation_chart
from winnow.report.allocation import curve as allocation_curve
from winnow.report.allocation.words import (
    comparison,
    deviation,
    kind,
    mean,
    milliseconds,
    named,
    points,
    rate,
    runs,
    scaled,
    stability,
    step_parts,
)
from winnow.report.template import plain_rows, renditions

OPEN = 24  # with so many layers at most the table is unfolded
PARTS = {"teacher": "rest", "forward": "values", "backward": "masks", "bridge": "scales", "update": "other"}


def view(record: AllocationRecord | None) -> dict[str, Any] | None:
    """Everything the template prints about an allocation, or None."""
    if record is None:
        return None
    return {
        "picture": renditions(
            allocation_chart.draw(record, "rates-wide", 900, 12.0),
            allocation_chart.draw(record, "rates-narrow", 358, 11.0),
        ),
        "legend": allocation_chart.legend(record),
        "sensed": any(x.sensitivity is not None for x in record.layers),
        "curve": renditions(
            allocation_curve.draw(record, "loss-wide", 430, 190, 12.0),
            allocation_curve.draw(record, "loss-narrow", 358, 180, 11.0),
        ),
        "thinned": bool(record.steps and record.steps > len(record.losses)),
        "step": step(record),
        "facts": facts(record),
        "trust": trust(record),
        "settings": plain_rows(record.settings),
        "layers": layers(record),
        "unfolded": len(record.layers) <= OPEN,
        "kinds": kinds(record),
    }


def facts(record: AllocationRecord) -> list[tuple[str, str]]:
    """What was asked, what was reached, and what it took."""
    r = record
    exact = words.percent(r.exact_rate, 4)
    if exact and r.zeros is not None and r.numel is not None:
        exact += f": {words.count(r.zeros)} of {words.count(r.numel)} prunable weights"
    raw = words.percent(r.raw_rate, 2)
    if raw and r.target is not None and r.raw_rate is not None:
        off = points(r.raw_rate - r.target)
        raw += f" ({off} points from what was asked)" if off != "0.00" else ", as asked"
    every = words.percent(r.exact_rate_all, 2)
    if every and r.total_parameters is not None:
        every += f" of all {words.count(r.total_parameters)} parameters"
    took = f"{words.count(r.steps)} steps" if r.steps is not None else ""
    if words.duration(r.seconds):
        took += f"{' in ' if took else ''}{words.duration(r.seconds)}"
    rows = [
        ("Method", named(r.method)),
        ("Began from", named(r.start)),
        ("Structure", r.structure or ""),
        ("Asked for", words.percent(r.target, 2)),
        ("Reached", exact),
        ("By thresholds alone", raw),
        ("Whole model", every),
        ("Training", took),
    ]
    return [(k, v) for k, v in rows if v]


def trust(record: AllocationRecord) -> list[tuple[str, str]]:
    """How alike the allocations of other seeds and of the earlier run are."""
    rows = [("Stability", stability(record)), ("Compared with", comparison(record))]
    return [(k, v) for k, v in rows if v]


def step(record: AllocationRecord) -> dict[str, Any] | None:
    """Where the time of a step went."""
    parts = step_parts(record)
    total = sum(seconds for _, _, seconds in parts)
    if not parts:
        return None
    return {
        "total": milliseconds(total),
        "bar": [(PARTS[key], name, f"{100 * s / total:.2f}") for key, name, s in parts],
        "rows": [(PARTS[key], name, milliseconds(s), words.percent(s / total, fixed=True)) for key, name, s in parts],
    }


def _change(x: AllocationLayer) -> float | None:
    return None if x.start_rate is None else x.rate - x.start_rate


def _spread(x: AllocationLayer) -> str:
    spread = deviation(x)
    return "" if spread is None else f"±{100 * spread:.2f}"


def layers(record: AllocationRecord) -> dict[str, Any]:
    """The table of layers; a column nobody has a value for is left out."""
    unit, sensitivity = scaled([x.sensitivity for x in record.layers])
    columns: list[tuple[str, str, Callable[[AllocationLayer], str]]] = [
        ("extra", "Weights", lambda x: words.count(x.numel)),
        ("", "Zeros, %", lambda x: rate(x.rate)),
        ("extra", "By threshold", lambda x: rate(x.raw_rate)),
        ("", "Began at", lambda x: rate(x.start_rate)),
        ("extra", "Change", lambda x: points(_change(x))),
        ("", f"Sensitivity{unit}", lambda x: sensitivity(x.sensitivity)),
        ("extra", "Drift, %", lambda x: drift(x.drift)),
        ("extra", "Seeds", _spread),
        ("extra", "Earlier", lambda x: rate(x.earlier_rate)),
    ]
    columns = [column for column in columns if any(column[2](x) for x in record.layers)]
    rows = [{"name": x.name, "cells": [(css, show(x)) for css, _, show in columns]} for x in record.layers]
    return {"columns": [(css, title) for css, title, _ in columns], "rows": rows}


def drift(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return words.number(value)
    return f"{100 * value:.1f}"


def kinds(record: AllocationRecord) -> dict[str, Any] | None:
    """Means by kind of layer, weighted by size, where a model of many layers repeats its blocks."""
    if len(record.layers) <= allocation_chart.LIST_LIMIT:
        return None
    groups: dict[str, list[AllocationLayer]] = {}
    for name, members in runs(record.layers):
        for x in members:
            groups.setdefault(kind(x.name) if name else x.name, []).append(x)
    if len(groups) > len(record.layers) / 3:
        return None
    unit, sensitivity = scaled([x.sensitivity for x in record.layers])
    columns: list[tuple[str, str, Callable[[list[AllocationLayer]], str]]] = [
        ("", "Layers", lambda g: words.count(len(g))),
        ("extra", "Weights", lambda g: words.count(sum(x.numel for x in g))),
        ("", "Zeros, %", lambda g: rate(mean(g, [x.rate for x in g]))),
        ("extra", "Lowest", lambda g: rate(min(x.rate for x in g))),
        ("extra", "Highest", lambda g: rate(max(x.rate for x in g))),
        ("extra", "Began at", lambda g: rate(mean(g, [x.start_rate for x in g]))),
        ("extra", "Change", lambda g: points(mean(g, [_change(x) for x in g]))),
        ("", f"Sensitivity{unit}", lambda g: sensitivity(plain_mean([x.sensitivity for x in g]))),
        ("extra", "Drift, %", lambda g: drift(mean(g, [x.drift for x in g]))),
    ]
    columns = [column for column in columns if any(column[2](g) for g in groups.values())]
    rows = [{"name": name, "cells": [(css, show(g)) for css, _, show in columns]} for name, g in groups.items()]
    return {"columns": [(css, title) for css, title, _ in columns], "rows": rows}


def plain_mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
