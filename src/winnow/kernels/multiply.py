"""Products with a packed matrix, whichever way they go: natively, in panels through torch, or feature-major."""

from __future__ import annotations

import torch

from winnow.errors import InputError
from winnow.kernels import expanded
from winnow.kernels.expanded import exact_int_mm, int8_linear
from winnow.kernels.matrix import PackedMatrix

_FLOATING = (torch.float32, torch.bfloat16, torch.float16)


def linear(
    matrix: PackedMatrix,
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activations: str = "keep",
    way: str = "packed",
) -> torch.Tensor:
    """y = x Wᵀ (+ bias): x [..., cols] float32, bfloat16 or float16, y [..., rows] of the same type.

    Args:
        bias: [rows] or None.
        activations: "int8" rounds each row of x to int8 (scale max|x| / 127, half to even) and sums integers: integer
            values only.
        way: "packed" reads the packed rows once for every 16 rows of x. "expanded" expands a panel of rows at a time,
            in x's type, and lets torch multiply it (int8 activations: where torch's integer sums are exact, else the
            same as "packed"). "spmm" lays x out feature-major and adds multiples of its rows (float32 sums).

    Raises InputError for another shape, type or way.
    """
    shape = x.shape
    if shape[-1] != matrix.cols or not x.is_cpu or x.dtype not in _FLOATING:
        raise InputError(_why_not(matrix, x))
    if way not in matrix.ways(activations):
        raise InputError(f"{matrix.values} values have no way {way!r} with activations={activations!r}")
    x2d = x.reshape(-1, matrix.cols)
    if x2d.stride(1) != 1:
        x2d = x2d.contiguous()
    bias = _bias(matrix, bias)
    if way == "expanded" and (activations == "keep" or exact_int_mm()):
        y = (int8_linear if activations == "int8" else expanded.linear)(matrix, x2d, bias)
    else:
        y = x.new_empty((x2d.shape[0], matrix.rows))
        if y.numel():
            kernels, view = matrix.backend
            if way == "spmm":
                kernels.linear_many(view, x2d, bias, y)
            else:
                kernels.linear(view, x2d, bias, y, activations == "int8")
    return y if len(shape) == 2 else y.view(*shape[:-1], matrix.rows)


def times(matrix: PackedMatrix, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """W x (+ bias, one a row): float32 [cols, n] -> [rows, n], feature-major, as convolutions need it."""
    if x.dim() != 2 or x.shape[0] != matrix.cols or x.dtype != torch.float32 or x.device.type != "cpu":
        raise InputError(f"times takes float32 [{matrix.cols}, n] on the CPU, not {x.dtype} {list(x.shape)}")
    bias = _bias(matrix, bias)
    y = x.new_empty((matrix.rows, x.shape[1]))
    if y.numel():
        kernels, view = matrix.backend
        kernels.times(view, x if x.stride(1) == 1 else x.contiguous(), bias, y)
    return y


def _bias(matrix: PackedMatrix, bias: torch.Tensor | None) -> torch.Tensor | None:
    """The bias as the kernels read it. Raises InputError where it is not one number a row."""
    if bias is None:
        return None
    if bias.dim() != 1 or bias.shape[0] != matrix.rows:
        raise InputError(f"the bias has shape {list(bias.shape)}, {matrix.rows} rows need one number each")
    return bias if bias.dtype == torch.float32 and bias.is_contiguous() else bias.float().contiguous()


def _why_not(matrix: PackedMatrix, x: torch.Tensor) -> str:
    if x.shape[-1] != matrix.cols:
        return f"a packed layer of {matrix.cols} inputs was given x of shape {list(x.shape)}: its last size must match"
    if x.device.type != "cpu":
        return f"a packed layer runs on the CPU and was given x on {x.device}: move x there"
    return f"a packed layer takes float32, bfloat16 or float16 and was given {x.dtype}: convert x"
