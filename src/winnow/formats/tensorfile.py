"""One safetensors file, written in one pass with a checksum per tensor, and read with everything verified.

The files are ordinary safetensors (https://github.com/huggingface/safetensors, "Format"): any reader opens them.
They are written here, not by the safetensors package, for three reasons: its metadata come out in random order (two
runs must give the same bytes), it copies every tensor once more in memory, and its reader cannot tell a flipped bit
in a value. The metadata hold ``format: pt``, ``winnow`` (sorted JSON: what the caller says about the tensors, and
``checksums``: key -> [dtype, shape, BLAKE2b-128]) and ``winnow_blake2b``, the checksum of that JSON itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from winnow.errors import FormatError, InputError
from winnow.formats import ownership
from winnow.formats.disk import disk_errors

FORMAT_VERSION = 1
_CHUNK = 1 << 22
_LARGEST_HEADER = 100_000_000  # the limit of the safetensors package itself
_DTYPES = {
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
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, Any] | None = None) -> None:
    """Write ``tensors`` and the JSON ``about`` to ``path``: temporary file, fsync, rename.

    With ``about`` None the file is a plain safetensors file that names no winnow. Raises WinnowError where the disk is
    full or read-only; then ``path`` is as it was.
    """
    # Wide types first, so that every tensor starts at a multiple of its item size.
    order = sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))
    entries: dict[str, Any] = {}
    checksums, end = {}, 0
    for key in order:
        tensor = tensors[key]
        if tensor.dtype not in _CODES:
            raise InputError(f"{key} has type {tensor.dtype}, which safetensors cannot hold: convert or exclude it")
        start, end = end, end + tensor.numel() * tensor.element_size()
        entry = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        entries[key] = entry
        if about is not None:
            checksums[key] = [entry["dtype"], entry["shape"], _digest(_bytes_of(tensor))]
    metadata = {"format": "pt"}
    if about is not None:
        text = json.dumps({**about, "checksums": checksums}, sort_keys=True, separators=(",", ":"))
        metadata |= {"winnow": text, "winnow_blake2b": _digest([text.encode()])}
    header = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > _LARGEST_HEADER:
        raise InputError(f"{path.name} would hold {len(tensors)} tensors, more than one file can: use smaller shards")
    temporary = path.with_name(path.name + ".tmp")
    with disk_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.write(len(header).to_bytes(8, "little") + header)
                for key in order:
                    for chunk in _bytes_of(tensors[key]):
                        file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


class TensorFile:
    """A file of :func:`write_tensors`, opened for reading: header verified, tensors read one at a time.

    Raises FormatError, before anything of a claimed size is allocated, for a file that is missing, truncated or
    altered, has an impossible header, or is of an unknown version; :meth:`read` raises it for altered values.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.about, self._entries, self._start, self.header_digest = _read_header(path)
        self._checksums: dict[str, list] = self.about.pop("checksums")
        self._mapped: Any = None  # the whole file as a storage, once a tensor is mapped

    @property
    def keys(self) -> list[str]:
        return list(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def nbytes(self, key: str) -> int:
        begin, end = self._entries[key]["data_offsets"]
        return end - begin

    def dtype(self, key: str) -> torch.dtype:
        return _DTYPES[self._entries[key]["dtype"]]

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._entries[key]["shape"])

    def read(self, key: str) -> torch.Tensor:
        """The tensor ``key``, its checksum verified."""
        buffer = torch.empty(self.nbytes(key), dtype=torch.uint8)
        view = memoryview(buffer.numpy().data)
        with open(self.path, "rb") as file:
            file.seek(self._start + self._entries[key]["data_offsets"][0])
            read = file.readinto(view)
        if read != len(view):
            raise _damaged(self.path, f"{key} is cut short")
        self._check(key, [view])
        return buffer.view(self.dtype(key)).reshape(self.shape(key))

    def map(self, key: str) -> torch.Tensor:
        """The tensor ``key``, its checksum verified in constant memory, as pages of the file: read from the disk where
        they are used, and shared by all processes that map it. Writing to the tensor changes a private copy, never the
        file. The file must not be truncated while the tensor lives; replacing or deleting it is safe."""
        begin, end = self._entries[key]["data_offsets"]
        begin, length, dtype = self._start + begin, end - begin, self.dtype(key)
        if length == 0 or begin % dtype.itemsize:
            return self.read(key)
        with open(self.path, "rb") as file:
            file.seek(begin)
            self._check(key, _chunks(file, length))
        if self._mapped is None:
            with disk_errors(self.path, "read"):
                self._mapped = torch.UntypedStorage.from_file(str(self.path), False, self.path.stat().st_size)
        flat = torch.empty(0, dtype=dtype).set_(
            self._mapped, begin // dtype.itemsize, (length // dtype.itemsize,), (1,)
        )
        return flat.reshape(self.shape(key))

    def verify(self) -> None:
        """Check the values of every tensor, in constant memory."""
        with open(self.path, "rb") as file:
            for key, entry in self._entries.items():
                file.seek(self._start + entry["data_offsets"][0])
                self._check(key, _chunks(file, self.nbytes(key)))

    def _check(self, key: str, data: Iterable[bytes | memoryview]) -> None:
        if _digest(data) != self._checksums[key][2]:
            raise _damaged(self.path, f"the values of {key} are not the ones that were written")


def sha256(path: Path) -> str:
    """SHA-256 of a file, read in chunks. Raises WinnowError where it cannot be read."""
    with disk_errors(path, "read"):
        return ownership.sha256(path)


def _chunks(file: BinaryIO, length: int) -> Iterator[bytes]:
    while length and (chunk := file.read(min(_CHUNK, length))):
        length -= len(chunk)
        yield chunk


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
    if type(version) is not int or version != FORMAT_VERSION:
        raise FormatError(
            f"{where} has format version {version!r} and this winnow reads version {FORMAT_VERSION}: "
            "install the winnow that wrote it, or write it again"
        )


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]], int, str]:
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _LARGEST_HEADER):
                raise _damaged(path, f"its header claims {length} bytes of {size}")
            header = file.read(length)
    except FileNotFoundError:
        raise FormatError(f"{path} is missing: copy the whole folder again") from None
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error.strerror}): check the disk and the permissions") from None
    found = parse_json(header, f"the header of {path}")
    metadata = found.pop("__metadata__", None) if isinstance(found, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("winnow"), str):
        raise FormatError(f"{path} was not written by winnow: give a folder that winnow wrote")
    if _digest([metadata["winnow"].encode()]) != metadata.get("winnow_blake2b"):
        raise _damaged(path, "its description is not the one that was written")
    about = parse_json(metadata["winnow"], f"the description in {path}")
    if not isinstance(about, dict):
        raise _damaged(path, "its description is no object")
    check_version(about.get("format_version"), str(path))
    _check_entries(path, found, about.get("checksums"), size - 8 - length)
    return about, found, 8 + length, _digest([header])


def _check_entries(path: Path, entries: dict[str, Any], checksums: Any, size: int) -> None:
    """Every tensor of a known type, described as it was written, the offsets without gap or overlap."""
    if not isinstance(checksums, dict) or checksums.keys() != entries.keys():
        raise _damaged(path, "its tensors are not the ones that were written")
    spans = []
    for key, entry in entries.items():
        checksum = checksums[key]
        fits = (
            isinstance(entry, dict)
            and isinstance(checksum, list)
            and len(checksum) == 3
            and checksum[:2] == [entry.get("dtype"), entry.get("shape")]
            and isinstance(entry["dtype"], str)
            and entry["dtype"] in _DTYPES
            and isinstance(entry["shape"], list)
            and all(type(length) is int and 0 <= length < 1 << 62 for length in entry["shape"])
            and isinstance(entry.get("data_offsets"), list)
            and len(entry["data_offsets"]) == 2
            and all(type(offset) is int for offset in entry["data_offsets"])
        )
        if not fits:
            raise _damaged(path, f"the header entry of {key} is not the one that was written")
        begin, end = entry["data_offsets"]
        if end - begin != math.prod(entry["shape"]) * _DTYPES[entry["dtype"]].itemsize:
            raise _damaged(path, f"the length of {key} does not fit its shape")
        spans.append((begin, end))
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise _damaged(path, "its tensors overlap or leave gaps")
        at = end
    if at != size:
        raise _damaged(path, f"it holds {size} bytes of values and should hold {at}")


def _damaged(path: Path, why: str) -> FormatError:
    return FormatError(f"{path} is damaged ({why}): copy it again from where it was written, or write it again")


def _digest(data: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for chunk in data:
        digest.update(chunk)
    return digest.hexdigest()


def _bytes_of(tensor: torch.Tensor) -> Iterable[memoryview]:
    """The values of a tensor, row-major, without copying what lies so in memory already."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        view = memoryview(flat.view(torch.uint8).numpy().data)
        for start in range(0, len(view), _CHUNK):
            yield view[start : start + _CHUNK]
