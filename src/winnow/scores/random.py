"""Random: the baseline every score has to beat."""

from __future__ import annotations

import torch


def random(weight: torch.Tensor, seed: int) -> torch.Tensor:
    """The baseline: uniform numbers in [0, 1), float32 [R, C], the same for the same seed and shape on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(weight.shape, generator=generator).to(weight.device)
