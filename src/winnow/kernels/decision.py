"""The record of what each layer of an accelerated model runs on, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from winnow.kernels import native
from winnow.kernels.choose import MARGIN, fastest
from winnow.kernels.contenders import Contender, Layer
from winnow.kernels.modules import PackedLayer
from winnow.masks.blocks import is_transposed_linear


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


class Decisions(list[Decision]):
    """One :class:`Decision` a layer, in the model's order."""

    def table(self) -> list[dict[str, str]]:
        """A line for each layer, columns by their titles: text for a table on a terminal or in a report."""
        return [_line(decision) for decision in self]


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
        gains = [f"{given_us[n] / chosen_us[n]:.2f}x at {n} rows" for n in chosen if chosen_us[n] < given_us[n]]
        reason = f"faster than as given: {', '.join(gains)}"
    else:
        percent = round(100 * (1 - MARGIN))
        reason = f"stays: nothing was faster than {'packed' if layer.packed else dense} by more than {percent} %"
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


def _line(decision: Decision) -> dict[str, str]:
    d = decision
    kernels = list(dict.fromkeys(d.kernel.values()))
    runs = kernels[0] if len(kernels) == 1 else ", ".join(f"{kernel} (to {n})" for n, kernel in d.kernel.items())
    gains = [f"{d.dense_us[n] / us:.2f}x" for n, us in d.chosen_us.items() if n in d.dense_us]
    return {
        "layer": d.name or "(the model)",
        "kind": d.kind,
        "shape": f"{d.rows} x {d.cols}",
        "kept": f"{100 * d.density:.1f} %",
        "values": d.values,
        "runs on": runs,
        "against dense": " ".join(gains),
        "why": d.reason,
    }
