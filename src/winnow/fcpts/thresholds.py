"""Thresholds that learn under a global rate: the masks of FCPTS."""

from __future__ import annotations

import math

import torch

from winnow.fcpts.bridge import Bridge, rates
from winnow.fcpts.groups import UnitGroups
from winnow.fcpts.settings import FcptsSettings

ROOM = 4.0
STEEPEST = 1.0  # a spike in the loss must not throw a threshold out of its magnitudes, from where none returns


class Thresholds:
    """One threshold t = exp(theta) a group, learned from the loss of the outputs and from the global target rate.

    The rate's part of the loss is ``penalty * |sum_l N_l r_l / N - target|`` (FCPTS, arXiv 2405.05808), its gradient
    taken over the bridge's density. ``log t`` in place of the released ``sigmoid``: magnitudes may exceed one.

    The target rises from ``ramp_from`` of the target rate to all of it over the first ``ramp`` of the training, as a
    cubic (Zhu and Gupta 2017, arXiv 1710.01878, equation 1), and the thresholds begin in the proportions of the
    start allocation, scaled together to that lower rate. This is not in the paper, whose masks are at the full rate
    from the first step: there, the damage done before anything has been learned decides where the thresholds go.
    """

    def __init__(
        self, units: UnitGroups, bridge: Bridge, settings: FcptsSettings, start: torch.Tensor, target: float
    ) -> None:
        self.units, self.bridge, self.settings, self.final = units, bridge, settings, target
        self.penalty = len(units.groups) / 2 if settings.penalty is None else settings.penalty
        self.target = target * settings.ramp_from if settings.ramp > 0 else target
        self.theta = start.log().clone().requires_grad_()
        self.parameters, self.lr = [self.theta], settings.threshold_lr
        self.removed = torch.zeros(len(units.groups))
        self._since = 0

    def prepare(self, weights: dict[str, torch.Tensor]) -> None:
        """Looks at the weights for the first time: the distribution, and the scale at which the thresholds begin."""
        self._look(weights)
        if self.settings.ramp > 0:
            with torch.no_grad():
                self.theta += self._scale(self.units.magnitudes(weights)).log()
                self._clamp()

    def _look(self, weights: dict[str, torch.Tensor]) -> None:
        found = self.units.magnitudes(weights)
        self.bridge.refresh(found, self.units.sizes())
        low = torch.stack([m.min() for m in found]).clamp_min(1e-30).log()
        high = torch.stack([m.max() for m in found]).clamp_min(1e-30).log()
        # A unit as large as its threshold goes, so the lowest threshold lies just under the smallest unit; that of a lone
        # unit must get well past its magnitude, either way.
        room = torch.where(high == low, math.log(ROOM), 1e-3)
        self._low, self._high = low - room, torch.where(high == low, high + room, high)
        self._since = 0

    def _scale(self, magnitudes: list[torch.Tensor]) -> torch.Tensor:
        """The factor on all thresholds at which the rate is the present target."""
        relative = torch.cat([m / t for m, t in zip(magnitudes, self.values.unbind())])
        sizes = [s if torch.is_tensor(s) else torch.full((len(m),), s) for s, m in zip(self.units.sizes(), magnitudes)]
        order = relative.argsort()
        removed = torch.cat(sizes)[order].cumsum(0)
        target = self.target * float(self.units.numels.sum())
        return relative[order[min(int((removed < target).sum()), len(order) - 1)]].clamp_min(1e-30)

    def masked(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.settings.threshold_grad == "rec+c":
            masked, self.removed = self.units.mask(weights, self.theta.exp())
            return masked
        with torch.no_grad():  # as the released code: the mask is no part of the graph, for weights as for thresholds
            masked, self.removed = self.units.mask(weights, self.theta.exp())
        return {name: weights[name] * (m != 0) for name, m in masked.items()}

    def backward(self) -> None:
        rate = (rates(self.theta.exp(), self.removed, self.units.numels, self.bridge) * self.units.numels).sum()
        (self.penalty * (rate / self.units.numels.sum() - self.target).abs()).backward()
        assert self.theta.grad is not None
        self.theta.grad.clamp_(-STEEPEST, STEEPEST)

    def stepped(self, weights: dict[str, torch.Tensor], progress: float) -> None:
        s = self.settings
        self._since += 1
        if self._since >= s.refresh:
            self._look(weights)
        self._clamp()
        if s.ramp > 0:
            left = 1 - min(progress / s.ramp, 1.0)
            self.target = self.final * (1 - (1 - s.ramp_from) * left**3)

    def _clamp(self) -> None:
        """A threshold outside its magnitudes would see no density and stay there."""
        self.theta.copy_(self.theta.maximum(self._low).minimum(self._high))

    @property
    def values(self) -> torch.Tensor:
        """The thresholds, [G]."""
        return self.theta.detach().exp()

    @property
    def settled(self) -> bool:
        """Whether the bridge has seen the weights as they are, so that a checkpoint need not hold what it saw."""
        return self._since == 0

    def state(self) -> dict[str, torch.Tensor]:
        return {"theta": self.theta, "target": torch.tensor(self.target, dtype=torch.float64)}

    def restore(self, state: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            self.theta.copy_(state["theta"])
        self.target = float(state["target"])
        self._look(weights)
