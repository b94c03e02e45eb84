"""From real-valued rates to whole numbers whose sum is the one asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from winnow.budget import largest_remainder
from winnow.errors import InputError


def limits(numels: Sequence[int], zeros: int, max_rate: float) -> list[int]:
    """How many zeros each layer may take: ``floor(max_rate * numel)``, or its even share where the total is higher.

    Raises InputError when ``zeros`` is more than there is.
    """
    total = sum(numels)
    if not 0 <= zeros <= total:
        raise InputError(f"{zeros} zeros do not fit {total} prunable weights: ask for fewer, or widen the scope")
    if not 0 < max_rate <= 1:
        raise InputError(
            f"max_rate {max_rate} is outside 0 to 1: give the share a layer may lose at most, such as 0.99"
        )
    return [max(int(max_rate * n), -(-zeros * n // total)) for n in numels] if total else [0] * len(numels)


def meet(
    zeros_at: Callable[[float], np.ndarray], zeros: int, caps: Sequence[int], low: float, high: float
) -> list[int]:
    """Whole counts from a family of real ones: finds t in [low, high] with ``sum(zeros_at(t)) = zeros``, then rounds.

    ``zeros_at(t)`` [layers] must be continuous, grow with t in each layer, and stay within 0 and ``caps``.
    """
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (low, middle) if zeros_at(middle).sum() >= zeros else (middle, high)
    return largest_remainder(list(zeros_at(high)), zeros, caps)


def whole_units(counts: Sequence[int], granularity: Sequence[int], zeros: int, caps: Sequence[int]) -> list[int]:
    """``counts`` as multiples of each layer's unit, the sum as near to ``zeros`` as one sweep of largest remainders
    gets: within half the unit of a layer that still has room."""
    whole = [count // unit * unit for count, unit in zip(counts, granularity)]
    left = zeros - sum(whole)
    order = sorted(range(len(whole)), key=lambda i: ((whole[i] - counts[i]) / granularity[i], i))
    for i in order:
        if 2 * left > granularity[i] and whole[i] + granularity[i] <= caps[i]:
            whole[i] += granularity[i]
            left -= granularity[i]
    return whole
