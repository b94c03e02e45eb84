"""The tables that ``winnow bench`` ends with on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from winnow import words
from winnow.records.speed import Bench, Contender, LayerSpeed, Measure
from winnow.report.speed import tables as speed_tables
from winnow.report.speed.chart import milli, times
from winnow.report.speed.view import headline

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

STYLES = {"good": "green", "mixed": "yellow", "bad": "red"}
LAYERS = 12  # distinct ones at most: the page has them all


def bench_table(bench: Bench) -> RenderableType:
    """Answer, a table a case, what each contender costs, the layers, and what could not be measured."""
    from rich.console import Group

    return Group(*_parts(bench))


def _parts(bench: Bench) -> Iterator[RenderableType]:
    from winnow.terminal.screen import Text

    said, tone = headline(bench)
    yield Text(said, style=f"bold {STYLES[tone]}")
    for case in bench.cases:
        measures = [m for m in bench.measures if m.case == case.name]
        yield Text()
        yield Text(f"{words.capital(case.name)} ({case.rounds} rounds)", style="bold")
        columns: list[tuple[str, Callable[[Measure], str]]] = [
            ("median", lambda m: milli(m.times.median)),
            ("p95", lambda m: milli(m.times.p95)),
            ("middle half", lambda m: milli(m.times.q3 - m.times.q1)),
            (f"{case.unit}/s", lambda m: words.number(m.per_second)),
            ("against dense", lambda m: times(m.ratio)),
            ("95 % interval", speed_tables.interval),
            ("limit", lambda m: milli(m.limit)),
            ("output differs", lambda m: speed_tables.off(m.difference)),
        ]
        yield _table([m.contender for m in measures], columns, measures)
    yield Text()
    about: list[tuple[str, Callable[[Contender], str]]] = [
        ("weights", lambda c: c.weights),
        ("file", lambda c: words.size(c.file_bytes)),
        ("loads in", lambda c: words.duration(c.load_seconds)),
        ("memory to load", lambda c: words.size(c.load_bytes)),
        ("to run", lambda c: words.size(c.run_bytes)),
        ("energy", speed_tables.joules),
        ("changes values", lambda c: c.changes or ""),
    ]
    yield _table([c.name for c in bench.contenders], about, bench.contenders, left=("weights", "changes values"))
    yield from _layers(bench)
    b = bench.bandwidth
    lines = [
        *((f"{c.name} runs on", speed_tables.kernels(c.kernels)) for c in bench.contenders if c.kernels),
        *((f"{a.name}", a.reason) for a in bench.absent),
        ("Memory bandwidth", f"{b.bytes_per_second / 1e9:.1f} GB/s, {b.threads} thread{'s' if b.threads > 1 else ''}" if b else ""),
        ("Energy", bench.energy or ""),
        ("Machine", f"{bench.machine.get('cpu')}, {bench.machine.get('instruction set')}, load average {bench.machine.get('load average', 'not known')}"),
        *(("Note", note) for note in bench.notes),
    ]  # fmt: skip
    yield Text()
    for name, value in lines:
        if value:
            yield Text.assemble((f"{name}: ", "dim"), value)


def _layers(bench: Bench) -> Iterator[RenderableType]:
    from winnow.terminal.screen import Text

    distinct = speed_tables.distinct(bench.layers)
    if not distinct:
        return
    counts = {layer.name: n for layer, n in distinct}
    layers = [layer for layer, _ in distinct[:LAYERS]]

    def best(x: LayerSpeed) -> str:
        return speed_tables.fastest(x) or ""

    columns: list[tuple[str, Callable[[LayerSpeed], str]]] = [
        ("alike", lambda x: str(counts[x.name])),
        ("shape", lambda x: f"{x.rows} x {x.cols}"),
        ("zeros", lambda x: words.percent(x.sparsity)),
        ("rows of x", lambda x: words.count(x.inputs)),
        ("dense", lambda x: milli(x.times["dense float32"])),
        ("packed", lambda x: milli(x.times.get(best(x)))),
        ("faster", lambda x: times(x.times["dense float32"] / x.times[best(x)]) if best(x) else ""),
        ("limit", lambda x: milli(x.limit)),
        ("kernel", best),
    ]
    yield Text()
    yield Text("Layer by layer, weights coming from memory", style="bold")
    yield _table([layer.name for layer in layers], columns, layers, left=("kernel",))
    if len(distinct) > LAYERS:
        yield Text(f"{len(distinct) - LAYERS} more in the page", style="dim")


def _table(
    names: Sequence[str],
    columns: Sequence[tuple[str, Callable[[Any], str]]],
    items: Sequence[Any],
    left: Sequence[str] = (),
) -> Table:
    from rich.table import Table

    from winnow.terminal.screen import Text

    kept = [(title, show) for title, show in columns if any(show(item) for item in items)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", no_wrap=True, overflow="ellipsis", max_width=48)
    for title, _ in kept:
        table.add_column(title, justify="left" if title in left else "right", no_wrap=title not in left)
    for name, item in zip(names, items, strict=True):
        table.add_row(Text(words.clip_middle(name, 48)), *(Text(show(item)) for _, show in kept))
    return table
