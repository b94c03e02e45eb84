"""Straight-through estimators: a hard threshold forward, a slope around it backward, for weights and for whole units."""

from __future__ import annotations

from typing import Any

import torch


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, threshold: torch.Tensor, window: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keep = weight.abs() > threshold
        ctx.save_for_backward(weight, threshold, keep)
        ctx.window = window
        removed = (keep.numel() - keep.count_nonzero()).to(torch.float32)
        ctx.mark_non_differentiable(removed)
        return weight * keep, removed

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:  # type: ignore[override]
        weight, threshold, keep = ctx.saved_tensors
        near = (weight.abs() - threshold).abs() < ctx.window
        slope = 0.5 * near * (grad * weight)  # dM/d(|W| - t) times dL/dM
        return grad * keep + slope * weight.sign(), -slope.sum(), None


def gate(weight: torch.Tensor, threshold: torch.Tensor, window: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """``W * 1[|W| > t]`` and how many weights that removes (float32 [], no gradient).

    Backward (straight-through; FCPTS, released code ``mask_generator.py``): the mask's derivative by ``|W| - t`` is
    0.5 within ``window`` of the threshold and 0 elsewhere; a weight equal to the threshold goes.

    Args:
        weight: any shape.
        threshold: [], above 0.
    """
    return _Gate.apply(weight, threshold, window)


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

    Backward (straight-through, as :func:`gate` for single weights): the derivative by
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
