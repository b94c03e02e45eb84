"""Rates the user wrote down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from winnow.allocate.layer import LayerInfo
from winnow.budget import largest_remainder
from winnow.errors import InputError
from winnow.masks.ranking import limits


def table(
    layers: Sequence[LayerInfo], zeros: int, caps: Sequence[int], rates: Mapping[str, float], max_rate: float
) -> list[int]:
    """The share of zeros of ``rates`` (layer name or glob pattern -> 0..1) where it names a layer, the rest uniform.

    A full name wins over patterns, an earlier pattern over a later one. Named layers get exactly
    ``round(rate * numel)``, whatever their limit; the others share what is left of ``zeros``. Where every layer is
    named the rates must add up to the total, up to rounding.

    Raises InputError for a rate outside 0..1, a pattern that matches nothing, or rates that miss the total.
    """
    for pattern, rate in rates.items():
        if not 0 <= rate <= 1:
            raise InputError(f"the rate {rate} of {pattern} is outside 0 to 1: write a share of zeros such as 0.6")
        if not any(layer.name == pattern or fnmatchcase(layer.name, pattern) for layer in layers):
            raise InputError(f"{pattern} of the table names no prunable layer: see winnow inspect for the names")
    names = [layer.name for layer in layers]
    named = [rates.get(n, next((r for p, r in rates.items() if fnmatchcase(n, p)), None)) for n in names]
    counts = [0 if rate is None else round(rate * layer.numel) for rate, layer in zip(named, layers)]
    rest = [i for i, rate in enumerate(named) if rate is None]
    left = zeros - sum(counts)
    total = sum(layer.numel for layer in layers)
    if not rest and abs(left) <= len(layers):
        return _nudge(counts, layers, left)
    if not 0 <= left <= sum(layers[i].numel for i in rest):
        raise InputError(
            f"the table alone removes {sum(counts)} of {total} weights and the rest can lose 0 to "
            f"{sum(layers[i].numel for i in rest)}, which does not add up to {zeros}: change the rates or set the "
            f"sparsity to {sum(counts) / total:.6g}"
        )
    numels = [layers[i].numel for i in rest]
    for i, count in zip(rest, largest_remainder(numels, left, limits(numels, left, max_rate))):
        counts[i] = count
    return counts


def _nudge(counts: list[int], layers: Sequence[LayerInfo], left: int) -> list[int]:
    """Spends a difference that rounding left, one weight a layer in order."""
    step = 1 if left > 0 else -1
    for i, layer in enumerate(layers):
        if left and 0 <= counts[i] + step <= layer.numel:
            counts[i] += step
            left -= step
    return counts
