"""What a layer computes apart from its numbers: a linear layer, a transposed one, or a convolution."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from winnow.kernels.geometry import Geometry
from winnow.kernels.modules import PackedConv2d, PackedLayer, PackedLinear
from winnow.kernels.swap import _geometry
from winnow.masks.blocks import is_transposed_linear


class LayerSpec:
    """What a layer computes apart from its numbers: matrix [rows, cols] to stored weight and back, and the product.

    Attributes
    ----------
    kind: "linear", "conv1d" (GPT-2's transposed linear layer) or "conv".
    shape: of the weight as the state dict holds it.
    dtype: of that weight.
    geometry: how a convolution walks, None for the others.
    """

    def __init__(self, layer: nn.Module) -> None:
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        packed = isinstance(layer, PackedLayer)
        transposed = layer.transposed if isinstance(layer, PackedLinear) else is_transposed_linear(layer)
        self.kind = "conv" if weight.dim() == 4 else "conv1d" if transposed else "linear"
        self.shape = tuple(weight.shape)
        self.dtype = weight.dtype
        self.geometry: Geometry | None = None
        if self.kind == "conv":
            assert isinstance(layer, (nn.Conv2d, PackedConv2d))
            self.geometry = layer.geometry if packed else _geometry(layer)  # type: ignore[union-attr, arg-type, assignment]

    @property
    def rows(self) -> int:
        return self.shape[1] if self.kind == "conv1d" else self.shape[0]

    @property
    def cols(self) -> int:
        return torch.Size(self.shape).numel() // max(self.rows, 1)

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def axis(self) -> int:
        """Along which x and y hold features."""
        return -1 if self.geometry is None else -3

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """[rows, cols] of a stored weight, a view."""
        return weight.t() if self.kind == "conv1d" else weight.reshape(self.rows, self.cols)

    def restore(self, matrix: torch.Tensor) -> torch.Tensor:
        """The stored weight of [rows, cols]."""
        return matrix.t().contiguous() if self.kind == "conv1d" else matrix.reshape(self.shape)

    def filters(self, matrix: torch.Tensor) -> torch.Tensor:
        """[r, c] as :meth:`multiply` takes it: for a convolution [r, c / kernel, height, width]."""
        return matrix if self.geometry is None else matrix.reshape(matrix.shape[0], -1, *self.geometry.kernel)

    def multiply(self, x: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.geometry is None:
            return F.linear(x, filters, bias)
        _, stride, padding, dilation = self.geometry
        return F.conv2d(x, filters, bias, stride, padding, dilation)

    def count(self, x: torch.Tensor) -> int:
        """Rows of x: vectors of features; for a convolution places of all images of its output."""
        if self.geometry is None:
            return x.numel() // max(self.cols, 1)
        high, wide = self.geometry.out_size(*x.shape[-2:])
        return (x.shape[0] if x.dim() == 4 else 1) * high * wide


def live(spec: LayerSpec, matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the rows, and of the columns (for a convolution: input channels), that hold anything but zeros."""
    kept = spec.filters(matrix) != 0
    kept = kept if kept.dim() == 2 else kept.flatten(2).any(2)
    return kept.any(1).nonzero()[:, 0], kept.any(0).nonzero()[:, 0]
