"""From a budget to integers: how many weights are pruned in total, and in each tensor."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from winnow.allocate import LayerInfo, allocate
from winnow.allocate.zeros import zero_entries
from winnow.budget import Budget, largest_remainder, zeros_for
from winnow.compression.hosts import Host, read_matrix
from winnow.compression.recipe import Recipe
from winnow.errors import InputError
from winnow.inputs import InputStats
from winnow.masks.prunable import Prunable, Scope
from winnow.masks.structure import Structure, Unstructured, within_tensor
from winnow.quantize import Grid
from winnow.scores import needs_data, score

VALUE_BITS = {"bf16": 16, "int8": 8, "int4": 4}
BITS = {"int8": 8, "int4": 4}
DESCRIPTION = 512  # bytes that a packed tensor takes more in the header, about
_CHUNK = 1 << 22  # weights looked at together


def stored_bits(host: Host, scope: Scope, values: str, group_size: int) -> float:
    """Bits one kept weight takes on average, its share of the scales included."""
    own = set(scope.prunables) if values == "keep" else unheld(host, scope, values, group_size)
    bits = sum(
        p.numel * (host.stored_dtype[n].itemsize * 8 if n in own else VALUE_BITS[values])
        for n, p in scope.prunables.items()
    )
    return bits / scope.numel


def scale_bytes(host: Host, scope: Scope, values: str, group_size: int) -> int:
    """Bytes of the float16 scales, which dense positions pay for whether kept or not."""
    own = unheld(host, scope, values, group_size)
    rounded = [p for n, p in scope.prunables.items() if n not in own]
    if values == "int8":
        return 2 * sum(p.rows for p in rounded)
    if values == "int4":
        return 2 * sum(p.rows * -(-p.cols // group_size) for p in rounded)
    return 0


def narrowed(host: Host, scope: Scope, values: str, group_size: int) -> dict[str, Prunable]:
    """The unpruned matrices that are stored in fewer bits where ``--rest`` is ``values``.

    One that the type makes no smaller, or does not hold, stays as it is. A streamed model is not read for it: there all
    are taken to be held.
    """
    if values == "keep":
        return {}
    known: dict[tuple[str, int], set[str]] = host.__dict__.setdefault("_unheld_rest", {})
    key = values, group_size if values == "int4" else 0
    found = wider(host, scope, values, group_size)
    if key not in known:
        grid = grid_of(values, group_size)
        known[key] = (
            set() if host.streamed else {n for n, p in found.items() if not held(p.matrix(host.original(n)), grid)}
        )
    return {n: p for n, p in found.items() if n not in known[key]}


def wider(host: Host, scope: Scope, values: str, group_size: int) -> dict[str, Prunable]:
    """The unpruned matrices that ``values`` makes smaller, by more than it takes to describe them in the file."""
    return {n: p for n, p in scope.rest.items() if saved_bytes(host, p, values, group_size) > DESCRIPTION}


def saved_bytes(host: Host, p: Prunable, values: str, group_size: int) -> int:
    """How much less a matrix takes in ``values`` with its scales than in its own type."""
    grid = grid_of(values, group_size)
    scales = 2 * p.rows * grid.groups(p.cols) if grid is not None else 0
    return p.numel * (8 * host.stored_dtype[p.name].itemsize - VALUE_BITS[values]) // 8 - scales


def held(matrix: torch.Tensor, grid: Grid | None) -> bool:
    """Whether a matrix [rows, cols] of any float type is finite and can be rounded to ``grid`` (None: to bfloat16)."""
    for band in matrix.split(max(1, _CHUNK // matrix.shape[1])):
        stored = band if grid is not None else band.to(torch.bfloat16)
        if not bool(torch.isfinite(stored).all()) or not (grid is None or grid.holds(band)):
            return False
    return True


def unheld(host: Host, scope: Scope, values: str, group_size: int) -> set[str]:
    """Tensors that keep their type because no float16 scale holds their weights, as the dense model shows them.

    A streamed model is not read for it: there the plan takes all for rounded.
    """
    grid = grid_of(values, group_size)
    if grid is None or host.streamed:
        return set()
    known: dict[Grid, set[str]] = host.__dict__.setdefault("_unheld", {})
    if grid not in known:
        known[grid] = {n for n, p in scope.prunables.items() if not grid.holds(read_matrix(host.model, p))}
    return known[grid]


def grid_of(values: str, group_size: int) -> Grid | None:
    """What weights are rounded to; None where they stay in floating point."""
    return Grid(BITS[values], group_size if values == "int4" else None) if values in BITS else None


def header_bytes(scope: Scope) -> int:
    """What the file says about its tensors, at most: names, shapes, patterns and checksums, per tensor."""
    return sum(650 + 6 * len(name) for name in scope.prunables) + sum(170 + 2 * len(s.name) for s in scope.skipped)


def total_zeros(
    budget: Budget, host: Host, scope: Scope, structure: Structure, values: str, group_size: int, dense_bytes: int
) -> int:
    """The number of zeros the budget comes to over all prunable weights.

    Of a size it is where :func:`winnow.compression.sizing.fit_size` begins, which weighs the file: what the header is
    reckoned at, at most, refuses nothing.
    """

    def zeros(overhead: int) -> int:
        return zeros_for(
            budget,
            {n: p.numel for n, p in scope.prunables.items()},
            stored_bits(host, scope, values, group_size),
            within_tensor(structure),
            dense_bytes=dense_bytes,
            overhead_bytes=scale_bytes(host, scope, values, group_size) + overhead,
        )

    if budget.kind != "size":
        return zeros(0)
    try:
        return zeros(header_bytes(scope))
    except InputError:
        return zeros(0)


def per_tensor(
    recipe: Recipe, host: Host, scope: Scope, stats: dict[str, list[InputStats]] | None = None
) -> dict[str, int]:
    """How many weights each tensor loses; the sum is ``recipe.zeros`` (n:m and blocks: to what their shape allows).

    Without a structure, no tensor gets fewer zeros than it has already: what that takes more is taken from the others in
    proportion to what they have beyond theirs, and where they have too little the sum is higher.

    Raises:
        InputError: a tensor the structure does not tile, naming it.
    """
    layers = [
        LayerInfo(
            name=p.name,
            rows=p.rows,
            cols=p.cols,
            block=p.block,
            shape=p.shape,
            weight=partial(_matrix, host, p),
            scores=partial(_scores, host, p, recipe, stats),
        )
        for p in scope.prunables.values()
    ]
    structure = within_tensor(recipe.pattern)
    counts = allocate(recipe.allocation, layers, recipe.zeros, table=recipe.table, structure=structure)
    if not isinstance(structure, Unstructured) or not recipe.zeros:
        return counts
    return at_least(counts, {name: zero_entries(host.original(name)) for name in counts})


def raised(sparsity: float, zeros: int, own: int, numel: int) -> tuple[float, int]:
    """A rate and its zeros, or the existing zeros where those are more (at most all but one)."""
    if own <= zeros:
        return sparsity, zeros
    own = min(own, numel - 1)
    return round(own / numel, 4) if own < numel * 0.9999 else own / numel, own


def zeros_note(own: int, numel: int, structure: Structure, *, requested: float | None) -> list[str]:
    """What becomes of zeros that exist before pruning; nothing where they are next to none."""
    fewer = requested is not None and own > round(requested * numel)
    if own < 0.01 * numel and not fewer:
        return []
    found = f"{own:,} of the prunable weights ({100 * own / numel:.4g}%) are zeros already"
    if not isinstance(structure, Unstructured):
        return [f"{found}: those in what {structure} keeps are stored as values and not counted."]
    more = f", more than the {100 * requested:.4g}% requested" if fewer and requested is not None else ""
    return [f"{found}{more}: they stay zeros, are stored as such and counted."]


def at_least(counts: dict[str, int], own: dict[str, int]) -> dict[str, int]:
    """``counts`` raised to ``own`` where they are below, and lowered elsewhere so that the sum stays, as far as it can."""
    raised = {name: max(count, own[name]) for name, count in counts.items()}
    more = sum(raised.values()) - sum(counts.values())
    room = [raised[name] - own[name] for name in counts]
    if not more:
        return counts
    lowered = largest_remainder([float(r) for r in room], min(more, sum(room)), room)
    return {name: raised[name] - less for name, less in zip(counts, lowered, strict=True)}


def allocation_needs_data(recipe: Recipe) -> bool:
    """Whether the split over layers reads activations, so that the dense model is walked once before."""
    return (recipe.allocation == "global" and needs_data(recipe.score)) or recipe.allocation == "owl"


def dense_statistics(
    host: Host, scope: Scope, batches: Sequence[Any], progress: Any = None
) -> dict[str, list[InputStats]]:
    """Input norms of every layer of the dense model, for allocations and units that compare across layers."""
    from winnow.calibrate.walker import Walker

    found: dict[str, list[InputStats]] = {}
    walker = Walker(
        host.model,
        batches,
        scope,
        gram=False,
        enter=lambda unit: host.enter(unit.path),
        leave=lambda unit: host.leave(unit.path),
        progress=progress,
    )
    walker.walk(lambda unit, stats: found.update(stats))
    return found


def _matrix(host: Host, p: Prunable) -> torch.Tensor:
    return p.matrix(host.original(p.name)).float()


def _scores(host: Host, p: Prunable, recipe: Recipe, stats: dict[str, list[InputStats]] | None) -> torch.Tensor:
    weight = _matrix(host, p)
    if stats is None or not needs_data(recipe.score):
        return plain_scores(recipe, p, weight)
    band, typical = p.rows // p.parts, _typical(stats)
    known = [s if s.tokens else _even(s, typical) for s in stats[p.name]]
    return torch.cat([score(recipe.score, weight[i * band : (i + 1) * band], s) for i, s in enumerate(known)])


def plain_scores(recipe: Recipe, p: Prunable, weight: torch.Tensor) -> torch.Tensor:
    """Scores of a weight alone: magnitudes where the recipe's score reads inputs."""
    name = "magnitude" if needs_data(recipe.score) else recipe.score
    return score(name, weight, None, seed=layer_seed(recipe, p))


def _typical(stats: dict[str, list[InputStats]]) -> float:
    """The mean square sum of an input, over all inputs that were seen: what unseen ones are taken to have."""
    seen = {id(s): s for parts in stats.values() for s in parts if s.tokens}
    return sum(float(s.sum_sq.sum()) for s in seen.values()) / max(sum(s.cols for s in seen.values()), 1)


def _even(stats: InputStats, square: float) -> InputStats:
    """Statistics of inputs nobody saw, as if all were of one size: tensors that were not seen do not go first for it."""
    return InputStats(stats.cols, 1, torch.zeros_like(stats.sum), torch.full_like(stats.sum_sq, square or 1.0))


def layer_seed(recipe: Recipe, p: Prunable) -> int:
    """A seed of its own for every tensor, whatever the order they are visited in."""
    return recipe.seed + zlib.crc32(p.name.encode())
