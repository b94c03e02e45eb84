"""What a run ends with on a terminal: the verdict, tables as wide as the terminal allows, and named lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from winnow.report.draw.table import Table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

STYLES = {"good": "green", "mixed": "yellow", "bad": "red", "Warning": "yellow"}
Line = tuple[str, str]


@dataclass(frozen=True)
class Summary:
    """Something rich can print: each part is a table, a heading, or named lines, of which those without a value are left
    out."""

    tone: str
    sentence: str
    parts: Sequence[Table | str | Sequence[Line]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from winnow.terminal.screen import Text

        yield Text(self.sentence, style=f"bold {STYLES.get(self.tone, '')}".strip())
        headed = False
        for part in self.parts:
            if isinstance(part, str):
                yield Text()
                yield Text(part, style="bold")
            elif part:
                shown = [part] if isinstance(part, Table) else [line for line in part if line[1]]
                if shown and not headed:
                    yield Text()
                for one in shown:
                    if isinstance(one, Table):
                        yield from one.console(options.max_width)
                    else:
                        name, value = one
                        yield Text.assemble((f"{name}: " if name else "", STYLES.get(name, "dim")), value)
            headed = isinstance(part, str)
