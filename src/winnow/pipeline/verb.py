"""``run``: a recipe of stages from a model to the folder at its end; what is finished is never done again."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from winnow.disk.work import check_output, work_folder
from winnow.errors import GateError, InputError, disk_errors
from winnow.measure.evaluation import Evaluation, load_stored, stored_path
from winnow.pipeline.dry_run import Planned, planned, what
from winnow.pipeline.located import located
from winnow.pipeline.materials import Materials, Standing, open_materials
from winnow.pipeline.publish import publish
from winnow.pipeline.reading import dump, read_recipe
from winnow.pipeline.schema import Compress, Evaluate, Fitting, Pipeline, Stage, Ticket, Train
from winnow.pipeline.stages import Progress, fit, keys, measure, pack, paired, standing
from winnow.records.parts import finite
from winnow.run.executor import Executor, executor_named
from winnow.run.store import Store

if TYPE_CHECKING:
    from winnow.records.compression import Report
    from winnow.records.ticket import TicketReport


@dataclass
class Outcome:
    """A stage that is finished: its figures, and the seconds of the session that finished it."""

    number: int
    kind: str
    key: str
    what: str
    seconds: float
    reused: bool
    figures: dict[str, Any]


@dataclass
class Ran:
    """What ``run_recipe`` did. ``folder`` holds the artifact, ``run.json`` and the recipe."""

    folder: Path
    stages: list[Outcome]
    notes: list[str] = field(default_factory=list)


def run_recipe(
    recipe: str | Path,
    out: str | Path | None = None,
    *,
    sets: Sequence[str] = (),
    executor: str | Executor | None = None,
    keep_work: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    command: str | None = None,
) -> Ran | list[Planned]:
    """Runs a recipe of stages (train, ticket, compress, eval), each on the model that the one before it made.

    Every stage has a key made of the model, the data, its settings, the stages before it and winnow's code. Results lie
    in ``OUT.work`` under these keys until the recipe is finished: a run that was killed, or one whose last stages were
    changed, does only what is missing, and ends bit-for-bit equal to an uninterrupted one.

    Args:
        recipe: a YAML file; see :class:`winnow.pipeline.schema.Pipeline`.
        out: folder to write; may be left out of a dry run.
        sets: values in place of the recipe's, as "ticket.sparsity=0.9".
        executor: "local", "ray" or an executor, in place of the recipe's; no result depends on it.
        keep_work: leave ``OUT.work`` for later runs of changed recipes.
        dry_run: return what would be done, and write nothing.
        progress: called with a stage's name, gives a function (done, total, what).
        command: the command line, for the report.

    Raises:
        InputError: the recipe, the model or the data must change (of the recipe, line and field are named), or another
            process is running into ``out``.
        GateError: an eval stage lost more than its ``max_drop``, or a compress stage cannot keep its own; ``out`` is as
            it was, and the stages so far stay in ``OUT.work``.
    """
    pipeline = read_recipe(recipe, sets)
    folder = None if out is None else Path(out)
    if folder is None and not dry_run:
        raise InputError("say where to write: --out DIR (or --dry-run to see the stages).")
    if folder is not None:
        check_output(folder, inputs=_read(pipeline, recipe))
    named = pipeline.executor if executor is None else executor
    with contextlib.ExitStack() as stack:
        stack.enter_context(located(recipe, sets))
        found = open_materials(pipeline)
        if dry_run or folder is None:
            return planned(found, folder)
        jobs = _executor(named, pipeline, stack)
        line = _Line(found, folder, jobs, progress, command)
        stack.callback(line.store.release)
        for number in range(len(pipeline.stages)):
            line.run(number)
        record = _record(found, line.outcomes, sets)
        text = Path(recipe).read_text(encoding="utf-8")
        given = [pipeline.model, pipeline.weights, pipeline.data, pipeline.eval, folder, line.folders[-1]]
        given += [s.data for s in pipeline.stages if isinstance(s, Evaluate)]
        publish(
            line.folders[-1], folder, text, record, report=line.report(), page=line.page(), keep=keep_work, given=given
        )
        if not keep_work:
            line.store.remove()
    return Ran(folder, line.outcomes, found.notes)


class _Line:
    """The stages one after another, and the models between them."""

    def __init__(
        self, found: Materials, out: Path, executor: Executor | None, progress: Progress | None, command: str | None
    ) -> None:
        self.found, self.out, self.executor, self.progress, self.command = found, out, executor, progress, command
        self.store = Store(work_folder(out))
        self.keys = keys(found)
        self.at = found.given
        self.trained: Standing | None = None  # by the train stage
        self.first: Standing | None = None  # that an eval stage measured
        self.outcomes: list[Outcome] = []
        self.folders: list[Path] = []

    def run(self, number: int) -> None:
        stage = self.found.pipeline.stages[number]
        if isinstance(stage, Evaluate):
            self._measure(number, stage)
        else:
            self._make(number, stage)

    def _make(self, number: int, stage: Stage) -> None:
        key = self.keys[number]
        folder = self.store.folder(key) / self.found.label
        done = self.store.read(key)
        reused = done is not None
        if done is None:
            with disk_errors(folder):
                if folder.exists():
                    shutil.rmtree(folder)  # of a stage that a kill kept from its record, or of a damaged one
            started = time.perf_counter()
            figures = self._work(number, stage, folder)
            done = {"figures": figures, "seconds": time.perf_counter() - started}
            made = [p for p in (*folder.rglob("*"), self._measured(number)) if p.is_file()]
            self.store.write(key, done, files=made)
        self.outcomes.append(
            Outcome(
                number + 1, stage.kind, key, what(stage, self.found, number), done["seconds"], reused, done["figures"]
            )
        )
        self.at = standing(folder, self.found, key, f"stage {number + 1} ({stage.kind})")
        self.folders.append(folder)
        if isinstance(stage, Train):
            self.trained = self.at

    def _work(self, number: int, stage: Stage, folder: Path) -> dict[str, Any]:
        bars = self._bars(number, stage)
        if isinstance(stage, Fitting):
            start = self.found.given if isinstance(stage, Ticket) and stage.start == "model" else self.at
            return fit(stage, start, self.found, folder, self.store, self.keys[number], self.executor, bars)
        assert isinstance(stage, Compress)
        return pack(stage, self.at, self.found, folder, self.command, bars)

    def page(self) -> TicketReport | None:
        """The report of the ticket stage, if there is one."""
        from winnow.pipeline.ticket_page import ticket_page

        stages, found = self.found.pipeline.stages, self.found
        number = next((i for i, s in enumerate(stages) if isinstance(s, Ticket)), None)
        if number is None:
            return None
        dense = next((i for i, s in enumerate(stages) if isinstance(s, Train)), None)
        return ticket_page(
            self.store.folder(self.keys[number]) / found.label,
            self._measured(number),
            None if dense is None else self._measured(dense),
            model=found.label,
            data=None if found.held_out is None else found.held_out.name,
            command=self.command,
        )

    def report(self) -> Report | None:
        """The report of the compress stage, if there is one, compared with what the recipe measured of a dense model."""
        from winnow.pipeline.compress_page import compress_page
        from winnow.pipeline.compress_verdict import Dense

        stages = self.found.pipeline.stages
        number = next((i for i, s in enumerate(stages) if isinstance(s, Compress)), None)
        if number is None:
            return None
        ticket = next((i for i, s in enumerate(stages) if isinstance(s, Ticket)), None)
        dense, against = None, None if ticket is None else self._before_ticket(ticket)
        if ticket is not None and against is not None and self.found.held_out is not None:
            stage = Evaluate(eval_limit=stages[number].eval_limit, max_drop=None)
            bars = self._bars(number, stages[number])
            task, packed, other = paired(stage, self.at, self.found, self.store, against, bars)  # mostly read back
            if other is not None and not task.of_dense:
                own = self._measured(ticket)
                before = Evaluation.load(own) if own.exists() else None
                dense = Dense(task, other, packed, before, against.made_by)
        sparsity = None if ticket is None else self.outcomes[ticket].figures["sparsity"]
        return compress_page(self.folders[-1], self.out, self.found, sparsity, dense)

    def _before_ticket(self, ticket: int) -> Standing | None:
        """The dense model that was trained, else one that an eval stage before the ticket measured."""
        stages = self.found.pipeline.stages[:ticket]
        return self.trained or (self.first if any(isinstance(s, Evaluate) for s in stages) else None)

    def _measured(self, number: int) -> Path:
        """Where the evaluation that ended a train or ticket stage is kept."""
        return stored_path(self.store, self.keys[number])

    def _measure(self, number: int, stage: Evaluate) -> None:
        key, against = self.keys[number], self._dense()
        stored = load_stored(self.store, key) is not None
        started = time.perf_counter()
        figures = measure(stage, self.at, self.found, self.store, against, self._bars(number, stage))
        before = self.store.read(key) if stored else None
        seconds = before["seconds"] if before is not None else time.perf_counter() - started
        self.store.write(key, {"figures": figures, "seconds": seconds})
        self.outcomes.append(
            Outcome(number + 1, stage.kind, key, what(stage, self.found, number), seconds, stored, figures)
        )
        self.first = self.first or self.at
        self._gate(number, stage, figures)

    def _dense(self) -> Standing | None:
        """What an eval stage compares with: the first model measured, else the one that was trained dense, else, where
        nothing trains, the one given."""
        against = self.first or self.trained
        if against is None and not self.found.pipeline.fits:
            against = self.found.given
        return None if against is None or against.key == self.at.key else against

    def _gate(self, number: int, stage: Evaluate, figures: dict[str, Any]) -> None:
        if stage.max_drop is None or "drop" not in figures:
            return
        drop = figures["drop"]
        if drop["high"] <= stage.max_drop:  # a NaN never is
            return
        worse = "per cent" if drop["relative"] else "points"
        raise GateError(
            f"stage {number + 1} (eval): {figures['metric']} lost {drop['drop']:.2f} {worse} against {figures['against']}, with 95 % confidence "
            f"at most {drop['high']:.2f}, and max_drop is {stage.max_drop:g}; {self.out} is as it was - allow more, change a stage, "
            "or give more evaluation data to narrow the interval."
        )

    def _bars(self, number: int, stage: Stage) -> Progress | None:
        given = self.progress
        return None if given is None else lambda name: given(f"{number + 1} {stage.kind}: {name}")


def _read(pipeline: Pipeline, recipe: str | Path) -> list[Any]:
    """What a recipe reads, of which no output may take the place."""
    own = [s.data for s in pipeline.stages if isinstance(s, Evaluate)]
    return [recipe, pipeline.model, pipeline.weights, pipeline.data, pipeline.eval, *own]


def _executor(named: str | Executor, pipeline: Pipeline, stack: contextlib.ExitStack) -> Executor | None:
    if not pipeline.fits:
        return None
    jobs = executor_named(named) if isinstance(named, str) else named
    if isinstance(named, str) and hasattr(jobs, "close"):
        stack.callback(jobs.close)
    return jobs


def _record(found: Materials, outcomes: list[Outcome], sets: Sequence[str]) -> dict[str, Any]:
    """run.json: every stage with its key, seconds and figures, and what they were made of."""
    import torch

    from winnow.run.store import code_version
    from winnow.version import __version__

    hashes = {"data": found.data, "eval": found.held_out}
    return {
        "recipe": dump(found.pipeline),
        "set": list(sets),
        "model": {"spec": found.pipeline.model, "sha256": found.given.key},
        "data": {
            name: {"name": r.name, "records": len(r), "sha256": r.sha256} for name, r in hashes.items() if r is not None
        },
        "stages": [finite(asdict(o)) for o in outcomes],
        "notes": found.notes,
        "versions": {"winnow": __version__, "torch": torch.__version__, "code": code_version()},
    }
