"""Small layers with zeros in them, dense and packed."""

from __future__ import annotations

import torch
from torch import nn

from winnow.kernels.matrix import PackedMatrix
from winnow.kernels.swap import pack_layer, swap
from winnow.quantize import Grid, round_to_nearest


def thinned(model: nn.Module, density: float = 0.4, seed: int = 0) -> nn.Module:
    """Zeros in every matrix of the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(torch.rand(p.shape, generator=generator) < density)
    return model.eval()


def coded(values="int8", dtype=torch.bfloat16, rows=48, cols=64, bias=True, density=0.4, block=1):
    """A model of one packed layer with integer values, and the dense float64 weight it holds."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(rows, cols, generator=generator)
    keep = torch.rand(rows, cols, generator=generator) < density
    quantized = round_to_nearest(weight * keep, Grid(int(values[3:]), 16 if values == "int4" else None), keep)
    linear = nn.Linear(cols, rows, bias=bias).to(dtype)
    model = nn.Sequential(linear).eval()
    swap(model, "0", pack_layer(linear, PackedMatrix.from_codes(quantized, block=block), dtype))
    return model, quantized.dequantize().double()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected value."""
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max()).item()
