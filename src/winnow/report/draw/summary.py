"""What a run ends with on a terminal: the verdict, tables as wide as the terminal allows, and named lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from winnow.report.draw.table import Table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

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
            shown: Sequence[RenderableType]
            if isinstance(part, str):
                shown = [Text(part, style="bold")]
            elif isinstance(part, Table):
                shown = list(part.console(options.max_width)) if part else []
            else:
                shown = [Text.assemble((f"{name}: ", STYLES.get(name, "dim")), value) for name, value in part if value]
            if shown and not headed:
                yield Text()
            yield from shown
            headed = isinstance(part, str)
