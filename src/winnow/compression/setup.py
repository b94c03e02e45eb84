"""Opens and checks everything that a compression needs, before any work."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from winnow.allocate.zeros import zero_entries
from winnow.budget import Budget
from winnow.calibrate.walk_units import find_walk_units, one_stream
from winnow.compression.candidates import Candidate, at_values, baselines, rounded
from winnow.compression.checks import (
    check_earlier,
    check_loadable,
    check_trainable,
    check_zeros,
    stored_quantized,
)
from winnow.compression.counts import raised, total_zeros, zeros_note
from winnow.compression.hosts import Host, Loaded, Streamed
from winnow.compression.job import Job
from winnow.compression.methods import choose, recurrent_weights
from winnow.compression.options import SAMPLES, TRAINING_SAMPLES
from winnow.compression.plan import Plan, make_plan
from winnow.compression.recipe import Recipe
from winnow.compression.recovery import fitting_of, parse_recovery
from winnow.compression.rest import LARGE, embedding_bytes, rest_saves
from winnow.compression.sizes import dense_bytes, dense_layout, stored_sizes
from winnow.compression.timing import Timing, measure
from winnow.compression.upload import check_upload
from winnow.compression.vocabulary import Trimmed, trim
from winnow.disk.links import refuse_links
from winnow.disk.work import check_made, check_output
from winnow.errors import InputError
from winnow.forward.batch import call, first_example, token_count
from winnow.machine.memory import available_memory
from winnow.masks.outputs import output_weights
from winnow.masks.prunable import CONVOLUTIONS, Scope
from winnow.masks.scope import declares_outputs, find_scope
from winnow.masks.structure import NM, Unstructured, check, within_tensor
from winnow.masks.unwrap import on_meta
from winnow.measure.compare import Comparison
from winnow.measure.fits import check_length, require_sound
from winnow.measure.prepare import Prepared, prepare, try_model
from winnow.models.source import ModelSource, open_model

TOKENS = 8192  # of a training step at most, where the user names no batch: long texts come in smaller batches


@dataclass
class Setup:
    """Everything opened and checked, before any work."""

    job: Job
    source: ModelSource
    host: Host
    scope: Scope
    prepared: Prepared
    recipes: list[Recipe]
    reason: str  # why this method
    dense_file: int  # of the dense model's weights, as a plain safetensors file
    plan: Plan
    notes: list[str] = field(default_factory=list)  # what the user can act on
    remarks: list[str] = field(default_factory=list)  # of the rest, for the page
    trimmed: Trimmed | None = None
    large_embeddings: bool = False  # embeddings that stay unpruned are a large part of the dense file
    timing: Timing = field(kw_only=True)
    existing: int = 0  # zeros among the prunable weights before pruning, that every rate includes
    recalibrated: Comparison | None = None  # what new batch norms alone cost the dense model, once measured

    @property
    def made(self) -> dict[str, Any]:
        """What the job says of itself (:mod:`winnow.disk.made`)."""
        hashes = {f"{name} data": value for name, value in self.prepared.hashes.items()}
        return self.job.described({"weights": self.source.sha256(), **hashes})

    def plain(self, level: str | None = None) -> list[Candidate]:
        """What the requested models are measured against, at a level of baselines (the job's own)."""
        level = "none" if self.prepared.task is None else self.job.baselines if level is None else level
        return baselines(self.recipes, level, has_data=bool(self.prepared.batches), embeddings=self.large_embeddings)

    def recipe_at(self, sparsity: float, values: str) -> Recipe:
        """The job's recipe at another rate and value type."""
        base, zeros = self.recipes[0], round(sparsity * self.scope.numel)
        sparsity, zeros = raised(sparsity, zeros, self.existing, self.scope.numel)
        return base.model_copy(update=dict(sparsity=sparsity, zeros=zeros, values=values))


def set_up(job: Job) -> Setup:
    """Opens the model and the data and turns the budget into integers. Prunes nothing, writes nothing.

    Raises:
        InputError: anything about the model or the data that would stop it later.
    """
    source = open_model(job.model, job.weights, trust_remote_code=job.trust_remote_code)
    if source.module is not None:
        from winnow.kernels.swap import require_dense

        require_dense(source.module)
    if job.push_to_hub is not None:
        check_upload(job.push_to_hub)
    if job.out is not None:
        given = (source.folder, source.weights, job.data, job.eval, job.compare_with, job.vocabulary)
        check_output(job.out, inputs=given, made=job.described(None), overwrite=job.overwrite)
        if source.folder is not None:
            refuse_links([source.folder / "config.json"], source.folder)
        check_loadable(source)
    trimmed = _trimmed(job, source)
    source = source if trimmed is None else trimmed.source
    limit = job.memory_limit()
    if limit is not None:  # libraries used later take memory too: they are there before it is reckoned with
        import jinja2  # noqa: F401
        import scipy.stats  # noqa: F401

        import winnow.report.compression.page  # noqa: F401
    host: Host = (
        Streamed(source)
        if limit is not None and source.kind == "folder" and not source.is_artifact
        else Loaded(
            source, dtype=None if job.dtype == "auto" else getattr(torch, job.dtype), wide=_fits_wide(job, source)
        )
    )
    scope = find_scope(host.model, include=job.include, exclude=job.exclude)
    learned_pattern = job.learns and isinstance(job.pattern, NM)  # leaves tensors dense that do not take it
    if not host.streamed:  # NaN is found before an hour of work; streamed blocks are checked when they are read
        require_sound(host.model, scope.prunables)
    method: str = job.method
    reason = "exactly the model’s zeros are kept" if job.keeps_zeros else "named by you"
    if method == "auto":
        recurrent = recurrent_weights(scope, host.model)
        method, reason = choose(scope, has_data=job.data is not None, pattern=job.pattern, recurrent=recurrent)
    parts, settings = job.resolve(method)
    fitting, (_, recovery) = fitting_of(parts["solver"], parts["allocation"]), parse_recovery(parts["solver"])
    if fitting.trains:
        check_trainable(job, host, scope, method)
    if job.compare_with is not None:
        check_earlier(job, fitting)
    samples = job.samples or (TRAINING_SAMPLES if fitting.needs_data else SAMPLES)
    prepared = prepare(
        source, job.data, job.eval, task=job.task, column=job.column, label=job.label, samples=samples, length=job.length,
        batch_size=settings["batch"] if fitting.trains else job.batch_size, seed=job.seed, eval_limit=job.eval_limit, select=job.max_drop is not None, tokenizer=job.tokenizer,
        tokens=TOKENS if fitting.trains and "batch" not in job.settings else None,
        model=None if host.streamed else host.model, mean=job.mean, std=job.std,
    )  # fmt: skip
    if job.floor is not None and prepared.task is None:
        raise InputError("--floor needs data to measure on: give --data (and --eval).", option="floor")
    host = with_data(host, prepared)
    scope = find_scope(
        host.model, include=job.include, exclude=job.exclude, outputs=outputs_of(source, host.model, prepared)
    )
    for p in scope.prunables.values():
        if not learned_pattern:
            check(within_tensor(job.pattern), p.rows, p.cols, p.name)
    if fitting.trains:
        settings["batch"] = prepared.batch_size
    packed_as_is = (
        job.keeps_zeros and parts["solver"] == "none"
    )  # so little changes that batch norms stay, in every row
    recalibrate = job.recalibrate and not packed_as_is
    sequential = _sequential(job, host, scope, prepared, whole_blocks=recovery.by_block)
    layout = dense_layout(host, scope)
    prunable_bytes = sum(p.numel * host.stored_dtype[n].itemsize for n, p in scope.prunables.items())
    kept_bytes = sum(stored_sizes(host).values()) - prunable_bytes  # of the tensors that stay dense
    dense_file = dense_bytes(host, scope, layout)
    large = embedding_bytes(host, scope) >= LARGE * dense_file
    kept_bytes -= rest_saves(host, scope, job.rest, job.group_size)
    if source.quantized is not None:  # what is saved is saved of the file that there is
        dense_file = sum(f.stat().st_size for f in source.weight_files())
    recipes: list[Recipe] = []
    zero = sum(zero_entries(host.original(n)) for n in scope.prunables)
    if job.keeps_zeros:
        check_zeros(zero, scope, source.spec)
    own = zero if job.keeps_zeros else 0
    existing = zero if isinstance(job.pattern, Unstructured) else 0
    budgets: list[Budget | None] = [*job.budgets()] or [None]  # none: a goal, whose rates come later, or its own zeros
    for budget in budgets:
        sparsity, zeros = own / scope.numel, own
        if budget is not None:
            if learned_pattern:  # which layers take it is learned
                zeros = round(budget.value * scope.numel)
            else:
                zeros = total_zeros(budget, host, scope, job.pattern, job.values, job.group_size, kept_bytes)
            sparsity = budget.value if budget.kind == "sparsity" else round(zeros / scope.numel, 4)
            sparsity, zeros = raised(sparsity, zeros, existing, scope.numel)
        if any(r.zeros == zeros for r in recipes):  # two rates below the existing zeros come to one
            continue
        recipes.append(
            Recipe(
                method=method, **parts, structure=job.structure, values=job.values, rest=job.rest, group_size=job.group_size,  # type: ignore[arg-type]
                sparsity=sparsity, zeros=zeros, damp=job.damp, sequential=sequential, recalibrate=recalibrate, table=job.table,
                settings=settings, time=job.seconds(), include=job.include, exclude=job.exclude, samples=samples, length=prepared.length,
                batch_size=prepared.batch_size, seed=job.seed,
            )
        )  # fmt: skip
    notes = [
        *(note for note in (source.untrained(),) if note is not None),
        *prepared.notes,
        *scope.notes,
        *source.companions([job.data, job.eval, job.vocabulary]).left_out,
    ]
    remarks = [*([trimmed.note] if trimmed is not None else []), *stored_quantized(source), *prepared.remarks]
    if job.keeps_zeros and job.solver is None:
        recipes = [at_values(r, r.values, has_data=bool(prepared.batches)) for r in recipes]
        notes += [how] if (how := rounded(recipes[0])) else []
    if any(r.needs_data for r in recipes) and not prepared.batches:
        raise InputError(
            f"--method {method} needs calibration data: give --data, or choose magnitude or lamp.", option="data"
        )
    if not job.keeps_zeros:
        requested = min((b.value for b in budgets if b is not None and b.kind == "sparsity"), default=None)
        notes += zeros_note(zero, scope.numel, job.pattern, requested=requested)
    base = recipes[0]
    tried = [base, *(r for c in baselines(recipes, job.baselines, has_data=bool(prepared.batches)) if (r := c.recipe))]
    with torch.random.fork_rng(devices=[]):
        timing = measure(
            host.model, scope, prepared.batches, prepared.task, tried, device=job.device, streamed=host.streamed
        )
    plan = make_plan(
        job,
        source,
        host,
        scope,
        prepared,
        recipes,
        dense=layout,
        dense_file=dense_file,
        limit=limit,
        timing=timing,
        large=large and prepared.task is not None and job.baselines != "none",
        notes=[trimmed.note] if trimmed is not None else [],
    )
    setup = Setup(
        job, source, host, scope, prepared, recipes, reason, dense_file, plan, notes, remarks, trimmed, large, existing=existing, timing=timing,
    )  # fmt: skip
    if job.out is not None and job.out.exists():
        check_made(job.out, setup.made, job.overwrite)
    return setup


def _trimmed(job: Job, source: ModelSource) -> Trimmed | None:
    if job.vocabulary is None:
        return None
    if job.tokenizer is not None:
        raise InputError(
            "--vocabulary cuts the tokenizer of the model's folder: leave out tokenizer.", option="tokenizer"
        )
    return trim(source, job.vocabulary, column=job.column)


def with_data(host: Host, prepared: Prepared) -> Host:
    """The host, once its model has taken the first batches; held in its stored types where it runs in no others.

    A streamed model is only looked at: a forward would read all of it.

    Raises:
        InputError: the model does not take the data; see :func:`winnow.measure.prepare.try_model`.
    """
    config = host.source.config
    if host.streamed:
        check_length(host.model, config, prepared.length)
        return host
    try:
        try_model(prepared, host.model, config)
        return host
    except InputError:
        if not host.widened:
            raise
        with suppress(InputError):  # a forward that casts its input itself, say
            plain = Loaded(host.source)
            try_model(prepared, plain.model, config)
            return plain
        raise


def outputs_of(source: ModelSource, model: nn.Module, prepared: Prepared) -> list[str] | None:
    """Names of the output layers' weights; None where nothing shows them.

    A folder is judged by its class alone, on tensors without values, so that the scope is the same whether the model is
    loaded or streamed, with data or without. Of other models one example of the data tells.
    """
    if declares_outputs(model):
        return None
    if source.kind == "folder":
        return _of_class(model)
    run = _first_run(model, prepared)
    return None if run is None else output_weights(model, run)


def _of_class(model: nn.Module) -> list[str] | None:
    from winnow.coupled.call import forward
    from winnow.shrinking.example import make_example

    with suppress(Exception):  # a forward that looks at values, say
        twin = on_meta(model)
        example = make_example(twin)
        return output_weights(twin, lambda: forward(twin, example))
    return None


def _first_run(model: nn.Module, prepared: Prepared) -> Callable[[], Any] | None:
    if prepared.batches:
        batch = first_example(prepared.batches[0])
        return lambda: call(model, prepared.batches[0] if batch is None else batch)
    task = prepared.task
    return None if task is None else lambda: task.evaluate(model)


def _fits_wide(job: Job, source: ModelSource) -> bool:
    """16 bits become float32 unless the model would not fit: half precision on a CPU is slow or coarse."""
    stored = sum(f.stat().st_size for f in source.weight_files())
    return 4 * stored < available_memory() and job.device == "cpu"


def _sequential(
    job: Job, host: Host, scope: Scope, prepared: Prepared, *, whole_blocks: bool
) -> Literal["layer", "block"]:
    """Layer by layer takes half the forwards and holds more hidden states: where they fit, and the model allows it.

    A solver that fits units as a whole (``whole_blocks``) gets blocks: a layer alone has far less to make up with.
    """
    if job.sequential == "layer" and host.streamed:
        raise InputError(
            "--sequential layer needs the model in memory: leave out --ram, or choose block.", option="sequential"
        )
    if job.sequential != "auto":
        return "layer" if job.sequential == "layer" else "block"
    if whole_blocks or host.streamed or not prepared.batches or not one_stream(host.model):
        return "block"
    # A block that multiplies with parameters of its own is seen as a block, not at any layer of it.
    if any(p.block for unit in find_walk_units(host.model, scope, "layer")[1] for p in unit.prunables):
        return "block"
    widths = [p.cols for p in scope.prunables.values() if p.kind not in CONVOLUTIONS] or [0]
    waiting = 4 * token_count(prepared.batches) * 2 * (min(widths) + max(widths))
    return "layer" if waiting < available_memory() / 4 else "block"
