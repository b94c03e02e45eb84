"""What a terminal shows: progress with time left, and tables that align."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from winnow.terminal.legible import visible

if TYPE_CHECKING:
    from rich.console import Console


WIDE = 160  # columns where no terminal says how wide it is: tables in a log or a pipe are not cut


def console() -> Console:
    """Standard output, texts taken as they are: see :mod:`winnow.terminal.screen`."""
    from winnow.terminal.screen import Console

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
            from rich import progress as rich

            from winnow.terminal.screen import Console

            console = Console(stderr=True)
            self._progress = rich.Progress(
                rich.TextColumn("{task.description:<40.40}", markup=False),
                rich.BarColumn(bar_width=24),
                rich.MofNCompleteColumn(),
                rich.TimeElapsedColumn(),
                rich.TextColumn("left"),
                rich.TimeRemainingColumn(),
                rich.TextColumn("{task.fields[what]:<32.32}", style="dim", markup=False),
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
