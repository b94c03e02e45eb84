"""Masks and solved weights of the layers of one block, and how they are packed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from winnow.allocate.zeros import zero_entries
from winnow.budget import largest_remainder
from winnow.compression.counts import grid_of, layer_seed
from winnow.compression.recipe import Recipe
from winnow.formats.packed import PackedTensor, pack
from winnow.inputs import InputStats
from winnow.masks.prunable import Prunable
from winnow.masks.structure import Unstructured, within_tensor
from winnow.quantize import Quantized
from winnow.scores import needs_data, score
from winnow.solve import Chain, Problem, Solution, solve_group


def solve_unit(
    prunables: Sequence[Prunable],
    stats: dict[str, list[InputStats]],
    recipe: Recipe,
    zeros: dict[str, int],
    weight_of: Callable[[Prunable], torch.Tensor],
    keeps: dict[str, torch.Tensor] | None = None,
) -> Iterator[tuple[Prunable, Solution]]:
    """Masks and solved weights of the layers of one block, one after another so that few are in memory at once.

    Layers that share an input are solved together where the solver factorizes its Gram matrix. Without a
    structure, a weight that was zero and still is belongs to the zeros of the mask: none is stored as a value.

    Args:
        stats: per tensor name, one InputStats per part; empty without calibration data.
        zeros: how many weights each tensor loses, exactly.
        weight_of: the dense matrix [rows, cols] in float32.
        keeps: fixed masks (coupled units), by tensor name.
    """
    gram = recipe.chain.needs_gram
    groups: dict[tuple[int, str], list[tuple[Prunable, int]]] = {}
    for p in prunables:
        for part in range(p.parts):
            s = _known(stats, p, part)
            groups.setdefault((id(s), "") if gram and s is not None else (part, p.name), []).append((p, part))
    shares = {p.name: _shares(p, zeros[p.name], recipe, weight_of) for p in prunables}
    found: dict[str, dict[int, Solution]] = {p.name: {} for p in prunables}
    unheld: set[str] = set()
    for members in groups.values():
        shared = _known(stats, *members[0])
        chain = Chain() if shared is None and gram else recipe.chain  # none that reads inputs where none was seen
        problems = [
            _problem(p, part, shares[p.name][part], _known(stats, p, part), recipe, weight_of, keeps)
            for p, part in members
        ]
        for (p, part), solution, problem in zip(members, solve_group(problems, chain), problems):
            found[p.name][part] = _with_own_zeros(problem, solution)
            if problem.grid is not None and not problem.grid.holds(problem.weight, solution.keep):
                unheld.add(p.name)
        del problems
        if shared is not None and len(groups) > 1:
            shared.cache.clear()  # a layer alone may be followed by one that reads the same input
        for p, _ in members:
            if len(found.get(p.name, ())) == p.parts:
                parts = found.pop(p.name)
                if p.name in unheld:  # no float16 scale holds its weights: solved without rounding
                    plain = recipe.model_copy(update=dict(values="keep"))
                    yield from solve_unit([p], stats, plain, zeros, weight_of, keeps)
                else:
                    yield p, _join([parts[i] for i in range(p.parts)])


def _with_own_zeros(problem: Problem, solution: Solution) -> Solution:
    if not isinstance(problem.structure, Unstructured) or not problem.zeros:
        return solution
    left = solution.keep & (solution.weight == 0) & (problem.weight.to(solution.weight.device) == 0)
    return replace(solution, keep=solution.keep & ~left) if left.any() else solution


def _shares(p: Prunable, zeros: int, recipe: Recipe, weight_of: Callable[[Prunable], torch.Tensor]) -> list[int]:
    """The zeros of each part: alike, but where they are the model's own."""
    if p.parts == 1:
        return [zeros]
    if recipe.allocation == "zeros":
        return [zero_entries(band) for band in weight_of(p).chunk(p.parts)]
    return largest_remainder([1.0] * p.parts, zeros)


def unseen_parts(p: Prunable, stats: dict[str, list[InputStats]], recipe: Recipe, *, kept: bool = False) -> int:
    """In how many parts of a tensor the recipe's method stood without the inputs that it reads.

    Such parts are pruned by magnitude (rounded to nearest where nothing is pruned). ``kept``: their mask is fixed.
    """
    scored = needs_data(recipe.score) and recipe.chain.needs_scores and not kept
    if not (scored or recipe.chain.needs_gram):
        return 0
    return sum(_known(stats, p, part) is None for part in range(p.parts))


def _known(stats: dict[str, list[InputStats]], p: Prunable, part: int) -> InputStats | None:
    """What is known of a part's inputs; nothing of an expert no token was routed to."""
    s = stats[p.name][part] if p.name in stats else None
    return s if s is not None and s.tokens else None


def _problem(
    p: Prunable,
    part: int,
    zeros: int,
    stats: InputStats | None,
    recipe: Recipe,
    weight_of: Callable[[Prunable], torch.Tensor],
    keeps: dict[str, torch.Tensor] | None,
) -> Problem:
    band = slice(part * p.rows // p.parts, (part + 1) * p.rows // p.parts)
    weight = weight_of(p)[band]
    structure = within_tensor(recipe.pattern)
    grid = grid_of(recipe.values, recipe.group_size)
    problem = Problem(weight, stats, zeros, structure, recipe.group, grid=grid, damp=recipe.damp, where=p.name)
    if keeps and p.name in keeps:
        problem.keep = keeps[p.name][band]
    elif recipe.allocation == "zeros" or (isinstance(structure, Unstructured) and 0 < zeros <= zero_entries(weight)):
        problem.keep = weight != 0  # enough weights are zero already: no other is pruned
    elif recipe.chain.needs_scores or stats is None:
        name = "magnitude" if stats is None and needs_data(recipe.score) else recipe.score
        problem.scores = score(name, weight, stats, seed=layer_seed(recipe, p) + part)
    return problem


def store_solution(p: Prunable, solution: Solution, recipe: Recipe, dtype: torch.dtype) -> PackedTensor:
    """Packs a solution in the value type of the recipe; kept weights never become zeros by rounding to a float."""
    structure = within_tensor(recipe.pattern)
    keep = None if bool(solution.keep.all()) else solution.keep
    if solution.quantized is not None:
        return pack(solution.weight.to(dtype), keep, structure, quantized=solution.quantized)
    narrow = torch.bfloat16 if recipe.values == "bf16" else dtype
    return pack(_cast(solution.weight, narrow), keep, structure, dtype=dtype)


def _join(parts: list[Solution]) -> Solution:
    if len(parts) == 1:
        return parts[0]
    errors = [s.error for s in parts if s.error is not None]
    quantized = None
    if (first := parts[0].quantized) is not None:
        codes, scales = (torch.cat([getattr(s.quantized, name) for s in parts]) for name in ("codes", "scales"))
        quantized = Quantized(codes, scales, first.bits, first.group)
    weight, keep = (torch.cat([getattr(s, name) for s in parts]) for name in ("weight", "keep"))
    return Solution(weight, keep, quantized, sum(errors) / len(errors) if errors else None)


def _cast(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """To a narrower float without turning a kept weight into a zero: what would underflow becomes the smallest value."""
    cast = weight.to(dtype)
    if dtype != weight.dtype:
        lost = (cast == 0) & (weight != 0)
        if lost.any():
            cast[lost] = torch.copysign(torch.tensor(torch.finfo(dtype).tiny), weight[lost]).to(dtype)
    return cast
