"""``compress``: a model in, a smaller one and the proof out."""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, overload

from torch import nn
from typing_extensions import Unpack

from winnow.compression.candidates import primary
from winnow.compression.goal import nothing_holds, safest_first, search, within
from winnow.compression.job import Job
from winnow.compression.keywords import Keywords, listing
from winnow.compression.outcome import Outcome
from winnow.compression.plan import Plan
from winnow.compression.result import Result, finish
from winnow.compression.runner import Runner
from winnow.compression.setup import Setup, set_up
from winnow.compression.sizing import fit_size
from winnow.compression.space import require_space
from winnow.compression.stages import CLOSING, at_goal, at_rates, complete, searched
from winnow.compression.upload import upload
from winnow.compression.verdict import recalibrated_note
from winnow.compression.workbench import Workbench
from winnow.disk.work import check_made, folder_bytes, work_folder
from winnow.errors import GateError, InputError, meant
from winnow.measure.chance import at_chance, too_good
from winnow.measure.evaluation import Evaluation
from winnow.measure.task import written_unit
from winnow.run.store import Store
from winnow.terminal.progress import Progress, ProgressOption, expect, silent, watch
from winnow.words import number, size


@overload
def compress(
    model: str | Path | nn.Module,
    data: Any = None,
    *,
    out: str | Path | None = None,
    dry_run: Literal[False] = False,
    progress: ProgressOption = None,
    command: str | None = None,
    **options: Unpack[Keywords],
) -> Result: ...
@overload
def compress(
    model: str | Path | nn.Module,
    data: Any = None,
    *,
    out: str | Path | None = None,
    dry_run: Literal[True],
    progress: ProgressOption = None,
    command: str | None = None,
    **options: Unpack[Keywords],
) -> Plan: ...
@overload
def compress(
    model: str | Path | nn.Module,
    data: Any = None,
    *,
    out: str | Path | None = None,
    dry_run: bool,
    progress: ProgressOption = None,
    command: str | None = None,
    **options: Unpack[Keywords],
) -> Result | Plan: ...
@listing(Keywords, Job)
def compress(
    model: str | Path | nn.Module,
    data: Any = None,
    *,
    out: str | Path | None = None,
    dry_run: bool = False,
    progress: ProgressOption = None,
    command: str | None = None,
    **options: Unpack[Keywords],
) -> Result | Plan:
    """Prunes a model to a budget, packs it, measures it against the dense model and plain quantization.

    Args:
        model: a Hugging Face folder or name, ``"package.module:function"`` (with ``weights=``), or a module (which
            is not modified).
        data: calibration data: a file, a folder of images, an npz, a Hugging Face data set name,
            ``"package.module:function"``, or records in memory; see :func:`winnow.data.open_data`.
        out: folder to write; without it, use :meth:`Result.save`.
        dry_run: return the :class:`Plan` and write nothing.
        progress: bars or lines by itself, True or False, or a function: see :func:`winnow.terminal.progress.watch`.
        command: the command line to name in the report.
        options: the other fields of :class:`winnow.compression.job.Job`, listed below as in
            ``winnow compress --help``. Exactly one budget: ``sparsity`` (in [0, 1), or several), ``bits_per_weight``,
            ``size`` or ``max_drop`` (points, or per cent of perplexity, that the paired upper 95% bound may lose);
            none with ``method="zeros"``, which packs a sparse model as it is. ``settings`` is a dict (see
            :mod:`winnow.train.distil.settings`), ``table`` a dict of rates by name or pattern, ``time`` seconds or text.
            ``overwrite`` replaces the finished result of another job in ``out`` (the same job may always run again);
            ``keep_work=False`` keeps nothing in ``OUT.work`` of the candidates that were measured and not written.

    Raises:
        InputError: something about the arguments, the model or the data must change; the sentence says what.
        GateError: ``max_drop`` cannot be met.
        WinnowError: the work failed, e.g. a full disk; running again continues. Or the finished folder could not be uploaded
            to ``push_to_hub``: it stays where it is.
    """
    with watch(progress) as stages:
        started = time.perf_counter()
        setup = set_up(Job(model, data, out=out, **options))
        complete(setup, time.perf_counter() - started)
        return setup.plan if dry_run else run(setup, progress=stages, command=command)


def run(setup: Setup, *, progress: Progress = silent, command: str | None = None) -> Result:
    """Makes and measures the candidates, takes one, and writes the folder and the report.

    Raises:
        GateError: ``max_drop`` cannot be kept; nothing was written.
    """
    job, started = setup.job, time.time()
    with contextlib.ExitStack() as stack:
        if job.out is None:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="winnow-")))
            require_space(None, root, setup.plan.disk - sum(bytes_ for *_, bytes_ in setup.plan.rates))
        else:
            root = work_folder(job.out)
        store = Store(root)
        stack.callback(store.release)
        if job.out is not None:
            check_made(job.out, setup.made, job.overwrite)  # under the lock: another run may just have finished
        setup.host.begin(setup.scope)
        bench = Workbench(setup.host, setup.scope, setup.prepared.batches, progress)
        options: Any = dict(spill=setup.plan.ledger.spilled, device=job.device)
        identity = {"model": setup.source.sha256(), "device": job.device, "dtype": job.dtype, **setup.prepared.hashes}
        runner = Runner(bench, setup.prepared.task, store, identity=identity, **options)
        if job.size is not None:
            fit_size(setup, runner.weigh)
        if job.max_drop is None:
            outcomes, chosen = _at_rates(setup, runner, progress)
        else:
            selecting = {**identity, "evaluation": setup.prepared.hashes["selection"]}
            selector = Runner(bench, setup.prepared.selection, store, identity=selecting, **options)
            try:
                outcomes, chosen = _at_goal(setup, runner, selector, progress)
            except GateError as error:
                if job.out is None or not job.keep_work or not any(root.glob("prune-*")):
                    raise
                held = f"{root} ({size(folder_bytes(root))}) keeps what was made, which another limit takes up"
                raise GateError(f"{error.flagged} {held}; delete it when you need none.") from None
        closing = progress(CLOSING)
        closing(0, 1, "")
        result = finish(
            setup, outcomes, chosen, store, dense=runner.dense, timing=runner.timing, started=started, command=command
        )
        closing(1, 1, "")
        if job.out is None:
            result.hold(stack.pop_all())  # the packed units live as long as the result
    if job.push_to_hub is not None:
        assert result.folder is not None
        result.url = upload(result.folder, job.push_to_hub)
    return result


def _at_rates(setup: Setup, runner: Runner, progress: Progress) -> tuple[list[Outcome], list[Outcome]]:
    """The requested rates, and beside them what they are compared with."""
    requested = [primary(r) for r in setup.recipes]
    others = setup.plain()
    names = {c.name for c in (*requested, *others)}
    if unknown := sorted(set(setup.job.keep) - names):
        raise InputError(
            f"--keep {unknown[0]!r}{meant(unknown[0], names)} is not among the candidates of this run: "
            f"{', '.join(sorted(names))}.",
            option="keep",
        )
    expect(progress, at_rates(setup, [*requested, *others]))
    require_floor(setup, runner.measure_dense())
    outcomes = [runner.run(c) for c in (*requested, *others)]
    _note_recalibrated(setup, runner, outcomes)
    return outcomes, outcomes[: len(requested)]


def _at_goal(setup: Setup, runner: Runner, selector: Runner, progress: Progress) -> tuple[list[Outcome], list[Outcome]]:
    """The smallest file within the limit: searched by ``selector``, confirmed on data no choice has seen."""
    limit = setup.job.max_drop
    assert limit is not None and setup.prepared.selection is not None
    plain, quantized, values = searched(setup)
    expect(progress, at_goal(setup, quantized, values))
    dense = selector.measure_dense()
    if dense is not None and (doubt := at_chance(setup.prepared.selection, dense)):
        raise GateError(
            f"--max-drop can show nothing: {doubt} Nothing was written - give data that the dense model does well on."
        )
    if setup.job.floor is not None:  # before the search
        require_floor(setup, runner.measure_dense())
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
    shown = [*(o.candidate for o in tried if o.name != taken.name), *(c for c in plain if c.everything)]
    outcomes = [taken, *map(runner.run, shown)]
    _note_recalibrated(setup, runner, outcomes)
    return outcomes, [taken]


def require_floor(setup: Setup, dense: Evaluation | None) -> None:
    """Raises GateError where the model itself is worse than the floor, before the work that could not reach it."""
    floor, task = setup.job.floor, setup.prepared.task
    if floor is None or task is None or dense is None:
        return
    value, higher = task.scale * dense.value, task.higher_is_better
    if not (value >= floor if higher else value <= floor):
        unit = written_unit(task)
        raise GateError(
            f"the dense model itself reaches {task.metric} {number(value)}{unit}: no compression can satisfy --floor {floor:g}. "
            f"Nothing was written - give a floor {'below' if higher else 'above'} that."
        )


def _note_recalibrated(setup: Setup, runner: Runner, outcomes: list[Outcome]) -> None:
    """What the new batch norms of every candidate do to the dense model alone: a part of every row but the dense one."""
    recipe = next((o.candidate.recipe for o in outcomes if o.candidate.recipe and o.candidate.recipe.recalibrate), None)
    found = runner.dense_recalibrated(recipe) if recipe is not None else None
    if recipe is not None and found is not None and runner.task is not None and runner.dense is not None:
        note = recalibrated_note(runner.task, runner.dense, *found, recipe.samples)
        (setup.notes if too_good(found[1]) else setup.remarks).append(note)
        setup.recalibrated = found[1]
