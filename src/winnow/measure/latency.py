"""How long a call takes: contenders alternate round by round in one run, and are compared within each round.

A slow second on a shared machine then hits all of them, and the ratio of two contenders is steadier than their times.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from winnow.measure.intervals import LEVEL

Step = Callable[[], object]
Begin = Callable[[], Step]  # brings a contender into its starting state, untimed, and returns what is timed
Round = dict[str, list[float]]  # contender -> seconds of each of its calls

SLOT_SECONDS = 0.15  # seconds one contender is called for in a row, where its calls are shorter
MAX_CALLS = 40  # calls in a row at most


@dataclass(frozen=True)
class Spread:
    """Times of one contender, in seconds: quantiles over all calls (linear interpolation between order statistics)."""

    median: float
    p95: float
    q1: float
    q3: float
    n: int


@dataclass(frozen=True)
class Ratio:
    """How many times faster than the reference: median over rounds, with its 95% interval (None below 6 rounds)."""

    value: float
    low: float | None
    high: float | None
    rounds: int


def spread(times: Sequence[float]) -> Spread:
    """Median, 95th percentile and quartiles of some times (at least one)."""
    median, p95, q1, q3 = (float(q) for q in np.quantile(np.asarray(times, dtype=np.float64), [0.5, 0.95, 0.25, 0.75]))
    return Spread(median, p95, q1, q3, len(times))


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95% interval of a median from order statistics alone: no distribution is assumed.

    The k-th smallest to the k-th largest value cover the median with probability 1 - 2 P(Binomial(n, 1/2) < k); k is
    the largest that keeps 95% (David and Nagaraja, Order Statistics, 2003, section 7.1). None for fewer than 6 values.
    """
    n = len(values)
    below, k = 0.0, 0
    while k < n:
        below += math.comb(n, k) / 2**n
        if 2 * below > 1 - LEVEL:
            break
        k += 1
    if k == 0:
        return None
    ordered = sorted(values)
    return ordered[k - 1], ordered[n - k]


def paired_ratio(reference: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> Ratio:
    """Times of ``reference`` over times of ``other``, round by round: above 1, ``other`` is the faster.

    Both are lists of rounds of calls; a round counts by the median of its calls.
    """
    ratios = [float(np.median(a)) / float(np.median(b)) for a, b in zip(reference, other, strict=True)]
    interval = median_interval(ratios)
    low, high = interval if interval is not None else (None, None)
    return Ratio(float(np.median(ratios)), low, high, len(ratios))


def calls_in_a_row(seconds: float, slot: float = SLOT_SECONDS) -> int:
    """How many calls of ``seconds`` each one contender makes per round."""
    return max(1, min(MAX_CALLS, round(slot / max(seconds, 1e-9))))


def interleave(
    begins: Mapping[str, Begin],
    calls: Mapping[str, int],
    rounds: int,
    *,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Round]:
    """Rounds of timed calls, one after the other, each yielded when it is whole.

    In every round each contender begins once (untimed, with one untimed call where that leaves its state fit for more:
    the ``begin`` decides) and then makes its ``calls``, each timed. The order within a round is drawn anew.
    """
    order = list(begins)
    draw = random.Random(seed)
    for _ in range(rounds):
        draw.shuffle(order)
        taken: Round = {}
        for name in order:
            step = begins[name]()
            times = []
            for _ in range(calls[name]):
                start = clock()
                step()
                times.append(clock() - start)
            taken[name] = times
        yield {name: taken[name] for name in begins}
