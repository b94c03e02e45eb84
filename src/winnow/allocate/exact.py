"""From real-valued rates to whole numbers whose sum is exactly the requested one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from winnow.allocate.layer import LayerInfo
from winnow.budget import largest_remainder
from winnow.masks.ranking import global_counts


def meet_total(
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


def ranked(
    layers: Sequence[LayerInfo], scores: Callable[[LayerInfo], torch.Tensor], zeros: int, caps: Sequence[int]
) -> list[int]:
    """What each layer holds among the ``zeros`` lowest ``scores`` of the whole model, compared as float32, ties to the earlier
    layer."""
    sources = {layer.name: partial(scores, layer) for layer in layers}
    return list(global_counts(sources, zeros, dict(zip(sources, caps))).values())


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
