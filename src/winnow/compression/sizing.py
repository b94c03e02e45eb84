"""``--size``: as few zeros as fit it, found by weighing drafts."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from winnow.budget import Budget, index_bits_per_weight, parse_size
from winnow.compression.counts import VALUE_BITS, scale_bytes, stored_bits, total_zeros
from winnow.compression.recipe import Recipe
from winnow.compression.recovery import LEARNED
from winnow.errors import InputError
from winnow.masks.structure import unit_size
from winnow.words import size

if TYPE_CHECKING:
    from winnow.compression.setup import Setup

AIM, NEAR = 0.998, 0.985  # shares of the size: where a draft is steered to, and from where on it is near enough
DRAFTS = 8


def fit_size(setup: Setup, weigh: Callable[[Recipe], int]) -> None:
    """Gives the job's recipe the number of zeros whose file is as close below the requested size as drafts come.

    Drafts are made by magnitude, which costs no forward, and their files measured with headers by ``weigh``, in bytes.

    Raises:
        InputError: even next to nothing kept does not fit.
    """
    assert setup.job.size is not None
    recipe, total = setup.recipes[0], setup.scope.numel
    limit = parse_size(setup.job.size) - _slack(setup, recipe)
    unit = unit_size(recipe.pattern)
    a_zero = stored_bits(setup.host, setup.scope, recipe.values, recipe.group_size) / 8  # bytes that one more saves
    least, most = setup.existing, (total - 1) // unit * unit
    zeros, tried = min(max(recipe.zeros, least), most), dict[int, int]()
    while len(tried) < DRAFTS and zeros not in tried:
        tried[zeros] = weigh(_draft(recipe.model_copy(update=dict(zeros=zeros))))
        if NEAR * limit <= tried[zeros] <= limit:
            break
        zeros = _next(tried, AIM * limit, limit, a_zero, unit, least, most)
    fitting = [z for z, size in tried.items() if size <= limit]
    if not fitting:
        raise InputError(
            f"--size {setup.job.size} cannot be met: with next to nothing kept the file takes "
            f"{size(min(tried.values()))}; raise the limit, or choose narrower --values."
        )
    zeros = min(fitting)
    setup.recipes[0] = recipe.model_copy(update=dict(zeros=zeros, sparsity=round(zeros / total, 4)))


HIGH = 0.9  # sparsity beyond which a narrower data type for the same budget is mentioned


def narrower_note(setup: Setup, recipe: Recipe) -> list[str]:
    """Of a budget of bytes or bits that takes more than 90% zeros: what sparsity it takes in narrower data types."""
    job = setup.job
    if (job.size is None and job.bits_per_weight is None) or recipe.sparsity <= HIGH:
        return []
    narrower = [v for v in ("int8", "int4") if VALUE_BITS[v] < VALUE_BITS.get(recipe.values, 16)]
    found = []
    for values in narrower:
        with suppress(InputError):  # not with its scales
            zeros = max(_zeros_in(values, setup, recipe), setup.existing)
            if zeros / setup.scope.numel < recipe.sparsity - 0.01:
                share = f"about {100 * zeros / setup.scope.numel:.0f}%" if zeros else "none"
                found.append(f"{share} with `--values {values}`")
    if not found:
        return []
    asked = f"{job.bits_per_weight:g} bits per weight" if job.size is None else f"a file of {job.size}"
    how = "zeros alone" if recipe.values == "keep" else f"zeros and {recipe.values}"
    return [
        f"{asked} takes {100 * recipe.sparsity:.4g}% sparsity by {how}, of which few models keep their quality: for the same budget "
        f"it would be {', '.join(found)}."
    ]


def _zeros_in(values: str, setup: Setup, recipe: Recipe) -> int:
    """The zeros that bring packed weights in another data type to the bits that they take now. Raises InputError where none do."""
    host, scope, group, pattern = setup.host, setup.scope, recipe.group_size, recipe.pattern
    kept = (scope.numel - recipe.zeros) * stored_bits(host, scope, recipe.values, group)
    bits = (kept + 8 * scale_bytes(host, scope, recipe.values, group)) / scope.numel + index_bits_per_weight(pattern)
    return total_zeros(Budget.of(bits_per_weight=bits), host, scope, pattern, values, group, 0)


def _slack(setup: Setup, recipe: Recipe) -> int:
    """Bytes that other masks of the same counts may take more: half-filled bytes at the ends of int4 rows, digits of counts."""
    if recipe.score == "magnitude" and recipe.solver == "none" and recipe.group == "layer":
        return 0
    rows = sum(p.rows for p in setup.scope.prunables.values())
    return 8 + (math.ceil(1.5 * math.sqrt(rows)) if recipe.values == "int4" else 0)


def _next(tried: dict[int, int], aim: float, limit: int, a_zero: float, unit: int, least: int, most: int) -> int:
    """Where the next draft is made: by the bytes that a zero saves, between the drafts that are too large and those that fit."""
    last, size = list(tried.items())[-1]
    guess = last + math.ceil((size - aim) / a_zero / unit) * unit
    low = max((z for z, s in tried.items() if s > limit), default=least - 1)
    high = min((z for z, s in tried.items() if s <= limit), default=most + 1)
    if not low < guess < high:
        guess = (low + high) // 2 // unit * unit
    return min(max(guess, least), most)


def _draft(recipe: Recipe) -> Recipe:
    """A recipe that comes to the same counts without a forward."""
    split = "uniform" if recipe.allocation in (LEARNED, "owl") else recipe.allocation
    return recipe.model_copy(
        update=dict(
            method="draft", score="magnitude", group="layer", solver="none", recalibrate=False, settings={}, time=None,
            allocation=split, table=recipe.table if split == "table" else None,
        )
    )  # fmt: skip
