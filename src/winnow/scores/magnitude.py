"""Magnitude: the size of the weight itself."""

from __future__ import annotations

import torch


def magnitude(weight: torch.Tensor) -> torch.Tensor:
    """|W|, float32 [R, C] (Han et al. 2015, NeurIPS); reads no data."""
    return weight.to(torch.float32).abs()
