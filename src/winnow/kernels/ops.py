"""The packed layers as operators of torch: for torch.compile, traces and gradients. Eager inference goes round them."""

from __future__ import annotations

from typing import Any

import torch

from winnow.kernels import expanded, multiply
from winnow.kernels.expanded import convolve, convolve_back, transposed_product
from winnow.kernels.matrix import PackedMatrix
from winnow.kernels.operands import Geometry

# What an operator needs to know of a packed matrix: tensors first, so that a compiled graph takes them as inputs.
_MATRIX = (
    "Tensor starts, Tensor data, Tensor? mask, Tensor? scales, int rows, int cols, str values, int block, int? group"
)
_GEOMETRY = "int[] geometry"  # kernel, stride, padding, dilation, (height, width) each
_LIBRARY = torch.library.Library("winnow", "FRAGMENT")


def describe(matrix: PackedMatrix) -> tuple[Any, ...]:
    """A packed matrix as arguments of an operator."""
    return (
        matrix.starts, matrix.data, matrix.mask, matrix.scales,
        matrix.rows, matrix.cols, matrix.values, matrix.block, matrix.group,
    )  # fmt: skip


def _matrix(*described: Any) -> PackedMatrix:
    """The inverse of :func:`describe`."""
    starts, data, mask, scales, rows, cols, values, block, group = described
    known = PackedMatrix.known(starts, data)
    # The tensors of a matrix that was freed, or copies that a compiler made, are checked again.
    return known or PackedMatrix(rows, cols, values, mask, data, scales, block=block, group=group)


def _linear(x: torch.Tensor, bias: torch.Tensor | None, activations: str, way: str, *matrix: Any) -> torch.Tensor:
    packed = _matrix(*matrix)
    return multiply.linear(packed, x, bias, activations=activations, way=choose(way, x.numel() // max(packed.cols, 1)))


def _expand(dtype: torch.dtype, *matrix: Any) -> torch.Tensor:
    return expanded.expand(_matrix(*matrix), dtype=dtype)


def _linear_back(grad: torch.Tensor, *matrix: Any) -> torch.Tensor:
    packed = _matrix(*matrix)
    back = transposed_product(packed, grad.reshape(-1, packed.rows))
    return back.reshape(*grad.shape[:-1], packed.cols).to(grad.dtype)


def _conv2d(x: torch.Tensor, bias: torch.Tensor | None, geometry: list[int], way: str, *matrix: Any) -> torch.Tensor:
    walk = _unflatten(geometry)
    high, wide = walk.out_size(*x.shape[2:])
    return convolve(_matrix(*matrix), x, bias, walk, choose(way, x.shape[0] * high * wide))


def _conv2d_back(grad: torch.Tensor, height: int, width: int, geometry: list[int], *matrix: Any) -> torch.Tensor:
    return convolve_back(_matrix(*matrix), grad, (height, width), _unflatten(geometry)).to(grad.dtype)


def choose(ways: str, rows: int) -> str:
    """The way for a number of rows: ``ways`` is ``packed:16,expanded`` - each up to its number, the last above."""
    for entry in ways.split(","):
        way, _, limit = entry.partition(":")
        if not limit or rows <= int(limit):
            return way
    return way


def _unflatten(geometry: list[int]) -> Geometry:
    return Geometry(*zip(geometry[::2], geometry[1::2], strict=True))


def _define(name: str, arguments: str, body: Any, fake: Any) -> Any:
    _LIBRARY.define(f"{name}({arguments}, {_MATRIX}) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(name, body, "CPU")
    torch.library.register_fake(f"winnow::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.winnow, name).default


linear = _define(
    "linear",
    "Tensor x, Tensor? bias, str activations, str way",
    _linear,
    lambda x, bias, activations, way, *m: x.new_empty((*x.shape[:-1], m[4])),
)
expand = _define("expand", "ScalarType dtype", _expand, lambda dtype, *m: m[0].new_empty((m[4], m[5]), dtype=dtype))
linear_back = _define(
    "linear_back", "Tensor grad", _linear_back, lambda grad, *m: grad.new_empty((*grad.shape[:-1], m[5]))
)
conv2d = _define(
    "conv2d",
    f"Tensor x, Tensor? bias, {_GEOMETRY}, str way",
    _conv2d,
    lambda x, bias, geometry, way, *m: x.new_empty((x.shape[0], m[4], *_unflatten(geometry).out_size(*x.shape[2:]))),
)
conv2d_back = _define(
    "conv2d_back",
    f"Tensor grad, int height, int width, {_GEOMETRY}",
    _conv2d_back,
    lambda grad, height, width, geometry, *m: grad.new_empty(
        (grad.shape[0], m[5] // (geometry[0] * geometry[1]), height, width)
    ),
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, _, ctx.geometry, _, *matrix = inputs
    ctx.save_for_backward(*matrix[:4])
    ctx.sizes, ctx.size = matrix[4:], x.shape[2:]


def _matrix_of(ctx: Any) -> tuple[Any, ...]:
    return *ctx.saved_tensors, *ctx.sizes


def _linear_gradient(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
    return linear_back(grad, *_matrix_of(ctx)), bias, *[None] * _CONSTANTS


def _conv2d_gradient(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[1] else None
    return conv2d_back(grad, *ctx.size, ctx.geometry, *_matrix_of(ctx)), bias, *[None] * _CONSTANTS


_CONSTANTS = 11  # arguments of linear and of conv2d after x and bias, that have no gradient
torch.library.register_autograd("winnow::linear", _linear_gradient, setup_context=_keep, lib=_LIBRARY)
torch.library.register_autograd("winnow::conv2d", _conv2d_gradient, setup_context=_keep, lib=_LIBRARY)
