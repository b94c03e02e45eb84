"""The stages of a compression before they begin: what progress reckons the time left with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from winnow.compression.candidates import VALUES, Candidate, primary
from winnow.compression.sizing import narrower_note
from winnow.compression.space import disk_bytes, require_space_for
from winnow.forward.batch import example_count
from winnow.terminal.progress import Expected

if TYPE_CHECKING:
    from winnow.compression.options import Values
    from winnow.compression.setup import Setup

CLOSING = "speed and report"  # the last stage
CASES, MODELS = 2, 3  # that the measurement of speed is about, usually
TYPICAL = 0.6  # the sparsity of a model that is tried, for what it takes to make it
SEARCHED = 3  # models per data type that a bisection of the grid of ``goal`` tries


def complete(setup: Setup, seconds: float) -> None:
    """Adds to the plan what follows from the stages to come: time in all (``seconds`` have passed), disk space, a narrower type.

    Raises:
        InputError: the disk is too small.
    """
    plan = setup.plan
    total = seconds + sum(stage.guess or 0.0 for stage in expected(setup))
    notes = [*plan.notes, *narrower_note(setup, setup.recipes[0])]
    setup.plan = replace(plan, total_seconds=total, disk=plan.disk + disk_bytes(setup), notes=notes)
    require_space_for(setup)


def expected(setup: Setup) -> list[Expected]:
    """The stages of the job, none of which is done already."""
    if setup.job.max_drop is None:
        return at_rates(setup, [*map(primary, setup.recipes), *setup.plain()])
    _, quantized, values = searched(setup)
    return at_goal(setup, quantized, values)


def searched(setup: Setup) -> tuple[list[Candidate], list[Candidate], Sequence[Values]]:
    """Of a search for a limit of loss: all baselines, those that compete, and the data types of its models."""
    plain = setup.plain("all" if setup.job.baselines == "all" else "rtn")
    values = [setup.job.values] if setup.job.values != "keep" else VALUES
    return plain, [c for c in plain if c.kind == "quantized" and not c.everything], values


def at_rates(setup: Setup, candidates: Sequence[Candidate]) -> list[Expected]:
    """Each candidate is made and measured, after the dense model was measured."""
    found = [] if setup.prepared.task is None else [_measuring(setup, "dense")]
    trained: set[float] = set()
    for candidate in candidates:
        recipe = candidate.recipe
        if recipe is not None and recipe.fitting.trains and recipe.zeros and recipe.sparsity not in trained:
            trained.add(recipe.sparsity)
            found.append(Expected(training(recipe.sparsity), "training", setup.plan.training))
        found += _made(setup, candidate, candidate.name)
        found += [] if setup.prepared.task is None else [_measuring(setup, candidate.name)]
    return [*found, _closing(setup)]


def at_goal(setup: Setup, plain: Sequence[Candidate], values: Sequence[str]) -> list[Expected]:
    """Baselines and the models of the search are made and measured to choose, then measured again on other data."""
    tried = SEARCHED * len(values)
    found = [_measuring(setup, "dense")]
    for candidate in plain:
        found += [*_made(setup, candidate, candidate.name), _measuring(setup, candidate.name)]
    for _ in range(tried):
        found += [
            *_made(setup, Candidate("*", "pruned", setup.recipe_at(TYPICAL, setup.job.values)), "*"),
            _measuring(setup, "*"),
        ]
    found += [_measuring(setup, "*") for _ in range(1 + len(plain) + tried)]
    return [*found, _closing(setup)]


def training(sparsity: float) -> str:
    return f"training at {100 * sparsity:.4g}% sparsity"


def _made(setup: Setup, candidate: Candidate, name: str) -> Iterator[Expected]:
    """How long candidates of a kind take to make is alike: those that are rounded, or solved by the same chain."""
    recipe = candidate.recipe
    if recipe is None:
        return
    solved = bool(setup.prepared.batches) and (recipe.chain.needs_gram or recipe.needs_data)
    kind = f"solving by {recipe.solver}" if solved and not recipe.fitting.trains else "rounding"
    yield Expected(f"compressing to {name}", kind, setup.timing.of(recipe))


def _measuring(setup: Setup, name: str) -> Expected:
    return Expected(f"measuring {name}", "measuring", setup.timing.measuring)


def _closing(setup: Setup) -> Expected:
    return Expected(CLOSING, CLOSING, 1.0 + _speed(setup))


def _speed(setup: Setup) -> float:
    """Seconds of the quick measurement of speed: layers that packed kernels may help, and rounds of a few models in two cases."""
    from winnow.compression.speed import LAYER, PATIENCE, ROUNDS, SLOT, SPENT
    from winnow.kernels.dispatch import SMALLEST

    shapes = {(p.rows, p.cols) for p in setup.scope.prunables.values() if p.numel >= SMALLEST}
    if not (setup.job.speed and setup.prepared.batches and shapes):
        return 0.0
    call = setup.timing.forward / max(example_count(setup.prepared.batches), 1)
    return min(PATIENCE, LAYER * len(shapes) + CASES * min(SPENT, ROUNDS[1] * MODELS * max(call, SLOT)))
