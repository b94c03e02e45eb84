"""A matrix of integer codes and the scales that turn them back into weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from winnow.quantize.grid import spread_scales


@dataclass
class Quantized:
    """value[i, j] = codes[i, j] * scales[i, j // group]; code 0 is exactly zero."""

    codes: torch.Tensor  # [R, C] int8, in -2^(bits-1) .. 2^(bits-1) - 1
    scales: torch.Tensor  # [R, n_groups] float16, may be negative
    bits: int
    group: int | None = None  # columns a scale covers, over dense positions; None: the whole row

    def dequantize(self) -> torch.Tensor:
        """Exactly ``codes * scales.float()``, float32 [R, C]."""
        cols = self.codes.shape[1]
        size = cols if self.group is None else min(self.group, cols)
        return self.codes.to(torch.float32) * spread_scales(self.scales, size, cols)
