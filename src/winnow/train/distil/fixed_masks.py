"""A mask that stays as it is while the weights under it are fitted."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class FixedMasks:
    """Keep masks (bool [rows, cols] by tensor name) for :class:`winnow.train.distil.loop.Loop`."""

    settled = True

    def __init__(self, keeps: Mapping[str, torch.Tensor]) -> None:
        self.keeps = {n: k for n, k in keeps.items()}
        self.parameters: list[torch.Tensor] = []
        self.lr = 0.0

    def masked(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {n: w * self.keeps[n] if n in self.keeps else w for n, w in weights.items()}

    def backward(self) -> None:
        """A fixed mask wants nothing."""

    def stepped(self, weights: dict[str, torch.Tensor], progress: float) -> None:
        """Nothing moves."""

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def restore(self, state: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> None:
        """Nothing was stored."""
