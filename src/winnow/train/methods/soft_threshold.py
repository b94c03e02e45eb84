"""STR: soft thresholds that are learned, one a tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.masks.global_ranking import MAX_RATE, caps, prune_globally
from winnow.train.attached import Attached
from winnow.train.methods.gradual import Gradual


class STR(Gradual):
    """Soft threshold reparameterization (Kusupati et al. 2020, arXiv 2002.03231), with the sparsity you ask for.

    Trains v, and the model computes with theta = sign(v) relu(|v| - sigmoid(s)), s one number a tensor that is trained along. In
    the paper sparsity is what weight decay makes of s. Here it follows :class:`Gradual`'s cubic: every ``every`` steps all s
    are shifted by the same amount, such that as many weights are zero as the schedule says, and in between the gradient moves
    each by itself (by Adam of the method's own, with ``lr``). So the level is yours, and what each tensor gives up is learned.
    Below its threshold v gets no gradient, and weights come back where s falls.

    At ``end`` the weights that lie lowest against their thresholds are pruned, round(S N) in all, to the weight (where learning
    has made more of them zero, all s fall first); the others stay as they are, and go on as plain weights under this fixed
    mask. Until then no mask is set: ``attached.zeros`` counts none, though weights are zero. v takes as much memory as the
    weights. Thresholds are below 1, as in the paper: larger weights are not pruned before ``end``.

    Args:
        sparsity, end, begin, power, max_rate: as for :class:`Gradual`.
        every: steps between two shifts.
        lr: how far s moves in a step, about; at 0 all tensors have the same threshold. None: 1 / (end - begin), by which one
            threshold can come to differ from another by a small factor. Much more empties some tensors (to ``max_rate``).

    Raises:
        InputError: as :class:`Gradual`, for a negative ``lr`` and, when attached, for sharded weights.
    """

    def __init__(
        self,
        sparsity: float | str,
        *,
        end: int | None = None,
        begin: int = 0,
        every: int = 10,
        power: float = 3.0,
        lr: float | None = None,
        max_rate: float = MAX_RATE,
    ) -> None:
        super().__init__(sparsity, end=end, begin=begin, every=every, power=power, max_rate=max_rate)
        if lr is not None and not 0 <= lr < math.inf:
            raise InputError(
                f"lr is {lr}: give the thresholds a learning rate of 0 or more, or None for one that fits the schedule."
            )
        self._own_lr = lr
        self.lr = 1 / (self.end - begin) if lr is None else lr
        self._hold({})

    def _plan(self, steps: int | None) -> None:
        super()._plan(steps)
        self.lr = 1 / (self.end - self.begin) if self._own_lr is None else self._own_lr

    def _hold(self, s: dict[str, nn.Parameter]) -> None:
        self._s = s  # float64, on the CPU: a threshold is the same bits wherever the weights are
        self._adam = torch.optim.Adam(s.values(), self.lr) if s else None

    def start(self, attached: Attached) -> None:
        cut_up = next((n for n, w in attached.weights.items() if hasattr(w, "full_tensor")), None)  # DTensor
        if cut_up is not None:
            raise InputError(
                f"{cut_up} is sharded, and each process would learn a threshold of its own: train with STR under "
                "DistributedDataParallel, or take Gradual."
            )
        self._hold({})
        super().start(attached)

    @property
    def thresholds(self) -> dict[str, float]:
        """sigmoid(s) by tensor name; empty before the first shift and from ``end`` on."""
        return {n: float(s.detach().sigmoid()) for n, s in self._s.items()}

    def shared(self, name: str) -> nn.Parameter | None:
        return self._s.get(name)

    def split(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        s = self._s.get(name)
        return (weight if s is None else weight + weight.sign() * s.detach().sigmoid().to(weight))[None]

    def merge(self, name: str, factors: torch.Tensor) -> torch.Tensor:
        v, s = factors[0], self._s.get(name)
        return v if s is None else v.sign() * (v.abs() - s.sigmoid().to(v)).relu()

    @torch.no_grad()
    def stepped(self, attached: Attached) -> None:
        t = attached.step
        zeros = self.zeros_at(t, attached.numel) if self.due(t) else 0
        if not self._s and zeros <= attached.zeros:
            return
        attached.factors.follow()
        if t >= self.end:
            if self._s:  # where more are zero than are to go: what stays is not zero
                self._shift(attached, zeros, 0.0)
                attached.factors.write()
            _, keeps = self._cut(attached, zeros)
            self._hold({})
            attached.set(keeps)  # and v is theta from here on
            return
        if self._adam is not None:
            self._adam.step()
            self._adam.zero_grad()
        if zeros > attached.zeros:
            self._shift(attached, zeros)
        attached.factors.write()

    def _cut(self, attached: Attached, zeros: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """How far |v| lies above its threshold, as logit(|v|) - s [rows, cols] by name, and the masks of the highest."""
        scores = {}
        for name, prunable in attached.scope.prunables.items():
            v, keep = attached.factors.tensors[name].detach()[0], prunable.restore(attached.keeps[name])
            size = torch.zeros(keep.shape, device=v.device).masked_scatter_(keep, v.abs().float().reshape(-1))
            # Beyond 1, where a logit ends, it goes on rising, so that no two weights tie there.
            logit = size.clamp_min(1e-38).log() - (1 - size).clamp_min(1e-6).log()
            scores[name] = prunable.matrix(logit - float(self._s[name].detach()) if self._s else logit)
        return scores, prune_globally(scores, attached.keeps, zeros, self.max_rate)

    def _shift(self, attached: Attached, zeros: int, limit: float = math.inf) -> None:
        """All s by the same amount, to the highest score that is to go; less in tensors that may not lose as much; by
        ``limit`` at most."""
        scores, keeps = self._cut(attached, zeros)
        most = caps(attached.keeps, zeros, self.max_rate)
        gone = {n: attached.keeps[n] & ~k for n, k in keeps.items()}
        top = {n: float(scores[n][g].max()) for n, g in gone.items() if bool(g.any())}
        full = {n for n in top if int((~keeps[n]).count_nonzero()) >= most[n]}
        # A little higher, so that rounding of score and threshold leaves nothing of what is to go.
        top = {n: value + 1e-6 * max(1.0, abs(value)) for n, value in top.items()}
        level = max((value for n, value in top.items() if n not in full), default=max(top.values()))
        if not self._s:
            self._hold({n: nn.Parameter(torch.zeros((), dtype=torch.float64)) for n in scores})
        for name, s in self._s.items():
            s.add_(min(top[name] if name in full else level, limit))

    def zeros_now(self, attached: Attached) -> int:
        return sum(int((m == 0).count_nonzero()) for m in attached.matrices().values())

    def state(self) -> dict[str, Any]:
        learned = self._adam.state if self._adam is not None else {}
        return super().state() | {
            "s": {n: s.detach() for n, s in self._s.items()},
            "adam": {n: {k: v.detach() for k, v in learned.get(s, {}).items()} for n, s in self._s.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self._hold({n: nn.Parameter(s.cpu().clone()) for n, s in state["s"].items()})
        for name, learned in state["adam"].items():
            self._adam.state[self._s[name]] = {k: v.cpu().clone() for k, v in learned.items()}  # type: ignore[union-attr]
