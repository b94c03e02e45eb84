"""Whole blocks of r x c weights under a threshold a tensor."""

from __future__ import annotations

import torch

from winnow.fcpts.groups import Matrices
from winnow.fcpts.straight_through import step, wide
from winnow.masks.prunable import Scope
from winnow.masks.ranking import comparable, global_counts, limits, lowest
from winnow.masks.structure import BlockShape, check, nearest_zeros

MAX_RATE = 0.99  # of a tensor's blocks


class Blocks:
    """Blocks of r rows by c columns; one threshold a tensor, a block's magnitude is the mean of its ``|w|``.

    Raises InputError when the block does not tile a tensor of the scope.
    """

    def __init__(self, scope: Scope, shape: BlockShape, *, window: float = 1.0) -> None:
        for p in scope.prunables.values():
            check(shape, p.rows, p.cols, p.name)
        self.shape, self.window, self.area = shape, window, shape.r * shape.c
        self.groups = tuple(scope.prunables)
        self.numels = torch.tensor([p.numel for p in scope.prunables.values()])

    def _cut(self, weight: torch.Tensor) -> torch.Tensor:
        """[R, C] as [R/r, r, C/c, c]."""
        rows, cols = weight.shape
        return weight.reshape(rows // self.shape.r, self.shape.r, cols // self.shape.c, self.shape.c)

    def _means(self, weight: torch.Tensor) -> torch.Tensor:
        """The blocks' magnitudes, [R/r, C/c]."""
        return wide(self._cut(weight)).abs().mean(dim=(1, 3))

    def magnitudes(self, weights: Matrices) -> list[torch.Tensor]:
        return [self._means(weights[name].detach()).reshape(-1).float() for name in self.groups]

    def sizes(self) -> list[torch.Tensor | int]:
        return [self.area] * len(self.groups)

    def mask(self, weights: Matrices, thresholds: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        masked, removed = {}, []
        for name, t in zip(self.groups, thresholds.unbind()):
            weight = weights[name]
            stays = step(self._means(weight), t, self.window)
            masked[name] = (self._cut(weight) * stays.to(weight.dtype)[:, None, :, None]).reshape(weight.shape)
            removed.append((stays == 0).sum(dtype=torch.float32) * self.area)
        return masked, torch.stack(removed)

    def select(self, weights: Matrices, thresholds: torch.Tensor, zeros: int) -> dict[str, torch.Tensor]:
        """Keep masks with the number of whole blocks nearest to ``zeros`` removed (a draw removes fewer).

        A tensor loses 99% of its blocks at most, or its even share where more than that is requested, and keeps one
        block while others can give the count. Among equals the earlier tensor goes first, then the lower block; blocks
        that are zero already go before any other.
        Raises InputError when there are not so many weights or a magnitude is NaN.
        """
        relative = {
            name: comparable(self._means(weights[name].detach()) / t, name)
            for name, t in zip(self.groups, thresholds.detach().unbind())
        }
        count = nearest_zeros(self.shape, int(self.numels.sum()), zeros, "the prunable weights") // self.area
        counts = global_counts(relative, count, _caps(relative, count))
        return {
            name: (~lowest(r, counts[name])).repeat_interleave(self.shape.r, 0).repeat_interleave(self.shape.c, 1)
            for name, r in relative.items()
        }


def _caps(relative: dict[str, torch.Tensor], count: int) -> dict[str, int]:
    """How many blocks each tensor may lose: not the last one if that can be helped, and always what is zero already."""
    most = limits([r.numel() for r in relative.values()], count, MAX_RATE)
    dead = [int((r == 0).sum()) for r in relative.values()]
    spared = [max(min(cap, r.numel() - 1), zero) for cap, r, zero in zip(most, relative.values(), dead)]
    if sum(spared) < count:
        spared = [max(cap, zero) for cap, zero in zip(most, dead)]
    return dict(zip(relative, spared))
