"""The header of a file of tensors: read, and everything it claims checked before anything of a claimed size is allocated."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from winnow.disk.regular import open_regular
from winnow.errors import FormatError

# What is written. 1 had a checksum for every tensor, and descriptions in full; 2 named its weights files as dense ones are named.
FORMAT_VERSION = 3
READABLE = (1, 2, 3)
_MOST_DIMENSIONS = 25  # what torch's own loops can walk over
LARGEST_HEADER = 100_000_000  # the limit of the safetensors package itself
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def parse_json(text: str | bytes, what: str) -> Any:
    """JSON with no key twice. Raises FormatError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key occurs twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not valid JSON ({error}): copy or write it again") from None


def check_version(version: Any, where: str) -> None:
    """Raises FormatError unless this winnow reads format ``version``."""
    if type(version) is not int or version not in READABLE:
        raise FormatError(
            f"{where} has format version {version!r} and this winnow reads versions {READABLE[0]} to {READABLE[-1]}: "
            "install the winnow that wrote it, or write it again"
        )


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]], int, str]:
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, LARGEST_HEADER):
                raise damaged(path, f"its header claims {length} bytes of {size}")
            header = file.read(length)
        except OSError as error:
            raise FormatError(f"{path} cannot be read ({error.strerror}): check the disk and the permissions") from None
    found = parse_json(header, f"the header of {path}")
    metadata = found.pop("__metadata__", None) if isinstance(found, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("winnow"), str):
        raise FormatError(f"{path} was not written by winnow: give a folder that winnow wrote")
    try:
        text = metadata["winnow"].encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        text = b""
    if digest_of([text]) != metadata.get("winnow_blake2b"):
        raise damaged(path, "its description is not the one that was written")
    about = parse_json(metadata["winnow"], f"the description in {path}")
    if not isinstance(about, dict):
        raise damaged(path, "its description is no object")
    check_version(about.get("format_version"), str(path))
    shared = isinstance(about.get("small"), str) and about["format_version"] > 1
    _check_entries(path, found, about.get("checksums"), shared, size - 8 - length)
    return about, found, 8 + length, digest_of([header])


def _check_entries(path: Path, entries: dict[str, Any], checksums: Any, shared: bool, size: int) -> None:
    """Every tensor of a known type, described as it was written, the offsets without gap or overlap. With ``shared``,
    tensors without a checksum of their own are covered by a common one."""
    known = isinstance(checksums, dict) and checksums.keys() <= entries.keys()
    if not known or (checksums.keys() != entries.keys() and not shared):
        raise damaged(path, "its tensors are not the ones that were written")
    spans = []
    for key, entry in entries.items():
        about: Any = entry if isinstance(entry, dict) else {}
        dtype, shape, offsets = about.get("dtype"), about.get("shape"), about.get("data_offsets")
        checksum = checksums.get(key)
        fits = (
            isinstance(dtype, str)
            and dtype in DTYPES
            and isinstance(shape, list)
            and len(shape) <= _MOST_DIMENSIONS
            and all(type(length) is int and 0 <= length < 1 << 62 for length in shape)
            and isinstance(offsets, list)
            and [type(offset) for offset in offsets] == [int, int]
        )
        summed = isinstance(checksum, list) and len(checksum) == 3 and checksum[:2] == [dtype, shape]
        if not fits or (key in checksums and not summed):
            raise damaged(path, f"the header entry of {key} is not the one that was written")
        begin, end = offsets
        if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
            raise damaged(path, f"the length of {key} does not fit its shape")
        spans.append((begin, end))
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise damaged(path, "its tensors overlap or leave gaps")
        at = end
    if at != size:
        raise damaged(path, f"it holds {size} bytes of values and should hold {at}")


def damaged(path: Path, why: str) -> FormatError:
    return FormatError(f"{path} is damaged ({why}): copy it again from where it was written, or write it again")


def digest_of(data: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for chunk in data:
        digest.update(chunk)
    return digest.hexdigest()
