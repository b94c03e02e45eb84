"""Cells of a long benchmark: run once each, by any number of processes, and remembered in a file.

A cell is a frozen dataclass that says everything its result depends on; a finished one is a line of the results file,
appended at once. Processes share the work through locks on files beside it: a lock goes with the process that held it,
so a killed run leaves nothing behind and any number of processes may be started or stopped at any time (one machine,
POSIX).
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common

Row = dict[str, Any]


def cell_key(cell: Any) -> str:
    """The name of a cell, by all that it says."""
    return hashlib.sha256(json.dumps(asdict(cell), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Study:
    """What :func:`run_all` must know of a benchmark's cells, which have a ``key``, a ``phase`` and a text.

    Attributes:
        run: does the work of a cell; the line for the results file.
        expected: seconds a cell is going to take, as far as that is known beforehand.
        kind: of a cell (its dataclass as a dict): cells of one kind take about the same time; None is like no other.
        told: the figures of a row, for a person.
    """

    run: Callable[[Any], Row]
    expected: Callable[[Any], float]
    kind: Callable[[Mapping[str, Any]], Hashable | None]
    told: Callable[[Row], str]


@cache
def origin() -> Row:
    """Versions, and a hash over winnow's source files: figures of one table should come from one state of the code."""
    import winnow

    digest = hashlib.sha256()
    folder = Path(winnow.__file__).parent
    for file in sorted(folder.rglob("*.py")):
        digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    versions = {name: found for name in common.PACKAGES if (found := common.version_of(name))}
    return {"versions": versions, "source": digest.hexdigest()[:12]}


def pack(correct: np.ndarray) -> str:
    """bool [n] as text, eight examples a byte."""
    return base64.b64encode(np.packbits(correct)).decode()


def unpack(row: Row) -> np.ndarray:
    """Whether each test example was right, bool [n]."""
    return np.unpackbits(np.frombuffer(base64.b64decode(row["correct"]), np.uint8), count=row["n"]).astype(bool)


class Results:
    """A file of finished cells, one JSON object a line, appended to by any number of processes."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.locks = file.with_name(file.name + ".locks")

    def rows(self) -> dict[str, Row]:
        """Finished cells by key. A line that a kill left unfinished is passed over: its cell is run again."""
        found: dict[str, Row] = {}
        if not self.file.exists():
            return found
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            found.setdefault(row["key"], row)
        return found

    def append(self, row: Row) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            whole = not size or os.pread(descriptor, 1, size - 1) == b"\n"
            line = ("" if whole else "\n") + json.dumps(row) + "\n"
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def claim(self, cell: Any) -> Iterator[bool]:
        """Whether this process may run the cell now: no other one is at it, and it is not done."""
        self.locks.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.locks / cell.key, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield cell.key not in self.rows()
        finally:
            os.close(descriptor)  # the lock goes with it; the empty file stays, for a lock on a deleted file is none


class Clock:
    """Seconds that are left: by the cells of a kind that were run, and until there are such, by the study's own guess."""

    def __init__(self, rows: Mapping[str, Row], study: Study) -> None:
        self.study = study
        self.seen: dict[Hashable, list[float]] = {}
        for row in rows.values():
            self.add(row)

    def add(self, row: Row) -> None:
        if "wall" in row and (kind := self.study.kind(row["cell"])) is not None:
            self.seen.setdefault(kind, []).append(row["wall"])

    def expected(self, cell: Any) -> float:
        if known := self.seen.get(self.study.kind(asdict(cell))):
            return sum(known[-5:]) / len(known[-5:])
        return self.study.expected(cell)

    def left(self, cells: Sequence[Any]) -> str:
        minutes = sum(map(self.expected, cells)) / 60
        return f"{minutes / 60:.1f} h" if minutes > 90 else f"{minutes:.0f} min"


def begin(args: argparse.Namespace, subjects: Iterable[str]) -> tuple[Results, dict[str, Any]]:
    """The results file of a study and the printed heading, once the threads are set and its models are known by name."""
    import torch

    torch.set_num_threads(args.threads)
    if unknown := sorted(set(args.model or ()) - set(subjects)):
        common.stop(f"there is no model {unknown[0]}: choose of {', '.join(subjects)}")
    facts = common.heading(("scipy",), threads=args.threads)
    print(f"results: {args.results}", flush=True)
    return Results(args.results), facts


def run_all(cells: Sequence[Any], results: Results, study: Study) -> list[str]:
    """Runs what is not done, skipping what another process is at; returns the cells that failed, in words.

    A trial whose loss is no longer finite is a finished cell without an accuracy: those settings lose. Any other error
    leaves its cell undone and the rest goes on.
    """
    from winnow.errors import WinnowError

    done = results.rows()
    clock = Clock(done, study)
    waiting = [cell for cell in cells if cell.key not in done]
    print(
        f"{len(cells)} cells, {len(cells) - len(waiting)} done; about {clock.left(waiting)} of one process left",
        flush=True,
    )
    failed = []
    for number, cell in enumerate(waiting):
        with results.claim(cell) as mine:
            if not mine:
                continue
            started = time.perf_counter()
            try:
                row = study.run(cell)
            except Exception as error:
                if cell.phase != "tune" or "the loss became" not in str(error):
                    failed.append(f"{cell}: {error}")
                    print(failed[-1], flush=True)
                    if not isinstance(error, WinnowError):
                        traceback.print_exc(file=sys.stderr)
                    continue
                row = {"key": cell.key, "cell": asdict(cell), "failed": str(error)}
            row["wall"] = time.perf_counter() - started  # measuring included
            results.append(row)
        clock.add(row)
        done = results.rows()
        rest = [other for other in waiting[number + 1 :] if other.key not in done]
        print(
            f"{datetime.now():%H:%M:%S} {cell}: {study.told(row) or row.get('failed', 'done')}, {row['wall']:.0f} s; "
            f"{len(rest)} cells left, about {clock.left(rest)} of one process",
            flush=True,
        )
    return failed
