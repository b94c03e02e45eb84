"""Where the thresholds begin: at the counts of a fixed allocation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from winnow.allocate import LayerInfo, allocate
from winnow.errors import InputError
from winnow.fcpts.groups import UnitGroups
from winnow.masks.prunable import Scope

TINY = 1e-30  # a threshold is above 0, whatever the magnitudes


def start_thresholds(
    units: UnitGroups,
    weights: Mapping[str, torch.Tensor],
    scope: Scope,
    zeros: int,
    start: str,
    table: Mapping[str, float] | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """One threshold a group, float32 [G], above 0: together they remove ``zeros`` weights, shared as ``start`` says.

    Args:
        weights: matrices [rows, cols] by tensor name.
        zeros: over all groups.
        start: an allocation of :mod:`winnow.allocate`: uniform, erk, l2, lamp, or table.
        table: rates by group name or pattern, with ``start="table"`` only.
        seed: which groups go first among equals, where a group is a single unit and a uniform share is none.

    Each is what :func:`threshold_removing` makes of the group's count: its weights to the nearest unit, equal magnitudes together.

    Raises InputError for an unknown start, a table that does not come to ``zeros``, or one without its start.
    """
    if (table is not None) != (start == "table"):
        raise InputError(
            "a table of rates is where thresholds start only on request: add --set start=table."
            if table is not None
            else "the start table needs rates: give --table with rates by tensor name or pattern."
        )
    magnitudes, sizes = units.magnitudes(weights), units.sizes()
    layers, room = [], 0.0
    for group, numel, m, size in zip(units.groups, units.numels.tolist(), magnitudes, sizes):
        p = scope.prunables.get(group)
        if p is not None:
            layers.append(LayerInfo(group, p.rows, p.cols, p.block, p.shape, weights[group]))
            room = max(room, numel / p.numel)
        else:  # a group of several tensors: its units stand for their weights
            each = torch.as_tensor(size, device=m.device).expand(m.numel())
            shape = (m.numel(), max(numel // m.numel(), 1))
            layers.append(LayerInfo(group, 1, numel, shape=shape, weight=m.repeat_interleave(each)[None]))
            room = 1.0
    whole = any(m.numel() == 1 for m in magnitudes)  # such a group goes as a whole or not at all
    if whole:
        order = torch.randperm(len(layers), generator=torch.Generator().manual_seed(seed))
        layers = [layers[i] for i in order]
    counts = allocate(
        start,
        layers,
        zeros,
        table=table,
        max_rate=min(room * (1 + 1e-9), 1.0) if whole else min(room, 0.99),
        granularity={g: size for g, size in zip(units.groups, sizes) if isinstance(size, int) and size > 1} or None,
    )  # of each group, multiples of its units where they are all of one size
    parts = zip(units.groups, magnitudes, sizes)
    return torch.stack([threshold_removing(m, size, counts[g]) for g, m, size in parts])


def threshold_removing(
    magnitudes: torch.Tensor, sizes: torch.Tensor | int, count: float, least: int = 0
) -> torch.Tensor:
    """The threshold at which the units nearest to ``count`` weights are removed, float32 [], above 0.

    It lies half-way between the largest magnitude that goes and the smallest that stays, so that exp(log t) removes
    what t does; with nothing removed at half the smallest magnitude, with all removed just above the largest. Equal
    magnitudes go together or not at all, whichever is nearer. A group of several units keeps one, unless ``count`` is all.

    Args:
        magnitudes: [units], not negative; a unit at or below the threshold goes.
        sizes: the weights that go with each unit, [units], or one number for all.
        least: units that go at least.
    """
    m = magnitudes.detach().float().cpu().numpy()
    if isinstance(sizes, torch.Tensor):
        order = np.argsort(m, kind="stable")
        m, removed = m[order], np.append(0.0, np.cumsum(sizes.cpu().numpy()[order], dtype=np.float64))
        total = float(removed[-1])
        k = int(np.abs(removed - count).argmin())  # of two that are as near the lower
    else:
        total = float(sizes * len(m))
        k = min(round(count / sizes), len(m))
    most = len(m) if len(m) == 1 or count >= total else len(m) - 1
    k = max(min(k, most), min(least, len(m)))
    last, first = _around(m, k)
    if last == first:  # in the middle of equals
        below, through = int((m < last).sum()), int((m <= last).sum())
        fewer = last > 0 and below >= least and (k - below < through - k or through > most)
        last, first = _around(m, below if fewer else through)
    if not np.isfinite(first):
        return _threshold(last * (1 + 1e-5), magnitudes)
    middle = np.float32((last + first) / 2)
    return _threshold(float(middle) if middle < first else last, magnitudes)  # neighbours among floats: no middle


def _threshold(value: float, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(max(value, TINY), dtype=torch.float32, device=like.device)


def _around(m: np.ndarray, k: int) -> tuple[float, float]:
    """The k-th smallest (0 if k is 0) and the next one (infinity if there is none)."""
    found = np.partition(m, [i for i in (k - 1, k) if 0 <= i < len(m)])
    return (float(found[k - 1]) if k else 0.0), (float(found[k]) if k < len(m) else float("inf"))
