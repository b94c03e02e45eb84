"""Conjugate gradients for least squares on a fixed mask, all rows at once."""

from __future__ import annotations

import torch


def masked_cg(
    reference: torch.Tensor,
    start: torch.Tensor,
    keep: torch.Tensor,
    hessian: torch.Tensor,
    steps: int,
    tolerance: float,
) -> torch.Tensor:
    """Lower (w - w0)^T H (w - w0) over rows w supported on ``keep``, from ``start``; returns weights [R, C].

    Conjugate gradients on H_KK w_K = (H w0)_K, preconditioned by the diagonal. A row stops when its residual has
    fallen to ``tolerance`` of that of the pruned ``reference``, and all rows after ``steps`` steps.
    """
    weight = start * keep
    scale = 1 / hessian.diagonal()
    kept = keep.to(weight.dtype)
    residual = ((reference - weight) @ hessian) * kept
    goal = (((reference * (1 - kept)) @ hessian * kept).square() * scale).sum(1) * tolerance**2
    direction = residual * scale
    size = (residual * direction).sum(1)
    rows = torch.arange(weight.shape[0], device=weight.device)
    done = weight.clone()
    for _ in range(steps):
        active = size > goal
        # Rows that are done leave the batch once they are enough to repay the copy.
        if active.count_nonzero() < 0.8 * len(rows):
            done[rows] = weight
            rows, weight, kept, residual, direction, size, goal = (
                t[active] for t in (rows, weight, kept, residual, direction, size, goal)
            )
            active = active[active]
        if not len(rows):
            break
        image = (direction @ hessian) * kept
        curvature = (image * direction).sum(1)
        step = torch.where(active & (curvature > 0), size / curvature, 0.0)[:, None]
        weight = weight + step * direction
        residual = residual - step * image
        precondition = residual * scale
        previous, size = size, (residual * precondition).sum(1)
        direction = precondition + (size / previous.clamp_min(torch.finfo(size.dtype).tiny))[:, None] * direction
    done[rows] = weight
    return done
