"""Methods of sparse training that the package does not have: one that grows weights back, one that trains factors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from winnow.masks.global_ranking import global_magnitude
from winnow.masks.prunable import Scope
from winnow.masks.scope import find_scope
from winnow.train import Attached, Fixed


def random_keeps(scope: Scope, share: float = 0.5, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.rand(p.rows, p.cols, generator=generator) < share for n, p in scope.prunables.items()}


def magnitude_keeps(model: nn.Module, share: float = 0.5) -> dict[str, torch.Tensor]:
    weights = {n: p.matrix(model.get_parameter(n).detach()) for n, p in find_scope(model).prunables.items()}
    keeps = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
    return global_magnitude(weights, keeps, round(share * sum(w.numel() for w in weights.values())))


class Grow:
    """RigL in small (Evci et al. 2020): every second step the lowest tenth goes, and as many return by dense gradient."""

    def __init__(self) -> None:
        self.dense: dict[str, torch.Tensor] = {}

    def start(self, attached: Attached) -> None:
        attached.set(random_keeps(attached.scope, 0.5))

    def gradient(self, attached: Attached, name: str, gradient: torch.Tensor) -> None:
        if attached.step % 2 == 1:
            self.dense[name] = gradient.clone()

    def stepped(self, attached: Attached) -> None:
        if attached.step % 2 == 1:
            return
        new = {}
        for name, matrix in attached.matrices().items():
            keep = attached.keeps[name]
            count = int(keep.sum()) // 10
            order = matrix.abs().masked_fill(~keep, torch.inf).flatten().argsort()
            grown = self.dense[name].abs().masked_fill(keep, -1).flatten().argsort(descending=True)
            flat = keep.flatten().clone()
            flat[order[:count]] = False
            flat[grown[:count]] = True
            new[name] = flat.view_as(keep)
        attached.set(new)

    def state(self) -> dict[str, Any]:
        return {"dense": self.dense}

    def restore(self, state: Any) -> None:
        self.dense = dict(state["dense"])


class Product(Fixed):
    """theta = m * w with m^2 - w^2 = 1 (Gadhikar et al. 2025, arXiv 2504.12801); every ``reset`` steps split anew."""

    def __init__(self, masks: Any, reset: int = 3) -> None:
        super().__init__(masks)
        self.reset = reset

    def split(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        m = ((1 + (1 + 4 * weight**2).sqrt()) / 2).sqrt()
        return torch.stack([m, weight / m])

    def merge(self, name: str, factors: torch.Tensor) -> torch.Tensor:
        return factors[0] * factors[1]

    def stepped(self, attached: Attached) -> None:
        if attached.step % self.reset == 0:
            attached.factors.follow(everywhere=True)
