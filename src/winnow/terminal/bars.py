"""Progress as bars: on a terminal, drawn again and again by rich; in a notebook, one output that is replaced."""

from __future__ import annotations

import html
import io
import time
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Column, Table

from winnow.terminal.screen import Console, Text
from winnow.terminal.tracker import Stage, Tracker
from winnow.words import duration

if TYPE_CHECKING:
    from rich.live import Live

BRIEF = 1.0  # seconds: a stage that was over sooner gets no line of its own
NOTEBOOK = 96  # columns


class Picture:
    """The running stage, and below it all stages: description, bar, count, time left. The description gives way first."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def __rich_console__(self, console: Any, options: Any) -> Any:
        bar = max(8, min(24, options.max_width // 6))
        table = Table.grid(
            Column(ratio=1, no_wrap=True, overflow="ellipsis"), Column(width=bar, no_wrap=True),
            Column(justify="right", no_wrap=True), Column(justify="right", no_wrap=True),
            padding=(0, 1), expand=True,
        )  # fmt: skip
        t = self.tracker
        if (stage := t.running) is not None:
            what = f" · {stage.what}" if stage.what else ""
            waits = not stage.total and not console.is_jupyter
            table.add_row(
                Text(stage.name + what), ProgressBar(max(stage.total, 1), stage.done, width=bar, pulse=waits),
                f"{stage.done}/{stage.total}" if stage.total else "", _left(t.left_of(stage)),
            )  # fmt: skip
        share, (over, known) = t.share(), t.counts
        table.add_row(
            Text(f"{f'total: {over} of {known} stages' if known else 'preparing'}, {clock(t.elapsed())} so far", style="dim"),
            ProgressBar(1.0, share or 0.0, width=bar, pulse=share is None and not console.is_jupyter),
            "" if share is None else f"{int(100 * share)}%", _left(t.left()),
        )  # fmt: skip
        yield table


def finished(stage: Stage) -> Text:
    """The line that a finished stage collapses to."""
    text = Text("✓ ", style="green")
    text.append(f"{stage.name}, {duration(stage.length())}", style="dim")
    return text


def clock(seconds: float) -> str:
    """75 -> "1:15"; hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def _left(seconds: float | None) -> str:
    return f"{'-:--' if seconds is None else clock(seconds)} left"


class TerminalView:
    """Two live lines at the foot of a terminal; what was finished stands above them."""

    def __init__(self, tracker: Tracker, console: Console) -> None:
        self.tracker, self.console = tracker, console
        self._live: Live | None = None

    def __enter__(self) -> TerminalView:
        from rich.live import Live

        picture = Picture(self.tracker)
        self._live = Live(
            console=self.console, refresh_per_second=4, transient=True, get_renderable=lambda: picture,
            redirect_stdout=False,
        )  # fmt: skip
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def begun(self, stage: Stage) -> None:
        pass

    def moved(self, stage: Stage) -> None:
        pass

    def ended(self, stage: Stage) -> None:
        if (stage.length() or 0.0) >= BRIEF:
            self.console.print(_one_line(finished(stage), self.console.width))


def _one_line(text: Text, width: int) -> RenderableType:
    text.truncate(width, overflow="ellipsis")
    return text


class NotebookView:
    """One output of a notebook's cell, replaced as work goes on: needs no widgets, and its last state is saved with the cell."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self._handle: Any = None
        self._shown = 0.0
        self._lines: list[Stage] = []

    def __enter__(self) -> NotebookView:
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._show(force=True)

    def begun(self, stage: Stage) -> None:
        self._show()

    def moved(self, stage: Stage) -> None:
        self._show()

    def ended(self, stage: Stage) -> None:
        if (stage.length() or 0.0) >= BRIEF:
            self._lines.append(stage)
        self._show()

    def _show(self, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._shown < 0.5:
            return
        from IPython.display import HTML, display

        self._shown = now
        page = HTML(self.page(live=not force))
        if self._handle is None:
            self._handle = display(page, display_id=True)
        else:
            self._handle.update(page)

    def page(self, live: bool = True) -> str:
        """Finished stages folded into one line, and the bars while there is work."""
        over, known = self.tracker.counts
        rows = "".join(f"<br>{html.escape(finished(s).plain)}" for s in self._lines)
        head = f"{over} of {known} stages in {html.escape(duration(self.tracker.elapsed()))}"
        folded = f"<details><summary>{head}</summary>{rows.removeprefix('<br>')}</details>"
        if not live:
            return folded
        screen = Console(
            file=io.StringIO(), width=NOTEBOOK, record=True, force_jupyter=False, force_terminal=True, color_system="truecolor",
            no_color=False, legacy_windows=False,
        )  # fmt: skip
        screen.print(Picture(self.tracker))
        drawn = screen.export_html(inline_styles=True, code_format="<pre style='line-height:1.3'>{code}</pre>")
        return folded + drawn
