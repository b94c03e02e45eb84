"""Dynamic sparse training: masks that move while the number of weights stays."""

from __future__ import annotations

import math
from typing import Any

import torch

from winnow.errors import InputError
from winnow.masks.ranking import lowest
from winnow.seeding import seed_of
from winnow.train.attached import Attached
from winnow.train.method import Planned, planned
from winnow.train.methods.random_masks import Distribution, RandomMasks

END = 0.75  # of the training


class RigL(Planned, RandomMasks):
    """The rigged lottery (Evci et al. 2020, arXiv 1911.11134): the smallest weights go, and as many come back where the dense
    gradient is largest.

    After step t, a multiple of ``every`` up to ``end``, every tensor loses the f(t) n lowest |w| of its n weights and grows the
    f(t) n highest |dL/dw| among those that were pruned before, f(t) = fraction / 2 (1 + cos(pi t / end)). What has just
    been dropped does not come back in the same change. Grown weights start from zero, with moments of zero. Zeros per tensor
    never change. Unlike the paper's code, the step before a change is not skipped.

    Gradients are those of the last micro-batch before the change (of pruned weights; see :class:`SparseMethod`), of this
    process: under DistributedDataParallel they are averaged over all processes, so that masks are identical.

    Args:
        sparsity, distribution, seed, rescale: of the random masks it starts from; see :class:`RandomMasks`.
        end: step of the last change; None: three quarters of the training, the paper's choice, whose length
            :func:`winnow.train.attach` (``steps``) or the Trainer says.
        every: steps between two changes; None: 100 as in the paper, or a twentieth of the training where that is less.
        fraction: f(0), share of a tensor's weights that change places (the paper's 0.3).

    Raises:
        InputError: a fraction outside 0 to 1, steps out of order, or (when attached) no end and no length of the training.
    """

    def __init__(
        self,
        sparsity: float | str,
        *,
        end: int | None = None,
        every: int | None = None,
        fraction: float = 0.3,
        distribution: Distribution = "erk",
        seed: int = 0,
        rescale: bool | None = None,
    ) -> None:
        super().__init__(sparsity, distribution=distribution, seed=seed, rescale=rescale)
        if not 0 < fraction < 1:
            raise InputError(f"fraction is {fraction}: give a number between 0 and 1, such as 0.3.")
        self._given, self.fraction = (end, every), fraction
        self.every = 100 if every is None else every
        self._end(max(self.every, 1) if end is None else end)
        self._dense: dict[str, torch.Tensor] = {}

    def _plan(self, steps: int | None) -> None:
        end, every = self._given
        if every is None:
            self.every = 100 if steps is None else max(1, min(100, steps // 20))
        self._end(planned(self, "end", end, END, steps))

    def _end(self, end: int) -> None:
        if self.every < 1 or end < self.every:
            raise InputError(f"masks would change every {self.every} steps up to step {end}: give 1 <= every <= end.")
        self.end = end

    def due(self, step: int) -> bool:
        """Whether masks change after this step."""
        return 0 < step <= self.end and step % self.every == 0

    def gradient(self, attached: Attached, name: str, gradient: torch.Tensor) -> None:
        if self.due(attached.step + 1):
            self._dense[name] = gradient.detach().clone()

    def stepped(self, attached: Attached) -> None:
        if not self.due(attached.step):
            return
        share, found = self.share(attached.step), {}
        for name, matrix in attached.matrices().items():
            keep = attached.keeps[name]
            kept = int(keep.count_nonzero())
            count = min(int(share * kept), keep.numel() - kept)
            if count:
                gone = lowest(matrix.abs().float().masked_fill(~keep, torch.inf), count)
                grown = lowest(self.growth(name, keep, attached.step).masked_fill(keep, torch.inf), count)
                found[name] = (keep & ~gone) | grown
        self._dense.clear()
        attached.set(found)

    def share(self, step: int) -> float:
        """f(t): share of a tensor's weights that change places after this step."""
        return self.fraction / 2 * (1 + math.cos(math.pi * step / self.end))

    def growth(self, name: str, keep: torch.Tensor, step: int) -> torch.Tensor:
        """Where weights come back: the lowest entries [rows, cols] of what this returns."""
        dense = self._dense.get(name)
        if dense is None:
            raise InputError(
                f"{name} got no gradient in the step before its mask changes: train every prunable weight."
            )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(dense)
        return -dense.abs().nan_to_num(0.0).float()

    def state(self) -> dict[str, Any]:
        return {}


class SET(RigL):
    """Sparse evolutionary training (Mocanu et al. 2018, arXiv 1707.04780): as :class:`RigL`, but weights come back at random
    places, and the same share changes places throughout (zeta, the paper's 0.3)."""

    def gradient(self, attached: Attached, name: str, gradient: torch.Tensor) -> None:
        """Not grown by: no copy of it is kept."""

    def share(self, step: int) -> float:
        return self.fraction

    def growth(self, name: str, keep: torch.Tensor, step: int) -> torch.Tensor:
        seed = seed_of(self.seed, name, step)  # the same in every process, and when resumed
        return torch.rand(keep.shape, generator=torch.Generator().manual_seed(seed)).to(keep.device)
