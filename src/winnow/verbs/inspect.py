"""``inspect``: what a model or a packed folder consists of, before or after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from winnow.masks.prunable import Prunable
from winnow.notebook import Card, Shown
from winnow.words import bulk, count, number, percent, size

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class LayerInfo:
    """One tensor. ``zeros`` is None for tensors that are not prunable (or not packed, in a packed folder)."""

    name: str
    shape: tuple[int, ...]
    numel: int
    prunable: bool
    reason: str  # its kind, or why not prunable
    zeros: int | None
    bits_per_weight: float


@dataclass(frozen=True, repr=False)
class Inspection(Shown):
    """Every tensor of a model, and totals."""

    spec: str
    architecture: str
    parameters: int
    prunable: int
    zeros: int
    file_bytes: int
    layers: list[LayerInfo]
    notes: list[str] = field(default_factory=list)  # what was guessed, and how to overrule it

    def _card(self) -> Card:
        sentence = f"{self.spec} ({self.architecture}): {count(self.parameters)} parameters, {size(self.file_bytes)}"
        zeros = f"{count(self.zeros)} ({percent(self.sparsity)})" if self.prunable else ""
        rows = [{**vars(x), "shape": " x ".join(map(str, x.shape))} for x in self.layers]
        tables = [(f"{len(rows)} tensors", rows), ("notes", [{"note": note} for note in self.notes])]
        return Card(
            "Inspection", sentence, [("prunable", count(self.prunable)), ("zeros", zeros)], tables, open_tables=0
        )

    @property
    def sparsity(self) -> float | None:
        """Share of zeros among the prunable weights."""
        return self.zeros / self.prunable if self.prunable else None


def inspect(
    model: str | Path | nn.Module,
    *,
    weights: str | Path | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Inspection:
    """Lists a model's parameters: shape, prunable or why not, zeros, and bits per weight as stored.

    A folder that winnow wrote is read from its own description, without building the model.

    Raises:
        InputError: the model cannot be opened, or a pattern matches nothing.
        FormatError: a packed folder is damaged.
    """
    from winnow.formats.artifact import is_artifact
    from winnow.masks.scope import find_scope
    from winnow.models.source import open_model

    folder = None if isinstance(model, nn.Module) else Path(str(model)).expanduser()
    if folder is not None and folder.is_dir() and is_artifact(folder):
        return _packed_folder(folder)
    source = open_model(model, weights, trust_remote_code=trust_remote_code)
    module = source.load()
    scope = find_scope(module, include=include, exclude=exclude)
    skipped = {s.name: s.reason for s in scope.skipped}
    layers = []
    for name, parameter in module.named_parameters():
        p = scope.prunables.get(name)
        zeros = int((parameter == 0).sum()) if p is not None else None
        reason = _kind(p) if p is not None else skipped.get(name, "")
        bits = 8.0 * parameter.element_size()
        layers.append(LayerInfo(name, tuple(parameter.shape), parameter.numel(), p is not None, reason, zeros, bits))
    size = sum(f.stat().st_size for f in source.weight_files())
    size = size or sum(t.numel() * t.element_size() for t in module.state_dict().values() if torch.is_tensor(t))
    return _total(str(source.spec), source.architecture, size, layers, scope.notes)


def _packed_folder(folder: Path) -> Inspection:
    from winnow.formats.artifact import read_artifact
    from winnow.formats.packed import UNPRUNED

    artifact = read_artifact(folder)
    layers = []
    for name in sorted({*artifact.names} - artifact.aliases.keys()):
        if name in artifact.packed_names:
            p, packed = artifact.prunable(name), artifact.packed(name)
            pruned = packed.structure != UNPRUNED
            kind = f"{_kind(p)}, {packed.encoding}, {packed.values}" if pruned else f"stored as {packed.values}"
            zeros = packed.zeros if pruned else None
            layers.append(LayerInfo(name, p.shape, p.numel, pruned, kind, zeros, packed.bits_per_weight))
        else:
            tensor = artifact.dense(name)
            bits = 8.0 * tensor.element_size()
            layers.append(LayerInfo(name, tuple(tensor.shape), tensor.numel(), False, "stored as it was", None, bits))
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    return _total(str(folder), ", ".join(artifact.config.get("architectures") or ["plain torch"]), size, layers)


def _total(spec: str, architecture: str, size: int, layers: list[LayerInfo], notes: Sequence[str] = ()) -> Inspection:
    numel, prunable = sum(x.numel for x in layers), sum(x.numel for x in layers if x.prunable)
    return Inspection(spec, architecture, numel, prunable, sum(x.zeros or 0 for x in layers), size, layers, [*notes])


def _kind(p: Prunable) -> str:
    return p.kind if p.parts == 1 else f"{p.kind} x {p.parts}"


def inspection_table(found: Inspection) -> RenderableType:
    """One line per parameter, prunable ones first in the model's order."""
    from rich.console import Group
    from rich.table import Table

    from winnow.terminal.screen import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("parameter", overflow="fold")
    for heading in ("shape", "weights", "zeros", "bits"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for x in found.layers:
        zeros = "" if x.zeros is None else f"{100 * x.zeros / max(x.numel, 1):.1f}%"
        shape = " x ".join(map(str, x.shape))
        reason = x.reason if x.prunable else f"not pruned: {x.reason}"
        cells = (x.name, shape, count(x.numel), zeros, number(x.bits_per_weight), reason)
        table.add_row(*map(Text, cells), style=None if x.prunable else "dim")
    sparsity = "" if found.sparsity is None else f", {100 * found.sparsity:.4g}% of them zero"
    head = f"{found.spec} ({found.architecture}): {bulk(found.parameters)} parameters, {count(found.prunable)} prunable{sparsity}, {size(found.file_bytes)}"
    return Group(Text(head, style="bold"), table, *(Text(note) for note in found.notes))
