"""The short table a terminal shows at the end of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from winnow import words
from winnow.records.compression import Candidate, Report
from winnow.report.allocation import console as allocation_console
from winnow.report.compression import phrases
from winnow.report.speed.tables import line

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table

ROWS = 12  # more candidates than this: the page has them all
NAME = 34  # characters of a candidate's name at most
ROOM = 100  # columns a terminal needs for the whole table
STYLES = {"good": "green", "mixed": "yellow", "bad": "red"}


def summary(report: Report) -> RenderableType:
    """Verdict, table of candidates, warnings and the next step, as something rich can print."""
    return _Summary(report)


class _Summary:
    """Asks the console for its width, and leaves columns out of the table when it is narrow."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from winnow.terminal.screen import Text

        report = self.report
        yield Text(report.verdict.sentence, style=f"bold {STYLES[report.verdict.tone]}")
        if report.candidates:
            yield Text()
            yield _table(report, options.max_width)
        if report.allocation is not None:
            yield Text()
            yield from allocation_console.lines(report.allocation, options.max_width)
        warned = report.allocation.warnings if report.allocation is not None else []  # said above
        notes = [note for note in report.notes if note not in warned]
        named = [("Next step", report.next_step), ("Go back", report.undo), *(("Note", note) for note in notes)]
        named.append(("Speed here", line(report.speed)))
        lines = [Text.assemble((f"{name}: ", "dim"), value) for name, value in named if value]
        if lines:
            yield Text()
            yield from lines


def _table(report: Report, width: int) -> Table:
    from rich.table import Table

    from winnow.terminal.screen import Text

    task, picked = report.task, report.picked
    always: list[tuple[str, Callable[[Candidate], str]]] = [
        ("bits/weight", lambda c: f"{c.bits_per_weight:.2f}" if c.bits_per_weight is not None else ""),
        ("file", lambda c: words.size(c.file_bytes)),
        (words.clip(task.metric, 16), lambda c: phrases.quality(c.quality, task)),
        ("change", lambda c: phrases.change(c, task)),
    ]
    if width >= ROOM:
        always.insert(0, ("zeros", lambda c: words.percent(c.sparsity)))
        always.append(("95 % interval", lambda c: phrases.change_span(c, task)))
    columns = [(title, show) for title, show in always if any(show(c) for c in report.candidates)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("  model", no_wrap=True, overflow="ellipsis")
    for title, _ in columns:
        table.add_column(Text(title), justify="right", no_wrap=True)
    shown = _nearest(report.ranked, picked)
    # Figures stand whole; names make room for them.
    figures = sum(2 + max(len(title), *(len(show(c)) for c in shown)) for title, show in columns)
    limit = min(NAME, max(8, width - figures - 4))
    for c in shown:
        chosen = c is picked
        name = ("> " if chosen else "  ") + words.clip_middle(c.name, limit)
        table.add_row(Text(name), *(Text(show(c)) for _, show in columns), style="bold" if chosen else None)
    if len(shown) < len(report.candidates):
        table.add_row(Text(f"  {len(report.candidates) - len(shown)} more in the report", style="dim"))
    return table


def _nearest(ranked: list[Candidate], picked: Candidate | None) -> list[Candidate]:
    """At most ROWS candidates: dense, ticket and chosen always, then those nearest the chosen one's bits per weight."""
    around = picked.bits_per_weight if picked is not None else None

    def far(c: Candidate) -> float:
        if c is picked or c.unpacked:
            return -1.0
        if c.bits_per_weight is None:
            return float("inf")
        return abs(c.bits_per_weight - around) if around is not None else c.bits_per_weight

    kept = {id(c) for c in sorted(ranked, key=far)[:ROWS]}
    return [c for c in ranked if id(c) in kept]
