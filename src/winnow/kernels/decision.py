"""The record of what each layer of an accelerated model runs on, and why."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from winnow.kernels import native
from winnow.kernels.contenders import Contender, Layer
from winnow.kernels.modules import PackedLayer
from winnow.masks.blocks import is_transposed_linear
from winnow.notebook import Card, Shown, frame

MARGIN = 0.95  # a contender replaces what a layer runs on as given only below this share of its time

Times = Mapping[int, Mapping[str, float]]  # rows of x -> contender -> microseconds


def choose(offered: Mapping[str, Contender], times: Times, prefer: str) -> dict[int, Contender]:
    """The contender for each number of rows.

    A layer stays as it was given (the first of ``offered``, and the other ways of the same copy) unless something is
    faster by more than 5%. Where that differs between numbers of rows, ``prefer="speed"`` keeps two copies of the
    weights, the pair with the smallest times (geometric mean), and ``prefer="memory"`` one: the fastest by geometric
    mean, if that beats the given one by more than 5%.
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


@dataclass(frozen=True)
class Decision:
    """What one layer runs on, and why. Times are microseconds of one call, by rows of x; empty where nothing was timed."""

    name: str
    kind: str  # "linear" | "conv1d" | "conv"
    rows: int  # of the weight matrix [rows, cols]
    cols: int
    density: float  # share of the weights that is kept
    values: str  # type of the values in the given model
    kernel: dict[int, str]  # rows of x -> what it runs on, up to that many rows
    dense_us: dict[int, float]
    chosen_us: dict[int, float]
    reason: str
    changed: bool = False  # whether any number of rows runs on something else than the given layer's own weights


class Decisions(Shown, list[Decision]):
    """One :class:`Decision` a layer, in the model's order."""

    def table(self) -> list[dict[str, str]]:
        """A line for each layer, columns by their titles: text for a table on a terminal or in a report."""
        return [_line(decision) for decision in self]

    def to_frame(self) -> Any:
        """:meth:`table` as a pandas DataFrame. Raises InputError where pandas is missing."""
        return frame(self.table(), "layer")

    def _card(self) -> Card:
        changed = sum(d.changed for d in self)
        said = f"{changed} of {len(self)} layers run on something else than their dense weights"
        return Card("Decisions", said, tables=[(f"{len(self)} layers", self.table())])


def timed(
    layer: Layer,
    offered: dict[str, Contender],
    times: dict[int, dict[str, float]],
    chosen: dict[int, Contender],
) -> Decision:
    """The record of a layer that was timed; the first of ``offered`` is how it was given."""
    given = next(iter(offered.values()))
    dense = f"dense {layer.dtype}"
    chosen_us = {count: times[count][c.label] for count, c in chosen.items()}
    given_us = {
        count: measured[stay.label]
        for count, measured in times.items()
        if (stay := fastest(offered, measured, [given.member])) is not None
    }
    changed = {c.member for c in chosen.values()} != {given.member}
    if changed:
        # At some numbers of rows the way it was given in may not run at all (a convolution of other images than seen).
        both = [n for n in chosen if n in given_us]
        gains = [f"{given_us[n] / chosen_us[n]:.2f}x at {n} rows" for n in both if chosen_us[n] < given_us[n]]
        reason = f"faster than as given: {', '.join(gains)}" if gains else "as given it does not run at these rows"
    else:
        percent = round(100 * (1 - MARGIN))
        reason = f"stays: nothing was faster than {'packed' if layer.packed else dense} by more than {percent}%"
    dense_us = {count: measured[dense] for count, measured in times.items() if dense in measured}
    return _of(layer, {count: c.label for count, c in chosen.items()}, reason, dense_us, chosen_us, changed)


def unchanged(path: str, module: nn.Module, reason: str, counts: set[int], layer: Layer | None = None) -> Decision:
    """The record of a layer that nothing was timed for; ``layer`` where it was looked at closely."""
    if layer is not None:
        labels = dict.fromkeys(sorted(counts), f"dense {layer.dtype}")
        if isinstance(module, PackedLayer):
            labels = {n: f"{module.way(n)} {layer.values} {native.isa()}" for n in labels}
        return _of(layer, labels, f"stays: {reason}")
    kind = "conv" if isinstance(module, _ConvNd) else "conv1d" if is_transposed_linear(module) else "linear"
    weight = getattr(module, "weight", None)
    weight = weight if isinstance(weight, torch.Tensor) and not is_lazy(weight) else torch.empty(0)
    rows = weight.shape[1 if kind == "conv1d" else 0] if weight.numel() else 0
    density = 1.0 if not rows else int(torch.count_nonzero(weight)) / weight.numel()
    values = str(weight.dtype).removeprefix("torch.")
    runs = dict.fromkeys(sorted(counts), f"dense {values}")
    return Decision(path, kind, rows, weight.numel() // max(rows, 1), density, values, runs, {}, {}, f"stays: {reason}")


def _of(
    layer: Layer,
    kernel: dict[int, str],
    reason: str,
    dense_us: dict[int, float] | None = None,
    chosen_us: dict[int, float] | None = None,
    changed: bool = False,
) -> Decision:
    about = (layer.name, layer.spec.kind, layer.spec.rows, layer.spec.cols, layer.density, layer.values)
    return Decision(*about, kernel, dense_us or {}, chosen_us or {}, reason, changed)


def _line(d: Decision) -> dict[str, str]:
    kernels = list(dict.fromkeys(d.kernel.values()))
    runs = kernels[0] if len(kernels) == 1 else ", ".join(f"{kernel} (to {n})" for n, kernel in d.kernel.items())
    gains = [f"{d.dense_us[n] / us:.2f}x" for n, us in d.chosen_us.items() if n in d.dense_us]
    return {
        "layer": d.name or "(the model)",
        "kind": d.kind,
        "shape": f"{d.rows} x {d.cols}",
        "kept": f"{100 * d.density:.1f}%",
        "values": d.values,
        "runs on": runs,
        "against dense": " ".join(gains),
        "why": d.reason,
    }
