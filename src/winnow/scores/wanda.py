"""Wanda: the size of the weight times the size of what it is multiplied with."""

from __future__ import annotations

import torch

from winnow.inputs import InputStats


def wanda(weight: torch.Tensor, stats: InputStats) -> torch.Tensor:
    """|W_ij| * ||X_j||_2, float32 [R, C] (Sun et al. 2023, arXiv 2306.11695, eq. 1).

    The paper compares within a row; where rows are compared with each other is the caller's choice of group.
    """
    return weight.to(torch.float32).abs() * stats.norm.to(weight.device, torch.float32)
