"""The plan before the work: what will be pruned, and what it will take in time, memory, disk and file size."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from winnow.calibrate.batches import token_count
from winnow.calibrate.ledger import Ledger, reckon
from winnow.compression.counts import scale_bytes, stored_bits
from winnow.compression.hosts import Host, stored_sizes
from winnow.masks.prunable import Prunable, Scope
from winnow.masks.structure import parse_structure
from winnow.measure.memory import resident as resident_bytes
from winnow.run.recipe import Recipe

if TYPE_CHECKING:
    from winnow.compression.job import Job
    from winnow.compression.prepare import Prepared
    from winnow.models import ModelSource


@dataclass(frozen=True)
class Plan:
    """Reckoned before the start; ``winnow compress --dry-run`` prints it."""

    prunable: int
    total: int  # parameters
    skipped: dict[str, int]  # reason -> weights
    rates: list[tuple[str, int, int]]  # (budget, zeros, expected bytes of the weights file)
    dense_file: int
    ledger: Ledger
    seconds: float  # one candidate: two forwards, statistics and solving
    disk: int  # bytes while it runs
    method: str


def make_plan(
    job: Job,
    source: ModelSource,
    host: Host,
    scope: Scope,
    prepared: Prepared,
    recipes: Sequence[Recipe],
    *,
    dense_bytes: int,
    dense_file: int,
    limit: int | None,
) -> Plan:
    """Reckons the plan. Raises InputError when the memory limit cannot be kept."""
    units: dict[str | None, list[Prunable]] = {}
    for p in scope.prunables.values():
        units.setdefault(p.block, []).append(p)
    sizes = stored_sizes(host)
    inside = {
        b: sum(v for n, v in sizes.items() if b is not None and _model_name(host, n).startswith(b + ".")) for b in units
    }
    block_bytes = max(inside.values(), default=0) if host.streamed else 0
    outside = sum(sizes.values()) - sum(inside.values()) if host.streamed else 0
    tokens = token_count(prepared.batches)
    per_batch = max((token_count([b]) for b in prepared.batches), default=0)
    hidden = min((p.cols for p in scope.prunables.values()), default=1)
    itemsize = next((p.element_size() for p in host.model.parameters() if p.is_floating_point()), 4)
    gram = any(r.needs_gram for r in recipes)
    ledger = reckon(
        units=list(units.values()), block_bytes=block_bytes, outside_bytes=outside, tokens=tokens, batch_tokens=per_batch, hidden=hidden,
        itemsize=itemsize, gram=gram, codes=any(r.values in ("int8", "int4") for r in recipes), resident=resident_bytes(), limit=limit,
    )  # fmt: skip
    skipped: dict[str, int] = {}
    for s in scope.skipped:
        skipped[s.reason] = skipped.get(s.reason, 0) + s.numel
    rates = [(f"{100 * r.sparsity:.4g} % zeros", r.zeros, expected_bytes(r, host, scope, dense_bytes)) for r in recipes]
    disk = sum(size for *_, size in rates) + (2 * tokens * hidden * itemsize if ledger.spilled else 0)
    total = scope.numel + sum(s.numel for s in scope.skipped)
    return Plan(
        scope.numel, total, skipped, rates, dense_file, ledger, _seconds(scope, tokens, gram), disk,
        recipes[0].method,
    )  # fmt: skip


def expected_bytes(recipe: Recipe, host: Host, scope: Scope, dense_bytes: int) -> int:
    """Bytes of the weights file for a recipe, from the storage arithmetic alone."""
    from winnow.budget import index_bits_per_weight

    index = index_bits_per_weight(parse_structure(recipe.structure)) if recipe.zeros else 0.0
    bits = (scope.numel - recipe.zeros) * stored_bits(
        host, scope, recipe.values, recipe.group_size
    ) + scope.numel * index
    return dense_bytes + scale_bytes(scope, recipe.values, recipe.group_size) + int(bits / 8)


def _model_name(host: Host, stored: str) -> str:
    if host.shards is None:
        return stored
    back = getattr(host, "_back", None)
    if back is None:
        back = host._back = {v: k for k, v in host.names.items()}
    return back.get(stored, stored)


def _seconds(scope: Scope, tokens: int, gram: bool) -> float:
    """Two forwards and the statistics at the matrix speed this machine shows right now, solving at a fifth of it."""
    speed = matmul_flops()
    flops = 2 * 2 * scope.numel * max(tokens, 1)
    if gram:
        inputs = {(p.block, p.cols) for p in scope.prunables.values()}
        flops += sum(2 * tokens * cols**2 for _, cols in inputs)
        flops += 5 * sum(2 * p.numel * p.cols + 2 * p.cols**3 for p in scope.prunables.values())
    return flops / speed + 2e-8 * scope.numel


def matmul_flops() -> float:
    """float32 operations a second of a 512 x 512 product, best of three."""
    a = torch.ones(512, 512)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return 2 * 512**3 / best
