"""What each stage of a recipe does: a model and a folder in, a model in that folder and figures out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from winnow.data import Records
from winnow.measure.compare import Comparison, compare
from winnow.measure.evaluation import Evaluation, load_stored, store_evaluation
from winnow.measure.prepare import prepare
from winnow.measure.task import Task, written_unit
from winnow.pipeline.materials import Materials, Standing
from winnow.pipeline.schema import Compress, Evaluate, Fitting, Ticket
from winnow.run.executor import Executor
from winnow.run.store import Store, stage_key
from winnow.seeding import torch_seed

if TYPE_CHECKING:
    from winnow.train.task.training import Training

Progress = Callable[[str], Callable[[int, int, str], None]]


def _hash(records: Records | None) -> Any:
    return None if records is None else [records.sha256, records.label_names]


def keys(found: Materials) -> list[str]:
    """The key of every stage: all that its result depends on, the keys before it included."""
    pipeline, at, made = found.pipeline, found.given.key, []
    shared = dict(task=pipeline.task, length=pipeline.length, seed=pipeline.seed)
    for number, stage in enumerate(pipeline.stages):
        if isinstance(stage, Evaluate):
            made.append(measure_key(found, stage, at))
            continue
        start = found.given.key if isinstance(stage, Ticket) and stage.start == "model" else at
        what = stage.options(pipeline.before(number, Ticket)) if isinstance(stage, Compress) else stage.key()
        at = stage_key(
            stage.kind, start=start, what=what, data=_hash(found.data), eval=_hash(found.held_out), label=found.label, **shared
        )  # fmt: skip
        made.append(at)
    return made


def measure_key(found: Materials, stage: Evaluate, model: str, against: str | None = None) -> str:
    pipeline = found.pipeline
    return stage_key(
        "eval", of=model, data=_hash(found.measured_on(stage)), task=pipeline.task, length=pipeline.length, against=against, **stage.key()
    )  # fmt: skip


def fit(
    stage: Fitting,
    start: Standing,
    found: Materials,
    folder: Path,
    store: Store,
    key: str,
    executor: Executor | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """A train or ticket stage; the model comes to ``folder``, its evaluation (where there is one) to ``store`` under ``key``.

    A search that was killed goes on where it stood.
    """
    from winnow.tickets.verb import find_ticket

    if isinstance(stage, Ticket):
        search: dict[str, Any] = dict(sparsity=stage.sparsity, method=stage.method, settings=stage.settings)
    else:
        search = dict(sparsity=0.0, method="dense")
    with torch_seed(found.pipeline.seed):
        result = find_ticket(
            start.spec, found.data, out=folder, executor=executor, progress=progress, **search, **_fitting(stage, start, found)
        )  # fmt: skip
    ticket = result.ticket
    if ticket.evaluation is not None:
        store_evaluation(store, key, ticket.evaluation)
    figures = {
        "method": ticket.method, "zeros": ticket.zeros, "sparsity": ticket.sparsity, "steps": ticket.cost.steps,
        "cost": vars(ticket.cost), "notes": [*result.training.notes, *ticket.notes],
    }  # fmt: skip
    if ticket.evaluation is not None:
        figures |= figure(ticket.evaluation)
    return figures


def training(stage: Ticket, start: Standing, found: Materials) -> Training:
    """The training that a ticket stage repeats, as :func:`fit` has it made."""
    from winnow.train.task.from_data import training_from

    with torch_seed(found.pipeline.seed):
        return training_from(start.spec, found.data, **_fitting(stage, start, found))


def _fitting(stage: Fitting, start: Standing, found: Materials) -> dict[str, Any]:
    """Keywords of :func:`winnow.tickets.training_from`."""
    pipeline = found.pipeline
    named = ["steps", "epochs", "batch", "lr", "weight_decay", "schedule", "warmup", "clip", "precision"]
    if isinstance(stage, Ticket):
        named += ["include", "exclude"]
    shared = dict(
        weights=start.weights, eval=found.held_out, task=pipeline.task, length=pipeline.length, seed=pipeline.seed
    )
    return shared | {name: getattr(stage, name) for name in named}


def pack(
    stage: Compress, start: Standing, found: Materials, folder: Path, command: str | None, progress: Progress | None
) -> dict[str, Any]:
    """A compress stage; the packed folder with its report comes to ``folder``.

    Raises:
        GateError: ``max_drop`` cannot be kept.
    """
    from winnow.compression.verb import compress

    pipeline = found.pipeline
    ticket = next((s for s in pipeline.stages if isinstance(s, Ticket)), None)
    with torch_seed(pipeline.seed):
        result: Any = compress(
            start.spec, found.data, weights=start.weights, eval=found.held_out, task=pipeline.task, length=pipeline.length,
            seed=pipeline.seed, out=folder, progress=progress, command=command, **stage.options(ticket),
        )  # fmt: skip
    report = result.report
    chosen = report.picked
    return {
        "method": chosen.method, "zeros": report.requested.zeros_reached, "sparsity": chosen.sparsity, "values": chosen.values,
        "bits_per_weight": chosen.bits_per_weight, "file_bytes": chosen.file_bytes, "dense_file": report.sizes.dense_file,
        "metric": report.task.metric if chosen.quality is not None else None, "unit": report.task.unit, "value": chosen.quality,
        "low": chosen.low, "high": chosen.high, "verdict": report.verdict.sentence,
    }  # fmt: skip


def measure(
    stage: Evaluate,
    model: Standing,
    found: Materials,
    store: Store,
    against: Standing | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """An eval stage: the figure of ``model``, and its paired loss against another."""
    task, mine, other = paired(stage, model, found, store, against, progress)
    figures = {**figure(mine, task.scale), "unit": written_unit(task), "description": task.describe()}
    if against is not None and other is not None:
        drop: Comparison = compare(other, mine, higher_is_better=task.higher_is_better)
        figures |= {"against": against.made_by, "against_value": task.scale * other.value, "drop": asdict(drop)}
    return figures


def paired(
    stage: Evaluate,
    model: Standing,
    found: Materials,
    store: Store,
    against: Standing | None,
    progress: Progress | None,
) -> tuple[Task, Evaluation, Evaluation | None]:
    """The task of an eval stage, and ``model`` and ``against`` on its examples. What was measured before is read back."""
    pipeline, records = found.pipeline, found.measured_on(stage)
    source = model.source()
    prepared = prepare(
        source, None, records, task=pipeline.task, column=None, label=None, samples=1, length=pipeline.length, batch_size=8,
        seed=pipeline.seed, eval_limit=stage.eval_limit, select=False,
        model=loaded(model, pipeline.seed) if source.config is None else None,
    )  # fmt: skip
    task = prepared.task
    assert task is not None
    agreement = task.of_dense
    anchor = None

    def evaluation(of: Standing, key: str) -> Evaluation:
        stored = load_stored(store, key)
        if stored is not None:
            return stored
        bar = progress(of.made_by) if progress else None
        evaluated = task.evaluate(
            loaded(of, pipeline.seed), anchor, progress=(lambda done, total: bar(done, total, "")) if bar else None
        )
        store_evaluation(store, key, evaluated)
        return evaluated

    other: Evaluation | None = None
    if against is not None and agreement:
        anchor = task.reference(loaded(against, pipeline.seed))
        other = anchor.evaluation
    elif against is not None:
        other = evaluation(against, measure_key(found, stage, against.key))
    mine = evaluation(
        model, measure_key(found, stage, model.key, against.key if agreement and against is not None else None)
    )
    return task, mine, other


def loaded(model: Standing, seed: int) -> torch.nn.Module:
    """The model in float32."""
    with torch_seed(seed):
        return model.source().load().to(torch.float32)


def standing(folder: Path, found: Materials, key: str, made_by: str) -> Standing:
    """The model that a stage left in ``folder``: a folder of its own, or weights for the recipe's factory."""
    source = found.given.source()
    if source.factory is None:
        return Standing(str(folder), None, key, made_by)
    from winnow.formats import is_artifact

    return Standing(found.pipeline.model, folder if is_artifact(folder) else folder / "model.safetensors", key, made_by)


def figure(evaluation: Evaluation, scale: float | None = None) -> dict[str, Any]:
    """The figure as it is told: in per cent, unless it is a perplexity or ``scale`` says otherwise."""
    if scale is None:
        scale = 1.0 if evaluation.metric == "perplexity" else 100.0
    return {
        "metric": evaluation.metric,
        "unit": "%" if evaluation.metric in ("accuracy", "agreement") else "",
        "value": scale * evaluation.value,
        "low": scale * evaluation.low,
        "high": scale * evaluation.high,
        "n": evaluation.n,
    }
