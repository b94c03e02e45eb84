"""Solvers by name, and chains of them: the first chooses the mask, the others improve mask or values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from winnow.errors import InputError, meant
from winnow.masks.structure import Group, check, nearest_zeros, select
from winnow.quantize import Quantized, round_to_nearest
from winnow.solve.alps import alps
from winnow.solve.factor import damped, factor, gram_of, ridge_of, spectrum
from winnow.solve.least_squares import least_squares, relative_error, row_errors
from winnow.solve.order import Order, orders
from winnow.solve.problem import Problem, Solution
from winnow.solve.sparsegpt import Band, sparsegpt
from winnow.solve.swap import swap


@dataclass
class _Stack:
    """Layers that read one input, one below the other, on their way through a chain."""

    problems: list[Problem]
    bands: list[Band]
    dense: torch.Tensor  # [R, C] the weights to reproduce
    weight: torch.Tensor  # [R, C] as they are by now
    keep: torch.Tensor | None  # [R, C], None until chosen
    quantized: Quantized | None = None
    updated: bool = False  # whether values that stay have changed

    @property
    def shared(self) -> Problem:
        """Where to read what all the problems have in common."""
        return self.problems[0]

    @property
    def group(self) -> Group:
        return "row" if self.shared.group == "row" else "layer"

    @property
    def gram(self) -> torch.Tensor:
        assert self.shared.stats is not None
        return gram_of(self.shared.stats, self.dense.device, self.shared.where, self.dense.dtype)

    def mask(self) -> torch.Tensor:
        """The mask so far, chosen from the scores if no solver has chosen one."""
        if self.keep is None:
            parts = []
            for problem, band in zip(self.problems, self.bands, strict=True):
                weight = self.dense[band.rows]
                if band.zeros == 0:
                    parts.append(torch.ones_like(weight, dtype=torch.bool))
                    continue
                if problem.scores is None:
                    raise InputError(
                        f"no scores for {problem.where or 'the layer'}: give some, or a solver that chooses the mask "
                        "itself (sparsegpt, alps)"
                    )
                scores = problem.scores.to(weight.device)
                parts.append(select(scores, band.zeros, problem.structure, self.group, weight))
            self.keep = torch.cat(parts)
            self.weight = self.dense * self.keep
        return self.keep


_Found = tuple[torch.Tensor, torch.Tensor, Quantized | None]  # weight, mask, codes and scales


def _loop(stack: _Stack, rounding: bool) -> None:
    problem, device = stack.shared, stack.dense.device
    assert problem.stats is not None
    # Values already refined are the better target: on their mask they are as good as the dense ones.
    target = stack.weight if stack.updated else stack.dense
    grid = problem.grid if rounding else None
    pruned = any(band.zeros for band in stack.bands)
    ways: list[Order | None] = [None]
    if grid is not None and (stack.keep is not None or not pruned):
        ways = orders(stack.gram.diagonal(), grid, pruned=pruned)
    found = None
    for order in ways:
        columns = None if order is None else order.columns
        prepared = factor(problem.stats, problem.damp, device, problem.where, stack.dense.dtype, columns)
        other = sparsegpt(target, prepared, stack.bands, problem.structure, stack.group, stack.keep, grid, order=order)
        found = other if found is None else _better_rows(found, other, stack)
    assert found is not None
    stack.weight, stack.keep, stack.quantized = found
    stack.updated = True


def _better_rows(first: _Found, second: _Found, stack: _Stack) -> _Found:
    """``first`` with the rows of ``second`` that leave less error; both on one mask."""
    weight, keep, quantized = first
    assert quantized is not None and second[2] is not None
    rows = row_errors(second[0] - stack.dense, stack.gram) < row_errors(weight - stack.dense, stack.gram)
    weight[rows], quantized.codes[rows], quantized.scales[rows] = (
        t[rows] for t in (second[0], second[2].codes, second[2].scales)
    )
    return weight, keep, quantized


def _alps(stack: _Stack, last: bool) -> None:
    problem, gram = stack.shared, stack.gram
    assert problem.stats is not None
    stack.weight, stack.keep = alps(
        stack.dense,
        damped(gram, ridge_of(gram, problem.damp)),
        spectrum(problem.stats, problem.damp, stack.dense.device, problem.where, stack.dense.dtype),
        stack.bands,
        problem.structure,
        stack.group,
        stack.keep,
    )
    stack.updated = True


def _lsq(stack: _Stack, last: bool) -> None:
    gram, keep = stack.gram, stack.mask()
    stack.weight = least_squares(stack.dense, stack.weight, keep, gram, ridge_of(gram, stack.shared.damp))
    stack.updated = True


def _swap(stack: _Stack, last: bool) -> None:
    stack.keep = swap(stack.dense, stack.mask(), stack.gram, stack.shared.structure)
    stack.weight = stack.dense * stack.keep
    stack.updated = False


_STAGES: dict[str, Callable[[_Stack, bool], object]] = {  # the flag: whether it is the last of its chain
    "none": lambda stack, last: stack.mask(),
    "sparsegpt": _loop,
    "alps": _alps,
    "lsq": _lsq,
    "swap": _swap,
}
NAMES: tuple[str, ...] = tuple(_STAGES)


@dataclass(frozen=True)
class Chain:
    """Solvers in their order: the first chooses the mask, the others improve mask or values."""

    names: tuple[str, ...] = ("none",)

    def __str__(self) -> str:
        return "+".join(self.names)

    @property
    def needs_gram(self) -> bool:
        """Whether it reads the Gram matrix of the inputs."""
        return self.names != ("none",)

    @property
    def needs_scores(self) -> bool:
        """Whether its first solver starts from scores (or from a mask given with the problem)."""
        return self.names[0] in ("none", "lsq", "swap")


def parse_solver(solver: str) -> Chain:
    """The chain that a text such as ``"sparsegpt+lsq"`` names.

    Raises:
        InputError: a name is unknown, or stands where it can do nothing.
    """
    names = tuple(name.strip() for name in solver.split("+"))
    for place, name in enumerate(names):
        if name not in NAMES:
            raise InputError(
                f"unknown solver {name!r}{meant(name, NAMES)}: choose from {', '.join(NAMES)}, joined with '+'"
            )
        if place and name in ("none", "alps"):
            raise InputError(f"{name!r} cannot follow another solver in {solver!r}: put it first")
    return Chain(names)


def solve(problem: Problem, solver: str) -> Solution:
    """Solve one layer. See :func:`solve_group`."""
    return solve_group([problem], parse_solver(solver))[0]


def solve_group(problems: list[Problem], chain: Chain) -> list[Solution]:
    """Solve layers that read one input (q, k, v; gate, up), which share one ``InputStats`` object.

    The solvers of a chain: ``none`` (mask from the scores, values kept), ``sparsegpt``, ``alps``, ``lsq``
    (mask from the scores, then least squares), ``swap`` (mask from the scores, then 1-swaps), joined with ``+``:
    ``sparsegpt+lsq``, ``swap+lsq``. The first chooses the mask, later ones improve on it; ``sparsegpt`` after
    another keeps its mask. A ``keep`` given with a problem takes the place of the mask from scores, and all but
    ``swap`` hold it.

    With a grid, ``sparsegpt`` as last solver rounds inside its loop (with no zeros this is GPTQ, its columns ordered by
    activation: :mod:`winnow.solve.order`); a chain that ends otherwise is followed by that loop on its mask; ``none``,
    or inputs without a Gram matrix, rounds to nearest.
    The work is done in float32, and in float64 where all the weights come so (the Gram matrix is float32 either way).
    Each layer's counts, scales and mask are its own, so the answer does not depend on what else is in the group
    (values may differ by rounding).

    Raises:
        InputError: a problem does not fit the solver, or holds NaN or infinity; the message names the fix.
    """
    for problem in problems:
        problem.check()
        if problem.stats is not problems[0].stats:
            raise InputError("layers solved together must share one statistics object: solve the others separately")
    alike: dict[object, list[int]] = {}  # places of the problems that one pass over the columns can serve
    for index, p in enumerate(problems):
        key = (p.structure, p.group, p.grid, p.damp, p.keep is None, p.zeros == 0, p.weight.device, p.weight.dtype)
        alike.setdefault(key, []).append(index)
    answers: dict[int, Solution] = {}
    for places in alike.values():
        answers |= zip(places, _solve([problems[i] for i in places], chain), strict=True)
    return [answers[i] for i in range(len(problems))]


def _solve(problems: list[Problem], chain: Chain) -> list[Solution]:
    bands, start = [], 0
    for problem in problems:
        rows, cols = problem.weight.shape
        check(problem.structure, rows, cols, problem.where)
        zeros = nearest_zeros(problem.structure, rows * cols, problem.zeros, problem.where or "the layer")
        bands.append(Band(slice(start, start + rows), zeros))
        start += rows
    shared = problems[0]
    without_gram = shared.stats is None or shared.stats.gram is None
    if without_gram and chain.needs_gram:
        if chain.names != ("sparsegpt",) or shared.grid is None or any(band.zeros for band in bands):
            raise InputError(
                f"{str(chain)!r} reads the Gram matrix of {shared.where or 'the layer'}'s inputs, which was "
                "not accumulated: calibrate with it, or use the solver 'none'"
            )
        chain = Chain()  # nothing to prune and no data to round by: plain rounding
    double = all(p.weight.dtype == torch.float64 for p in problems)
    weights = [p.weight.detach().to(torch.float64 if double else torch.float32) for p in problems]
    dense = torch.cat(weights) if len(weights) > 1 else weights[0]
    keep = None if shared.keep is None else torch.cat([p.keep for p in problems if p.keep is not None]).to(dense.device)
    stack = _Stack(problems, bands, dense, dense if keep is None else dense * keep, keep)
    for place, name in enumerate(chain.names):
        _STAGES[name](stack, place == len(chain.names) - 1)
    if shared.grid is not None and stack.quantized is None:
        if not chain.needs_gram:
            importance = None if shared.stats is None else shared.stats.sum_sq
            stack.quantized = round_to_nearest(stack.weight, shared.grid, stack.mask(), importance)
            stack.weight = stack.quantized.dequantize()
        else:
            _loop(stack, rounding=True)
    return _split(stack, without_gram)


def _split(stack: _Stack, without_gram: bool) -> list[Solution]:
    solutions = []
    keep, quantized = stack.mask(), stack.quantized
    for band in stack.bands:
        own = None
        if quantized is not None:
            own = Quantized(
                quantized.codes[band.rows].clone(), quantized.scales[band.rows].clone(), quantized.bits, quantized.group
            )
        weight = stack.weight[band.rows] + 0.0  # a copy of its own, with no negative zeros
        error = None if without_gram else relative_error(weight, stack.dense[band.rows], stack.gram)
        solutions.append(Solution(weight, keep[band.rows].clone(), own, error))
    return solutions
