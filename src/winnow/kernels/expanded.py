"""Products by torch's own dense kernels: a panel of packed rows at a time is expanded and multiplied, never the whole matrix."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch.nn import functional as F

from winnow.errors import InputError
from winnow.kernels.matrix import PackedMatrix
from winnow.kernels.operands import Geometry
from winnow.kernels.reference import quantize_rows

# Bytes of a panel, measured on 4096 x 4096 weights, bfloat16 and float32, 1 thread: with few rows of x a panel should still
# be in the second-level cache when it is multiplied; with many, torch spends more on laying x out again for every panel, and
# a convolution reads the whole image once more for each.
_SMALL, _LARGE, _MANY_ROWS = 2 << 20, 4 << 20, 128
_LEAST_ROWS = 32  # below, torch's product has too little to do to be fast


def panels(matrix: PackedMatrix, itemsize: int, size: int | None = None) -> Iterator[slice]:
    """Bands of rows whose dense form takes about ``size`` bytes (default: of few rows of x)."""
    step = max(_LEAST_ROWS, (size or _SMALL) // max(matrix.cols * itemsize, 1))
    for start in range(0, matrix.rows, step):
        yield slice(start, min(start + step, matrix.rows))


def linear(matrix: PackedMatrix, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """y [batch, rows] of x's type = x [batch, cols] Wᵀ (+ bias [rows]).

    W is expanded in x's type, into memory that all panels share and that belongs to this call: at most 4 MiB, or 32 rows
    of W where those are more. torch rounds the sums as it does for a dense layer.
    """
    y = x.new_empty((x.shape[0], matrix.rows))
    if not y.numel():
        return y
    panel: torch.Tensor | None = None
    bias = None if bias is None else bias.to(x.dtype)
    kernels, view = matrix.backend
    for part in panels(matrix, x.element_size(), _LARGE if x.shape[0] >= _MANY_ROWS else _SMALL):
        panel = x.new_empty((part.stop, matrix.cols)) if panel is None else panel  # the first is the largest
        rows = panel[: part.stop - part.start]
        kernels.expand(view, part.start, part.stop, rows)
        if bias is None:
            torch.mm(x, rows.t(), out=y[:, part])
        else:
            torch.addmm(bias[part], x, rows.t(), out=y[:, part])
    return y


def expand(matrix: PackedMatrix, rows: slice = slice(None), dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Dense rows [r, cols], dequantized, of a floating-point ``dtype``; int8: the integer codes."""
    begin, end, step = rows.indices(matrix.rows)
    if step != 1:
        raise InputError("expand takes consecutive rows")
    if dtype == torch.float64:  # exact: every value, and every code times its scale, fits float32
        return expand(matrix, rows).double()
    out = torch.empty((max(end - begin, 0), matrix.cols), dtype=dtype)
    if out.numel():
        kernels, view = matrix.backend
        kernels.expand(view, begin, end, out)
    return out


def transposed_product(matrix: PackedMatrix, y: torch.Tensor) -> torch.Tensor:
    """y [batch, rows] W -> [batch, cols], float32: what a gradient with respect to x needs."""
    x = y.new_zeros((y.shape[0], matrix.cols), dtype=torch.float32)
    for rows in panels(matrix, 4):
        x.addmm_(y[:, rows].float(), expand(matrix, rows))
    return x


def int8_linear(matrix: PackedMatrix, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """y [batch, rows] of x's type = x [batch, cols], rounded to int8 row by row, times int8 codes (+ bias, float32).

    Integer sums, exact where :func:`exact_int_mm` holds, a panel of dense codes at a time."""
    assert matrix.scales is not None
    digits, scale = quantize_rows(x)
    digits = digits.to(torch.int8)
    y = x.new_empty((x.shape[0], matrix.rows))
    for rows in panels(matrix, 1):
        panel = expand(matrix, rows, torch.int8)
        out = torch._int_mm(digits, panel.t()).float().mul_(matrix.scales[rows, 0].float()).mul_(scale)
        y[:, rows] = out if bias is None else out.add_(bias[rows])
    return y


@lru_cache(maxsize=1)
def exact_int_mm() -> bool:
    """Whether torch's int8 product sums exactly here: without VNNI, some of its kernels saturate at 16 bits."""
    try:
        worst = torch.full((32, 64), 127, dtype=torch.int8)
        found = [torch._int_mm(worst, (sign * worst).t()) for sign in (1, -1)]
    except RuntimeError:
        return False
    return all(bool((sums == sign * 127 * 127 * 64).all()) for sums, sign in zip(found, (1, -1), strict=True))


def convolve(
    matrix: PackedMatrix, x: torch.Tensor, bias: torch.Tensor | None, geometry: Geometry, way: str
) -> torch.Tensor:
    """x [images, channels, height, width] convolved with the filters in the rows of ``matrix`` (channel by channel,
    each its kernel row by row); y of x's type. "spmm" multiplies windows feature-major, with float32 sums; "expanded"
    lets torch convolve with a panel of dense filters at a time. Raises InputError for an x that does not fit."""
    size = geometry.out_size(*x.shape[2:])
    area = geometry.kernel[0] * geometry.kernel[1]
    if x.shape[1] * area != matrix.cols or x.device.type != "cpu" or not x.is_floating_point() or min(size) < 1:
        raise InputError(
            f"a packed convolution of {matrix.cols // area} channels was given {x.dtype} {list(x.shape)} on "
            f"{x.device}: give it floating-point images on the CPU that its kernel fits into"
        )
    if way == "expanded":
        y = x.new_empty((x.shape[0], matrix.rows, *size))
        for rows in panels(matrix, x.element_size(), _LARGE):
            filters = expand(matrix, rows, x.dtype).view(-1, x.shape[1], *geometry.kernel)
            part = None if bias is None else bias[rows].to(x.dtype)
            y[:, rows] = F.conv2d(x, filters, part, geometry.stride, geometry.padding, geometry.dilation)
        return y
    images = x.float().contiguous()
    y = images.new_empty((x.shape[0], matrix.rows, *size))
    if y.numel():  # natively, windows are laid out in cache a few hundred places at a time, for all images together
        kernels, view = matrix.backend
        kernels.convolve(view, images, None if bias is None else bias.float(), geometry, y)
    return y.to(x.dtype)


def convolve_back(matrix: PackedMatrix, grad: torch.Tensor, size: tuple[int, int], geometry: Geometry) -> torch.Tensor:
    """The gradient with respect to x [images, channels, *size] of :func:`convolve`, from that of y; float32."""
    windows = [transposed_product(matrix, image.flatten(1).t()).t() for image in grad]
    kernel, stride, padding, dilation = geometry
    if not windows:
        return grad.new_zeros((0, matrix.cols // (kernel[0] * kernel[1]), *size), dtype=torch.float32)
    return F.fold(torch.stack(windows), size, kernel, dilation, padding, stride)
