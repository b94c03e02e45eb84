"""The cells of the study: what one is, and how it is run. A cell is one search for tickets and all tickets it found.

A killed cell goes on where it stood: unfinished runs lie in ``RESULTS.work/KEY`` until the cell is done, under names made
of winnow's own source, so that a changed winnow begins anew. Masks of test cells stay in ``RESULTS.masks``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cells import Results, Row, Study, cell_key, origin, pack
from benchmarks.tickets import subjects
from benchmarks.tickets.measures import masks_row, overhead_row
from benchmarks.tickets.methods import METHODS, passes

MEASURES = ("masks", "overhead")  # phases that search nothing
KEPT = ("number", "step", "zeros", "steps", "disagreement", "unanimous")  # of a Round; densities of the last one


@dataclass(frozen=True)
class Cell:
    """What is run. All of it names the cell: change a setting and it is another one.

    Attributes:
        phase: "tune", "rates" and "select" report on the selection data, "test" and "confirm" on the test data.
        method: name in tickets_methods.METHODS.
        variant: name of the setting tried ("select", "confirm"); empty for the method as it is.
        sparsities: of the tickets wanted; several where one trajectory serves them.
        settings: of the training: steps, batch, lr, weight_decay, precision.
        options: of the method; or of a measuring phase, what it needs.
    """

    phase: str
    model: str
    method: str
    sparsities: tuple[float, ...]
    seed: int
    settings: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""
    threads: int = 1

    @property
    def key(self) -> str:
        return cell_key(self)

    def __str__(self) -> str:
        rates = ", ".join(f"{s:.0%}" for s in self.sparsities)
        lr = f", lr {self.settings['lr']:g}" if self.phase == "tune" else ""
        return f"{self.phase}: {self.model}, {self.method}{', ' + self.variant if self.variant else ''}, {rates}, seed {self.seed}{lr}"


def study(results: Results) -> Study:
    """How the cells of this results file are run."""
    return Study(partial(run_cell, results=results), expected, _kind, _told)


def run_cell(cell: Cell, results: Results) -> Row:
    """The line for the results file."""
    started, busy = time.perf_counter(), time.process_time()
    if cell.phase == "masks":
        row = masks_row(cell, masks_folder(results))
    elif cell.phase == "overhead":
        row = overhead_row(cell, training(cell))
    else:
        row = _searched(cell, results)
    return {
        "key": cell.key, "cell": asdict(cell), **row,
        "seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - busy,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), "load": os.getloadavg()[0], **origin(),
    }  # fmt: skip


def training(cell: Cell) -> Any:
    """The subject's training as :class:`winnow.train.task.training.Training`; it evaluates on the selection data."""
    from winnow.train.task.training import Training

    subject, settings = subjects.SUBJECTS[cell.model], cell.settings
    return Training(
        subject.model(cell.seed), subjects.examples(cell.model, settings["batch"]), subject.loss, _steps(cell),
        lr=settings["lr"], weight_decay=settings["weight_decay"], precision=settings["precision"], seed=cell.seed,
        evaluate=partial(_evaluation, name=cell.model),
    )  # fmt: skip


def _steps(cell: Cell) -> int:
    """Of the training: T, or as many as ISP takes to the cell's sparsity."""
    steps = cell.settings["steps"]
    return int(passes(steps, cell.sparsities[-1]) * steps) if METHODS[cell.method].longer else steps


def _searched(cell: Cell, results: Results) -> Row:
    from winnow.run.store import Store, stage_key
    from winnow.settings import read_settings
    from winnow.tickets.methods.registry import METHODS as FINDERS
    from winnow.tickets.search import Search

    entry = FINDERS[METHODS[cell.method].finder]
    settings = read_settings(entry.settings_class, dict(cell.options), cell.method)
    parent = results.file.with_name(results.file.name + ".work")
    parent.mkdir(parents=True, exist_ok=True)
    store = Store(parent / cell.key)
    search = Search(
        METHODS[cell.method].finder, training(cell), cell.sparsities, settings, store, stage_key("cell", cell=cell.key)
    )
    found = []
    for ticket in entry.finder(search):
        found.append(_ticket_row(cell, search, ticket))
        if cell.phase == "test":
            folder = masks_folder(results)
            folder.mkdir(exist_ok=True)
            ticket.masks.save(folder / f"{cell.key}-{ticket.zeros}.safetensors")
    store.remove()
    return {"numel": search.scope.numel, "tickets": found}


def _ticket_row(cell: Cell, search: Any, ticket: Any) -> Row:
    """One ticket: zeros counted in the model itself, accuracy on the phase's data and per class, cost, rounds."""
    if cell.phase in ("test", "confirm"):
        split = subjects.test(cell.model)
        correct = subjects.correct(ticket.model, split)
    else:
        split, correct = subjects.selection(cell.model), ticket.evaluation.per_example.astype(bool)
    labels = split.labels.numpy()
    zeros = sum(int((ticket.model.get_parameter(name) == 0).sum()) for name in search.scope.prunables)
    rounds = [{k: v for k, v in vars(r).items() if k in KEPT} for r in ticket.history]
    return {
        "sparsity": cell.sparsities[search.zeros.index(ticket.zeros)], "zeros_asked": ticket.zeros, "zeros": zeros,
        "hold_out": 100 * ticket.evaluation.value, "accuracy": 100 * float(correct.mean()), "n": len(correct),
        "correct": pack(correct), "recall": [round(100 * float(correct[labels == c].mean()), 2) for c in np.unique(labels)],
        "cost": vars(ticket.cost) | {"steps": ticket.cost.steps}, "rounds": rounds,
        "densities": ticket.history[-1].densities if ticket.history else {}, "notes": ticket.notes,
    }  # fmt: skip


def _evaluation(model: Any, name: str) -> Any:
    from winnow.measure.evaluation import Evaluation
    from winnow.measure.intervals import proportion_interval

    split = subjects.selection(name)
    correct = subjects.correct(model, split)
    low, high = proportion_interval(int(correct.sum()), len(correct))
    return Evaluation(
        "accuracy", float(correct.mean()), low, high, correct.astype(np.float64), correct.astype(np.int64), len(correct)
    )


def masks_folder(results: Results) -> Path:
    return results.file.with_name(results.file.name + ".masks")


def expected(cell: Cell) -> float:
    """Seconds, from the step times known beforehand: those of a processor of its own."""
    from winnow.tickets.cost import imp_rounds

    step = subjects.SUBJECTS[cell.model].step
    if cell.phase in MEASURES:
        return {"masks": 2.0, "overhead": 3 * cell.options.get("steps", 0) * step}[cell.phase]
    steps = cell.settings["steps"]
    method, last = METHODS[cell.method], cell.sparsities[-1]
    options = cell.options
    if method.whole:
        spent = (imp_rounds(last) + 1 + 5 * (cell.method == "lottery-pool")) * steps
    elif method.longer:
        spent = _steps(cell)
    elif "budget" in options and method.rated:
        spent = options["budget"] * steps
    elif method.finder in ("isp", "isp-matched"):
        rounds = imp_rounds(last, options["rate"])
        spent = steps + rounds * options["candidates"] * options["look_ahead"]
    else:
        spent = steps
    return len(cell.sparsities) * 60 * step + spent * step + 3


def _kind(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    steps = cell["settings"].get("steps")
    return cell["phase"], cell["model"], cell["method"], cell["variant"], tuple(cell["sparsities"]), steps


def _told(row: Row) -> str:
    return ", ".join(f"{t['sparsity']:.0%} {t['accuracy']:.2f}" for t in row.get("tickets", ()))
