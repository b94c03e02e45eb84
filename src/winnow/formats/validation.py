"""Whether the parts of a packed tensor fit each other: counts, shapes and types, found without unpacking anything."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch

from winnow.formats import bits, nm
from winnow.formats.layout import Encoding

if TYPE_CHECKING:
    from winnow.formats.packed import PackedTensor

FLOATS = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
INTEGERS = {"int8": 8, "int4": 4}
# A byte of a file may stand for at most this many weights: a small hostile file cannot claim terabytes, while
# blocks of 32 x 32 that are all pruned still pass.
WEIGHTS_PER_BYTE = 8192
_SMALL = 1 << 20
_CHUNK = 1 << 16  # numbers looked at together: little memory beside a mapped tensor


def problem_of(packed: PackedTensor) -> str | None:
    """What is wrong with a packed tensor, None where all counts, shapes and types fit."""
    sizes = (packed.rows, packed.cols, packed.zeros)
    if any(type(size) is not int or not 0 <= size < 1 << 48 for size in sizes) or packed.zeros > packed.numel:
        return "impossible size"
    words = (packed.encoding, packed.values, packed.dtype, packed.structure)
    if not all(isinstance(word, str) for word in words):
        return f"an encoding, structure or type that is no text: {words!r}"
    if packed.encoding not in get_args(Encoding) or packed.dtype not in FLOATS:
        return f"unknown encoding {packed.encoding!r}, structure {packed.structure!r} or type {packed.dtype!r}"
    if packed.numel > WEIGHTS_PER_BYTE * packed.nbytes + _SMALL:
        return f"{packed.numel} weights in {packed.nbytes} bytes"
    return _mask_problem(packed) or _values_problem(packed) or _scales_problem(packed)


def _mask_problem(packed: PackedTensor) -> str | None:
    mask, pattern = packed.mask, packed.pattern
    if packed.encoding == "dense":
        return "a dense tensor with an index or zeros" if mask is not None or packed.zeros else None
    if mask is None or mask.dtype != torch.uint8:
        return "no index"
    if packed.encoding != "bitmask":
        if pattern is None or len(pattern) != 2 or any(type(size) is not int or size < 1 for size in pattern):
            return f"impossible pattern {pattern}"
        first, second = pattern
        if packed.encoding == "nm":
            if not first < second <= nm.LARGEST_GROUP or packed.cols % second:
                return f"{first}:{second} for {packed.cols} columns"
        elif packed.rows % first or packed.cols % second:
            return f"blocks of {first} x {second} in {packed.rows} x {packed.cols}"
    layout = packed.layout
    if tuple(mask.shape) != (layout.lines, -(-layout.index_width // 8)):
        return f"index of shape {list(mask.shape)}"
    padding = layout.index_width % 8
    if padding and layout.lines and bool((mask[:, -1] >> padding).any()):
        return "index bits beyond the last column"
    if packed.encoding == "nm":
        assert pattern is not None
        return None if packed.zeros * pattern[1] == packed.numel * (pattern[1] - pattern[0]) else "count of zeros"
    kept = math.prod(layout.block) * int(bits.POPCOUNT[mask.numpy()].sum(dtype=np.int64))
    return None if kept == packed.numel - packed.zeros else "count of zeros"


def _values_problem(packed: PackedTensor) -> str | None:
    if packed.values in FLOATS:
        expected = FLOATS[packed.values]
    elif packed.values in INTEGERS:
        expected = torch.int8 if packed.values == "int8" else torch.uint8
    else:
        return f"unknown value type {packed.values!r}"
    if packed.data.dtype != expected or packed.data.ndim != 1:
        return f"values of type {packed.data.dtype}"
    kept = packed.numel - packed.zeros
    if packed.values in FLOATS and not _finite(packed.data):
        return "values that are NaN or infinite"
    if packed.values != "int4":
        return None if packed.data.numel() == kept else f"{packed.data.numel()} values for {kept} weights"
    # Each row may need half a byte of padding; the exact count is checked where the index is read.
    return None if kept <= 2 * packed.data.numel() <= kept + packed.rows else f"{packed.data.numel()} bytes of int4"


def _scales_problem(packed: PackedTensor) -> str | None:
    if packed.values in FLOATS:
        return "scales beside float values" if packed.scales is not None or packed.group is not None else None
    group = packed.cols if packed.group is None else packed.group
    if type(group) is not int or group < 1:
        return f"groups of {group}"
    scales, groups = packed.scales, -(-packed.cols // group)
    if scales is None or scales.dtype != torch.float16 or scales.shape != (packed.rows, groups):
        return "scales of another shape or type"
    return None if _finite(scales) else "scales that are NaN or infinite"


def _finite(tensor: torch.Tensor) -> bool:
    """Whether every number is finite, found a few at a time."""
    return all(bool(torch.isfinite(part).all()) for part in tensor.reshape(-1).split(_CHUNK))
