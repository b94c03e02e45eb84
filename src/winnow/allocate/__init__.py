"""Layer-wise sparsity: zeros per layer, their total exact."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module

from winnow.allocate.exact import whole_units
from winnow.allocate.layer import LayerInfo
from winnow.errors import InputError, meant
from winnow.masks.ranking import limits
from winnow.masks.structure import NM, Structure, Unstructured, check, nearest_zeros, unit_size

__all__ = ["ALLOCATIONS", "NAMES", "LayerInfo", "allocate"]

# name -> file here and function in it, which takes (layers, zeros, caps, **options) and returns counts in order
ALLOCATIONS = {
    n.rstrip("_"): n for n in ("uniform", "global_", "erk", "balanced", "lamp", "l2", "owl", "alphapruning", "table")
}
EXISTING = {"zeros": "zeros"}  # of a model that is sparse already: its own zeros, and no other total
NAMES = (*ALLOCATIONS, *EXISTING)


def allocate(
    name: str,
    layers: Sequence[LayerInfo],
    zeros: int,
    *,
    table: Mapping[str, float] | None = None,
    max_rate: float = 0.99,
    granularity: Mapping[str, int] | None = None,
    structure: Structure | None = None,
    **options: float,
) -> dict[str, int]:
    """Zeros per layer, in layer order; they sum to exactly ``zeros``. With a larger total no layer gets fewer, but for
    one weight of rounding.

    No layer loses more than ``max_rate`` of its weights, unless the total is so high that an even share is more, or
    a ``table`` says so. ``options`` go to the method: owl has ``m`` and ``lam``, alphapruning ``eps``.

    Where weights go in units, ``structure`` (or ``granularity``: layer -> weights in a unit) makes each count a
    multiple of the unit and the sum the nearest that multiples reach. An n:m structure fixes every layer's count, so
    the method has no say; ``zeros`` must agree with it to one group. The zeros allocation takes no total but its own.

    Raises InputError for an unknown name or option, a count that does not fit, repeated names, or missing weights
    or scores.
    """
    if name not in NAMES:
        raise InputError(f"unknown allocation {name!r}{meant(name, NAMES)}: use one of {', '.join(NAMES)}")
    if (table is not None) != (name == "table"):
        raise InputError(
            "a table of rates belongs to the table allocation: "
            + ("give table={layer or pattern: share of zeros}" if table is None else "use --allocation table")
        )
    if len({layer.name for layer in layers}) != len(layers):
        raise InputError("two layers have the same name: give each tensor once")
    if not layers and not zeros:
        return {}
    numels = [layer.numel for layer in layers]
    caps = limits(numels, zeros, max_rate)
    structure = structure or Unstructured()
    for layer in layers:
        check(structure, layer.rows, layer.cols, layer.name)
    nearest_zeros(structure, sum(numels), zeros, "the prunable weights")
    if isinstance(structure, NM):
        return {layer.name: layer.numel // structure.m * (structure.m - structure.n) for layer in layers}
    module = {**ALLOCATIONS, **EXISTING}[name]
    method = getattr(import_module(f"winnow.allocate.{module}"), module)
    if table is not None:
        options = {"rates": table, "max_rate": max_rate, **options}  # type: ignore[dict-item]
    known = list(inspect.signature(method).parameters)[3:]
    if unknown := set(options) - set(known):
        raise InputError(
            f"the {name} allocation has no option {', '.join(sorted(unknown))}: it takes {', '.join(known) or 'none'}"
        )
    counts = method(layers, zeros, caps, **options)
    units = [(granularity or {}).get(layer.name, unit_size(structure)) for layer in layers]
    if max(units) > 1:
        counts = whole_units(counts, units, zeros, numels if name == "table" else caps)
    return {layer.name: count for layer, count in zip(layers, counts)}
