"""The stages of a compression before they begin: what progress reckons the time left with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from winnow.compression.candidates import Candidate
from winnow.terminal.progress import Expected

if TYPE_CHECKING:
    from winnow.compression.setup import Setup

CLOSING = "speed and report"  # the last stage
SEARCHED = 3  # models per data type that a bisection of the grid of ``goal`` tries


def at_rates(setup: Setup, candidates: Sequence[Candidate]) -> list[Expected]:
    """Each candidate is made and measured, after the dense model was measured."""
    found = [] if setup.prepared.task is None else [_measuring("dense")]
    trained: set[float] = set()
    for candidate in candidates:
        recipe = candidate.recipe
        if recipe is not None and recipe.fitting.trains and recipe.zeros and recipe.sparsity not in trained:
            trained.add(recipe.sparsity)
            found.append(Expected(training(recipe.sparsity), "training", setup.plan.seconds))
        found += _made(setup, candidate, candidate.name)
        found += [] if setup.prepared.task is None else [_measuring(candidate.name)]
    return [*found, _closing(setup)]


def at_goal(setup: Setup, plain: Sequence[Candidate], values: Sequence[str]) -> list[Expected]:
    """Baselines and the models of the search are made and measured to choose, then measured again on other data."""
    tried = SEARCHED * len(values)
    found = [_measuring("dense")]
    for candidate in plain:
        found += [*_made(setup, candidate, candidate.name), _measuring(candidate.name)]
    for _ in range(tried):
        found += [*_made(setup, Candidate("*", "pruned", setup.recipes[0]), "*"), _measuring("*")]
    found += [_measuring("*") for _ in range(1 + len(plain) + tried)]
    return [*found, _closing(setup)]


def training(sparsity: float) -> str:
    return f"training at {100 * sparsity:.4g}% sparsity"


def _made(setup: Setup, candidate: Candidate, name: str) -> Iterator[Expected]:
    recipe = candidate.recipe
    if recipe is None:
        return
    solved = bool(setup.prepared.batches) and (recipe.chain.needs_gram or recipe.needs_data)
    rounding = 1e-7 * setup.scope.numel + 0.1
    seconds, kind = (setup.plan.seconds, "solving") if solved and not recipe.fitting.trains else (rounding, "rounding")
    yield Expected(f"compressing to {name}", kind, seconds)


def _measuring(name: str) -> Expected:
    return Expected(f"measuring {name}", "measuring")


def _closing(setup: Setup) -> Expected:
    return Expected(CLOSING, CLOSING, 10.0 if setup.job.speed and setup.prepared.batches else 1.0)
