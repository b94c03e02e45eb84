"""A goal instead of a rate: the smallest file whose loss of quality stays, with confidence, within a limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from winnow.compression.candidates import VALUES, Candidate, primary
from winnow.compression.outcome import Outcome
from winnow.compression.recipe import Recipe
from winnow.errors import GateError

GRID = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def search(
    recipe_at: Callable[[float, str], Recipe],
    plain: Sequence[Candidate],
    make: Callable[[Candidate], Outcome],
    max_drop: float,
    values: Sequence[str] = VALUES,
) -> list[Outcome]:
    """Finds, per data type, the highest sparsity of ``GRID`` whose upper bound holds; returns all that was tried.

    Loss grows with sparsity, so the grid is bisected rather than walked: about three models per data type. Plain
    quantization competes on the same terms.

    Args:
        recipe_at: the recipe for a sparsity and a data type.
        make: compresses and measures a candidate on the *selection* data.
        max_drop: points, or per cent of perplexity; the paired upper 95% bound must not exceed it.

    Raises:
        GateError: nothing holds; the sentence names the closest.
    """
    tried: dict[str, Outcome] = {}

    def holds(candidate: Candidate) -> bool:
        if candidate.name not in tried:
            tried[candidate.name] = make(candidate)
        return within(tried[candidate.name], max_drop)

    for candidate in plain:
        holds(candidate)
    for kind in values:
        low, high = -1, len(GRID)  # GRID[low] holds, GRID[high] does not
        while high - low > 1:
            middle = (low + high) // 2
            if holds(primary(recipe_at(GRID[middle], kind))):
                low = middle
            else:
                high = middle
    outcomes = list(tried.values())
    if not any(within(o, max_drop) for o in outcomes):
        raise GateError(nothing_holds(outcomes, max_drop))
    return outcomes


def safest_first(tried: Sequence[Outcome], max_drop: float) -> list[Outcome]:
    """What to confirm on data no choice has seen, in this order, up to the first that fails; the last that holds is taken.

    Of the outcomes within the limit those that no smaller file matches, the lowest bound first, so that files get smaller.
    Tests in an order fixed beforehand need no correction for their number (fixed sequence testing; Angelopoulos et al.,
    "Learn then Test", arXiv 2110.01052): that the one taken loses more than the limit stays as unlikely as for a single one.
    """
    found: list[Outcome] = []
    good = [o for o in tried if within(o, max_drop)]
    for outcome in sorted(good, key=lambda o: (o.comparison.high if o.comparison else 0.0, o.file_bytes, o.name)):
        if not found or outcome.file_bytes < found[-1].file_bytes:
            found.append(outcome)
    return found


def within(outcome: Outcome, max_drop: float) -> bool:
    """Whether the upper 95% bound of the loss is at most ``max_drop`` (a NaN never is)."""
    return outcome.comparison is not None and outcome.comparison.high <= max_drop


def nothing_holds(tried: Sequence[Outcome], max_drop: float) -> str:
    """The error where every outcome loses more than ``max_drop``."""
    bounds = [math.nan if o.comparison is None else o.comparison.high for o in tried]
    bound, closest = min(zip(bounds, tried), key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0])
    return (
        f"nothing stays within --max-drop {max_drop:g} with 95% confidence (closest: {closest.candidate.label}, bound {bound:.2f}); "
        "nothing was written - raise the limit, or give more evaluation data to narrow the interval."
    )
