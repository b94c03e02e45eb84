"""Sparsities on the way: by how much each round prunes, and how many rounds that makes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from winnow.errors import InputError

SLACK = 0.25  # of a round: a target this little beyond the last one is reached in it


def levels(targets: Sequence[float], rate: float) -> list[float]:
    """Sparsity after each round: every round removes ``rate`` of what is left, and every target is met exactly.

    Between two targets the levels are 1 - (1 - s_0)(1 - rate)^i; the last of them is the target itself, never more than
    ``rate`` and a quarter of a round's step beyond the one before. For one target S that is
    K = ceil(ln(1 - S) / ln(1 - rate) - 1/4) rounds. The paper (Jaiswal et al. 2023, section 3) has ceil without the quarter,
    which is this library's own: a last round that would remove less than a quarter of its share costs a whole training of
    IMP, or a whole set of candidates, for next to nothing, and is taken together with the one before.

    Raises:
        InputError: a rate or target outside (0, 1), or targets that do not rise.
    """
    if not 0 < rate < 1:
        raise InputError(f"a round cannot prune {rate:g} of what is left: give a rate between 0 and 1.")
    found: list[float] = []
    at = 0.0
    for target in targets:
        if not at < target < 1:
            raise InputError(f"sparsity {target:g} does not follow {at:g}: give rising shares of zeros below 1.")
        rounds = max(1, math.ceil(math.log((1 - target) / (1 - at)) / math.log(1 - rate) - SLACK))
        found += [1 - (1 - at) * (1 - rate) ** i for i in range(1, rounds)] + [target]
        at = target
    return found
