"""Progress as lines of a log: what is left of it under nohup, in CI and in batch jobs."""

from __future__ import annotations

import logging
import sys
import threading
import time

from winnow.terminal.legible import visible
from winnow.terminal.tracker import Stage, Tracker, View
from winnow.words import duration

log = logging.getLogger("winnow")
EVERY = 30.0  # seconds between two lines of a stage
LONG = 1.0  # seconds from which on the end of a stage is worth a line


class LogView:
    """A line when the work begins, one every 30 seconds, and one at the end of every stage that took a second or more.

    At INFO of the logger ``winnow``; the start of every stage, and the end of those that were shorter, at DEBUG.
    """

    def __init__(self, tracker: Tracker, every: float = EVERY) -> None:
        self.tracker, self.every = tracker, every
        self._begun = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="winnow-progress", daemon=True)

    def __enter__(self) -> LogView:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def begun(self, stage: Stage) -> None:
        log.log(logging.DEBUG if self._begun else logging.INFO, "%s: started", visible(stage.name))
        self._begun = True

    def moved(self, stage: Stage) -> None:
        pass

    def ended(self, stage: Stage) -> None:
        seconds = stage.length() or 0.0
        level = logging.INFO if seconds >= LONG else logging.DEBUG
        log.log(level, "%s: done in %s", visible(stage.name), duration(seconds))

    def line(self) -> str | None:
        """The running stage, done of total, and the time left; None while nothing runs."""
        t, stage = self.tracker, self.tracker.running
        if stage is None or stage.began is None:
            return None
        share = t.share()
        total = "" if share is None else f"{int(100 * share)}%, "
        return (
            f"{visible(stage.name)}: {stage.done:,} of {stage.total:,}, {_left(t.left_of(stage))}; "
            f"total: {total}{_left(t.left())}"
        )

    def _beat(self) -> None:
        while not self._over.wait(self.every):
            if (line := self.line()) is not None:
                log.info("%s", line)


class Details:
    """Another view, and at DEBUG what a stage is at, once a second at most."""

    def __init__(self, view: View | None = None) -> None:
        self.view = view
        self._said = 0.0

    def begun(self, stage: Stage) -> None:
        if self.view is not None:
            self.view.begun(stage)

    def moved(self, stage: Stage) -> None:
        if self.view is not None:
            self.view.moved(stage)
        if stage.what and time.monotonic() - self._said >= 1.0:
            self._said = time.monotonic()
            log.debug(
                "%s: %s of %s, %s", visible(stage.name), f"{stage.done:,}", f"{stage.total:,}", visible(stage.what)
            )

    def ended(self, stage: Stage) -> None:
        if self.view is not None:
            self.view.ended(stage)


class OnStandardError(logging.Handler):
    """Lines on whatever standard error is at the moment: above the bars while there are any."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        print(visible(self.format(record), keep="\n"), file=sys.stderr, flush=True)


def _left(seconds: float | None) -> str:
    return "time left unknown" if seconds is None else f"{duration(seconds)} left"
