"""From thresholds to rates and back: the density of the magnitudes stands in for the derivative of their count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from winnow.fcpts.histogram import Histogram
from winnow.fcpts.kde import KernelDensity
from winnow.fcpts.settings import FcptsSettings

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
