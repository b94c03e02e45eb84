"""The table that a search ends with on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from winnow import words
from winnow.records.ticket import Row, TicketReport
from winnow.report.compression import phrases
from winnow.report.ticket.words import change, change_span, flops, passes, span, steps, unit

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table

STYLES = {"good": "green", "mixed": "yellow", "bad": "red"}


def console_table(report: TicketReport) -> RenderableType:
    """Verdict, a row for each method and sparsity, and the warnings; columns are left out on a narrow terminal."""
    return _Summary(report)


class _Summary:
    def __init__(self, report: TicketReport) -> None:
        self.report = report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from winnow.terminal.screen import Text

        report = self.report
        yield Text(report.verdict.sentence, style=f"bold {STYLES[report.verdict.tone]}")
        yield Text()
        yield _table(report, options.max_width)
        yield Text(_footer(report), style="dim")
        for warning in report.warnings:
            yield Text.assemble(("Warning: ", "yellow"), warning)
        for note in report.notes:
            yield Text.assemble(("Note: ", "dim"), note)


def _footer(report: TicketReport) -> str:
    said = f"T is {words.count(report.steps)} steps"
    if report.dense is not None:
        ends = span(report.dense, report.task)
        said = (
            f"Dense {phrases.quality(report.dense.value, report.task)}" + (f" ({ends})" if ends else "") + f"; {said}"
        )
    return said + "; intervals are 95 %, paired for differences"


def _table(report: TicketReport, width: int) -> Table:
    from rich.table import Table

    from winnow.terminal.screen import Text

    task = report.task
    # The first stay longest when the terminal is narrow.
    columns: list[tuple[int, str, Callable[[Row], str]]] = [
        (0, words.clip(task.metric, 16), lambda r: phrases.quality(r.figure.value, task) if r.figure else ""),
        (6, "95 % interval", lambda r: span(r.figure, task)),
        (1, f"vs dense, {unit(task)}", lambda r: change(r.drop, task)),
        (3, "95 % interval", lambda r: change_span(r.drop, task)),
        (5, f"vs {report.brief(report.reference)}" if report.reference else "", lambda r: change(r.against, task)),
        (2, "steps", lambda r: steps(r.steps)),
        (2, "", lambda r: passes(r.passes)),
        (4, "full IMP", lambda r: passes(r.imp_steps / report.steps) if r.zeros else ""),
        (7, "FLOPs", lambda r: flops(r.dense_flops)),
        (8, "sparse", lambda r: flops(r.sparse_flops)),
        (9, "seeds", lambda r: str(r.seeds) if r.seeds > 1 else ""),
        (10, "time", lambda r: words.duration(r.seconds) if r.seconds else ""),
    ]
    kept = [(rank, title, [show(r) for r in report.rows]) for rank, title, show in columns]
    kept = [column for column in kept if any(column[2])]
    names = 2 + max(len(report.named(r.method)) for r in report.rows)

    def wide() -> int:
        return 7 + names + sum(2 + max(len(title), *map(len, cells)) for _, title, cells in kept)

    while len(kept) > 1 and wide() > width:
        kept.remove(max(kept, key=lambda column: column[0]))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("zeros", justify="right", no_wrap=True)
    table.add_column("method", no_wrap=True, overflow="ellipsis")
    for _, title, _ in kept:
        table.add_column(Text(title), justify="right", no_wrap=True)
    last = None
    for i, r in enumerate(report.rows):
        picked = r.method == report.chosen and abs(r.sparsity - report.sparsity) < 1e-9
        zeros = "" if r.sparsity == last else words.percent(r.sparsity)
        table.add_row(
            zeros,
            Text(report.named(r.method)),
            *(Text(cells[i]) for _, _, cells in kept),
            style="bold" if picked else None,
        )
        last = r.sparsity
    return table


def lines(report: TicketReport, width: int = 120) -> Iterator[str]:
    """The same as plain text, for logs."""
    import io

    from winnow.terminal.screen import Console

    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False).print(console_table(report))
    yield from out.getvalue().splitlines()
