"""The allocation on a terminal: one line of figures, and a compact table of layers or blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from winnow import words
from winnow.records.allocation import AllocationLayer, AllocationRecord
from winnow.report.allocation.tables import plain_mean
from winnow.report.allocation.words import (
    comparison,
    mean,
    milliseconds,
    named,
    points,
    rate,
    runs,
    scaled,
    shortened,
    stability,
    step_parts,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

LAYERS = 24  # more of them are summed up by block
ROWS = 40  # more blocks than this: those farthest from the rate asked for
NAME = 40
Row = tuple[str, list[AllocationLayer]]


def lines(record: AllocationRecord, width: int = 80) -> Iterator[RenderableType]:
    """What a terminal shows of an allocation after the run's own summary: nothing wider than ``width`` columns."""
    from winnow.terminal.screen import Text

    yield Text(headline(record), style="bold")
    rows, unit = arrange(record)
    if rows:
        yield _table(record, rows, unit, width)
        total = len(runs(record.layers)) if unit == "block" else len(record.layers)
        if len(rows) < total:
            yield Text(f"{total - len(rows)} more in the report, nearer to the rate asked for", style="dim")
    for name, value in (("Stability", stability(record)), ("Compared with", comparison(record))):
        if value:
            yield Text.assemble((f"{name}: ", "dim"), value)
    for warning in record.warnings:
        yield Text.assemble(("Warning: ", "yellow"), warning)


def headline(record: AllocationRecord) -> str:
    """Rates, steps and time in one line."""
    said = []
    if record.exact_rate is not None:
        said.append(f"{words.percent(record.exact_rate, 2)} zeros")
        if record.raw_rate is not None:
            said[-1] += f" ({words.percent(record.raw_rate, 2)} by thresholds alone)"
    if record.steps is not None:
        took = words.duration(record.seconds)
        said.append(f"{words.count(record.steps)} steps" + (f" in {took}" if took else ""))
    parts = step_parts(record)
    if parts:
        total = sum(s for _, _, s in parts)
        bridge = sum(s for key, _, s in parts if key == "bridge")
        said.append(f"{milliseconds(total)} a step" + (f", bridge {words.percent(bridge / total)}" if bridge else ""))
    start = f" from {named(record.start)}" if record.start else ""
    return f"Allocation by {named(record.method)}{start}" + (": " + ", ".join(said) if said else "")


def arrange(record: AllocationRecord) -> tuple[list[Row], str]:
    """The rows of the table and what one of them is: a layer, or a block where there are more than LAYERS layers."""
    rows: list[Row] = [(x.name, [x]) for x in record.layers]
    unit = "layer"
    if len(rows) > LAYERS:
        blocks = [(name or members[0].name, members) for name, members in runs(record.layers)]
        if len(blocks) < len(rows):
            rows, unit = blocks, "block"
    if len(rows) > ROWS:
        goal = record.target if record.target is not None else mean(record.layers, [x.rate for x in record.layers])
        ranked = sorted(range(len(rows)), key=lambda i: -abs((_rate(rows[i][1]) or 0.0) - (goal or 0.0)))
        rows = [rows[i] for i in sorted(ranked[:ROWS])]
    return rows, unit


def _rate(group: list[AllocationLayer]) -> float | None:
    return mean(group, [x.rate for x in group])


def _table(record: AllocationRecord, rows: list[Row], unit: str, width: int) -> Table:
    from rich.table import Table

    from winnow.terminal.screen import Text

    def began(group: list[AllocationLayer]) -> float | None:
        return mean(group, [x.start_rate for x in group])

    def moved(group: list[AllocationLayer]) -> str:
        known = [x for x in group if x.start_rate is not None]
        now, then = _rate(known), began(known)
        return points(now - then) if now is not None and then is not None else ""

    power, sensitivity = scaled([x.sensitivity for x in record.layers])
    columns: list[tuple[str, Callable[[list[AllocationLayer]], str]]] = [
        ("zeros, %", lambda g: rate(_rate(g))),
        (f"sensitivity{power}", lambda g: sensitivity(plain_mean([x.sensitivity for x in g]))),
        ("change", moved),
        ("began at", lambda g: rate(began(g))),
        ("earlier", lambda g: rate(mean(g, [x.earlier_rate for x in g]))),
        ("weights", lambda g: words.count(sum(x.numel for x in g))),
    ]
    kept = [(title, [show(group) for _, group in rows]) for title, show in columns]
    kept = [(title, cells) for title, cells in kept if any(cells)]
    wide = [2 + max(len(title), *map(len, cells)) for title, cells in kept]
    while len(kept) > 1 and sum(wide) + 14 > width:  # figures stand whole; the last columns make room
        kept.pop()
        wide.pop()
    limit = min(NAME, max(8, width - sum(wide) - 2))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(unit, no_wrap=True, overflow="ellipsis")
    for title, _ in kept:
        table.add_column(title, justify="right", no_wrap=True)
    for i, name in enumerate(shortened([name for name, _ in rows])):
        table.add_row(Text(words.clip_middle(name, limit)), *(Text(cells[i]) for _, cells in kept))
    return table
