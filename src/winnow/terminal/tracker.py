"""How far work is: its stages, what is still to come, and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

Update = Callable[[int, int, str], None]  # (done, total, what)


class Expected(NamedTuple):
    """A stage to come. ``name`` may end in ``*``: any stage whose name begins so.

    Stages of one ``kind`` are taken to last alike: those that are over tell how long; before that, ``guess`` seconds.
    """

    name: str
    kind: str
    guess: float | None = None

    def fits(self, name: str) -> bool:
        return name.startswith(self.name[:-1]) if self.name.endswith("*") else name == self.name


@dataclass(eq=False)
class Stage:
    """A stage that was named. With its first update it has begun, with one that says that all is done it is over."""

    name: str
    kind: str
    guess: float | None = None
    named: float = 0.0
    began: float | None = None  # since it was named: a first update comes when the first part is done
    ended: float | None = None
    given_up: bool = False  # another was begun in its place: nothing of it was to do
    done: int = 0
    total: int = 0
    what: str = ""
    first: int = 0  # what was done at the first update: a run that resumes begins in the middle
    first_at: float = 0.0
    updated: float = 0.0

    def seconds(self, now: float) -> float:
        return 0.0 if self.began is None else (now if self.ended is None else self.ended) - self.began

    def length(self) -> float | None:
        """Seconds that all of it takes, by what is over; None where nothing is."""
        if self.began is None:
            return None
        if self.ended is not None:
            return self.ended - self.began
        spent, passed = self.updated - self.first_at, self.done - self.first
        if passed <= 0 or spent <= 0:
            return None
        return self.first_at - self.began + spent * (self.total - self.first) / passed


class View(Protocol):
    """What shows a tracker's changes."""

    def begun(self, stage: Stage) -> None: ...

    def moved(self, stage: Stage) -> None: ...

    def ended(self, stage: Stage) -> None: ...


@dataclass(eq=False)
class Tracker:
    """Called with the name of a stage, gives a function (done, total, what); keeps what a ``view`` shows."""

    view: View | None = None
    clock: Callable[[], float] = time.monotonic
    stages: list[Stage] = field(default_factory=list)
    planned: list[Expected] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.started = self.clock()
        self._share = 0.0

    def expect(self, stages: Iterable[Expected]) -> None:
        """Stages that will come, in this order; they take the place of the first expected one that stands for them all."""
        new = list(stages)
        if not new:
            return
        at = next((i for i, e in enumerate(self.planned) if e.name.endswith("*") and e.fits(new[0].name)), None)
        if at is None:
            self.planned += new
        else:
            self.planned[at : at + 1] = new

    def __call__(self, name: str) -> Update:
        for other in self.stages:
            other.given_up = other.given_up or other.began is None
        at = next((i for i, e in enumerate(self.planned) if e.fits(name)), None)
        if at is None:
            stage = Stage(name, name)
        else:  # what was expected before it is not coming any more: it was finished by an earlier run
            stage = Stage(name, self.planned[at].kind, self.planned[at].guess)
            del self.planned[: at + 1]
        stage.named = self.clock()
        self.stages.append(stage)

        def update(done: int, total: int, what: str = "") -> None:
            self._update(stage, done, total, what)

        return update

    def _update(self, stage: Stage, done: int, total: int, what: str) -> None:
        now = self.clock()
        fresh = stage.began is None
        again = stage.ended is not None and done < total
        if fresh or again:
            stage.began = stage.named if fresh else now
            stage.ended, stage.given_up, stage.first, stage.first_at = None, False, done, now
        if stage.ended is not None:
            return
        stage.done, stage.total, stage.what, stage.updated = done, total, what, now
        if self.view is not None and (fresh or again):
            self.view.begun(stage)
        if done >= total:
            stage.ended = now
        if self.view is not None:
            (self.view.moved if stage.ended is None else self.view.ended)(stage)

    @property
    def running(self) -> Stage | None:
        """The stage that moved last, of those that are not over; else the one that was named last and may begin yet."""
        open_ = [s for s in self.stages if s.ended is None and not s.given_up]
        return max(open_, key=lambda s: s.updated if s.began is not None else s.named, default=None)

    @property
    def counts(self) -> tuple[int, int]:
        """Stages that are over, and all that are known of."""
        known = [s for s in self.stages if not s.given_up]
        return sum(s.ended is not None for s in known), len(known) + len(self.planned)

    def elapsed(self) -> float:
        return self.clock() - self.started

    def left(self) -> float | None:
        """Seconds until all stages are over, by what those of their kind took; None while there is no telling."""
        if not self.stages and not self.planned:
            return None
        total = 0.0
        for stage in self.stages:
            if (part := self.left_of(stage)) is None:
                return None
            total += part
        for expected in self.planned:
            if (length := self._usual(expected.kind, expected.guess)) is None:
                return None
            total += length
        return total

    def left_of(self, stage: Stage) -> float | None:
        """Seconds until a stage is over; None where there is no telling, also once it takes longer than was reckoned."""
        if stage.ended is not None or stage.given_up:
            return 0.0
        length = stage.length()
        if length is None:
            length = self._usual(stage.kind, stage.guess)
        spent = stage.seconds(self.clock())
        return None if length is None or spent > length else length - spent

    def share(self) -> float | None:
        """Share of the whole time that is over: it never falls, and is 1 only at the end. None before there is any telling."""
        left = self.left()
        if left is None:
            return self._share or None  # what was known last
        elapsed = self.elapsed()
        found = elapsed / (elapsed + left) if elapsed + left > 0 else 0.0
        over, known = self.counts
        self._share = max(self._share, min(found, 1.0 if known and over == known else 0.99))
        return self._share

    def _usual(self, kind: str, guess: float | None) -> float | None:
        """Seconds of a stage of this kind: the mean of those that are over, else what a running one comes to, else the guess."""
        alike = [s for s in self.stages if s.kind == kind]
        over = [s.length() for s in alike if s.ended is not None]
        found = [x for x in (over or [s.length() for s in alike]) if x is not None]
        return sum(found) / len(found) if found else guess


class Prefixed:
    """The progress of a part: its stages get a prefix in front of their names."""

    def __init__(self, progress: Callable[[str], Update], prefix: str) -> None:
        self._progress, self._prefix = progress, prefix

    def __call__(self, name: str) -> Update:
        return self._progress(self._prefix + name)

    def expect(self, stages: Iterable[Expected]) -> None:
        p = self._prefix
        expect(self._progress, [Expected(p + e.name, p + e.kind, e.guess) for e in stages])


def expect(progress: Callable[[str], Update] | None, stages: Iterable[Expected]) -> None:
    """Says what stages will come, where ``progress`` is one that listens."""
    listener = getattr(progress, "expect", None)
    if listener is not None:
        listener(stages)
