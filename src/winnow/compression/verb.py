"""``compress``: a model in, a smaller one and the proof out."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from winnow.compression.candidates import VALUES, baselines, primary
from winnow.compression.goal import nothing_holds, safest_first, search, within
from winnow.compression.job import Job
from winnow.compression.outcome import Outcome
from winnow.compression.plan import Plan
from winnow.compression.result import Result, finish
from winnow.compression.runner import Progress, Runner
from winnow.compression.setup import Setup, set_up
from winnow.compression.sizing import fit_size
from winnow.compression.upload import upload
from winnow.compression.verdict import recalibrated_note
from winnow.compression.workbench import Workbench
from winnow.disk.work import work_folder
from winnow.errors import GateError, InputError
from winnow.measure.chance import at_chance
from winnow.run.store import Store

ProgressFactory = Callable[[str], Progress]


def compress(
    model: str | Path | nn.Module,
    data: Any = None,
    *,
    out: str | Path | None = None,
    dry_run: bool = False,
    progress: ProgressFactory | None = None,
    command: str | None = None,
    **options: Any,
) -> Result | Plan:
    """Prunes a model to a budget, packs it, measures it against the dense model and plain quantization.

    Args:
        model: a Hugging Face folder or name, ``"package.module:function"`` (with ``weights=``), or a module (which
            is not modified).
        data: calibration data: a file, a folder of images, an npz, a Hugging Face data set name,
            ``"package.module:function"``, or records in memory; see :func:`winnow.data.open_data`.
        out: folder to write; without it, use :meth:`Result.save`.
        dry_run: return the :class:`Plan` and write nothing.
        progress: called with a stage's name, gives a function (done, total, what).
        command: the command line to name in the report.
        options: the other fields of :class:`winnow.compression.job.Job`, which have the help texts of
            ``winnow compress --help``. Exactly one budget: ``sparsity`` (in [0, 1), or several), ``bits_per_weight``,
            ``size`` or ``max_drop`` (points, or per cent of perplexity, that the paired upper 95% bound may lose);
            none with ``method="zeros"``, which packs a sparse model as it is. ``settings`` is a dict (see
            :mod:`winnow.train.distil.settings`), ``table`` a dict of rates by name or pattern, ``time`` seconds or text.

    Raises:
        InputError: something about the arguments, the model or the data must change; the sentence says what.
        GateError: ``max_drop`` cannot be met.
        WinnowError: the work failed, e.g. a full disk; running again continues. Or the finished folder could not be uploaded
            to ``push_to_hub``: it stays where it is.
    """
    setup = set_up(Job(model, data, out=out, **options))
    return setup.plan if dry_run else run(setup, progress=progress, command=command)


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
        bench = Workbench(setup.host, setup.scope, setup.prepared.batches, progress)
        options: Any = dict(spill=setup.plan.ledger.spilled, device=job.device)
        identity = {"model": setup.source.sha256(), "device": job.device, "dtype": job.dtype, **setup.prepared.hashes}
        runner = Runner(bench, setup.prepared.task, store, identity=identity, **options)
        if job.size is not None:
            fit_size(setup, runner.weigh)
        if job.max_drop is None:
            outcomes, chosen = _at_rates(setup, runner)
        else:
            selecting = {**identity, "evaluation": setup.prepared.hashes["selection"]}
            selector = Runner(bench, setup.prepared.selection, store, identity=selecting, **options)
            outcomes, chosen = _at_goal(setup, runner, selector)
        result = finish(
            setup, outcomes, chosen, dense=runner.dense, timing=runner.timing, started=started, command=command
        )
        if job.out is None:
            result.hold(stack.pop_all())  # the packed units live as long as the result
        else:
            store.remove()
    if job.push_to_hub is not None:
        assert result.folder is not None
        result.url = upload(result.folder, job.push_to_hub)
    return result


def _at_rates(setup: Setup, runner: Runner) -> tuple[list[Outcome], list[Outcome]]:
    """The requested rates, and beside them what they are compared with."""
    requested = [primary(r) for r in setup.recipes]
    level = "none" if runner.task is None else setup.job.baselines
    others = baselines(setup.recipes, level, has_data=bool(setup.prepared.batches))
    names = {c.name for c in (*requested, *others)}
    if unknown := sorted(set(setup.job.keep) - names):
        raise InputError(
            f"--keep {unknown[0]!r} is not among the candidates of this run: {', '.join(sorted(names))}.", option="keep"
        )
    runner.measure_dense()
    outcomes = [runner.run(c) for c in (*requested, *others)]
    _note_recalibrated(setup, runner, outcomes)
    return outcomes, outcomes[: len(requested)]


def _at_goal(setup: Setup, runner: Runner, selector: Runner) -> tuple[list[Outcome], list[Outcome]]:
    """The smallest file within the limit: searched by ``selector``, confirmed on data no choice has seen."""
    limit = setup.job.max_drop
    assert limit is not None and setup.prepared.selection is not None
    dense = selector.measure_dense()
    if dense is not None and (doubt := at_chance(setup.prepared.selection, dense)):
        raise GateError(
            f"--max-drop can show nothing: {doubt} Nothing was written - give data that the dense model does well on."
        )
    level = "all" if setup.job.baselines == "all" else "rtn"
    plain = baselines(setup.recipes, level, has_data=bool(setup.prepared.batches))
    values = [setup.job.values] if setup.job.values != "keep" else VALUES
    quantized = [c for c in plain if c.kind == "quantized"]
    tried = search(setup.recipe_at, quantized, selector.run, limit, values)
    runner.measure_dense()
    runner.timing.update(selector.timing)
    confirmed: list[Outcome] = []
    for outcome in safest_first(tried, limit):
        looked = runner.run(outcome.candidate)
        if not within(looked, limit):
            break
        confirmed.append(looked)
    if not confirmed:
        raise GateError(nothing_holds([looked], limit))
    taken = confirmed[-1]
    outcomes = [taken, *(runner.run(o.candidate) for o in tried if o.name != taken.name)]
    _note_recalibrated(setup, runner, outcomes)
    return outcomes, [taken]


def _note_recalibrated(setup: Setup, runner: Runner, outcomes: list[Outcome]) -> None:
    """What the new batch norms of every candidate do to the dense model alone: a part of every row but the dense one."""
    recipe = next((o.candidate.recipe for o in outcomes if o.candidate.recipe and o.candidate.recipe.recalibrate), None)
    found = runner.dense_recalibrated(recipe) if recipe is not None else None
    if recipe is not None and found is not None and runner.task is not None and runner.dense is not None:
        setup.notes.append(recalibrated_note(runner.task, runner.dense, *found, recipe.samples))
