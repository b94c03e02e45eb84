"""Layers, blocks and kinds of layers in figures: one table for all, on the page and on a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from winnow import words
from winnow.records.allocation import AllocationLayer, AllocationRecord
from winnow.report.allocation.words import deviation, kind, mean, points, rate, runs, scaled, shortened
from winnow.report.draw import table
from winnow.report.draw.table import Column, Table

MANY = 40  # more layers than this are summed up by kind on the page
LAYERS = 24  # more layers than this are summed up by block on a terminal
ROWS = 40  # more of these than this: those farthest from the target
Group = tuple[str, Sequence[AllocationLayer]]
Get = Callable[[AllocationLayer], float | None]


def figures(record: AllocationRecord, first: str, groups: Sequence[Group], css: str = "paths") -> Table:
    """A row for each group of layers: means over weights, of a sensitivity over layers."""
    unit, sensitivity = scaled([x.sensitivity for x in record.layers])
    lone = all(len(members) == 1 for _, members in groups)

    def over(get: Get, show: Callable[[float | None], str], plain: bool = False) -> Callable[[Group], str]:
        return lambda group: show(_mean(group[1], get, plain))

    columns: list[Column[Group]] = [
        Column("Layers", lambda g: "" if lone else words.count(len(g[1]))),
        Column("Sparsity, %", over(lambda x: x.rate, rate)),
        Column("Lowest", lambda g: "" if lone else rate(min(x.rate for x in g[1])), "extra"),
        Column("Highest", lambda g: "" if lone else rate(max(x.rate for x in g[1])), "extra"),
        Column(f"Sensitivity{unit}", over(lambda x: x.sensitivity, sensitivity, plain=True)),
        Column("Start", over(lambda x: x.start_rate, rate), "" if lone else "extra"),
        Column("Change", over(lambda x: None if x.start_rate is None else x.rate - x.start_rate, points), "extra"),
        Column("Earlier", over(lambda x: x.earlier_rate, rate), "extra"),
        Column("By threshold", over(lambda x: x.raw_rate, rate), "roomy"),
        Column("Drift, %", over(lambda x: x.drift, _drift), "roomy"),
        Column("Seeds", over(deviation, lambda v: "" if v is None or not lone else f"±{100 * v:.2f}"), "roomy"),
        Column("Weights", lambda g: words.count(sum(x.numel for x in g[1])), "roomy"),
    ]
    return Table.of(first, groups, columns, lambda g: table.Row(g[0]), css)


def layers(record: AllocationRecord) -> Table:
    return figures(record, "Layer", [(x.name, [x]) for x in record.layers])


def kinds(record: AllocationRecord) -> Table | None:
    """Means by kind of layer, where a model of many layers repeats its blocks."""
    groups: dict[str, list[AllocationLayer]] = {}
    for name, members in runs(record.layers):
        for x in members:
            groups.setdefault(kind(x.name) if name else x.name, []).append(x)
    few = len(record.layers) <= MANY or len(groups) > len(record.layers) / 3
    return None if few else figures(record, "Kind", list(groups.items()))


def arrange(record: AllocationRecord) -> tuple[list[Group], str]:
    """The rows on a terminal and what one of them is: a layer, or a block where there are more than LAYERS layers."""
    rows: list[Group] = [(x.name, [x]) for x in record.layers]
    unit = "layer"
    if len(rows) > LAYERS:
        blocks: list[Group] = [(name or members[0].name, members) for name, members in runs(record.layers)]
        if len(blocks) < len(rows):
            rows, unit = blocks, "block"
    if len(rows) > ROWS:
        reached = [_mean(members, lambda x: x.rate) or 0.0 for _, members in rows]
        goal = record.target if record.target is not None else _mean(record.layers, lambda x: x.rate) or 0.0
        ranked = sorted(range(len(rows)), key=lambda i: -abs(reached[i] - goal))
        rows = [rows[i] for i in sorted(ranked[:ROWS])]
    return rows, unit


def compact(record: AllocationRecord) -> Table:
    """The table for a terminal."""
    rows, unit = arrange(record)
    total = len(runs(record.layers)) if unit == "block" else len(record.layers)
    names = shortened([name for name, _ in rows])
    found = figures(record, words.capital(unit), list(zip(names, (members for _, members in rows), strict=True)))
    more = f"{total - len(rows)} more in the report, nearer to the target" if len(rows) < total else ""
    return replace(found, more=more)


def _drift(value: float | None) -> str:
    return words.number(value) if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def _mean(members: Sequence[AllocationLayer], get: Get, plain: bool = False) -> float | None:
    return mean((get(x), 1 if plain else max(x.numel, 1)) for x in members)
