"""Putting packed layers into a model, finding them there, and what a layer computes apart from its numbers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from winnow.errors import InputError
from winnow.kernels.lazy import WeightOnDemand
from winnow.kernels.matrix import PackedMatrix
from winnow.kernels.modules import PackedConv2d, PackedLayer, PackedLinear
from winnow.kernels.operands import Geometry
from winnow.masks.blocks import is_transposed_linear

# Where the modules of quantized layers are defined: by torch, by its extensions, by what transformers puts into models.
_QUANTIZED = (
    "torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torchao.", "bitsandbytes.", "auto_gptq.", "gptqmodel.", "awq.",
    "optimum.quanto", "hqq.", "transformers.integrations.finegrained_fp8",
)  # fmt: skip


def packed_layers(model: nn.Module) -> dict[str, PackedLinear | PackedConv2d]:
    """Every packed layer of ``model`` by its path; "" where the model itself is one."""
    return {path: m for path, m in model.named_modules() if isinstance(m, (PackedLinear, PackedConv2d))}


def require_dense(model: nn.Module) -> None:
    """Raises InputError for a model whose layers are packed, accelerated or quantized already: they have no dense
    weights to prune or to train."""
    for path, module in model.named_modules():
        kind = type(module)
        where = f" ({path or 'the model itself'} is a {kind.__name__})"
        if isinstance(module, PackedLayer):
            raise InputError(f"the layers of this model are packed already{where}: load it without packed=True")
        if isinstance(module, WeightOnDemand):
            raise InputError(f"this model is accelerated already{where}: give the model that it was made from")
        if kind.__module__.startswith(_QUANTIZED):
            raise InputError(f"the layers of this model are quantized already{where}: give the dense model")


def swap(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Put ``module`` in place of ``path`` in ``model``, in the same mode (train or eval); returns what was there."""
    parent, _, name = path.rpartition(".")
    if not name:
        raise InputError("the model itself cannot be swapped: swap a layer inside it")
    owner = model.get_submodule(parent)
    old = owner.get_submodule(name)
    module.train(old.training)
    # Not setattr: a Sequential or ModuleList names its modules by numbers.
    owner._modules[name] = module
    return old


def why_dense(model: nn.Module, path: str, key: str = "weight") -> str | None:
    """Why the parameter ``key`` of the layer at ``path`` ("": the model itself) cannot be packed in memory; None where
    it can."""
    layer = model.get_submodule(path)
    parent = model.get_submodule(path.rpartition(".")[0])
    if isinstance(layer, nn.MultiheadAttention) or isinstance(parent, nn.MultiheadAttention):
        return "nn.MultiheadAttention multiplies by it in one fused call"
    if key != "weight":
        return f"a parameter of {type(layer).__name__} itself, not the weight of a layer below it"
    if any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks)):
        return "hooks are registered on its layer"
    if type(layer) is nn.Conv2d:
        if layer.groups != 1:
            return f"a convolution of {layer.groups} groups"
        if layer.padding_mode != "zeros":
            return f"a convolution with {layer.padding_mode} padding"
        return None if _geometry(layer) is not None else "a convolution with uneven padding"
    if type(layer) is nn.Linear or is_transposed_linear(layer):
        return None
    return f"{type(layer).__name__} has no packed kernel"


def pack_layer(layer: nn.Module, matrix: PackedMatrix | None = None, dtype: torch.dtype | None = None) -> PackedLayer:
    """The packed layer that does what ``layer`` (nn.Linear, Conv1D or nn.Conv2d) does.

    Args:
        matrix: its packed weight; default: the layer's own weight, packed as it is.
        dtype: type of the dense weight (default: the layer's).

    The bias is the layer's own, and may be filled in later. Raises InputError for a layer that cannot be packed.
    """
    reason = why_dense(layer, "")
    if reason is not None:
        raise InputError(f"this layer cannot be packed ({reason}): leave it dense")
    weight, transposed = layer.weight, is_transposed_linear(layer)
    assert isinstance(weight, torch.Tensor)
    if matrix is None:
        matrix = PackedMatrix.from_dense((weight.t() if transposed else weight).flatten(1))
    dtype = dtype or weight.dtype
    if isinstance(layer, nn.Conv2d):
        geometry = _geometry(layer)
        assert geometry is not None
        return PackedConv2d(matrix, layer.bias, geometry, dtype=dtype)
    bias = layer.bias
    assert bias is None or isinstance(bias, torch.Tensor)
    return PackedLinear(matrix, bias, dtype=dtype, transposed=transposed)


def _geometry(layer: nn.Conv2d) -> Geometry | None:
    """How a convolution walks; None where it pads one side more than the other."""
    kernel, stride, dilation = ((t[0], t[1]) for t in (layer.kernel_size, layer.stride, layer.dilation))
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    if isinstance(layer.padding, str):
        return Geometry(kernel, stride, (top, left), dilation) if (left, top) == (right, bottom) else None
    return Geometry(kernel, stride, (layer.padding[0], layer.padding[1]), dilation)


class LayerSpec:
    """What a layer computes apart from its numbers: matrix [rows, cols] to stored weight and back, and the product.

    Attributes:
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
