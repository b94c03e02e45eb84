"""Packed matrices laid out byte by byte, and the same in float64: what the native kernels are held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from winnow.kernels import matrix, native

FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LARGEST = {"int8": 127, "int4": 7}
# rows, cols: single ones, below, at and beyond a word of the mask, odd tails, enough for several bands and tiles.
SHAPES = [(1, 1), (2, 7), (3, 63), (5, 64), (4, 65), (7, 130), (33, 257), (6, 512), (13, 1100), (300, 96)]


@dataclass
class Packed:
    """``dense`` float64 [rows, cols] and ``numbers``, as they are stored, zero where pruned."""

    dense: np.ndarray
    numbers: torch.Tensor
    view: Any
    memory: tuple[Any, ...]  # what the view points into

    @classmethod
    def of(cls, numbers, keep, scales=None, values=None, block=1, group=None) -> Packed:
        """numbers [rows, cols]: floats, or int8 codes with scales float16 [rows, groups]; keep bool [rows, cols / block]."""
        rows, cols = numbers.shape
        values, group = values or str(numbers.dtype).removeprefix("torch."), group or cols
        kept = np.ones((rows, cols), bool) if keep is None else np.repeat(keep, block, axis=1)
        raw = numbers.contiguous().view(torch.uint8).numpy().reshape(rows, cols, -1)
        lines = [raw[r][kept[r]].reshape(-1) for r in range(rows)]
        if values == "int4":
            padded = [np.append(line & 15, np.zeros(len(line) % 2, np.uint8)) for line in lines]
            lines = [line[0::2] | line[1::2] << 4 for line in padded]
        content = np.concatenate(lines)
        # An odd address: kernels may not count on alignment. Values end where their memory ends, which shows a read beyond.
        data = np.empty(len(content) + 1, np.uint8)[1:]
        data[:] = content
        starts = np.concatenate([[0], np.cumsum([len(line) for line in lines])]).astype(np.uint32)
        mask = np.zeros((0, 0), np.uint8) if keep is None else np.packbits(keep, axis=1, bitorder="little")
        view = native.load_extension().Matrix(
            rows, cols, matrix.VALUES[values], block, group, 0 if keep is None else mask.ctypes.data, mask.shape[1],
            data.ctypes.data, len(data), starts.ctypes.data, 0 if scales is None else scales.ctypes.data,
        )  # fmt: skip
        dense = numbers.double().numpy()
        if scales is not None:
            dense = dense * np.repeat(scales.astype(np.float64), group, axis=1)[:, :cols]
        stored = numbers.masked_fill(~torch.from_numpy(kept), 0)
        return cls(np.where(kept, dense, 0), stored, view, (data, starts, mask, scales))

    @classmethod
    def random(cls, values, rows, cols, density, seed=0, block=1, group=None) -> Packed:
        """Of one kind of values; ``density`` None: without an index, else with a row of nothing and a row of everything."""
        rng = np.random.default_rng(seed)
        scales = None
        if values in FLOATS:
            numbers = torch.from_numpy(rng.standard_normal((rows, cols))).to(FLOATS[values])
        else:
            codes = rng.integers(-LARGEST[values] - 1, LARGEST[values] + 1, (rows, cols)).astype(np.int8)
            numbers = torch.from_numpy(codes)
            scales = rng.uniform(0.001, 0.02, (rows, 1 if group is None else -(-cols // group))).astype(np.float16)
        keep = None
        if density is not None:
            keep = rng.random((rows, cols // block)) < density
            keep[rows // 2] = False
            keep[rows // 3] = True  # the last where there are few rows
        return cls.of(numbers, keep, scales, values, block, group)

    def linear(
        self, isa: str, x: torch.Tensor, bias: torch.Tensor | None = None, int8: bool = False, threads: int = 2
    ) -> torch.Tensor:
        """x Wᵀ (+ bias) by the kernels of an instruction path."""
        y = torch.full((x.shape[0], self.dense.shape[0]), 77.0, dtype=x.dtype)
        extension = native.load_extension()
        extension.linear(
            extension.kernels(isa), self.view, x.data_ptr(), x.stride(0), native.TYPES[x.dtype], x.shape[0],
            0 if bias is None else bias.data_ptr(), y.data_ptr(), y.stride(0), int8, threads,
        )  # fmt: skip
        return y
