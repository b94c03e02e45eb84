"""The straight-through step of whole units: on or off forward, a slope around the threshold backward."""

from __future__ import annotations

from typing import Any

import torch


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, magnitude: torch.Tensor, threshold: torch.Tensor, window: float) -> torch.Tensor:
        ctx.save_for_backward(magnitude, threshold)
        ctx.window = window
        return (magnitude > threshold).to(magnitude.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:  # type: ignore[override]
        magnitude, threshold = ctx.saved_tensors
        slope = 0.5 * ((magnitude - threshold).abs() < ctx.window) * grad
        return slope, -slope.sum_to_size(threshold.shape).to(threshold.dtype), None


def step(magnitude: torch.Tensor, threshold: torch.Tensor, window: float = 1.0) -> torch.Tensor:
    """``1[magnitude > threshold]`` as numbers of the magnitude's type; a unit equal to its threshold goes.

    Backward (straight-through, as :func:`winnow.fcpts.gate.gate` for single weights): the derivative by
    ``magnitude - threshold`` is 0.5 within ``window`` of the threshold and 0 elsewhere.

    Args:
        magnitude: any shape.
        threshold: of a shape that spreads over the magnitude's.
    """
    return _Step.apply(magnitude, threshold, window)


def root(square: torch.Tensor) -> torch.Tensor:
    """Square root whose gradient at zero is zero, so that a unit without weights does not spread NaN."""
    positive = square > 0
    return square.where(positive, 1.0).sqrt() * positive


def wide(weight: torch.Tensor) -> torch.Tensor:
    """Weights in a type that magnitudes can be summed in: half types become float32."""
    return weight if weight.dtype in (torch.float32, torch.float64) else weight.float()
