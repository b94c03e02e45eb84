"""What a terminal shows: progress with time left, and tables that align."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from winnow.legible import visible
from winnow.report.words import bulk, count, duration, number, size

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from winnow.compression.plan import Plan
    from winnow.verbs.evaluate import Measured
    from winnow.verbs.inspect import Inspection


WIDE = 160  # columns where no terminal says how wide it is: tables in a log or a pipe are not cut


def console() -> Console:
    """Standard output, texts taken as they are: see :mod:`winnow.report.screen`."""
    from winnow.report.screen import Console

    screen = Console()
    return screen if screen.is_terminal else Console(width=WIDE)


class Bars:
    """Progress on standard error: one line per stage, with the time left. Silent when quiet or not on a terminal."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        if not self._quiet:
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            from winnow.report.screen import Console

            console = Console(stderr=True)
            self._progress = Progress(
                TextColumn("{task.description:<40.40}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[what]:<32.32}", style="dim", markup=False),
                console=console,
                disable=not console.is_terminal,
            )
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def stage(self, name: str) -> Callable[[int, int, str], None]:
        """A function (done, total, what) that moves the stage's bar."""

        def update(done: int, total: int, what: str = "") -> None:
            if self._progress is None:
                return
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(visible(name), total=total, what="")
            shown = visible(what) if done < total else ""
            self._progress.update(self._tasks[name], completed=done, total=total, what=shown)

        return update


def plan_table(plan: Plan) -> RenderableType:
    """The plan of a dry run."""
    from rich.console import Group
    from rich.table import Table

    from winnow.report.screen import Text

    ledger = plan.ledger
    rows = Table.grid(padding=(0, 2))
    rows.add_column()
    rows.add_column(justify="right")
    rows.add_row("method", plan.method)
    rows.add_row("prunable weights", f"{count(plan.prunable)} of {count(plan.total)}")
    for reason, n in sorted(plan.skipped.items(), key=lambda x: -x[1]):
        rows.add_row(Text(f"  left alone: {reason}"), count(n))
    rows.add_row("weights file now", size(plan.dense_file))
    for text, zeros, expected in plan.rates:
        rows.add_row(f"  at {text}: {count(zeros)} weights go", f"about {size(expected)}")
    for note in plan.notes:
        rows.add_row(Text(f"note: {note}"), "")
    rows.add_row("time per candidate", f"about {duration(plan.seconds)}")
    rows.add_row("disk while it runs", f"about {size(plan.disk)} per candidate")
    memory = Table.grid(padding=(0, 2))
    memory.add_column()
    memory.add_column(justify="right")
    for what, bytes_ in ledger.table():
        memory.add_row(f"  {what}", size(bytes_))
    memory.add_row(
        "peak memory", f"about {size(ledger.need)}" + (f" of {size(ledger.limit)} allowed" if ledger.limit else "")
    )
    return Group(Text("Plan (nothing is written)", style="bold"), rows, Text(""), memory)


def inspection_table(found: Inspection) -> RenderableType:
    """One line per parameter, prunable ones first in the model's order."""
    from rich.console import Group
    from rich.table import Table

    from winnow.report.screen import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("parameter", overflow="fold")
    for heading in ("shape", "weights", "zeros", "bits"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for x in found.layers:
        zeros = "" if x.zeros is None else f"{100 * x.zeros / max(x.numel, 1):.1f} %"
        shape = " x ".join(map(str, x.shape))
        reason = x.reason if x.prunable else f"not pruned: {x.reason}"
        cells = (x.name, shape, count(x.numel), zeros, number(x.bits_per_weight), reason)
        table.add_row(*map(Text, cells), style=None if x.prunable else "dim")
    sparsity = "" if found.sparsity is None else f", {100 * found.sparsity:.4g} % of them zero"
    head = f"{found.spec} ({found.architecture}): {bulk(found.parameters)} parameters, {count(found.prunable)} prunable{sparsity}, {size(found.file_bytes)}"
    return Group(Text(head, style="bold"), table, *(Text(note) for note in found.notes))


def evaluation_table(found: Measured) -> RenderableType:
    """The figure with its interval, what it was measured on, and the change against a reference."""
    from rich.console import Group
    from rich.table import Table

    from winnow.report.screen import Text

    unit = f" {found.unit}" if found.unit else ""
    rows = Table.grid(padding=(0, 2))
    rows.add_column()
    rows.add_column()
    rows.add_row(
        Text(found.metric), f"{number(found.value)}{unit}  (95 %: {number(found.low)} to {number(found.high)})"
    )
    rows.add_row("measured on", Text(found.description))
    if found.reference is not None:
        worse = "per cent" if found.relative else "points"
        rows.add_row("against", Text(f"{found.reference}: {number(found.reference_value)}{unit}"))
        rows.add_row(
            "lost", f"{number(found.drop)} {worse}  (95 %: {number(found.drop_low)} to {number(found.drop_high)})"
        )
    for name, value in found.details.items():
        if isinstance(value, (int, float)):
            rows.add_row(Text(name.replace("_", " ")), number(value))
    for task, figures in found.harness.items():
        shown = ", ".join(f"{k} {number(v)}" for k, v in figures.items() if isinstance(v, (int, float)))
        rows.add_row(Text(task), Text(shown))
    for note in found.notes:
        rows.add_row("note", Text(note))
    return Group(Text(found.model, style="bold"), rows)
