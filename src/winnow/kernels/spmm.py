"""Products with many columns by the feature-major kernels, which spend nothing on pruned weights: float32 sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from winnow.kernels import native, reference

if TYPE_CHECKING:
    from winnow.kernels.geometry import Geometry
    from winnow.kernels.matrix import PackedMatrix


def linear(matrix: PackedMatrix, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """y [batch, rows] of x's type = x [batch, cols] Wᵀ (+ bias [rows], float32); x's columns are consecutive."""
    y = x.new_empty((x.shape[0], matrix.rows))
    if not y.numel():
        return y
    if native.available():
        native.linear_many(matrix.view, x, bias, y)
    else:
        columns = torch.empty((matrix.rows, x.shape[0]))
        reference.times(matrix, x.t().float().contiguous(), bias, columns)
        y.copy_(columns.t())
    return y


def convolve(matrix: PackedMatrix, x: torch.Tensor, bias: torch.Tensor | None, geometry: Geometry) -> torch.Tensor:
    """x [N, C, H, W] convolved with the filters in the rows of ``matrix``; y of x's type, bias float32.

    Natively, windows are laid out in cache a few hundred places at a time, for all images together.
    """
    images = x.float().contiguous()
    y = images.new_empty((x.shape[0], matrix.rows, *geometry.out_size(*x.shape[2:])))
    if y.numel() and native.available():
        native.convolve(matrix.view, images, bias, geometry, y)
    elif y.numel():
        kernel, stride, padding, dilation = geometry
        for image, out in zip(images, y, strict=True):
            windows = F.unfold(image[None], kernel, dilation, padding, stride)[0]
            reference.times(matrix, windows, bias, out.view(matrix.rows, -1))
    return y.to(x.dtype)
