"""``inspect``: what a model or a packed folder consists of, before or after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.masks.prunable import Prunable
from winnow.models import ModelSource, open_model


@dataclass(frozen=True)
class LayerInfo:
    """One parameter. ``zeros`` is None where the weights were not read."""

    name: str
    shape: tuple[int, ...]
    numel: int
    prunable: bool
    reason: str  # why not prunable, or its kind
    zeros: int | None
    bits_per_weight: float | None


@dataclass(frozen=True)
class Inspection:
    """Every parameter of a model, and totals."""

    spec: str
    architecture: str
    parameters: int
    prunable: int
    zeros: int | None
    file_bytes: int
    layers: list[LayerInfo]

    @property
    def sparsity(self) -> float | None:
        """Share of zeros among the prunable weights."""
        return None if self.zeros is None or not self.prunable else self.zeros / self.prunable


def inspect(
    model: str | Path | nn.Module,
    *,
    weights: str | Path | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Inspection:
    """Lists a model's parameters: shape, prunable or why not, zeros, and bits per weight as stored.

    Raises:
        InputError: the model cannot be opened, or a pattern matches nothing.
        FormatError: a packed folder is damaged.
    """
    from winnow.masks.scope import find_scope

    source = open_model(model, weights, trust_remote_code=trust_remote_code)
    module = source.load()
    scope = find_scope(module, include=include, exclude=exclude)
    skipped = {s.name: s.reason for s in scope.skipped}
    packed = _packed_bits(source)
    layers = []
    for name, parameter in module.named_parameters():
        p = scope.prunables.get(name)
        zeros = int((parameter == 0).sum()) if p is not None else None
        bits = packed.get(name, float(parameter.element_size() * 8))
        layers.append(
            LayerInfo(
                name,
                tuple(parameter.shape),
                parameter.numel(),
                p is not None,
                _kind(p) if p else skipped.get(name, ""),
                zeros,
                bits,
            )
        )
    size = sum(f.stat().st_size for f in source.weight_files()) or sum(_bytes(t) for t in module.state_dict().values())
    return Inspection(
        str(source.spec),
        source.architecture,
        sum(x.numel for x in layers),
        scope.numel,
        sum(x.zeros or 0 for x in layers),
        size,
        layers,
    )


def _packed_bits(source: ModelSource) -> dict[str, float]:
    if not source.is_artifact or source.folder is None:
        return {}
    from winnow.formats.artifact import read_artifact

    artifact = read_artifact(source.folder)
    return {name: artifact.packed(name).bits_per_weight for name in artifact.packed_names}


def _kind(p: Prunable) -> str:
    return p.kind if p.parts == 1 else f"{p.kind} x {p.parts}"


def _bytes(tensor: Any) -> int:
    return tensor.numel() * tensor.element_size() if isinstance(tensor, torch.Tensor) else 0
