"""From thresholds to rates and back: the density of the magnitudes, by histogram or Gaussian kernel, stands in for the
derivative of their count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from winnow.errors import InputError
from winnow.fcpts.histogram import Histogram, floored, needed, silverman
from winnow.fcpts.settings import FcptsSettings

_CHUNK = 1 << 16  # units at a time: what the cache holds
_REACH = 7.0  # bandwidths beyond which a kernel is nothing, in float32
_DOUBLINGS = 12


class KernelDensity:
    """Density of the units' magnitudes per group by a Gaussian kernel, at one point a group (Gong et al., AAAI 2024).

    With signed weights w the rate changes by p(t) + p(-t), and as the kernel is even that is a kernel on |w| and one on
    its mirror image -|w|: nothing is lost at 0. One pass over the units a query, 65,536 at a time, float32.

    ``bandwidth`` is in deviations of the signed weights; None takes Silverman's rule. A bandwidth doubles for a query
    that fewer than 16 units (in small groups a 32nd of them) have a say in: beyond the tail, between single units.
    """

    def __init__(self, bandwidth: float | None = None) -> None:
        if bandwidth is not None and not 0 < bandwidth < math.inf:
            raise InputError(f"the bandwidth {bandwidth} is no width: set it above 0, such as 0.1, or leave it out.")
        self.factor = bandwidth

    def refresh(self, magnitudes: Sequence[torch.Tensor], sizes: Sequence[torch.Tensor | int]) -> None:
        """Keeps the magnitudes (per group [units], at least 0); ``sizes`` as :meth:`UnitGroups.sizes`."""
        summary = Histogram()
        summary.refresh(magnitudes, sizes)
        self.units = summary.units
        self.bandwidth = silverman(summary.spread, self.units) if self.factor is None else self.factor * summary.spread
        self.bandwidth = self.bandwidth.clamp_min(1e-30)
        self.magnitudes = [m.detach().reshape(-1).float() for m in magnitudes]
        self.loads: list[torch.Tensor | float] = [
            (s.double() / s.sum()).float().to(m.device) if isinstance(s, torch.Tensor) else 1 / m.numel()
            for m, s in zip(self.magnitudes, sizes)
        ]

    def density(self, thresholds: torch.Tensor) -> torch.Tensor:
        """d rate / d t at each group's threshold, [G] -> float32 [G], above 0 everywhere."""
        t = thresholds.detach().double().to(self.units.device).clamp_min(1e-30)
        h, found = self.bandwidth.clone(), torch.zeros_like(t)
        open_ = list(range(len(t)))
        for _ in range(_DOUBLINGS):
            found[open_] = torch.stack([self._at(g, float(t[g]), float(h[g])) for g in open_])
            # Units in a box with as much variance of its sum.
            equivalent = found * h * self.units * (2 * math.sqrt(math.pi))
            open_ = (equivalent < needed(self.units)).nonzero().flatten().tolist()
            if not open_:
                break
            h[open_] *= 2
        return floored(found, t, self.units).to(thresholds.device)

    def _at(self, group: int, t: float, h: float) -> torch.Tensor:
        """The density of one group at ``t`` with bandwidth ``h``, float64 []."""
        m, load = self.magnitudes[group], self.loads[group]
        total = m.new_zeros((), dtype=torch.float64)
        for start in range(0, m.numel(), _CHUNK):
            part = m[start : start + _CHUNK]
            kernel = _kernel(part, t, h)
            if t < _REACH * h:  # the mirror image
                kernel += _kernel(part, -t, h)
            total += kernel.sum() if isinstance(load, float) else kernel @ load[start : start + _CHUNK]
        total = total * load if isinstance(load, float) else total
        return total / (h * math.sqrt(2 * math.pi))


def _kernel(m: torch.Tensor, t: float, h: float) -> torch.Tensor:
    # Cut at e^-60: exp is eight times slower where its result underflows.
    return (m - t).mul_(1 / h).square_().mul_(-0.5).clamp_min_(-60).exp_()


__all__ = ["Bridge", "Histogram", "KernelDensity", "make_bridge", "rates"]


class Bridge(Protocol):
    """Density of the units' magnitudes, per group and weighted by the weights that go with each unit."""

    def refresh(self, magnitudes: Sequence[torch.Tensor], sizes: Sequence[torch.Tensor | int]) -> None:
        """Updates the density from the magnitudes (per group [units], float32); ``sizes`` as :meth:`UnitGroups.sizes`."""

    def density(self, thresholds: torch.Tensor) -> torch.Tensor:
        """d rate / d t at each group's threshold, [G] -> float32 [G], above 0 everywhere."""
        ...


def make_bridge(settings: FcptsSettings) -> Bridge:
    """The back end that the settings name."""
    if settings.bridge == "kde":
        return KernelDensity(settings.bandwidth)
    return Histogram(settings.bins)


class _Rates(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, thresholds: torch.Tensor, removed: torch.Tensor, numels: torch.Tensor, bridge: Bridge
    ) -> torch.Tensor:
        ctx.save_for_backward(bridge.density(thresholds).to(thresholds.dtype))
        return (removed / numels).to(thresholds.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (density,) = ctx.saved_tensors
        return grads[0] * density, None, None, None


def rates(thresholds: torch.Tensor, removed: torch.Tensor, numels: torch.Tensor, bridge: Bridge) -> torch.Tensor:
    """Rate of each group [G]: forward the true count, backward the bridge's density times the incoming gradient.

    FCPTS (Gong et al., AAAI 2024): a count has no derivative, the integral of a density up to the threshold has.

    Args:
        thresholds: [G]; gradients reach nothing else.
        removed: [G], the weights that are removed.
        numels: [G], the weights there are.
    """
    result: torch.Tensor = _Rates.apply(thresholds, removed, numels, bridge)
    return result
