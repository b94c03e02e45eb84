"""Triton kernels that read a bitmask and the kept values: one product for decoding, one expansion for everything else.

At batch 1 a GPU, too, waits for weights; fewer bytes are read when only the mask and the kept values are. One program
walks over one row: it turns a stretch of mask bits into positions by a running sum, gathers the values there, and
multiplies. The file is imported only where triton is installed.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

_COLUMNS = 1024  # a stretch: 128 bytes of mask, one transaction


@triton.jit
def _stretch(
    mask, data, scales, starts, row, column, taken, cols, stride, groups, group,
    MASKED: tl.constexpr, BLOCK: tl.constexpr, VALUES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Dequantized float32 weights of COLUMNS columns of a row, from ``column`` on, and how many of them are kept."""
    at = column + tl.arange(0, COLUMNS)
    inside = at < cols
    if MASKED:
        bit = at // BLOCK
        byte = tl.load(mask + row * stride + (bit >> 3), mask=inside, other=0).to(tl.int32)
        keep = (byte >> (bit & 7)) & 1
    else:
        keep = inside.to(tl.int32)
    place = taken + tl.cumsum(keep, 0) - keep
    # Row starts are bytes, unsigned 32 bits in a signed tensor.
    first = tl.load(starts + row).to(tl.int64) & 0xFFFFFFFF
    here = keep != 0
    if VALUES == "int4":
        byte = tl.load(data + first + (place >> 1), mask=here, other=0).to(tl.int32)
        nibble = (byte >> ((place & 1) * 4)) & 15
        weight = (nibble - ((nibble >> 3) << 4)).to(tl.float32)
    elif VALUES == "int8":
        weight = tl.load(data + first + place, mask=here, other=0).to(tl.float32)
    elif VALUES == "float32":
        weight = tl.load(data + (first >> 2) + place, mask=here, other=0).to(tl.float32)
    else:
        weight = tl.load(data + (first >> 1) + place, mask=here, other=0).to(tl.float32)
    if VALUES == "int4" or VALUES == "int8":
        weight *= tl.load(scales + row * groups + at // group, mask=here, other=0).to(tl.float32)
    return weight, tl.sum(keep, 0)


@triton.jit
def _linear(
    x, mask, data, scales, starts, bias, y, rows, cols, stride, groups, group, x_stride,
    HAS_BIAS: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr, VALUES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    batch = tl.program_id(1)
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    taken = 0
    for column in range(0, cols, COLUMNS):
        weight, count = _stretch(
            mask, data, scales, starts, row, column, taken, cols, stride, groups, group, MASKED, BLOCK, VALUES, COLUMNS
        )
        at = column + tl.arange(0, COLUMNS)
        total += weight * tl.load(x + batch * x_stride + at, mask=at < cols, other=0).to(tl.float32)
        taken += count
    result = tl.sum(total, 0)
    if HAS_BIAS:
        result += tl.load(bias + row).to(tl.float32)
    tl.store(y + batch * rows + row, result.to(y.dtype.element_ty))


@triton.jit
def _expand(
    mask, data, scales, starts, out, cols, stride, groups, group,
    MASKED: tl.constexpr, BLOCK: tl.constexpr, VALUES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    taken = 0
    for column in range(0, cols, COLUMNS):
        weight, count = _stretch(
            mask, data, scales, starts, row, column, taken, cols, stride, groups, group, MASKED, BLOCK, VALUES, COLUMNS
        )
        at = column + tl.arange(0, COLUMNS)
        tl.store(out + row * cols + at, weight.to(out.dtype.element_ty), mask=at < cols)
        taken += count


def linear(
    parts: dict[str, torch.Tensor], about: dict[str, Any], x: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """y [batch, rows] = x [batch, cols] Wᵀ (+ bias), float32 sums, y of x's type. Every row of x reads W again.

    ``parts``: ``data``, ``starts`` and where there are any ``mask`` and ``scales``, on x's device; ``about``: ``rows``,
    ``cols``, ``values``, ``block`` and ``group`` as in :class:`~winnow.kernels.matrix.PackedMatrix`.
    """
    x = x.contiguous()
    y = torch.empty((x.shape[0], about["rows"]), dtype=x.dtype, device=x.device)
    if y.numel():
        tensors, sizes, constants = _arguments(parts, about)
        _linear[(about["rows"], x.shape[0])](
            x, *tensors, y if bias is None else bias, y, about["rows"], *sizes, x.stride(0),
            HAS_BIAS=bias is not None, **constants,
        )  # fmt: skip
    return y


def expand(parts: dict[str, torch.Tensor], about: dict[str, Any], dtype: torch.dtype) -> torch.Tensor:
    """The dense matrix [rows, cols], dequantized; the arguments are those of :func:`linear`."""
    out = torch.empty((about["rows"], about["cols"]), dtype=dtype, device=parts["data"].device)
    if out.numel():
        tensors, sizes, constants = _arguments(parts, about)
        _expand[(about["rows"],)](*tensors, out, *sizes, **constants)
    return out


def _arguments(parts: dict[str, torch.Tensor], about: dict[str, Any]) -> tuple[list, list, dict]:
    data, mask, scales = parts["data"], parts.get("mask"), parts.get("scales")
    # An argument that the constants switch off still needs some address.
    tensors = [data if mask is None else mask, data, data if scales is None else scales, parts["starts"]]
    groups = 1 if scales is None else scales.shape[1]
    sizes = [about["cols"], 0 if mask is None else mask.shape[1], groups, about["group"]]
    constants = {"MASKED": mask is not None, "BLOCK": about["block"], "VALUES": about["values"], "COLUMNS": _COLUMNS}
    return tensors, sizes, constants
