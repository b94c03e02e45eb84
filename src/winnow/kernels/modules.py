"""Layers whose weight stays packed: in place of nn.Linear, GPT-2's Conv1D and nn.Conv2d, for inference."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from winnow.errors import InputError
from winnow.formats.validation import INTEGERS
from winnow.kernels import expanded, multiply, ops
from winnow.kernels.expanded import convolve
from winnow.kernels.lazy import WeightOnDemand
from winnow.kernels.matrix import PackedMatrix
from winnow.kernels.operands import Geometry
from winnow.quantize import Grid, Quantized

Ways = Iterable[tuple[float, str]]


class PackedLayer(WeightOnDemand):
    """What the packed layers have in common: a packed matrix, a bias, and the state dict of the dense layer.

    ``weight`` is the dense weight for whoever reads it: its shape and type are there at no cost, its values are expanded
    at every use (:class:`winnow.kernels.lazy.LazyWeight`). The packed values keep their own type whatever that of ``weight``
    is, and y always has the type of x. The packed tensors are shared by copies of the layer (they never change) and stay on
    the CPU.

    Attributes:
        matrix: the packed weight.
        ways: ``[(rows of x up to this number, way), ...]`` in rising order, the last up to ``math.inf``.
        activations: "keep", or "int8": x is rounded to int8 row by row (integer values only).
    """

    bias: torch.Tensor | None
    _CPU_ONLY = "packed layers run on the CPU: load the model without packed=True to use"
    _KNOWN_WAYS: tuple[str, ...] = ("packed", "expanded", "spmm")

    def __init__(
        self,
        matrix: PackedMatrix,
        bias: torch.Tensor | None,
        shape: Iterable[int],
        dtype: torch.dtype | None,
        activations: str,
        ways: Ways,
    ) -> None:
        nn.Module.__init__(self)  # not of the dense class beside this one: it would allocate a weight
        if bias is not None and tuple(bias.shape) != (matrix.rows,):
            raise InputError(f"the bias has shape {list(bias.shape)}, a layer of {matrix.rows} outputs needs one each")
        self.matrix = matrix
        self._shape = torch.Size(shape)
        self._dtype = dtype or (torch.float32 if matrix.scales is not None else matrix.data.dtype)
        held = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.register_parameter("bias", held)
        self.activations = activations
        self.ways = ways  # type: ignore[assignment]
        if not matrix.ways(activations):
            raise InputError(f"{matrix.values} values cannot be used with activations={activations!r}: use keep")

    @property
    def weight_shape(self) -> torch.Size:
        return self._shape

    def traced_weight(self) -> torch.Tensor:
        return self._restore(ops.expand(self._dtype, *ops.describe(self.matrix)))

    @property
    def ways(self) -> list[tuple[float, str]]:
        return self._ways

    @ways.setter
    def ways(self, ways: Ways) -> None:
        self._ways = list(ways)
        limits = [upto for upto, _ in self._ways]
        known = all(way in self._KNOWN_WAYS for _, way in self._ways)
        if not limits or limits[-1] != math.inf or limits != sorted(limits) or not known:
            names = ", ".join(self._KNOWN_WAYS)
            raise InputError(f"ways are (rows of x up to, one of {names}) in rising order, the last up to math.inf")
        # The same as text, for the operators: the last entry has no limit.
        self._ways_text = ",".join(way if upto == math.inf else f"{way}:{int(upto)}" for upto, way in self._ways)

    def way(self, rows: int) -> str:
        """How ``rows`` rows of x are multiplied."""
        for upto, way in self._ways:
            if rows <= upto:
                return way
        raise AssertionError("ways end with math.inf")

    def dense(self) -> torch.Tensor:
        return self._restore(expanded.expand(self.matrix, dtype=self._dtype))

    def _take(self, weight: torch.Tensor) -> None:
        self.matrix = _repacked(self._matrix(weight.detach().cpu()), self.matrix)

    def _restore(self, matrix: torch.Tensor) -> torch.Tensor:
        return matrix.reshape(self._shape)

    def _matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.reshape(self.matrix.shape)

    def _traced(self, x: torch.Tensor) -> bool:
        """Whether x must go through torch's operators: compiled, traced, or with a gradient to come back."""
        if torch.compiler.is_compiling() or type(x) is not torch.Tensor:
            return True
        if not (x.requires_grad and torch.is_grad_enabled()):
            return False
        if self.activations == "int8":
            raise InputError("int8 activations have no gradient: run under torch.inference_mode()")
        return True

    def extra_repr(self) -> str:
        kept = f"{100 * self.matrix.density:.1f}% kept"
        return f"{list(self._shape)}, bias={self.bias is not None}, {self.matrix.values}, {kept}"


class PackedLinear(PackedLayer, nn.Linear):  # type: ignore[override, misc]  # weight: read where it is used
    """A linear layer, y = x Wᵀ + b, with W packed. x [..., in_features], y of the same type.

    It passes for a frozen nn.Linear wherever layers are chosen by class, so that peft puts its adapters around it.

    Args:
        matrix: W [out_features, in_features].
        bias: [out_features] or None.
        dtype: type of the dense weight (default: that of the values, float32 for integers).
        transposed: the dense layer stores W [in, out], as transformers' Conv1D does.
        activations: "keep" or "int8".
    """

    def __init__(
        self,
        matrix: PackedMatrix,
        bias: torch.Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        transposed: bool = False,
        activations: str = "keep",
        ways: Ways = ((16, "packed"), (math.inf, "expanded")),
    ) -> None:
        shape = matrix.shape[::-1] if transposed else matrix.shape
        super().__init__(matrix, bias, shape, dtype, activations, ways)
        self.transposed = transposed
        self.in_features, self.out_features = matrix.cols, matrix.rows
        if transposed:
            self.nx, self.nf = matrix.cols, matrix.rows  # what Conv1D calls them

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._traced(x):
            return ops.linear(x, self.bias, self.activations, self._ways_text, *ops.describe(self.matrix))
        matrix = self.matrix
        way = self.way(x.numel() // max(matrix.cols, 1))
        # self.bias would cost a call of nn.Module.__getattr__ for every product.
        return multiply.linear(matrix, x, self._parameters["bias"], activations=self.activations, way=way)

    def _restore(self, matrix: torch.Tensor) -> torch.Tensor:
        return matrix.t().contiguous() if self.transposed else matrix

    def _matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.t() if self.transposed else weight


class PackedConv2d(PackedLayer):
    """A 2-D convolution of one group with zero padding, its filters packed. x [N, C, H, W] or [C, H, W].

    Rows of x, for ``ways``, are places of all images together; the ways are "spmm" and "expanded".
    """

    _KNOWN_WAYS = ("spmm", "expanded")

    def __init__(
        self,
        matrix: PackedMatrix,
        bias: torch.Tensor | None,
        geometry: Geometry,
        *,
        dtype: torch.dtype | None = None,
        ways: Ways = ((math.inf, "spmm"),),
    ) -> None:
        kernel = geometry.kernel
        channels = matrix.cols // (kernel[0] * kernel[1])
        super().__init__(matrix, bias, (matrix.rows, channels, *kernel), dtype, "keep", ways)
        self.in_channels, self.out_channels, self.groups = channels, matrix.rows, 1
        self.kernel_size, self.stride, self.padding, self.dilation = geometry
        self.padding_mode = "zeros"
        self.geometry = geometry
        self._numbers = [n for pair in geometry for n in pair]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images = x if x.dim() == 4 else x[None]
        if images.dim() != 4:
            raise InputError(f"a packed convolution takes [N, C, H, W] or [C, H, W], not x of shape {list(x.shape)}")
        if self._traced(images):
            y = ops.conv2d(images, self.bias, self._numbers, self._ways_text, *ops.describe(self.matrix))
        else:
            high, wide = self.geometry.out_size(*images.shape[2:])
            y = convolve(self.matrix, images, self.bias, self.geometry, self.way(images.shape[0] * high * wide))
        return y if x.dim() == 4 else y[0]


def _repacked(weight: torch.Tensor, like: PackedMatrix) -> PackedMatrix:
    """``weight`` [rows, cols] packed exactly, with the type of values, the blocks and the scales of ``like``."""
    if like.scales is None:
        packed = PackedMatrix.from_dense(weight, like.values)
    else:
        grid = Grid(INTEGERS[like.values], like.group)
        codes = grid.round(weight, like.scales)
        packed = PackedMatrix.from_codes(Quantized(codes, like.scales, grid.bits, like.group), block=like.block)
    if not torch.equal(expanded.expand(packed, dtype=weight.dtype), weight):
        held = like.values if like.scales is None else f"{like.values} values and the layer's scales"
        raise InputError(f"this weight does not fit {held} exactly: load it into the dense model, and pack that")
    return packed
