"""What the native kernels do, in plain PyTorch: used where the extension is missing, and to test it against.

Every function goes band by band, so that the dense matrix never exists whole. Shapes are as in
:mod:`winnow.kernels.native`; the first argument is the packed matrix itself.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from winnow.formats import bits
from winnow.formats.validation import INTEGERS
from winnow.kernels.operands import Geometry, PackedTensors
from winnow.quantize.grid import spread_scales

_BAND = 1 << 20  # weights expanded at a time


def linear(
    matrix: PackedTensors, x: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor, int8_activations: bool = False
) -> None:
    """y [batch, rows] = x [batch, cols] Wᵀ (+ bias), summed in float32 or, with int8 activations, in integers."""
    digits, scale = quantize_rows(x) if int8_activations else (None, None)
    for rows in bits.bands(matrix.rows, matrix.cols, _BAND):
        if digits is None or scale is None:
            out = x.float() @ _dequantized(matrix, rows).T
        else:
            out = _integer_product(matrix, rows, digits) * scale
        y[:, rows] = out if bias is None else out + bias[rows]


def linear_many(matrix: PackedTensors, x: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> None:
    """The same by :func:`times`: x laid out feature-major, float32 sums."""
    columns = torch.empty((matrix.rows, x.shape[0]))
    times(matrix, x.t().float().contiguous(), bias, columns)
    y.copy_(columns.t())


def times(matrix: PackedTensors, x: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> None:
    """y [rows, n] = W x [cols, n] (+ bias of each row), float32."""
    for rows in bits.bands(matrix.rows, matrix.cols, _BAND):
        out = _dequantized(matrix, rows) @ x
        y[rows] = out if bias is None else out + bias[rows, None]


def expand(matrix: PackedTensors, start: int, stop: int, out: torch.Tensor) -> None:
    """Rows [start, stop) dense into ``out`` [stop - start, cols]; int8 means the integer codes."""
    for rows in bits.bands(stop, matrix.cols, _BAND, start):
        band = _stored(matrix, rows) if out.dtype == torch.int8 else _dequantized(matrix, rows)
        out[rows.start - start : rows.stop - start] = band


def convolve(
    matrix: PackedTensors, x: torch.Tensor, bias: torch.Tensor | None, geometry: Geometry, y: torch.Tensor
) -> None:
    """y [N, rows, H', W'] = the convolution of x [N, C, H, W] with the filters in the rows of the matrix (+ bias)."""
    kernel, stride, padding, dilation = geometry
    for image, out in zip(x, y, strict=True):
        windows = F.unfold(image[None], kernel, dilation, padding, stride)[0]
        times(matrix, windows, bias, out.view(matrix.rows, -1))


def fill_starts(matrix: PackedTensors, starts: torch.Tensor) -> bool:
    """Fill ``starts`` (int32 holding uint32, [rows + 1]) with the byte at which each row's values begin; False where a
    row has index bits beyond the last column or the rows do not fill the values exactly."""
    counts = np.full(matrix.rows, matrix.cols, dtype=np.int64)
    if matrix.mask is not None:
        mask, entries = matrix.mask.numpy(), matrix.cols // matrix.block
        if entries % 8 and np.any(mask[:, -1] >> (entries % 8)):
            return False
        for rows in bits.bands(matrix.rows, mask.shape[1]):
            counts[rows] = bits.POPCOUNT[mask[rows]].sum(axis=1, dtype=np.int64) * matrix.block
    sizes = bits.nibble_bytes(counts) if matrix.values == "int4" else counts * matrix.data.element_size()
    ends = np.cumsum(sizes)
    if matrix.rows and ends[-1] >= 1 << 32:
        return False
    starts[0] = 0
    starts.numpy().view(np.uint32)[1:] = ends
    return int(sizes.sum()) == matrix.data.numel() * matrix.data.element_size()


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Dynamic symmetric int8 of each row of x [batch, cols]: codes (float32, whole numbers -127..127) and scales
    [batch, 1] with scale = max|x| / 127, x / scale rounded half to even; a row of zeros has scale 0."""
    x = x.float()
    scale = x.abs().amax(dim=1, keepdim=True) / 127
    return torch.round(x / torch.where(scale == 0, 1.0, scale)), scale


def _integer_product(matrix: PackedTensors, rows: slice, digits: torch.Tensor) -> torch.Tensor:
    """sum over groups of (exact integer sum) * (scale of the group): [batch, r], before the scales of x."""
    assert matrix.scales is not None
    codes, scales = _stored(matrix, rows).double(), matrix.scales[rows].float()
    size = matrix.group_size
    out = torch.zeros(digits.shape[0], codes.shape[0])
    for group in range(scales.shape[1]):
        part = slice(group * size, (group + 1) * size)
        # Integers below 2**53 are exact in float64.
        out += (digits[:, part].double() @ codes[:, part].T).float() * scales[:, group]
    return out


def _dequantized(matrix: PackedTensors, rows: slice) -> torch.Tensor:
    """float32 [r, cols]."""
    band = _stored(matrix, rows).float()
    if matrix.scales is not None:
        band *= spread_scales(matrix.scales[rows], matrix.group_size, matrix.cols)
    return band


def _stored(matrix: PackedTensors, rows: slice) -> torch.Tensor:
    """Dense rows [r, cols] as they are stored: floats of the values' type, integer codes as int8."""
    starts = matrix.starts.numpy().view(np.uint32)
    count = rows.stop - rows.start
    if matrix.mask is None:
        keep = np.ones((count, matrix.cols), dtype=np.bool_)
    else:
        keep = bits.unpack_bits(matrix.mask[rows].numpy(), matrix.cols // matrix.block)
        keep = np.repeat(keep, matrix.block, axis=1) if matrix.block > 1 else keep
    item = matrix.data.element_size()
    data = matrix.data[int(starts[rows.start]) // item : int(starts[rows.stop]) // item]
    if matrix.values == "int4":
        return torch.from_numpy(np.ascontiguousarray(bits.unpack_nibbles(data.numpy(), keep)))
    band = torch.zeros(count, matrix.cols, dtype=torch.int8 if matrix.values in INTEGERS else matrix.data.dtype)
    band[torch.from_numpy(keep)] = data
    return band
