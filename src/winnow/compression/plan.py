"""The plan before the work: what will be pruned, and what it will take in time, memory, disk and file size."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from winnow.calibrate.ledger import ALLOWANCE, Fitting, Ledger, estimate_memory
from winnow.compression.hosts import Host
from winnow.compression.recipe import Recipe
from winnow.compression.sizes import expected_bytes, stored_sizes
from winnow.formats.shards import Layout
from winnow.forward.batch import call, example_count, token_count
from winnow.machine.memory import resident as resident_bytes
from winnow.masks.prunable import Prunable, Scope
from winnow.notebook import Card, Shown
from winnow.words import count, duration, size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from winnow.compression.job import Job
    from winnow.compression.timing import Timing
    from winnow.measure.prepare import Prepared
    from winnow.models.source import ModelSource

PATIENCE = 2.0  # seconds that a rehearsed forward may take, by what fewer examples took


@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """Reckoned before the start; ``winnow compress --dry-run`` prints it."""

    prunable: int
    total: int  # parameters
    skipped: dict[str, int]  # reason -> weights
    rates: list[tuple[str, int, int]]  # (budget, zeros, expected bytes of the weights file)
    dense_file: int
    ledger: Ledger
    seconds: float  # the requested candidate: forwards, statistics, solving, and training where there is any
    disk: int  # bytes while it runs: all candidates, packed, and what is written
    method: str
    notes: list[str] = field(default_factory=list)  # how images are fed, what was held out
    training: float = 0.0  # seconds, for one sparsity
    total_seconds: float = 0.0  # of the whole run: loading, all candidates made and measured, speed, report

    def _card(self) -> Card:
        facts = [
            ("prunable", f"{count(self.prunable)} of {count(self.total)} weights"), ("dense file", size(self.dense_file)),
            ("time", f"about {duration(self.total_seconds)}"), ("memory", size(self.ledger.need)), ("disk", size(self.disk)),
        ]  # fmt: skip
        rows = [{"budget": rate, "zeros": zeros, "file": size(bytes_)} for rate, zeros, bytes_ in self.rates]
        skipped = [{"not pruned": reason, "weights": numel} for reason, numel in self.skipped.items()]
        notes = [{"note": note} for note in self.notes]
        budgets = ", ".join(f"{rate}: {size(bytes_)}" for rate, _, bytes_ in self.rates)
        return Card(
            "Plan",
            f"{self.method}, {budgets or 'sparsity to be searched for'}",
            facts,
            [("budgets", rows), ("not pruned", skipped), ("notes", notes)],
        )


@dataclass(frozen=True)
class TrainingLedger(Ledger):
    """Bytes of a run that fits the whole model: what :class:`Ledger` reckons, and what training holds."""

    training: int = 0  # gradients, momentum, masked weights and the dense ones, the dense model's outputs
    graph: int = 0  # what a batch's forward leaves for the backward

    @property
    def need(self) -> int:
        return max(super().need, ALLOWANCE + self.resident + self.training + self.graph)

    def table(self) -> list[tuple[str, int]]:
        return [
            ("resident before the start", self.resident),
            ("dense copy, gradients, momentum, masked weights", self.training),
            ("activations of one training batch", self.graph),
        ]


def make_plan(
    job: Job,
    source: ModelSource,
    host: Host,
    scope: Scope,
    prepared: Prepared,
    recipes: Sequence[Recipe],
    *,
    dense: Layout,
    dense_file: int,
    limit: int | None,
    timing: Timing,
    large: bool = False,
    notes: Sequence[str] = (),
) -> Plan:
    """Reckons the plan; ``large``: a baseline quantizes the embeddings too. Raises InputError when the memory limit cannot be kept."""
    units: dict[str | None, list[Prunable]] = {}
    for p in scope.prunables.values():
        units.setdefault(p.block, []).append(p)
    sizes = stored_sizes(host)
    inside = {b: sum(v for n, v in sizes.items() if b is not None and n.startswith(b + ".")) for b in units}
    block_bytes = max(inside.values(), default=0) if host.streamed else 0
    outside = sum(sizes.values()) - sum(inside.values()) if host.streamed else 0
    tokens = token_count(prepared.batches)
    per_batch = max((token_count([b]) for b in prepared.batches), default=0)
    hidden = min((p.cols for p in scope.prunables.values()), default=1)
    itemsize = next((p.element_size() for p in host.model.parameters() if p.is_floating_point()), 4)
    gram = any(r.chain.needs_gram for r in recipes)
    by_block = recipes[0].fitting.by_block
    ledger = estimate_memory(
        units=list(units.values()), block_bytes=block_bytes, outside_bytes=outside, tokens=tokens, batch_tokens=per_batch, hidden=hidden,
        itemsize=itemsize, gram=gram, codes=any(r.values in ("int8", "int4") for r in recipes), resident=resident_bytes(), limit=limit,
        fitting=_fitting(host, prepared, recipes[0], list(units.values()), tokens) if by_block else None,
        rest=0 if job.rest == "keep" and not large else max((p.numel * (host.stored_dtype[n].itemsize + 2) for n, p in scope.rest.items()), default=0),
    )  # fmt: skip
    seconds, training = timing.of(recipes[0]), 0.0
    if by_block:
        share = min(recipes[0].settings["batch"] / max(example_count(prepared.batches), 1), 1.0)
        seconds += recipes[0].settings["steps"] * 3 * timing.forward * share
    if recipes[0].fitting.trains:
        ledger, training = _training(ledger, host, scope, prepared, recipes[0])
    skipped: dict[str, int] = {}
    for s in scope.skipped:
        skipped[s.reason] = skipped.get(s.reason, 0) + s.numel
    rates = [(f"{100 * r.sparsity:.4g}% sparsity", r.zeros, expected_bytes(r, host, scope, dense)) for r in recipes]
    spilled = 2 * tokens * hidden * itemsize if ledger.spilled else 0
    total = scope.numel + sum(s.numel for s in scope.skipped)
    if job.max_drop is not None:
        rates = []
        notes = [
            *notes,
            "the sparsity is searched for: every step of the search compresses and measures one candidate.",
        ]
    return Plan(
        scope.numel, total, skipped, rates, dense_file, ledger, seconds + training, spilled,
        recipes[0].method, [*notes, *prepared.notes, *prepared.remarks], training,
    )  # fmt: skip


def _fitting(
    host: Host, prepared: Prepared, recipe: Recipe, units: Sequence[Sequence[Prunable]], tokens: int
) -> Fitting:
    """What the fit of a block takes beside its weights: a step of ``batch`` examples, or of whole calls where those are larger."""
    count = max(example_count(prepared.batches), 1)
    length = tokens / count  # positions of an example
    largest = max((example_count([b]) for b in prepared.batches), default=1)
    positions = length * min(max(recipe.settings["batch"], largest), count)
    config = getattr(host.model, "config", None)
    config = getattr(config, "text_config", config)
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    # Of every layer its input and output and what the functions between them keep; of attention its weights, three times.
    widths = max((sum(p.rows + p.cols for p in unit) for unit in units), default=0)
    graph = 4 * positions * (2 * widths + 3 * heads * length)
    return Fitting(4 if recipe.recovery.follows_dense(recipe) else 3, int(graph))


def _training(
    ledger: Ledger, host: Host, scope: Scope, prepared: Prepared, recipe: Recipe
) -> tuple[TrainingLedger, float]:
    """The ledger and the seconds of a recipe that trains: a step takes three forwards (its own, and the backward for two).

    What one forward takes and leaves is measured on a few examples.
    """
    from winnow.train.examples import Examples

    settings = recipe.settings
    examples = Examples(prepared.batches, settings["batch"])
    whole, full = examples.joined is not None, min(settings["batch"], examples.count)
    shown = float(min(4, full)) if whole else examples.count / len(examples.batches)  # examples in a rehearsal
    seconds, left, outputs = _rehearse(host.model, examples.take(torch.arange(int(shown) if whole else 1)))
    if whole and seconds * full / shown < PATIENCE:  # a few examples of a small model are all overhead
        shown = float(full)
        seconds, left, outputs = _rehearse(host.model, examples.take(torch.arange(full)))
    share = full / shown if whole else 1.0
    small = sum(p.numel() for p in host.model.parameters() if p.ndim <= 1)
    # Per weight: the dense copy, gradient, momentum, and its masked form twice (in the matrix view and as stored).
    training = 4 * (5 * scope.numel + 3 * small) + min(int(outputs * examples.count / shown), 1 << 30)
    times = settings.get("seeds", 1)
    steps = recipe.time if recipe.time is not None else 3 * seconds * share * settings.get("steps", 0) * times
    dense = seconds * share * max(examples.count / settings["batch"], 1)
    kept = asdict(ledger)
    return TrainingLedger(**kept, training=training, graph=int(left * share)), steps + dense


def _rehearse(model: nn.Module, batch: Any) -> tuple[float, int, int]:
    """(seconds, bytes of its layers' outputs, bytes of its output) of a forward of ``model`` on ``batch``, the better of two."""
    from winnow.forward.modes import calibrating

    held = 0

    def count(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal held
        if torch.is_tensor(output):
            held += output.numel() * output.element_size()

    hooks = [m.register_forward_hook(count) for m in model.modules() if not any(True for _ in m.children())]
    best = float("inf")
    try:
        with calibrating(model):
            for _ in range(2):
                held, started = 0, time.perf_counter()
                output = call(model, batch)
                best = min(best, time.perf_counter() - started)
    finally:
        for hook in hooks:
            hook.remove()
    values = output if torch.is_tensor(output) else getattr(output, "logits", None)
    return best, held, values.numel() * values.element_size() if torch.is_tensor(values) else 0


def plan_table(plan: Plan) -> RenderableType:
    """The plan of a dry run."""
    from rich.console import Group
    from rich.table import Column, Table

    from winnow.terminal.screen import Text

    ledger = plan.ledger
    rows, memory = (Table.grid(Column(), Column(justify="right"), padding=(0, 2)) for _ in range(2))
    rows.add_row("method", plan.method)
    rows.add_row("prunable weights", f"{count(plan.prunable)} of {count(plan.total)}")
    for reason, n in sorted(plan.skipped.items(), key=lambda x: -x[1]):
        rows.add_row(Text(f"  not pruned: {reason}"), count(n))
    rows.add_row("weights file now", size(plan.dense_file))
    for text, zeros, expected in plan.rates:
        rows.add_row(f"  at {text}: {count(zeros)} weights pruned", f"about {size(expected)}")
    for note in plan.notes:
        rows.add_row(Text(f"note: {note}"), "")
    rows.add_row("time to make the requested model", f"about {duration(plan.seconds)}")
    rows.add_row("time in all, with baselines and measuring", f"about {duration(plan.total_seconds)}")
    rows.add_row("disk while it runs", f"about {size(plan.disk)}")
    for what, bytes_ in ledger.table():
        if bytes_:
            memory.add_row(f"  {what}", size(bytes_))
    allowed = f" of {size(ledger.limit)} allowed" if ledger.limit else ""
    memory.add_row("peak memory", f"about {size(ledger.need)}{allowed}")
    return Group(Text("Plan (nothing is written)", style="bold"), rows, Text(""), memory)
