"""What a threshold decides about: single weights, blocks of them, coupled units, or whether a layer takes a pattern."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from winnow.fcpts.straight_through import gate
from winnow.masks.prunable import Scope
from winnow.masks.ranking import global_counts, limits, lowest

Matrices = Mapping[str, torch.Tensor]  # tensor name -> [rows, cols]


class UnitGroups(Protocol):
    """Groups of units, one learnable threshold t a group; a unit stays while its magnitude is above t.

    Unstructured, a group is a prunable tensor and a unit one of its weights.
    """

    groups: tuple[str, ...]  # names of the G groups
    numels: torch.Tensor  # int64 [G]: the weights a group's threshold decides about

    def magnitudes(self, weights: Matrices) -> list[torch.Tensor]:
        """Per group the units' magnitudes, float32 [units of the group], no gradient."""

    def sizes(self) -> list[torch.Tensor | int]:
        """Per group the weights that go with each unit, [units of the group], or one number for all."""

    def mask(self, weights: Matrices, thresholds: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Masked matrices by tensor name, and the removed weights per group (float32 [G], no gradient).

        Straight-through: gradients reach ``weights`` and ``thresholds`` [G].
        """

    def select(self, weights: Matrices, thresholds: torch.Tensor, zeros: int) -> dict[str, torch.Tensor]:
        """Keep masks (bool, by tensor name): the units lowest in magnitude / threshold over all groups go.

        Exactly ``zeros`` weights go where units are single weights, otherwise the nearest to one unit.
        """


class Elements:
    """Single weights; one threshold a tensor."""

    def __init__(self, scope: Scope, *, window: float = 1.0) -> None:
        self.groups = tuple(scope.prunables)
        self.numels = torch.tensor([p.numel for p in scope.prunables.values()])
        self.window = window

    def magnitudes(self, weights: Matrices) -> list[torch.Tensor]:
        return [weights[name].detach().abs().reshape(-1).float() for name in self.groups]

    def sizes(self) -> list[torch.Tensor | int]:
        return [1] * len(self.groups)

    def mask(self, weights: Matrices, thresholds: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        masked, removed = {}, []
        for name, t in zip(self.groups, thresholds.unbind()):
            masked[name], count = gate(weights[name], t, self.window)
            removed.append(count)
        return masked, torch.stack(removed)

    def select(self, weights: Matrices, thresholds: torch.Tensor, zeros: int) -> dict[str, torch.Tensor]:
        relative = {
            name: weights[name].detach().float().abs() / t for name, t in zip(self.groups, thresholds.detach().unbind())
        }
        caps = {  # what is zero already goes before anything else, whatever the limit of a layer
            name: max(cap, int((relative[name] == 0).sum()))
            for name, cap in zip(self.groups, limits(self.numels.tolist(), zeros, 0.99))
        }
        counts = global_counts(relative, zeros, caps)
        return {name: ~lowest(relative[name], counts[name]) for name in self.groups}
