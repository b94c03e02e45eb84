"""How alike the allocations are that several seeds learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from winnow.errors import InputError


def stability(rates: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """(spread, correlation) of two or more allocations, each the rate of every group by name.

    spread: the largest standard deviation of one group's rate over the allocations (n - 1 in the denominator).
    correlation: Spearman's rank correlation of the rates, the mean over all pairs of allocations. Between two
    allocations that are each the same everywhere it is 1, between one such and another 0.

    Raises InputError for fewer than two allocations, none of any group, or of different groups.
    """
    if len(rates) < 2:
        raise InputError("stability compares allocations: learn two or more (--set seeds=3).")
    groups = list(rates[0])
    if not groups or any(set(r) != set(groups) for r in rates):
        raise InputError("these allocations are of different groups: compare runs of one model and one structure.")
    table = np.array([[r[g] for g in groups] for r in rates], dtype=np.float64)  # [allocations, groups]
    spread = float(table.std(axis=0, ddof=1).max())
    ranks = [_ranks(row) for row in table]
    return spread, float(np.mean([_pearson(a, b) for a, b in combinations(ranks, 2)]))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm else float(not a.any() and not b.any())
