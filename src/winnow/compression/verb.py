"""``compress``: a model in, a smaller one and the proof out."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from winnow.compression.candidates import baselines, primary
from winnow.compression.goal import Search, nothing_holds, safest_first, search, within
from winnow.compression.outcome import Outcome
from winnow.compression.plan import Plan
from winnow.compression.result import Result, finish
from winnow.compression.runner import Progress, Runner
from winnow.compression.setup import Setup
from winnow.compression.sizing import fit_size
from winnow.compression.verdict import recalibrated_note
from winnow.disk.work import work_folder
from winnow.errors import GateError, InputError
from winnow.measure.chance import at_chance
from winnow.run.store import Store

ProgressFactory = Callable[[str], Progress]


def compress(
    model: str | Path | nn.Module,
    data: Any = None,
    *,
    sparsity: float | str | Sequence[float] | None = None,
    bits_per_weight: float | None = None,
    size: str | int | None = None,
    max_drop: float | None = None,
    out: str | Path | None = None,
    dry_run: bool = False,
    progress: Callable[[str], Callable[[int, int, str], None]] | None = None,
    command: str | None = None,
    **options: Any,
) -> Result | Plan:
    """Prunes a model to a budget, packs it, measures it against the dense model and plain quantization.

    Args:
        model: a Hugging Face folder or name, ``"package.module:function"`` (with ``weights=``), or a module (which
            is not changed).
        data: calibration data: a file, a folder of images, an npz, a Hugging Face data set name,
            ``"package.module:function"``, or records in memory; see :func:`winnow.data.open_data`.
        sparsity: share of zeros among the prunable weights in [0, 1), or several. Exactly one of this,
            ``bits_per_weight`` (of the prunable weights, index and scales counted), ``size`` (of the weights file,
            e.g. "40MB") and ``max_drop`` (points, or per cent of perplexity, that the paired upper 95 % bound may lose);
            none with ``method="zeros"``, which packs a sparse model as it is.
        out: folder to write; without it, use :meth:`Result.save`.
        dry_run: return the :class:`Plan` and write nothing.
        progress: called with a stage's name, gives a function (done, total, what).
        options: the other fields of :class:`winnow.compression.job.Job`: eval, task, column, label, method, score,
            group, allocation, table, structure, solver, values, group_size, baselines, keep, include, exclude,
            samples, length, batch_size, eval_limit, seed, damp, recalibrate, ram, device, dtype, weights,
            tokenizer, trust_remote_code, speed; and for methods that train (fcpts, distil, ``allocation="learned"``):
            settings (a dict, see :mod:`winnow.train.distil.settings`), time (seconds, in place of a number of steps),
            compare_with (an earlier run's folder), floor (a value of the metric that quality should not fall below);
            mean and std of pixels between 0 and 1 (numbers, one or one a channel), for images given as bytes.

    Raises:
        InputError: something about the arguments, the model or the data must change; the sentence says what.
        GateError: ``max_drop`` cannot be kept.
        WinnowError: the work failed, e.g. a full disk; running again continues.
    """
    from winnow.compression.job import Job
    from winnow.compression.setup import set_up
    from winnow.compression.verb import run
    from winnow.errors import InputError

    unknown = sorted(set(options) - set(Job.__dataclass_fields__))
    if unknown:
        raise InputError(
            f"compress has no option {unknown[0]!r}: the options are the fields of winnow.compression.job.Job."
        )
    job = Job(
        model=model, data=data, sparsity=sparsity, bits_per_weight=bits_per_weight, size=size, max_drop=max_drop,
        out=Path(out) if out is not None else None, **options,
    )  # fmt: skip
    setup = set_up(job)
    if dry_run:
        return setup.plan
    return run(setup, progress=progress, command=command)


def run(setup: Setup, *, progress: ProgressFactory | None = None, command: str | None = None) -> Result:
    """Makes and measures the candidates, takes one, and writes the folder and the report.

    Raises:
        GateError: ``max_drop`` cannot be kept; nothing was written.
    """
    job, started = setup.job, time.time()
    with contextlib.ExitStack() as stack:
        if job.out is None:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="winnow-")))
        else:
            root = work_folder(job.out)
        store = Store(root)
        stack.callback(store.release)
        setup.host.begin(setup.scope)
        runner = Runner(
            setup.host, setup.scope, setup.prepared.batches, setup.prepared.task, store, identity=_identity(setup),
            spill=setup.plan.ledger.spilled, device=job.device, progress=progress,
        )  # fmt: skip
        if job.size is not None:
            fit_size(setup, runner)
        if job.max_drop is None:
            outcomes, chosen = _at_rates(setup, runner)
        else:
            outcomes, chosen = _at_goal(setup, runner, store, progress)
        result = finish(setup, runner, outcomes, chosen, started=started, command=command)
        if job.out is None:
            result.hold(stack.pop_all())  # the packed units live as long as the result
        else:
            store.remove()
    return result


def _at_rates(setup: Setup, runner: Runner) -> tuple[list[Outcome], list[Outcome]]:
    """The requested rates, and beside them what they are compared with."""
    requested = [primary(r) for r in setup.recipes]
    others = (
        baselines(setup.recipes, setup.job.baselines, has_data=bool(setup.prepared.batches))
        if runner.task is not None
        else []
    )
    names = {c.name for c in (*requested, *others)}
    if unknown := sorted(set(setup.job.keep) - names):
        raise InputError(f"--keep {unknown[0]!r} is not among the candidates of this run: {', '.join(sorted(names))}.")
    runner.measure_dense()
    outcomes = [runner.run(c) for c in (*requested, *others)]
    _note_recalibrated(runner, outcomes)
    return outcomes, outcomes[: len(requested)]


def _at_goal(
    setup: Setup, runner: Runner, store: Store, progress: ProgressFactory | None
) -> tuple[list[Outcome], list[Outcome]]:
    """The smallest file within the limit: searched on the selection data, confirmed on data no choice has seen."""
    limit = setup.job.max_drop
    assert limit is not None and setup.prepared.selection is not None
    selecting = Runner(
        setup.host, setup.scope, setup.prepared.batches, setup.prepared.selection, store,
        identity={**_identity(setup), "evaluation": setup.prepared.hashes["selection"]},
        spill=setup.plan.ledger.spilled, device=setup.job.device, progress=progress,
    )  # fmt: skip
    dense = selecting.measure_dense()
    if dense is not None and (doubt := at_chance(setup.prepared.selection, dense)):
        raise GateError(
            f"--max-drop can show nothing: {doubt} Nothing was written - give data that the dense model does well on."
        )
    plain = baselines(
        setup.recipes, "all" if setup.job.baselines == "all" else "rtn", has_data=bool(setup.prepared.batches)
    )
    values = [setup.job.values] if setup.job.values != "keep" else ["keep", "int8", "int4"]
    found: Search = search(
        setup.recipe_at,
        plain=[c for c in plain if c.kind == "quantized"],
        make=selecting.run,
        primary=primary,
        max_drop=limit,
        values=values,
    )
    runner.measure_dense()
    runner.timing.update(selecting.timing)
    confirmed: list[Outcome] = []
    for outcome in safest_first(found.tried, limit):
        looked = runner.run(outcome.candidate)
        if not within(looked, limit):
            break
        confirmed.append(looked)
    if not confirmed:
        raise GateError(nothing_holds([looked], limit))
    taken = confirmed[-1]
    outcomes = [taken, *(runner.run(o.candidate) for o in found.tried if o.name != taken.name)]
    _note_recalibrated(runner, outcomes)
    return outcomes, [taken]


def _note_recalibrated(runner: Runner, outcomes: list[Outcome]) -> None:
    """What the new batch norms of every candidate do to the dense model alone: a part of every row but the dense one."""
    recipe = next((o.candidate.recipe for o in outcomes if o.candidate.recipe and o.candidate.recipe.recalibrate), None)
    found = runner.dense_recalibrated(recipe) if recipe is not None else None
    if recipe is not None and found is not None and runner.task is not None and runner.dense is not None:
        runner.notes.append(recalibrated_note(runner.task, runner.dense, *found, recipe.samples))


def _identity(setup: Setup) -> dict[str, str]:
    return {
        "model": setup.source.sha256(),
        "device": setup.job.device,
        "dtype": setup.job.dtype,
        **setup.prepared.hashes,
    }
