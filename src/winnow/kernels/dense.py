"""Dense ways to run a layer other than as it is: rounded to bfloat16, from int8 codes, or without its empty rows and columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.kernels.expanded import expand
from winnow.kernels.lazy import WeightOnDemand
from winnow.kernels.matrix import PackedMatrix
from winnow.kernels.modules import PackedConv2d, PackedLayer, PackedLinear
from winnow.kernels.swap import LayerSpec, live


class Substitute(WeightOnDemand):
    """In the place of a dense layer, with that layer's state dict: an ordinary ``weight`` and ``bias``."""

    _CPU_ONLY = "an accelerated model runs on the CPU: use the model it was made from on"

    def __init__(self, spec: LayerSpec, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.spec = spec
        self._dtype = spec.dtype
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        if spec.geometry is None:
            self.in_features, self.out_features = spec.cols, spec.rows
        else:
            self.in_channels, self.out_channels, self.groups = spec.shape[1], spec.rows, 1
            self.kernel_size, self.stride, self.padding, self.dilation = spec.geometry
            self.padding_mode = "zeros"
        if spec.kind == "conv1d":
            self.nx, self.nf = spec.cols, spec.rows

    @property
    def weight_shape(self) -> torch.Size:
        return torch.Size(self.spec.shape)

    def dense(self) -> torch.Tensor:
        return self.spec.restore(self.expand()).to(self._dtype)

    def _take(self, weight: torch.Tensor) -> None:
        weight = weight.detach().cpu().to(self._dtype)
        self.take(self.spec.matrix(weight))
        if not torch.equal(self.dense(), weight):
            raise InputError("this weight does not fit exactly: load it into the dense model, and accelerate that")

    def expand(self) -> torch.Tensor:
        """The matrix [rows, cols]."""
        raise NotImplementedError

    def take(self, matrix: torch.Tensor) -> None:
        """Hold ``matrix`` [rows, cols] from now on."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{list(self.spec.shape)}, bias={self.bias is not None}"


class RoundedLayer(Substitute):
    """A dense layer whose weight and bias are bfloat16: x is rounded to bfloat16 too, y has the type of x."""

    def __init__(self, spec: LayerSpec, matrix: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(spec, bias)
        self.register_buffer(
            "rounded_bias", None if bias is None else bias.detach().to(torch.bfloat16), persistent=False
        )
        self.register_buffer("filters", None, persistent=False)
        self.take(matrix)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        filters = self.filters
        return self.spec.multiply(x.to(filters.dtype), filters, self.rounded_bias).to(x.dtype)

    def expand(self) -> torch.Tensor:
        return self.filters.reshape(self.spec.rows, self.spec.cols)

    def take(self, matrix: torch.Tensor) -> None:
        self.filters = self.spec.filters(matrix.detach().to(torch.bfloat16).contiguous())

    def bias_changed(self) -> None:
        if self.bias is not None:
            self.rounded_bias = self.bias.detach().to(torch.bfloat16)


class ShrunkLayer(Substitute):
    """A dense layer without the rows and columns (output and input channels) that hold nothing but zeros.

    The features of x that count are gathered, and where rows are missing the product is scattered into y, whose other
    features are the bias alone. One row and one column stay in any case.
    """

    def __init__(self, spec: LayerSpec, matrix: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(spec, bias)
        for name in ("filters", "live_rows", "live_cols"):
            self.register_buffer(name, None, persistent=False)
        self.take(matrix)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spec, rows = self.spec, self.live_rows
        if self.live_cols is not None:
            x = x.index_select(spec.axis, self.live_cols)
        if rows is None:
            return spec.multiply(x, self.filters, self.bias)
        part = spec.multiply(x, self.filters, None)
        shape = list(part.shape)
        shape[spec.axis] = spec.rows
        y = part.new_zeros(shape).index_copy_(spec.axis, rows, part)
        if self.bias is None:
            return y
        return y.add_(self.bias if spec.geometry is None else self.bias[:, None, None])

    def expand(self) -> torch.Tensor:
        spec = self.spec
        channels = spec.shape[1] if spec.geometry is not None else spec.cols
        rows = torch.arange(spec.rows) if self.live_rows is None else self.live_rows
        cols = torch.arange(channels) if self.live_cols is None else self.live_cols
        whole = self.filters.new_zeros((spec.rows, channels, *self.filters.shape[2:]))
        whole[rows[:, None], cols] = self.filters
        return whole.reshape(spec.rows, spec.cols)

    def take(self, matrix: torch.Tensor) -> None:
        rows, cols = (found if len(found) else found.new_zeros(1) for found in live(self.spec, matrix))
        filters = self.spec.filters(matrix.detach())[rows][:, cols].contiguous()
        self.live_rows = None if len(rows) == self.spec.rows else rows
        self.live_cols = None if len(cols) == self.spec.filters(matrix).shape[1] else cols
        self.filters = filters


class Int8Linear(Substitute):
    """A linear layer of a bfloat16 model from the int8 codes of its weight, dense, by torch's weight-only kernel.

    The codes are those of the packed layer; the kernel takes the scale of a row in bfloat16, so the stored float16
    scales are rounded (at most one part in 512), which is as exact as the dense bfloat16 layer and the output are. The
    state dict is made from the float16 scales.
    """

    MULTIPLE = 32  # of columns: with others the kernel reads beyond the end of the codes

    def __init__(self, spec: LayerSpec, matrix: PackedMatrix, bias: torch.Tensor | None) -> None:
        super().__init__(spec, bias)
        assert matrix.scales is not None
        self._scales = matrix.scales[:, 0].clone()
        self.register_buffer("codes", expand(matrix, dtype=torch.int8), persistent=False)
        self._rounded_scales = self._scales.to(torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(torch.bfloat16).contiguous()
        y = torch._weight_int8pack_mm(flat, self.codes, self._rounded_scales).to(x.dtype)
        if self.bias is not None:
            y = y.add_(self.bias)
        return y.reshape(*x.shape[:-1], self.spec.rows)

    def expand(self) -> torch.Tensor:
        return self.codes.float() * self._scales.float()[:, None]

    def take(self, matrix: torch.Tensor) -> None:
        scales = self._scales.float()[:, None]
        codes = torch.where(scales == 0, 0.0, matrix.detach().float() / scales).round()
        self.codes = codes.clamp(-128, 127).to(torch.int8)


@lru_cache(maxsize=1)
def torch_int8_works() -> bool:
    """Whether this torch has its weight-only int8 product on this processor, and it is right."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-128, 128, (5, 64), generator=generator, dtype=torch.int8)
    x = torch.randint(-8, 9, (3, 64), generator=generator).to(torch.bfloat16)
    try:
        found = torch._weight_int8pack_mm(x, codes, torch.full((5,), 0.5, dtype=torch.bfloat16))
    except (AttributeError, RuntimeError):
        return False
    expected = 0.5 * (x.double() @ codes.double().t())
    return bool(((found.double() - expected).abs() <= expected.abs() / 128 + 1e-3).all())


def unpacked(layer: PackedLayer) -> nn.Module:
    """The ordinary dense layer that a packed one stands for, with the weight expanded."""
    weight = nn.Parameter(layer.dense(), requires_grad=False)
    dense: nn.Module
    if isinstance(layer, PackedConv2d):
        g = layer.geometry
        dense = nn.Conv2d(
            layer.in_channels, layer.out_channels, g.kernel, g.stride, g.padding, g.dilation, device="meta"
        )
    elif isinstance(layer, PackedLinear) and layer.transposed:
        from transformers.pytorch_utils import Conv1D

        with torch.device("meta"):
            dense = Conv1D(layer.out_features, layer.in_features)
    else:
        assert isinstance(layer, PackedLinear)
        dense = nn.Linear(layer.in_features, layer.out_features, device="meta")
    dense.weight = weight
    dense.bias = layer.bias  # type: ignore[assignment]
    return dense.train(layer.training)


class RoutedLayer(Substitute):
    """Calls the first of ``routes`` - (rows of x up to this number, layer), the last up to ``math.inf`` - that fits x.

    Where one of the layers is the dense one as it was, ``weight`` and ``bias`` are its parameters; else ``weight`` is
    made where it is used. The layers are no children of this module: its state dict is that of the dense layer alone.
    """

    routes: tuple[tuple[float, nn.Module], ...]
    _width: int  # features of x; 0 for a convolution

    def __init__(self, spec: LayerSpec, routes: Sequence[tuple[float, nn.Module]]) -> None:
        if not routes or routes[-1][0] != math.inf:
            raise InputError("routes are (rows of x up to, layer) in rising order, the last up to math.inf")
        layers = [layer for _, layer in routes]
        dense = next((layer for layer in layers if "weight" in layer._parameters), None)
        super().__init__(spec, None)
        if dense is not None:
            self._parameters["weight"] = dense.weight  # type: ignore[assignment]
        self.bias = (layers[0] if dense is None else dense).bias  # type: ignore[assignment]
        for layer in layers:
            layer.bias = self.bias  # type: ignore[assignment]  # one parameter: it is converted, moved and loaded once for all of them
        # Not through nn.Module.__setattr__, which would make them children.
        self.__dict__["routes"] = tuple(routes)
        self.__dict__["_width"] = max(spec.cols, 1) if spec.geometry is None else 0

    @property
    def layers(self) -> list[nn.Module]:
        """Each layer once."""
        return list(dict.fromkeys(layer for _, layer in self.routes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.numel() // self._width if self._width else self.spec.count(x)
        for upto, layer in self.routes:
            if rows <= upto:
                return layer.forward(x)
        raise AssertionError("routes end with math.inf")

    def expand(self) -> torch.Tensor:
        return self.spec.matrix(_dense(self.layers[0]))

    def _take(self, weight: torch.Tensor) -> None:
        for layer in self.layers:
            if "weight" in layer._parameters:
                with torch.no_grad():
                    layer.weight.copy_(weight)  # type: ignore[operator, union-attr]
            else:
                layer.pack(weight)  # type: ignore[operator]

    def bias_changed(self) -> None:
        for layer in self.layers:
            if isinstance(layer, Substitute):
                layer.bias_changed()

    def train(self, mode: bool = True) -> RoutedLayer:
        for layer in self.layers:
            layer.train(mode)
        return super().train(mode)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for layer in self.layers:
            layer._apply(fn, recurse)
        return self

    def extra_repr(self) -> str:
        routes = (f"{type(layer).__name__} up to {upto} rows" for upto, layer in self.routes)
        return f"{super().extra_repr()}, {', '.join(routes)}"


def _dense(layer: nn.Module) -> torch.Tensor:
    return layer.weight if "weight" in layer._parameters else layer.dense()  # type: ignore[operator, return-value]
