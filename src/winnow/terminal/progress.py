"""Progress of work that takes long: as bars, as lines of a log, or by a function of the caller's."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from winnow.errors import InputError
from winnow.terminal.tracker import Expected, Prefixed, Tracker, Update, expect

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Expected", "Prefixed", "Progress", "ProgressOption", "Tracker", "Update", "console", "expect", "on_the_command_line", "silent", "watch"]  # fmt: skip

Progress = Callable[[str], Update]  # called with a stage's name, gives a function (done, total, what)
ProgressOption = Progress | bool | None  # what the verbs of Python take as ``progress``; see :func:`watch`
WIDE = 160  # columns where no terminal says how wide it is: tables in a log or a pipe are not cut

log = logging.getLogger("winnow")


def console() -> Console:
    """Standard output, texts taken as they are: see :mod:`winnow.terminal.screen`."""
    from winnow.terminal.screen import Console

    screen = Console()
    return screen if screen.is_terminal else Console(width=WIDE)


def silent(stage: str) -> Update:
    """The progress that shows nothing."""

    def nothing(done: int, total: int, what: str = "") -> None:
        pass

    return nothing


@contextlib.contextmanager
def watch(progress: ProgressOption = None) -> Iterator[Progress]:
    """What a verb reports its stages to, made of its argument ``progress``.

    A function is called with every stage's name and gives a function (done, total, what). None shows bars on a terminal and
    in a notebook, and elsewhere a line every 30 seconds and at the end of each stage that took a second or more, at INFO of
    the logger ``winnow``. True is the same, and where logging leaves such lines out, prints them on standard error. False shows nothing.

    Raises:
        InputError: anything else.
    """
    if callable(progress):
        yield progress
    elif progress is False:
        yield silent
    elif progress is None or progress is True:
        with contextlib.ExitStack() as stack:
            yield _shown(stack, bars=True, lines=progress is True)
    else:
        raise InputError(
            f"progress={progress!r} is no way to show it: give True, False, or a function of a stage's name."
        )


@contextlib.contextmanager
def on_the_command_line(*, quiet: bool, verbose: bool, as_json: bool) -> Iterator[Progress]:
    """The progress of a command, on standard error: bars on a terminal, lines elsewhere and with ``--json``.

    ``verbose`` adds details, at DEBUG; ``quiet`` leaves the result and errors only.

    Raises:
        InputError: both at once.
    """
    if quiet and verbose:
        raise InputError("--quiet and --verbose are mutually exclusive: give one of them.", option="quiet")
    with contextlib.ExitStack() as stack:
        if quiet:
            import warnings

            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(_level(logging.ERROR))
            yield silent
        else:
            if verbose:
                stack.enter_context(_level(logging.DEBUG))
                stack.enter_context(_printed(logging.DEBUG))
            yield _shown(stack, bars=not as_json, lines=True)


def _shown(stack: contextlib.ExitStack, *, bars: bool, lines: bool) -> Progress:
    """A tracker with the view that fits the place; nothing where no one would see it."""
    view: Any
    if bars:
        from winnow.terminal.screen import Console

        screen = Console(stderr=True)
        there = screen.is_interactive and sys.stderr.isatty()  # FORCE_COLOR makes no terminal of a log
        if screen.is_jupyter or there:
            from winnow.terminal.bars import NotebookView, TerminalView

            tracker = Tracker()
            view = NotebookView(tracker) if screen.is_jupyter else TerminalView(tracker, screen)
            return _viewed(stack, tracker, view)
    if lines and not _hears():
        stack.enter_context(_level(min(logging.INFO, log.getEffectiveLevel())))
        stack.enter_context(_printed(logging.INFO))
    if not log.isEnabledFor(logging.INFO):
        return silent
    from winnow.terminal.lines import LogView

    tracker = Tracker()
    return _viewed(stack, tracker, LogView(tracker))


def _viewed(stack: contextlib.ExitStack, tracker: Tracker, view: Any) -> Tracker:
    stack.enter_context(view)
    tracker.view = view
    if log.isEnabledFor(logging.DEBUG):
        from winnow.terminal.lines import Details

        tracker.view = Details(view)
    return tracker


def _hears() -> bool:
    """Whether someone takes the lines already."""
    return log.isEnabledFor(logging.INFO) and log.hasHandlers()


@contextlib.contextmanager
def _level(level: int) -> Iterator[None]:
    before = log.level
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)


@contextlib.contextmanager
def _printed(level: int) -> Iterator[None]:
    from winnow.terminal.lines import OnStandardError

    handler = OnStandardError(level)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
