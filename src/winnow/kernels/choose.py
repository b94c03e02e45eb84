"""From timings to a choice: which contender a layer runs on at each number of rows."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from winnow.kernels.contenders import Contender

MARGIN = 0.95  # a contender replaces what a layer runs on as given only below this share of its time

Times = Mapping[int, Mapping[str, float]]  # rows of x -> contender -> microseconds


def choose(offered: Mapping[str, Contender], times: Times, prefer: str) -> dict[int, Contender]:
    """The contender for each number of rows.

    A layer stays as it was given (the first of ``offered``, and the other ways of the same copy) unless something is
    faster by more than 5 %. Where that differs between numbers of rows, ``prefer="speed"`` keeps two copies of the
    weights, the pair with the smallest times (geometric mean), and ``prefer="memory"`` one: the fastest by geometric
    mean, if that beats the given one by more than 5 %.
    """
    given = next(iter(offered.values())).member
    members = dict.fromkeys(c.member for c in offered.values())
    picked = _pick(offered, times, given, members)
    needed = dict.fromkeys(c.member for c in picked.values())
    if prefer == "memory" and len(needed) > 1:
        ranked = sorted((_score(offered, times, [m]), m != given, m) for m in members)
        best = ranked[0][2]
        gained = ranked[0][0] - _score(offered, times, [given])
        return _pick(offered, times, None, [best if gained < math.log(MARGIN) else given])
    if len(needed) > 2:
        several = list(dict.fromkeys([given, *needed]))
        pairs = [(a, b) for i, a in enumerate(several) for b in several[i + 1 :]]
        # A pair without the given copy must beat it everywhere.
        pairs = [pair for pair in pairs if given in pair or _beats(offered, times, given, pair)]
        return _pick(offered, times, given, min(pairs, key=lambda pair: _score(offered, times, pair)))
    return picked


def fastest(offered: Mapping[str, Contender], times: Mapping[str, float], members: Collection[str]) -> Contender | None:
    """The fastest contender of ``members`` among those that were timed."""
    found = [c for c in offered.values() if c.member in members and c.label in times]
    return min(found, key=lambda c: times[c.label], default=None)


def _pick(
    offered: Mapping[str, Contender], times: Times, given: str | None, members: Collection[str]
) -> dict[int, Contender]:
    picked = {}
    for rows, measured in times.items():
        best = fastest(offered, measured, members)
        stay = fastest(offered, measured, [given]) if given is not None and given in members else None
        assert best is not None
        if stay is not None and measured[best.label] >= MARGIN * measured[stay.label]:
            best = stay
        picked[rows] = best
    return picked


def _beats(offered: Mapping[str, Contender], times: Times, given: str, members: Collection[str]) -> bool:
    """Whether ``members`` are faster than the given copy at every number of rows, by more than the margin."""
    for measured in times.values():
        best, stay = fastest(offered, measured, members), fastest(offered, measured, [given])
        if best is None or (stay is not None and measured[best.label] >= MARGIN * measured[stay.label]):
            return False
    return True


def _score(offered: Mapping[str, Contender], times: Times, members: Collection[str]) -> float:
    """Mean logarithm of the times with only ``members`` at hand; infinite where they lack one."""
    total = 0.0
    for measured in times.values():
        best = fastest(offered, measured, members)
        total += math.inf if best is None else math.log(measured[best.label])
    return total / max(len(times), 1)
