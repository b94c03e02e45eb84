"""What kernels work on: the tensors of a packed matrix, and how a convolution walks over an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch


@dataclass(frozen=True, eq=False)
class PackedTensors:
    """The fields of :class:`winnow.kernels.matrix.PackedMatrix`, which checks and multiplies by them."""

    rows: int
    cols: int
    values: str  # "float32" | "float16" | "bfloat16" | "int8" | "int4"
    mask: torch.Tensor | None = field(repr=False)  # uint8 [rows, ceil(cols / block / 8)]; None: nothing is pruned
    data: torch.Tensor = field(repr=False)  # 1-D, of the values' type; int4: uint8
    scales: torch.Tensor | None = field(default=None, repr=False)  # float16 [rows, ceil(cols / group)]; None for floats
    zeros: int = 0  # pruned positions
    block: int = 1  # columns that one bit of the mask stands for: 1, or 4 (int8 only)
    group: int | None = None  # columns that share a scale (int4); None: the whole row
    starts: torch.Tensor = field(init=False, repr=False)  # int32 [rows + 1] holding uint32: byte of data of each row

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return self.cols if self.group is None else min(self.group, self.cols)


class Geometry(NamedTuple):
    """How a 2-D convolution of one group walks over an image, (height, width) each; zeros pad it."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        sides = zip((height, width), *self, strict=True)
        high, wide = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)
        return high, wide
