"""``run``: a recipe of stages from a model to the folder at its end; what is finished is never done again."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import torch

from winnow.disk.made import describe
from winnow.disk.work import check_made, check_output
from winnow.errors import InputError
from winnow.naming import without_paths
from winnow.notebook import Card, Shown
from winnow.pipeline.execution import Execution, PlannedStage, StageResult, plan_stages
from winnow.pipeline.inputs import RecipeInputs, open_inputs
from winnow.pipeline.publish import publish
from winnow.pipeline.reading import dump, located, read_recipe
from winnow.records.parts import finite
from winnow.run.executor import Executor, executor_named
from winnow.run.store import code_version
from winnow.terminal.progress import ProgressOption, watch
from winnow.version import __version__
from winnow.words import duration, percent, size


@dataclass(repr=False)
class RunResult(Shown):
    """What ``run_recipe`` did. ``folder`` holds the artifact, ``run.json`` and the recipe; ``pages``: title, file name."""

    folder: Path
    stages: list[StageResult]
    notes: list[str] = field(default_factory=list)
    pages: list[tuple[str, str]] = field(default_factory=list)

    def _card(self) -> Card:
        rows = [
            {
                "stage": f"{s.number} {s.kind}", "what": s.what, "time": duration(s.seconds), "zeros": percent(s.figures.get("sparsity")),
                "file": size(s.figures.get("file_bytes")), "metric": s.figures.get("metric"), "value": s.figures.get("value"),
                "": "was finished" if s.reused else "",
            }
            for s in self.stages
        ]  # fmt: skip
        notes = [{"note": note} for note in self.notes]
        facts = [(title, str(self.folder / name)) for title, name in self.pages]
        sentence = f"{len(rows)} stages ({', '.join(s.kind for s in self.stages)}) in {self.folder}"
        return Card("RunResult", sentence, facts, [("stages", rows), (f"{len(notes)} notes", notes)])


@overload
def run_recipe(
    recipe: str | Path,
    out: str | Path | None = None,
    *,
    sets: Sequence[str] = (),
    executor: str | Executor | None = None,
    keep_work: bool = False,
    dry_run: Literal[False] = False,
    progress: ProgressOption = None,
    command: str | None = None,
) -> RunResult: ...
@overload
def run_recipe(
    recipe: str | Path,
    out: str | Path | None = None,
    *,
    sets: Sequence[str] = (),
    executor: str | Executor | None = None,
    keep_work: bool = False,
    dry_run: Literal[True],
    progress: ProgressOption = None,
    command: str | None = None,
) -> list[PlannedStage]: ...
@overload
def run_recipe(
    recipe: str | Path,
    out: str | Path | None = None,
    *,
    sets: Sequence[str] = (),
    executor: str | Executor | None = None,
    keep_work: bool = False,
    dry_run: bool,
    progress: ProgressOption = None,
    command: str | None = None,
) -> RunResult | list[PlannedStage]: ...
def run_recipe(
    recipe: str | Path,
    out: str | Path | None = None,
    *,
    sets: Sequence[str] = (),
    executor: str | Executor | None = None,
    keep_work: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: ProgressOption = None,
    command: str | None = None,
) -> RunResult | list[PlannedStage]:
    """Runs a recipe of stages (train, ticket, compress, eval), each on the model that the one before it made.

    Every stage has a key made of the model, the data, its settings, the stages before it and winnow's code. Results lie
    in ``OUT.work`` under these keys until the recipe is finished: an interrupted run resumes and gives bit-identical results,
    and one whose last stages were changed does only what is missing.

    Args:
        recipe: a YAML file; see :class:`winnow.pipeline.schema.Pipeline`.
        out: folder to write; may be left out of a dry run.
        sets: values in place of the recipe's, as "ticket.sparsity=0.9".
        executor: "local", "ray" or an executor, in place of the recipe's; no result depends on it.
        keep_work: leave ``OUT.work`` for later runs of changed recipes.
        overwrite: replace the finished result of another recipe, or of other data, in ``out``.
        dry_run: return what would be done, and write nothing.
        progress: bars or lines by itself, True or False, or a function: see :func:`winnow.terminal.progress.watch`.
        command: the command line, for the report.

    Raises:
        InputError: the recipe, the model or the data must change (of the recipe, line and field are named), or another
            process is running into ``out``, or the result of another job is there.
        GateError: an eval stage lost more than its ``max_drop``, or a compress stage cannot keep its own; ``out`` is as
            it was, and the stages so far stay in ``OUT.work``.
    """
    pipeline = read_recipe(recipe, sets)
    folder = None if out is None else Path(out)
    if folder is None and not dry_run:
        raise InputError("give an output folder: --out DIR (or --dry-run to see the stages).")
    # What a recipe reads: no output may take its place, and published files call it by name.
    own = [own[0] for stage in pipeline.stages if (own := stage.own_data()) is not None]
    given = [pipeline.model, pipeline.weights, pipeline.data, pipeline.eval, *own]
    if folder is not None:
        check_output(folder, inputs=[recipe, *given])
    with contextlib.ExitStack() as stack:
        stack.enter_context(located(recipe, sets))
        inputs = open_inputs(pipeline)
        made = _made(inputs, [*given, recipe])
        if folder is not None:
            check_made(folder, made, overwrite)
        if dry_run or folder is None:
            return plan_stages(inputs, folder)
        jobs = (pipeline.executor if executor is None else executor) if pipeline.trains else None
        if isinstance(jobs, str):
            jobs = executor_named(jobs)
            stack.callback(getattr(jobs, "close", lambda: None))
        execution = Execution(inputs, folder, jobs, stack.enter_context(watch(progress)), command)
        stack.callback(execution.store.release)
        check_made(folder, made, overwrite)  # under the lock: another run may just have finished
        execution.run()
        publications = [p for i, stage in enumerate(pipeline.stages) if (p := stage.publish(execution, i)) is not None]
        record = _record(execution, sets)
        text = Path(recipe).read_text(encoding="utf-8")
        last = execution.folder(max(i for i, stage in enumerate(pipeline.stages) if stage.makes))
        publish(
            last, folder, text, record, publications, keep=keep_work, given=[*given, folder, last], made=made, overwrite=overwrite
        )  # fmt: skip
        if not keep_work:
            execution.store.remove()
    return RunResult(folder, execution.results, inputs.notes, [p.page for p in publications if p.page is not None])


def _made(inputs: RecipeInputs, given: Sequence[Any]) -> dict[str, Any]:
    """What the run says of itself (:mod:`winnow.disk.made`): the recipe field by field, model and data by their hashes."""
    recipe = dump(inputs.pipeline)
    stages = [(kind, fields) for stage in recipe.pop("stages") for kind, fields in stage.items()]
    kinds = [kind for kind, _ in stages]
    for name in ("model", "weights", "data", "eval", "executor"):  # by their hashes; no result depends on the last
        recipe.pop(name, None)
    recipe["stages"] = kinds
    for number, (kind, fields) in enumerate(stages, start=1):
        named = kind if kinds.count(kind) == 1 else f"{kind} {number}"
        recipe |= {f"{named}.{field}": value for field, value in fields.items() if field != "data"}
    data = {"data": inputs.data, "eval data": inputs.held_out}
    data |= {f"data of stage {inputs.pipeline.stages.index(stage) + 1}": own for stage, own in inputs.own.items()}
    hashes = {name: records.sha256 for name, records in data.items() if records is not None}
    return describe("run", without_paths(recipe, given), {"weights": inputs.model.key, **hashes})


def _record(execution: Execution, sets: Sequence[str]) -> dict[str, Any]:
    """run.json: every stage with its key, seconds and figures, and what they were made of."""
    inputs = execution.inputs
    data = {"data": inputs.data, "eval": inputs.held_out}
    return {
        "recipe": dump(inputs.pipeline),
        "set": list(sets),
        "model": {"spec": inputs.pipeline.model, "sha256": inputs.model.key},
        "data": {n: {"name": r.name, "records": len(r), "sha256": r.sha256} for n, r in data.items() if r is not None},
        "stages": [finite(asdict(result)) for result in execution.results],
        "notes": inputs.notes,
        "versions": {"winnow": __version__, "torch": torch.__version__, "code": code_version()},
    }
