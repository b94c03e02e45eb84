"""RIA: how large a weight is among those of its row and of its column, times its input's size."""

from __future__ import annotations

import torch

from winnow.inputs import InputStats


def ria(weight: torch.Tensor, stats: InputStats, power: float = 0.5) -> torch.Tensor:
    """(|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) * ||X_j||_2^a with a = 0.5, float32 [R, C].

    Zhang et al., "Plug-and-Play: an efficient post-training pruning method" (ICLR 2024), eq. 3. A row or
    column of zeros has relative importance 0.
    """
    size = weight.to(torch.float32).abs()
    # The sums run in float64: a column of a large matrix can exceed what float32 adds exactly.
    by_col = size.sum(0, dtype=torch.float64).clamp_min(torch.finfo(torch.float32).tiny)
    by_row = size.sum(1, dtype=torch.float64).clamp_min(torch.finfo(torch.float32).tiny)
    relative = size / by_col.to(torch.float32) + size / by_row.to(torch.float32)[:, None]
    return relative * stats.norm.to(weight.device, torch.float32).pow(power)
