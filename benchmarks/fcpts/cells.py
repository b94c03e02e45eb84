"""The cells of the study: what one is, and how it is run. A cell is one call of ``winnow.compress`` and what came of it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from benchmarks.cells import Row, Study, cell_key, origin, pack
from benchmarks.fcpts import data
from benchmarks.fcpts.methods import METHODS
from benchmarks.splits import correct


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
        return cell_key(self)

    def __str__(self) -> str:
        trial = "" if self.trial is None else f", trial {self.trial}"
        limit = "" if self.time is None else f", {self.time:g} s"
        kind = f", {self.settings['bridge']}" if "bridge" in self.settings else ""
        return f"{self.phase}: {self.model}, {self.method}{kind}, {self.rate:.0%}, seed {self.seed}{trial}{limit}"


def run_cell(cell: Cell) -> Row:
    """Compresses, counts the zeros in the model itself, measures. Returns the line for the results file."""
    import winnow
    from winnow.masks.scope import find_scope

    subject, method = data.SUBJECTS[cell.model], METHODS[cell.method]
    dense = data.dense(cell.model)
    scope = find_scope(dense)
    row: Row = {
        "key": cell.key,
        "cell": asdict(cell),
        "numel": scope.numel,
        "zeros_asked": round(cell.rate * scope.numel),
    }
    model, started, busy = dense, time.perf_counter(), time.process_time()
    if method.family != "dense":
        options: Row = {**method.options, "samples": data.CALIBRATION, "batch_size": subject.batch}
        options |= {"settings": dict(cell.settings)} if cell.settings else {}
        options |= {"time": cell.time} if cell.time is not None else {}
        calibration = subject.draw(cell.seed)
        started, busy = time.perf_counter(), time.process_time()
        result = winnow.compress(
            data.source(cell.model), calibration, sparsity=cell.rate, seed=cell.seed,
            task="none", baselines="none", speed=False, **options,
        )  # fmt: skip
        model = result.model
        row |= _recorded(result.report.allocation)
    # The whole call: statistics, training, selection, packing, report. Processor seconds too: machines are shared.
    row |= {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - busy}
    zeros = {name: int((model.get_parameter(name) == 0).sum()) for name in scope.prunables}
    row |= {"zeros": sum(zeros.values()), "rates": {n: z / scope.prunables[n].numel for n, z in zeros.items()}}
    if cell.phase != "bridge":
        row["hold_out"] = 100 * float(correct(model, data.hold_out(cell.model)).mean())
    if cell.phase == "test":
        right = correct(model, data.test(cell.model))
        row |= {"test": 100 * float(right.mean()), "n": len(right), "correct": pack(right)}
    row |= {"date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), "load": os.getloadavg()[0], **origin()}
    return row


def _recorded(record: Any) -> Row:
    """What the run says about itself; nothing where no weight was trained."""
    if record is None:
        return {}
    found = record.model_dump(include={"raw_rate", "exact_rate", "steps", "settings", "step_time", "warnings"})
    return {**found, "fit_seconds": record.seconds}


def _expected(cell: Cell) -> float:
    """Seconds, from the step times known beforehand."""
    subject, method = data.SUBJECTS[cell.model], METHODS[cell.method]
    training = cell.time or (subject.step * cell.settings.get("steps", 0) if method.whole else 0.0)
    forwards = {"bridge": 0, "test": 200}.get(cell.phase, 60)  # of a third of a step each
    return training + forwards * subject.step / 3 + 5


def _kind(cell: Mapping[str, Any]) -> tuple[str, ...] | None:
    return None if cell["time"] is not None else (cell["phase"], cell["model"], cell["method"])


def _told(row: Row) -> str:
    return ", ".join(f"{name} {row[name]:.2f}" for name in ("hold_out", "test") if name in row)


STUDY = Study(run_cell, _expected, _kind, _told)
