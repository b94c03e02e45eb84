"""Intervals of the studies of FCPTS and tickets: over seeds, and over test examples. ``python -m benchmarks.paired`` checks them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean and its 95% interval; the bounds are NaN where there is one value only."""

    mean: float
    low: float
    high: float

    def text(self, digits: int = 2, sign: bool = False) -> str:
        show = f"{{:{'+' if sign else ''}.{digits}f}}"
        bounds = (
            ""
            if math.isnan(self.low) or self.low == self.high
            else f" [{show.format(self.low)}, {show.format(self.high)}]"
        )
        return show.format(self.mean) + bounds


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Student's t over independent values: mean +- t(0.975, n - 1) * s / sqrt(n)."""
    from scipy import stats

    values = np.asarray(values, dtype=np.float64)
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def over_seeds(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Of first - second, paired seed by seed: what other draws of the data would give, on these test examples."""
    return interval(np.subtract(first, second))


def over_examples(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> Interval:
    """Of first - second in points, paired example by example, each averaged over the seeds first: what other test
    examples would give, for these draws.

    Args:
        first, second: one bool [n] a seed, in the same order.
    """
    mine, other = (np.mean(np.stack(list(part)).astype(np.float64), axis=0) for part in (first, second))
    return interval(100 * (mine - other))


def check() -> None:
    """Hand-worked values, and the coverage of both intervals on made-up data. Raises AssertionError."""
    # 1, 2, 3: s = 1, t(0.975, 2) = 4.302653, half = 4.302653 / sqrt(3) = 2.484138
    found = interval([1.0, 2.0, 3.0])
    assert np.allclose(found, (2.0, 2 - 2.484138, 2 + 2.484138), atol=1e-5), found
    assert interval([5.0]).mean == 5.0 and math.isnan(interval([5.0]).low)
    assert np.allclose(over_seeds([3.0, 5.0, 7.0], [2.0, 3.0, 4.0]), found), "pairs are differences"
    # four examples, one seed: differences 1, 0, 0, -1 in hundreds; s = 81.649658, t(0.975, 3) = 3.182446, half = 129.923
    one = over_examples([np.array([1, 1, 0, 0], bool)], [np.array([0, 1, 0, 1], bool)])
    assert np.allclose(one, (0.0, -129.923, 129.923), atol=1e-2), one
    generator = np.random.default_rng(0)
    inside = [0, 0]
    for _ in range(400):
        low, high = interval(generator.normal(1.0, 2.0, 5))[1:]
        inside[0] += low < 1.0 < high
        skill = generator.random((2, 500)) < np.array([[0.7], [0.6]])  # independent pairs: 10 points apart
        low, high = over_examples([skill[0]], [skill[1]])[1:]
        inside[1] += low < 10.0 < high
    assert all(0.91 < hits / 400 < 0.985 for hits in inside), inside
    assert Interval(1.0, -0.5, 2.5).text(1, sign=True) == "+1.0 [-0.5, +2.5]"


if __name__ == "__main__":
    check()
    print("the intervals are right")
