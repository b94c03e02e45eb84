"""Packed form of a pruned matrix: which weights stay, and their values, with no bit spent on the zeros.

==========  =================================================================================================
encoding    where the kept weights are
==========  =================================================================================================
dense       nothing pruned, no index
bitmask     one bit a weight, row-major, little-endian bits, each row padded to a byte: uint8 [R, ceil(C/8)]
nm          n kept of every m along a row: rank of the pattern (``formats/nm.py``), ceil(log2 C(m,n)) bits a
            group, bits of a row padded to a byte: uint8 [R, ceil(C/m * bits / 8)]
block       one bit a block of r x c weights, row-major, each row of blocks padded to a byte
==========  =================================================================================================

The kept values follow in row-major order (block by block for ``block``, each block row-major): floats and int8 as
they are, int4 two to a byte, low nibble first, each row (row of blocks) padded to a byte. Integer values carry
float16 scales [R, groups]. Unpacking is exact, bit for bit: floats come back as they were, pruned positions as +0;
integers come back as ``Quantized.dequantize`` gives them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from winnow.errors import FormatError, InputError
from winnow.formats import bits
from winnow.formats.layout import Encoding, PackedLayout
from winnow.formats.validation import FLOATS, INTEGERS, problem_of
from winnow.masks.structure import Structure
from winnow.quantize import Quantized

UNPRUNED = "none"  # the structure of a tensor that was never to be pruned and is only stored in fewer bits
_META = ("rows", "cols", "encoding", "values", "dtype", "structure", "zeros", "pattern", "group")
_SAME_SIZE_INT = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class PackedTensor:
    """A matrix [rows, cols] in packed form. Made by :func:`pack` or :meth:`from_tensors`, never by hand."""

    rows: int
    cols: int
    encoding: Encoding
    values: str  # "float64" | "float32" | "float16" | "bfloat16" | "int8" | "int4"
    dtype: str  # of the tensor in the model: what a reader casts integer or rounded values to
    structure: str
    zeros: int  # pruned positions; a kept weight that happens to be 0 is not counted
    pattern: tuple[int, int] | None = None  # (n, m) for "nm", (r, c) for "block"
    group: int | None = None  # weights that share one scale along a row, None: the whole row
    mask: torch.Tensor | None = field(default=None, repr=False)
    data: torch.Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    scales: torch.Tensor | None = field(default=None, repr=False)

    @property
    def numel(self) -> int:
        return self.rows * self.cols

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored for this matrix: index, values, scales."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / max(self.numel, 1)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is stored, by suffix: ``values`` always, ``mask`` and ``scales`` where there are any."""
        stored = {"mask": self.mask, "values": self.data, "scales": self.scales}
        return {suffix: tensor for suffix, tensor in stored.items() if tensor is not None}

    def meta(self) -> dict[str, Any]:
        """What the tensors do not say themselves, as JSON."""
        meta = {key: getattr(self, key) for key in _META}
        return {**meta, "pattern": list(self.pattern) if self.pattern else None}

    @classmethod
    def from_tensors(cls, meta: dict[str, Any], tensors: dict[str, torch.Tensor]) -> PackedTensor:
        """The inverse of :meth:`meta` and :meth:`tensors`. Raises FormatError where they do not fit each other."""
        try:
            pattern = meta["pattern"]
            packed = cls(
                **{**{key: meta[key] for key in _META}, "pattern": tuple(pattern) if pattern is not None else None},
                mask=tensors.get("mask"),
                data=tensors["values"],
                scales=tensors.get("scales"),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"the description of a packed tensor lacks or garbles {error}: write it again") from None
        problem = problem_of(packed)
        if problem:
            raise FormatError(f"a packed tensor does not fit its description ({problem}): copy or write the file again")
        return packed

    def unpack(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The matrix [rows, cols]: floats in the stored type, integers dequantized to float32; cast to ``dtype``.

        The cast is made band by band, so that no second full-size copy exists. Raises FormatError where the index
        and the values do not agree.
        """
        stored = FLOATS.get(self.values, torch.float32)
        out = torch.empty(self.rows, self.cols, dtype=dtype or stored)
        for rows, band in self.bands():
            out[rows] = self._quantized(band, rows).dequantize() if self.values in INTEGERS else band.view(stored)
        return out

    def quantized(self) -> Quantized:
        """The codes and scales of an integer tensor, as the quantizer made them. InputError for a float tensor."""
        if self.values not in INTEGERS:
            raise InputError(f"this tensor holds {self.values} values, not integer codes: use unpack()")
        codes = torch.empty(self.rows, self.cols, dtype=torch.int8)
        for rows, band in self.bands():
            codes[rows] = band
        return self._quantized(codes, slice(None))

    def keep(self) -> torch.Tensor:
        """The keep mask [rows, cols], bool, True where the weight stays."""
        keep = torch.ones(self.rows, self.cols, dtype=torch.bool)
        if self.mask is not None:
            for lines, rows in self.layout.bands():
                keep[rows] = torch.from_numpy(self.layout.to_rows(self.decode(lines)))
        return keep

    def check(self) -> None:
        """Decode the index once, values left alone. Raises FormatError where it holds a pattern that does not exist or
        does not fit the values: what is still unknown once :meth:`from_tensors` has counted."""
        if self.encoding == "nm" or self.values == "int4":
            size = sum(self._stored(self.decode(lines)) for lines, _ in self.layout.bands())
            if self.values == "int4" and size != self.data.numel():
                raise _disagree()

    @property
    def layout(self) -> PackedLayout:
        return PackedLayout(self.encoding, self.rows, self.cols, self.pattern)

    def decode(self, lines: slice) -> np.ndarray:
        """Keep pattern of some lines of the layout: bool [lines, width]."""
        if self.mask is None:
            return np.ones((lines.stop - lines.start, self.cols), dtype=np.bool_)
        return self.layout.decode(self.mask[lines].numpy())

    def bands(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """(rows, integers of the stored size [rows, cols] with zeros filled in), band after band."""
        data = _as_integers(self.data).reshape(-1).numpy()
        start = 0
        for lines, rows in self.layout.bands():
            keep = self.decode(lines)
            size = self._stored(keep)
            part = data[start : start + size]
            start += size
            if part.size != size:
                break
            if self.values == "int4":
                band = bits.unpack_nibbles(part, keep)
            elif self.mask is None:
                band = part.reshape(keep.shape)
            else:
                band = np.zeros(keep.shape, dtype=data.dtype)
                band[keep] = part
            yield rows, torch.from_numpy(np.ascontiguousarray(self.layout.to_rows(band)))
        if start != data.size:
            raise _disagree()

    def _stored(self, keep: np.ndarray) -> int:
        """Entries of ``data`` that lines with this keep pattern take."""
        if self.values == "int4":
            return int(bits.nibble_bytes(np.count_nonzero(keep, axis=1)).sum())
        return int(np.count_nonzero(keep))

    def _quantized(self, codes: torch.Tensor, rows: slice) -> Quantized:
        assert self.scales is not None
        return Quantized(codes=codes, scales=self.scales[rows], bits=INTEGERS[self.values], group=self.group)


def _disagree() -> FormatError:
    return FormatError("a packed tensor's index and values disagree: the file is damaged; copy or write it again")


def pack(
    matrix: torch.Tensor,
    keep: torch.Tensor | None,
    structure: Structure,
    quantized: Quantized | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> PackedTensor:
    """Pack a pruned matrix [R, C].

    Args:
        matrix: the pruned weights, float; stored in this type (cast to bfloat16 first to store bfloat16). With
            ``quantized`` only its shape and type count.
        keep: bool [R, C], True where the weight stays; None: nothing is pruned.
        structure: the shape the pattern has; n:m and block patterns are checked, group by group.
        quantized: integer codes to store instead of floats; codes of pruned positions are 0.
        dtype: type of the tensor in the model, by default that of ``matrix``.

    Raises InputError for NaN or infinite weights, for non-zero weights at pruned positions, and for a pattern that
    is not of the structure.
    """
    if matrix.ndim != 2:
        raise InputError(f"pack takes a matrix [rows, cols], not a tensor of shape {list(matrix.shape)}")
    if keep is not None and (keep.dtype != torch.bool or keep.shape != matrix.shape):
        raise InputError(f"the keep mask must be bool {list(matrix.shape)}, not {keep.dtype} {list(keep.shape)}")
    values = f"int{quantized.bits}" if quantized is not None else str(matrix.dtype).removeprefix("torch.")
    if values not in FLOATS and values not in INTEGERS:
        raise InputError(f"values of type {values} cannot be packed: use {', '.join([*FLOATS, *INTEGERS])}")
    rows, cols = matrix.shape
    zeros = 0 if keep is None else keep.numel() - int(np.count_nonzero(keep.cpu().numpy()))
    layout = PackedLayout.of(structure, rows, cols, zeros)
    source = matrix if quantized is None else quantized.codes
    if source.shape != matrix.shape:
        raise InputError(f"the codes have shape {list(source.shape)}, the matrix {list(matrix.shape)}")
    packed_mask, packed_values = [], []
    for _, part in layout.bands():
        band = source[part].detach().cpu().contiguous()
        if quantized is None and not bool(torch.isfinite(band).all()):
            raise InputError("the weights hold NaN or infinity: repair the model before it is packed")
        numbers = layout.to_lines(_as_integers(band).numpy())
        if layout.encoding == "dense":
            kept = np.ones(numbers.shape, dtype=np.bool_) if values == "int4" else None
        else:
            assert keep is not None
            kept = keep[part].cpu().numpy()
            if np.any((band != 0).numpy() & ~kept):
                raise InputError("the matrix holds non-zero weights at pruned positions: apply the mask before packing")
            kept = layout.to_lines(kept)
            packed_mask.append(layout.encode(kept))
        packed_values.append(_take(numbers, kept, values))
    data = torch.from_numpy(np.concatenate(packed_values)) if packed_values else torch.empty(0, dtype=torch.int8)
    packed = PackedTensor(
        rows=rows,
        cols=cols,
        encoding=layout.encoding,
        values=values,
        dtype=str(dtype or matrix.dtype).removeprefix("torch."),
        structure=str(structure),
        zeros=zeros,
        pattern=layout.pattern,
        group=quantized.group if quantized is not None else None,
        mask=torch.from_numpy(np.concatenate(packed_mask)) if packed_mask else None,
        data=data.view(FLOATS[values]) if values in FLOATS else data,
        scales=quantized.scales.detach().cpu().contiguous() if quantized is not None else None,
    )
    problem = problem_of(packed)
    if problem:
        raise InputError(f"this matrix cannot be packed: {problem}")
    return packed


def outline(
    rows: int, cols: int, zeros: int, structure: Structure, values: str, dtype: torch.dtype, group: int | None = None
) -> PackedTensor:
    """What :func:`pack` would make of a matrix with so many zeros, its tensors on the meta device: to compute sizes.

    ``values``: the type of the stored values; ``group`` as in ``Quantized``. An int4 row that keeps an odd number of
    weights is padded to a byte: half of the rows are taken to, unless all keep the same number.
    """
    layout = PackedLayout.of(structure, rows, cols, zeros)
    kept = rows * cols - zeros
    if values == "int4":
        r, c = layout.block
        odd = layout.lines // 2 if layout.encoding == "bitmask" or r * c % 2 else 0
        if layout.encoding in ("dense", "nm"):
            odd = rows * (kept // max(rows, 1) % 2)
        kept = (kept + odd) // 2

    def empty(*shape: int, of: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    scales = None
    if values in INTEGERS:
        scales = empty(rows, -(-cols // (cols if group is None else group)), of=torch.float16)
    stored = FLOATS.get(values, torch.int8 if values == "int8" else torch.uint8)
    return PackedTensor(
        rows=rows, cols=cols, encoding=layout.encoding, values=values, dtype=str(dtype).removeprefix("torch."), structure=str(structure),
        zeros=zeros, pattern=layout.pattern, group=group, data=empty(kept, of=stored), scales=scales,
        mask=None if layout.encoding == "dense" else empty(layout.lines, -(-layout.index_width // 8), of=torch.uint8),
    )  # fmt: skip


def _take(numbers: np.ndarray, keep: np.ndarray | None, values: str) -> np.ndarray:
    if values == "int4":
        assert keep is not None
        if numbers.size and (numbers.min() < -8 or numbers.max() > 7):
            raise InputError("int4 codes must lie in -8..7: quantize to 4 bits first")
        return bits.pack_nibbles(numbers, keep)
    return numbers.reshape(-1) if keep is None else numbers[keep]


def _as_integers(tensor: torch.Tensor) -> torch.Tensor:
    """The same bits as integers of the same size: numpy has no bfloat16, and integers are copied bit for bit."""
    return tensor.view(_SAME_SIZE_INT[tensor.element_size()]) if tensor.is_floating_point() else tensor
