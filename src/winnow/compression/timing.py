"""How long a compression will take, by what this machine and this model show in a moment: the plan's seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn

from winnow.calibrate.walk_units import WalkUnit
from winnow.compression.counts import allocation_needs_data
from winnow.compression.recipe import Recipe
from winnow.errors import InputError
from winnow.forward.batch import call, example_count, first_example, token_count
from winnow.forward.modes import calibrating
from winnow.inputs import InputStats
from winnow.masks.prunable import Scope
from winnow.masks.structure import Unstructured, select
from winnow.measure.task import Task
from winnow.solve.batchnorm import has_batchnorm

PATIENCE = 1.0  # seconds that a rehearsal may take, by what a part of it took
TOKENS = 512  # of an example, where there is none to look at
FLUSH = 0.015  # seconds until the files of a finished unit are on the disk
ROUNDS = {"alps": 36, "lsq": 60, "swap": 40}  # that solvers take, about: they end when little changes any more
_DIRECT = 128  # inputs up to which least squares factorizes a system for each row
_LARGE, _WIDE = 1 << 28, 2048  # multiplications, or inputs, beyond which a product runs at the speed of a large one


@dataclass(frozen=True)
class Group:
    """Layers that read one input and are solved together: ``rows`` of all of them. ``fresh``: it is factorized for them."""

    rows: int
    cols: int
    fresh: bool


@dataclass
class Walked:
    """A walk over all calibration batches: its seconds, and what there is to solve."""

    seconds: float
    groups: list[Group] = field(default_factory=list)
    units: int = 0


@dataclass
class Timing:
    """Seconds of the parts of a run. ``of`` gives those of a candidate, ``measuring`` of one evaluation (None: unknown)."""

    scope: Scope
    forward: float  # of all calibration batches
    walks: dict[bool, Walked]  # with Gram matrices, and with norms only
    measuring: float | None
    norms: bool = False  # whether there are batch norms to estimate again

    def of(self, recipe: Recipe) -> float:
        """Seconds to make a candidate: its forwards, statistics, masks and values, and what is written of it."""
        weights = self.scope.numel
        gram, changed = recipe.chain.needs_gram, recipe.zeros > 0 or recipe.values in ("int8", "int4")
        seconds = 20 * passes(1, weights) + (2 * selection(1, weights) if recipe.zeros else 0.0)
        if changed and recipe.values in ("int8", "int4"):
            seconds += 15 * passes(1, weights)
        units = len({p.block or p.module for p in self.scope.prunables.values()})
        if self.forward and changed and _walked(recipe):
            walked = self.walks.get(gram) or Walked(2 * self.forward)
            units = walked.units or units
            seconds += walked.seconds + sum(solving(recipe, g) for g in walked.groups if gram)
            if recipe.zeros and allocation_needs_data(recipe):
                seconds += 2 * self.forward
        if changed and self.norms and recipe.recalibrate:
            seconds += self.forward
        return seconds + FLUSH * units


def _walked(recipe: Recipe) -> bool:
    """Whether statistics of the calibration data are taken for a candidate; what trains has its values by then."""
    return (recipe.chain.needs_gram or recipe.needs_data) and not recipe.recovery.trains


def solving(recipe: Recipe, group: Group) -> float:
    """Seconds of a chain of solvers on one group of layers, by the operations of each."""
    rows, cols, grid = group.rows, group.cols, recipe.values in ("int8", "int4")
    one, element = product(rows, cols), passes(rows, cols)
    names = [name for name in recipe.chain.names if name != "none"]
    seconds = one + 6 * element  # the error
    if recipe.zeros:
        for name in names:
            if name == "alps":
                step = 2 * one + selection(rows, cols) + 10 * element
                seconds += group.fresh * eigh(cols) + ROUNDS[name] * step + 13 * one + 80 * element
            elif name == "lsq" and cols <= _DIRECT:
                seconds += rows * cholesky(cols) / 2
            elif name == "lsq":
                seconds += ROUNDS[name] * (one + 8 * element)
            elif name == "swap":
                seconds += one + ROUNDS[name] * (10 * element + 6 * passes(rows, 32 * 32))
    loops = 0
    if grid and (not recipe.zeros or names[-1] != "sparsegpt" or len(names) > 1):
        loops = 2 if recipe.group_size < cols or recipe.zeros else 1  # orders of the columns
    loops += recipe.zeros > 0 and "sparsegpt" in names
    column = (12 if grid else 5) * passes(1, rows)
    return seconds + loops * (cholesky(cols) + one + selection(rows, cols) + cols * column + 4 * element)


def measure(
    model: nn.Module,
    scope: Scope,
    batches: Sequence[Any],
    task: Task | None,
    recipes: Sequence[Recipe],
    *,
    device: str,
    streamed: bool,
) -> Timing:
    """Tries one batch of each thing that a run will do.

    A model that is streamed, or so large that this would take long, is reckoned by its multiplications: its products are
    large, so that they run at the speed of any large product here.
    """
    tokens, flops = max(token_count(list(batches)), 1), 2 * scope.numel
    wanted = dict.fromkeys(r.chain.needs_gram for r in recipes if batches and _walked(r))
    examples = max(example_count(batches), 1)
    if streamed or flops * (tokens / examples if batches else TOKENS) * matmul_seconds() > PATIENCE:
        forward = flops * tokens * matmul_seconds() if batches else 0.0
        walks = {gram: _reckoned(scope, tokens, forward, gram) for gram in wanted}
        return Timing(scope, forward, walks, None if task is None else forward * task.n / examples or None)
    if not batches:
        return Timing(scope, 0.0, {}, None if task is None else _evaluation(model, task))
    forward = _forwards(model, batches)
    walks = {}
    for gram in wanted:
        by = next(r.sequential for r in recipes if r.chain.needs_gram == gram)
        options = dict(gram=gram, by=by, device=device)
        with suppress(InputError):  # the run itself will say it
            walks[gram] = _walks(model, scope, batches, forward / len(batches), **options)
    evaluation = None if task is None else _evaluation(model, task)
    return Timing(scope, forward, walks, evaluation, norms=has_batchnorm(model))


def _reckoned(scope: Scope, tokens: int, forward: float, gram: bool) -> Walked:
    """Of two forwards and the statistics; layers of one width in a block are taken to read one input."""
    inputs: dict[tuple[str | None, int], int] = {}
    for p in scope.prunables.values():
        inputs[p.block, p.cols] = inputs.get((p.block, p.cols), 0) + p.rows
    groups = [Group(rows, cols, True) for (_, cols), rows in inputs.items()]
    seconds = 2 * forward
    if gram:
        seconds += sum(2 * tokens * g.cols**2 for g in groups) * matmul_seconds()
    return Walked(seconds, groups, len({block for block, _ in inputs}))


def _forwards(model: nn.Module, batches: Sequence[Any]) -> float:
    """Seconds of a forward of all batches, by one of them (by one example where that would take long)."""
    count, middle = max(example_count(batches), 1), len(batches) // 2
    size = max(example_count(batches[middle : middle + 1]), 1)

    def run(batch: Any) -> float:
        with calibrating(model):
            return _timed(lambda: call(model, batch))

    one = first_example(batches[middle])
    if one is not None and (first := run(one)) * size > PATIENCE:
        return first * count
    return statistics.median(run(batches[middle]) for _ in range(3)) * count / size


def _walks(model: nn.Module, scope: Scope, batches: Sequence[Any], forward: float, **options: Any) -> Walked:
    """A walk over all batches, by walks over one of them and over three; ``forward``: seconds of a batch's."""
    groups: list[Group] = []
    one = first_example(batches[len(batches) // 2])
    if one is not None and 8 * forward > PATIENCE:  # what a walk has to do once, and for each batch two forwards
        first, units = _walk(model, scope, [one], groups, **options)
        return Walked(first + 2 * forward * len(batches), groups, units)
    few = [batches[len(batches) // 2], batches[0], batches[-1]]
    first, units = min(_walk(model, scope, few[:1], groups, **options) for _ in range(2))
    three, _ = _walk(model, scope, few, groups, **options)
    return Walked(first + max((three - first) / 2, forward / 2) * (len(batches) - 1), groups, units)


def _walk(
    model: nn.Module, scope: Scope, batches: Sequence[Any], groups: list[Group], **options: Any
) -> tuple[float, int]:
    """Walks over a few batches as the run will, pruning nothing; fills ``groups``. Returns (seconds, units)."""
    from winnow.calibrate.walker import Walker

    groups.clear()
    before: list[InputStats] = []
    units = 0

    def visit(unit: WalkUnit, stats: dict[str, list[InputStats]]) -> None:
        nonlocal before, units
        rows: dict[int, int] = {}
        here: dict[int, InputStats] = {}
        for p in unit.prunables:
            for one in stats.get(p.name, ()):
                here[id(one)] = one
                rows[id(one)] = rows.get(id(one), 0) + p.rows // p.parts
        groups.extend(Group(n, here[i].cols, all(here[i] is not s for s in before)) for i, n in rows.items())
        before, units = list(here.values()), units + 1

    return _timed(lambda: Walker(model, batches, scope, **options).walk(visit)), units


class _Enough(Exception):
    pass


def _evaluation(model: nn.Module, task: Task) -> float:
    """Seconds of one evaluation, by its first batches; by all of them, once they have been run before, where that is quick."""
    seconds = 0.0
    for _ in range(2):
        batches, share, started = 0, 1.0, time.perf_counter()

        def progress(done: int, total: int) -> None:
            nonlocal batches, share
            batches, share = batches + 1, task.share(batches + 1, done)
            if time.perf_counter() - started > PATIENCE / 2:  # noqa: B023
                raise _Enough

        with suppress(_Enough, InputError):  # what is wrong the run itself will say
            task.evaluate(model, progress=progress)
        seconds = (time.perf_counter() - started) / (share or 1.0)
        if seconds > PATIENCE:
            break
    return seconds


def _timed(run: Callable[[], Any], times: int = 1) -> float:
    """Seconds, the best of so many times."""
    best = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best


# What this machine takes for the parts of a solver: each measured once, on sizes as small as tell something.


@cache
def matmul_seconds() -> float:
    """Of one float32 operation in a large matrix product."""
    a = torch.ones(512, 512)
    return _timed(lambda: a @ a, 4) / (2 * 512**3)


@cache
def product(rows: int, cols: int) -> float:
    """Of [rows, cols] times [cols, cols] in float32."""
    if rows * cols * cols > _LARGE or cols > _WIDE:
        return 2 * rows * cols**2 * matmul_seconds()
    a, b = torch.ones(rows, cols), torch.ones(cols, cols)
    return _timed(lambda: a @ b, 3)


@cache
def passes(rows: int, cols: int) -> float:
    """Of one operation on every element of [rows, cols]."""
    numel = rows * cols
    a = torch.ones(min(numel, 1 << 20))
    return _timed(lambda: a * a, 5) * max(1.0, numel / (1 << 20))


@cache
def selection(rows: int, cols: int) -> float:
    """Of choosing the lower half of the scores [rows, cols]."""
    numel = rows * cols
    scores = torch.rand(1, min(numel, 1 << 20), generator=torch.Generator().manual_seed(0))
    run = lambda: select(scores, scores.numel() // 2, Unstructured(), "layer", scores)  # noqa: E731
    return _timed(run, 3) * max(1.0, numel / (1 << 20))


@cache
def eigh(cols: int) -> float:
    """Of an eigendecomposition in float64, [cols, cols]."""
    return _factorization(torch.linalg.eigh, cols)


@cache
def cholesky(cols: int) -> float:
    """Of a Cholesky factorization in float64, [cols, cols]."""
    return _factorization(torch.linalg.cholesky, cols)


def _factorization(run: Callable[[torch.Tensor], Any], cols: int) -> float:
    size = min(cols, 256)
    matrix = torch.rand(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = matrix @ matrix.t() + torch.eye(size, dtype=torch.float64)
    return _timed(lambda: run(matrix), 2) * (cols / size) ** 3
