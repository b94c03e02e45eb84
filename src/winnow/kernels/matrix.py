"""A packed matrix in memory: one bit a weight and the kept values, multiplied without ever being expanded whole."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal
from weakref import WeakValueDictionary

import numpy as np
import torch

from winnow.errors import FormatError, InputError
from winnow.formats import bits
from winnow.formats.packed import PackedTensor, pack
from winnow.formats.validation import FLOATS, INTEGERS
from winnow.kernels import native, reference
from winnow.kernels.operands import PackedTensors
from winnow.masks.structure import BlockShape, Unstructured
from winnow.quantize import Grid, Quantized, round_to_nearest

Way = Literal["packed", "expanded", "spmm"]
Activations = Literal["keep", "int8"]

VALUES = {"float32": 0, "float16": 1, "bfloat16": 2, "int8": 3, "int4": 4}  # as the native kernels number them
_STORED = {**FLOATS, "int8": torch.int8, "int4": torch.uint8}
_LARGE_PAGE = 2 << 20
_LIMIT = 1 << 32  # a row begins at a byte that 32 bits can say
_alive: WeakValueDictionary[int, PackedMatrix] = WeakValueDictionary()


@dataclass(frozen=True, eq=False)
class PackedMatrix(PackedTensors):
    """A matrix [rows, cols] as the kernels read it; never changed once made, so it may be shared by threads and copies.

    Bit ``c // block`` of a row of ``mask`` (lowest bit of the first byte first) says whether column c is kept, and the
    kept values are in ``data`` row by row: floats and int8 as they are, int4 two to a byte, low nibble first, each row
    padded to a byte. This is the layout of the file, so tensors mapped from one are used directly.

    Making one checks everything that a kernel relies on. Raises FormatError where parts do not fit each other and
    InputError for what cannot be packed in memory: float64 values, int8 with several scales a row, and 4 GiB of values.
    """

    def __post_init__(self) -> None:
        _check(self)
        object.__setattr__(self, "starts", torch.empty(self.rows + 1, dtype=torch.int32))
        kernels, matrix = self.backend
        if not kernels.fill_starts(matrix, self.starts):
            raise FormatError("a packed index and its values disagree: the file is damaged; copy or write it again")
        _alive[self.starts.data_ptr()] = self

    @staticmethod
    def known(starts: torch.Tensor, data: torch.Tensor) -> PackedMatrix | None:
        """The matrix that holds just these two tensors, None where none does (any more)."""
        found = _alive.get(starts.data_ptr())  # starts is memory of the matrix's own, never part of a file
        return found if found is not None and found.data.data_ptr() == data.data_ptr() else None

    @classmethod
    def from_packed(cls, packed: PackedTensor) -> PackedMatrix:
        """The matrix of a stored tensor. Bitmasks, dense tensors and int8 in 1 x 4 blocks are used directly; n:m
        patterns and other blocks get a bitmask, band by band."""
        mask, data, block = packed.mask, packed.data, 1
        if packed.encoding == "block" and packed.values == "int8" and packed.pattern == (1, 4):
            block = 4
        elif packed.encoding in ("nm", "block"):
            mask, data = _as_bitmask(packed)
        # The index of one packed from a transposed weight is transposed too.
        mask = None if mask is None else mask.contiguous()
        sizes = packed.rows, packed.cols, packed.values
        return cls(*sizes, mask, data, packed.scales, packed.zeros, block, packed.group)

    @classmethod
    def from_dense(
        cls, weight: torch.Tensor, values: str = "keep", *, block: int = 1, group: int | None = 128
    ) -> PackedMatrix:
        """Pack ``weight`` [R, C]; its zeros are what is dropped.

        Args:
            values: "keep" (the weight's own type), a float type to round to, or "int8" (per-row scales) or "int4" (one scale
                for every ``group`` columns), rounded to nearest.
            block: 4 keeps or drops columns by fours (int8 only): a block with one weight in it is kept whole.
        """
        weight = weight.detach()
        keep = _kept(weight, block)
        values = str(weight.dtype).removeprefix("torch.") if values == "keep" else values
        quantized = None
        if values in INTEGERS:
            quantized = round_to_nearest(weight, Grid(INTEGERS[values], group if values == "int4" else None), keep)
        elif values in FLOATS:
            weight = weight.to(FLOATS[values])
        else:
            raise InputError(f"values of type {values!r} cannot be packed: use keep, {', '.join(_STORED)}")
        return cls._of(weight, keep, quantized, block)

    @classmethod
    def from_codes(cls, quantized: Quantized, *, block: int = 1) -> PackedMatrix:
        """Pack integer codes as a quantizer made them; zero codes are what is dropped."""
        keep = _kept(quantized.codes, block)
        return cls._of(torch.empty(keep.shape, device="meta"), keep, quantized, block)

    @classmethod
    def _of(cls, weight: torch.Tensor, keep: torch.Tensor, quantized: Quantized | None, block: int) -> PackedMatrix:
        structure = BlockShape(1, 4) if block == 4 else Unstructured()
        packed = pack(weight, keep, structure, quantized)
        mask = None if packed.mask is None else in_large_pages(packed.mask)
        return cls.from_packed(replace(packed, mask=mask, data=in_large_pages(packed.data)))

    @cached_property
    def view(self) -> Any:
        """The same matrix as the native kernels take it: addresses, valid as long as this object lives."""
        return native.load_extension().Matrix(
            self.rows,
            self.cols,
            VALUES[self.values],
            self.block,
            self.group or self.cols,
            0 if self.mask is None else self.mask.data_ptr(),
            0 if self.mask is None else self.mask.shape[1],
            self.data.data_ptr(),
            self.data.numel() * self.data.element_size(),
            self.starts.data_ptr(),
            0 if self.scales is None else self.scales.data_ptr(),
        )

    @property
    def backend(self) -> tuple[Any, Any]:
        """The module whose kernels multiply by this matrix here, native or reference, and what its functions take as it."""
        return (native, self.view) if native.available() else (reference, self)

    @property
    def nbytes(self) -> int:
        """Bytes in memory: index, values, scales and where each row begins."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    @property
    def density(self) -> float:
        """Share of the weights that is kept."""
        return 1 - self.zeros / max(self.rows * self.cols, 1)

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.cols

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors in memory, by name."""
        held = {"mask": self.mask, "data": self.data, "scales": self.scales, "starts": self.starts}
        return {name: tensor for name, tensor in held.items() if tensor is not None}

    def ways(self, activations: str = "keep") -> list[Way]:
        """The ways :meth:`linear` can go."""
        if activations == "int8":
            return ["packed", "expanded"] if self.values == "int8" else ["packed"] if self.values == "int4" else []
        return ["packed", "expanded", "spmm"]

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedMatrix:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapped tensor is a view of its whole file, all of which pickle would write: copies are of its own size.
        mask, data, scales = (None if t is None else t.clone() for t in (self.mask, self.data, self.scales))
        return PackedMatrix, (
            self.rows, self.cols, self.values, mask, data, scales, self.zeros, self.block, self.group,
        )  # fmt: skip


def _kept(numbers: torch.Tensor, block: int) -> torch.Tensor:
    keep = numbers != 0
    return keep if block == 1 else keep.reshape(len(keep), -1, block).any(-1).repeat_interleave(block, dim=1)


def _check(m: PackedMatrix) -> None:
    """Types, shapes and sizes of everything but the index itself."""
    if m.values not in _STORED or m.values == "float64":
        raise InputError(f"{m.values} values have no packed kernel: convert to float32, or leave the layer dense")
    if m.values == "int8" and m.group_size < m.cols:
        raise InputError("int8 values with several scales a row have no packed kernel: use one scale a row, or int4")
    if m.block not in (1, 4) or (m.block == 4 and (m.values != "int8" or m.cols % 4)):
        raise FormatError(f"blocks of {m.block} {m.values} columns in {m.cols}: only int8 is packed in blocks, of 4")
    entries = m.cols // m.block
    index = None if m.mask is None else (m.rows, -(-entries // 8))
    scales = (m.rows, -(-m.cols // max(m.group_size, 1))) if m.values in INTEGERS else None
    for name, tensor, dtype, shape in (
        ("values", m.data, _STORED[m.values], (m.data.numel(),)),
        ("index", m.mask, torch.uint8, index),
        ("scales", m.scales, torch.float16, scales),
    ):
        found = None if tensor is None else tuple(tensor.shape)
        if found != shape or (tensor is not None and (tensor.dtype != dtype or not tensor.is_contiguous())):
            raise FormatError(f"the {name} of {m.values} {m.rows} x {m.cols} have shape {found}: write the file again")
    if m.data.numel() * m.data.element_size() >= _LIMIT:
        raise InputError(f"{m.rows} x {m.cols} holds more than the 4 GiB of values that a packed layer can: split it")


def _as_bitmask(packed: PackedTensor) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Row-major bitmask and values of an n:m or block tensor; n:m values are in that order already."""
    masks, values = [], []
    reorder = packed.layout.block[0] > 1
    stored = packed.bands() if reorder else None
    for lines, _ in packed.layout.bands():
        keep = packed.layout.to_rows(packed.decode(lines))
        masks.append(bits.pack_bits(keep))
        if stored is not None:
            band = next(stored)[1].numpy()
            values.append(bits.pack_nibbles(band, keep) if packed.values == "int4" else band[keep])
    mask = in_large_pages(torch.from_numpy(np.concatenate(masks))) if masks else None
    if stored is None:
        return mask, packed.data
    next(stored, None)  # the end of the bands checks that no value is left over
    data = torch.from_numpy(np.concatenate(values)) if values else packed.data
    return mask, in_large_pages(data.view(packed.data.dtype))


def in_large_pages(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of ``tensor`` in memory that the system may back by large pages (Linux), so that address translation does not
    slow what is streamed once a product; the tensor itself where it is small or the system has no such memory. Only whole
    pages are used: no memory is lost at the ends."""
    size = tensor.numel() * tensor.element_size()
    if size < _LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return tensor
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel built without them
        return tensor
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)
