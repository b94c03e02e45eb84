"""The straight-through mask: a hard threshold forward, a slope around it backward."""

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
