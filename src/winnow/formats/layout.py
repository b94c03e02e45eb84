"""Where the kept weights of a packed matrix are: the index of each encoding, and the order of the values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from winnow.errors import InputError
from winnow.formats import bits, nm
from winnow.masks.structure import NM, BlockShape, Structure, check

Encoding = Literal["dense", "bitmask", "nm", "block"]


@dataclass(frozen=True)
class PackedLayout:
    """Index and order of the values of a matrix [rows, cols], line by line: a line is a row, of blocks a row of blocks."""

    encoding: Encoding
    rows: int
    cols: int
    pattern: tuple[int, int] | None = None  # (n, m) for "nm", (r, c) for "block"

    @classmethod
    def of(cls, structure: Structure, rows: int, cols: int, zeros: int) -> PackedLayout:
        """The layout of a matrix of a structure. Raises InputError where the structure does not fit its shape."""
        if not zeros:
            return cls("dense", rows, cols)
        check(structure, rows, cols)
        if isinstance(structure, NM) and structure.m <= nm.LARGEST_GROUP:
            return cls("nm", rows, cols, (structure.n, structure.m))
        if isinstance(structure, BlockShape):
            return cls("block", rows, cols, (structure.r, structure.c))
        return cls("bitmask", rows, cols)

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a block; (1, 1) for the encodings without blocks."""
        return self.pattern if self.encoding == "block" and self.pattern else (1, 1)

    @property
    def lines(self) -> int:
        return self.rows // self.block[0]

    @property
    def width(self) -> int:
        """Weights in one line."""
        return self.cols * self.block[0]

    @property
    def index_width(self) -> int:
        """Bits of the index in one line, without padding."""
        if self.encoding == "nm" and self.pattern is not None:
            return self.cols // self.pattern[1] * nm.index_bits(*self.pattern)
        return self.cols // self.block[1]

    def bands(self) -> Iterator[tuple[slice, slice]]:
        """(lines, their rows of the matrix), some at a time; together all."""
        height = self.block[0]
        for lines in bits.bands(self.lines, self.width):
            yield lines, slice(lines.start * height, lines.stop * height)

    def to_lines(self, rows: np.ndarray) -> np.ndarray:
        """[k * r, C] -> [k, C * r], the weights of a block side by side."""
        if self.encoding != "block":
            return rows
        r, c = self.block
        return rows.reshape(-1, r, self.cols // c, c).swapaxes(1, 2).reshape(-1, self.width)

    def to_rows(self, lines: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`to_lines`."""
        if self.encoding != "block":
            return lines
        r, c = self.block
        return lines.reshape(-1, self.cols // c, r, c).swapaxes(1, 2).reshape(-1, self.cols)

    def encode(self, keep: np.ndarray) -> np.ndarray:
        """The index, uint8 [k, bytes], of ``keep``, bool [k, width] of some lines. Raises InputError for another pattern."""
        if self.encoding == "nm" and self.pattern is not None:
            n, m = self.pattern
            if np.any(np.count_nonzero(keep.reshape(len(keep), -1, m), axis=2) != n):
                raise InputError(
                    f"the mask does not keep exactly {n} of every {m} weights along a row: select it as {n}:{m}"
                )
            return bits.pack_uints(nm.rank(keep, n, m), nm.index_bits(n, m))
        r, c = self.block
        if r * c > 1:
            blocks = keep.reshape(len(keep), -1, r * c)
            keep = np.all(blocks, axis=2)
            if np.any(np.any(blocks, axis=2) != keep):
                raise InputError(f"the mask splits blocks of {r} x {c}: select it with that block structure")
        return bits.pack_bits(keep)

    def decode(self, index: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`encode`. Raises FormatError for an index of no pattern."""
        if self.encoding == "nm" and self.pattern is not None:
            n, m = self.pattern
            return nm.unrank(bits.unpack_uints(index, self.cols // m, nm.index_bits(n, m)), n, m)
        keep = bits.unpack_bits(index, self.index_width)
        r, c = self.block
        return keep if r * c == 1 else np.repeat(keep, r * c, axis=1)
