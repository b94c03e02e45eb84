"""Bit-level codecs of the packed format: bit rows, small integers, nibbles. One machine-neutral order everywhere.

Every codec works on a band of rows and pads each row to a byte, so that any row can be read alone and a large
matrix can be coded band by band. Bits are in little-endian order: entry 0 is bit 0 of byte 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BAND = 1 << 21  # entries coded at a time: keeps the temporaries of any matrix to a few tens of MB
POPCOUNT = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)  # bits set in a byte


def bands(rows: int, cols: int, size: int | None = None, first: int = 0) -> Iterator[slice]:
    """Slices of rows that hold about ``size`` (default ``BAND``) entries each and cover the rows from ``first`` to ``rows``."""
    step = max(1, (size or BAND) // max(cols, 1))
    for start in range(first, rows, step):
        yield slice(start, min(start + step, rows))


def pack_bits(bits: np.ndarray) -> np.ndarray:
    """bool [R, C] -> uint8 [R, ceil(C / 8)]."""
    return np.packbits(bits, axis=1, bitorder="little")


def unpack_bits(packed: np.ndarray, cols: int) -> np.ndarray:
    """The inverse of :func:`pack_bits`: bool [R, cols]."""
    return np.unpackbits(packed, axis=1, count=cols, bitorder="little").view(np.bool_)


def pack_uints(values: np.ndarray, width: int) -> np.ndarray:
    """Integers [R, G] below ``2**width`` -> uint8 [R, ceil(G * width / 8)], lowest bit first."""
    bits = np.empty((*values.shape, width), dtype=np.bool_)
    for place in range(width):
        np.not_equal(values & values.dtype.type(1 << place), 0, out=bits[..., place])
    return pack_bits(bits.reshape(values.shape[0], -1))


def unpack_uints(packed: np.ndarray, count: int, width: int) -> np.ndarray:
    """The inverse of :func:`pack_uints`: [R, count], of the smallest signed type that holds ``width`` bits."""
    dtype = np.int16 if width < 16 else np.int64
    bits = unpack_bits(packed, count * width).view(np.uint8).reshape(packed.shape[0], count, width)
    values = np.zeros((packed.shape[0], count), dtype=dtype)
    for place in range(width):
        values |= np.left_shift(bits[..., place], place, dtype=dtype)
    return values


def nibble_bytes(counts: np.ndarray) -> np.ndarray:
    """Bytes that rows of ``counts`` nibbles take, each row padded to a byte."""
    return (counts + 1) // 2


def pack_nibbles(codes: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The kept int4 codes (int8 [R, C], -8..7) of each row, two to a byte, low nibble first: uint8 [bytes]."""
    wide, wide_keep = _with_padding(codes, keep)
    flat = wide[wide_keep].view(np.uint8)
    return (flat[0::2] & 0x0F) | (flat[1::2] << 4)


def unpack_nibbles(packed: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The inverse of :func:`pack_nibbles`: int8 [R, C], zero where ``keep`` is False."""
    wide, wide_keep = _with_padding(None, keep)
    flat = np.empty(2 * packed.size, dtype=np.int8)
    signed = packed.view(np.int8)
    flat[0::2] = (signed << 4) >> 4  # shifting back an int8 restores the sign of the low nibble
    flat[1::2] = signed >> 4
    wide[wide_keep] = flat
    return wide[:, :-1]


def _with_padding(codes: np.ndarray | None, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and mask with one more column, which is kept (with code 0) in rows that keep an odd number."""
    rows, cols = keep.shape
    wide = np.zeros((rows, cols + 1), dtype=np.int8)
    if codes is not None:
        wide[:, :-1] = codes
    wide_keep = np.empty((rows, cols + 1), dtype=np.bool_)
    wide_keep[:, :-1] = keep
    wide_keep[:, -1] = np.count_nonzero(keep, axis=1) % 2
    return wide, wide_keep
