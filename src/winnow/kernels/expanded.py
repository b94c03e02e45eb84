"""A linear layer through torch's dense product: a panel of packed rows at a time is expanded and multiplied."""

from __future__ import annotations

import torch

from winnow.errors import InputError
from winnow.kernels import native, reference
from winnow.kernels.matrix import PackedMatrix

# Measured on 4096 x 4096 weights, bfloat16 and float32, 1 thread: with few rows of x a panel should still be in the
# second-level cache when it is multiplied; with many, torch spends more on laying x out again for every panel.
_SMALL, _LARGE, _MANY_ROWS = 2 << 20, 4 << 20, 128
_LEAST_ROWS = 32  # below, torch's product has too little to do to be fast


def linear(matrix: PackedMatrix, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """y [batch, rows] of x's type = x [batch, cols] Wᵀ (+ bias [rows]).

    W is expanded in x's type, into memory that all panels share and that belongs to this call: at most 4 MiB, or 32 rows
    of W where those are more. torch rounds the sums as it does for a dense layer.
    """
    y = x.new_empty((x.shape[0], matrix.rows))
    if not y.numel():
        return y
    size = _LARGE if x.shape[0] >= _MANY_ROWS else _SMALL
    step = min(matrix.rows, max(_LEAST_ROWS, size // max(matrix.cols * x.element_size(), 1)))
    panel = x.new_empty((step, matrix.cols))
    bias = None if bias is None else bias.to(x.dtype)
    fill, source = (native.expand, matrix.view) if native.available() else (reference.expand, matrix)
    for begin in range(0, matrix.rows, step):
        end = min(begin + step, matrix.rows)
        rows = panel[: end - begin]
        fill(source, begin, end, rows)
        if bias is None:
            torch.mm(x, rows.t(), out=y[:, begin:end])
        else:
            torch.addmm(bias[begin:end], x, rows.t(), out=y[:, begin:end])
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
        if native.available():
            native.expand(matrix.view, begin, end, out)
        else:
            reference.expand(matrix, begin, end, out)
    return out
