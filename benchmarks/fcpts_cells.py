"""The cells of fcpts.py: what one is, how it is run, and the file that remembers which are done.

A cell is one call of ``winnow.compress`` and what came of it; a finished one is a line of the results file, appended at
once. Processes share the work through locks on files beside it: a lock goes with the process that held it, so a killed
run leaves nothing behind and any number of processes may be started or stopped at any time (one machine, POSIX).
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import common
import fcpts_data
from fcpts_methods import METHODS

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """What is run. All of it names the cell: change a setting and it is another one.

    Attributes:
        phase: "tune" and "time" look at the hold-out only, "test" at the test data too, "bridge" times steps.
        trial: number of the trial in the method's grid; None where settings are not being chosen.
        time: seconds of training, in place of settings["steps"].
    """

    phase: str
    model: str
    method: str
    rate: float
    seed: int
    trial: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    time: float | None = None
    threads: int = 1

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        trial = "" if self.trial is None else f", trial {self.trial}"
        limit = "" if self.time is None else f", {self.time:g} s"
        kind = f", {self.settings['bridge']}" if "bridge" in self.settings else ""
        return f"{self.phase}: {self.model}, {self.method}{kind}, {self.rate:.0%}, seed {self.seed}{trial}{limit}"


def run_cell(cell: Cell) -> Row:
    """Compresses, counts the zeros in the model itself, measures. Returns the line for the results file."""
    import winnow
    from winnow.masks.scope import find_scope

    subject, method = fcpts_data.SUBJECTS[cell.model], METHODS[cell.method]
    dense = fcpts_data.dense(cell.model)
    scope = find_scope(dense)
    row: Row = {
        "key": cell.key,
        "cell": asdict(cell),
        "numel": scope.numel,
        "zeros_asked": round(cell.rate * scope.numel),
    }
    model, started, busy = dense, time.perf_counter(), time.process_time()
    if method.family != "dense":
        options: Row = {**method.options, "samples": fcpts_data.CALIBRATION, "batch_size": subject.batch}
        options |= {"settings": dict(cell.settings)} if cell.settings else {}
        options |= {"time": cell.time} if cell.time is not None else {}
        calibration = subject.draw(cell.seed)
        started, busy = time.perf_counter(), time.process_time()
        result = winnow.compress(
            fcpts_data.source(cell.model), calibration, sparsity=cell.rate, seed=cell.seed,
            task="none", baselines="none", speed=False, **options,
        )  # fmt: skip
        model = result.model
        row |= _recorded(result.report.allocation)
    # The whole call: statistics, training, selection, packing, report. Processor seconds too: machines are shared.
    row |= {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - busy}
    zeros = {name: int((model.get_parameter(name) == 0).sum()) for name in scope.prunables}
    row |= {"zeros": sum(zeros.values()), "rates": {n: z / scope.prunables[n].numel for n, z in zeros.items()}}
    if cell.phase != "bridge":
        row["hold_out"] = 100 * float(fcpts_data.correct(model, fcpts_data.hold_out(cell.model)).mean())
    if cell.phase == "test":
        correct = fcpts_data.correct(model, fcpts_data.test(cell.model))
        row |= {"test": 100 * float(correct.mean()), "n": len(correct), "correct": pack(correct)}
    row |= {"date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), "load": os.getloadavg()[0], **_origin()}
    return row


def _recorded(record: Any) -> Row:
    """What the run says about itself; nothing where no weight was trained."""
    if record is None:
        return {}
    found = record.model_dump(include={"raw_rate", "exact_rate", "steps", "settings", "step_time", "warnings"})
    return {**found, "fit_seconds": record.seconds}


@cache
def _origin() -> Row:
    """Versions, and a hash over winnow's source files: figures of one table should come from one state of the code."""
    import winnow

    digest = hashlib.sha256()
    folder = Path(winnow.__file__).parent
    for file in sorted(folder.rglob("*.py")):
        digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    versions = {name: found for name in common.PACKAGES if (found := common._version(name))}
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
    def claim(self, cell: Cell) -> Iterator[bool]:
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
    """Seconds that are left, from cells that were run and, until there are such, from the step times known beforehand."""

    def __init__(self, rows: Mapping[str, Row]) -> None:
        self.seen: dict[tuple[str, str, str], list[float]] = {}
        for row in rows.values():
            self.add(row)

    def add(self, row: Row) -> None:
        if "wall" in row:
            cell = row["cell"]
            self.seen.setdefault((cell["phase"], cell["model"], cell["method"]), []).append(row["wall"])

    def expected(self, cell: Cell) -> float:
        subject, method = fcpts_data.SUBJECTS[cell.model], METHODS[cell.method]
        if cell.time is None and (known := self.seen.get((cell.phase, cell.model, cell.method))):
            return sum(known[-5:]) / len(known[-5:])
        training = cell.time or (subject.step * cell.settings.get("steps", 0) if method.whole else 0.0)
        forwards = {"bridge": 0, "test": 200}.get(cell.phase, 60)  # of a third of a step each
        return training + forwards * subject.step / 3 + 5

    def left(self, cells: list[Cell]) -> str:
        minutes = sum(map(self.expected, cells)) / 60
        return f"{minutes / 60:.1f} h" if minutes > 90 else f"{minutes:.0f} min"


def run_all(cells: list[Cell], results: Results) -> list[str]:
    """Runs what is not done, skipping what another process is at; returns the cells that failed, in words.

    A trial whose loss is no longer finite is a finished cell without an accuracy: those settings lose. Any other error
    leaves its cell undone and the rest goes on.
    """
    from winnow.errors import WinnowError

    done = results.rows()
    clock = Clock(done)
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
                row = run_cell(cell)
            except WinnowError as error:
                if cell.phase != "tune" or "the loss became" not in str(error):
                    failed.append(f"{cell}: {error}")
                    print(failed[-1], flush=True)
                    continue
                row = {"key": cell.key, "cell": asdict(cell), "failed": str(error)}
            row["wall"] = time.perf_counter() - started  # measuring included
            results.append(row)
        clock.add(row)
        done = results.rows()
        rest = [other for other in waiting[number + 1 :] if other.key not in done]
        figures = ", ".join(f"{name} {row[name]:.2f}" for name in ("hold_out", "test") if name in row)
        print(
            f"{datetime.now():%H:%M:%S} {cell}: {figures or row.get('failed', 'done')}, {row['wall']:.0f} s; "
            f"{len(rest)} cells left, about {clock.left(rest)} of one process",
            flush=True,
        )
    return failed
