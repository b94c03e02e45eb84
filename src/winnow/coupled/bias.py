"""What a removed unit gave on average, added to the bias of the layer that read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from winnow.coupled.select import Stats, part_stats
from winnow.coupled.unit import CoupledUnit, member_parts
from winnow.errors import InputError
from winnow.masks.prunable import Scope


def matrices(source: nn.Module | Mapping[str, torch.Tensor], scope: Scope) -> dict[str, torch.Tensor]:
    """Every prunable of a model, or of stored tensors by name, as its matrix [R, C] (views where possible)."""
    tensors = dict(source.state_dict()) if isinstance(source, nn.Module) else source
    return {name: p.matrix(tensors[name]).detach() for name, p in scope.prunables.items() if name in tensors}


def compensate(
    units: Sequence[CoupledUnit], chosen: Iterable[int], weights: Mapping[str, torch.Tensor], stats: Stats
) -> dict[str, torch.Tensor | None]:
    """What to add to the consumers' biases: W[:, removed] @ mean(X_removed) (FLAP's bias compensation).

    ``weights`` are the dense matrices [R, C] (:func:`matrices`), ``stats`` the consumers' inputs. Returns
    bias name -> delta, float64 [R] (flattened over experts); for a consumer without a bias its weight's
    name -> None: no parameter is invented, so that removal stays uncompensated. Rows of a consumer that
    are themselves removed get no delta. Raises InputError when weights or statistics are missing.
    """
    columns: dict[tuple[str, int], set[int]] = {}
    about = {}
    removed_rows: dict[str, set[int]] = {}
    for i in chosen:
        for member in units[i].members:
            if member.axis == "rows":
                removed_rows.setdefault(member.name, set()).update(member.indices)
                continue
            about[member.name] = member
            for part in member_parts(member):
                columns.setdefault((member.name, part), set()).update(member.indices)
    deltas: dict[str, torch.Tensor | None] = {}
    for (name, part), removed in columns.items():
        member = about[name]
        if member.bias is None:
            deltas[name] = None
            continue
        if name not in weights:
            raise InputError(f"no weights for {name}: pass the dense matrices of every prunable layer")
        weight, index = weights[name], sorted(removed)
        mean = part_stats(stats, member, part).mean.double().to(weight.device)
        band = weight.shape[0] // member.parts
        delta = deltas.setdefault(member.bias, torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device))
        assert delta is not None
        rows = slice(part * band, (part + 1) * band)
        delta[rows] += weight[rows][:, index].double() @ mean[index]
    for name, member in about.items():
        if member.bias is not None and name in removed_rows:
            deltas[member.bias][sorted(removed_rows[name])] = 0  # type: ignore[index]
    return deltas
