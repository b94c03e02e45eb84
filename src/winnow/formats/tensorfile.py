"""One safetensors file, written in one pass with a checksum per tensor, and read with everything verified.

The files are ordinary safetensors (https://github.com/huggingface/safetensors, "Format"): any reader opens them.
They are written here, not by the safetensors package, for three reasons: its metadata come out in random order (two
runs must give the same bytes), it copies every tensor once more in memory, and its reader cannot tell a flipped bit
in a value. The metadata hold ``format: pt``, ``winnow`` (sorted JSON: what the caller says about the tensors, and
``checksums``: key -> [dtype, shape, BLAKE2b-128]) and ``winnow_blake2b``, the checksum of that JSON itself. Small tensors
(biases, the vectors of a norm) may share one checksum, ``small``: of their keys, types, shapes and values in the order of
the file. A convolutional network has so many of them that each with its own took a third of the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from winnow.disk import ownership
from winnow.disk.files import atomic_file
from winnow.disk.regular import open_regular
from winnow.errors import InputError, disk_errors
from winnow.formats.header import DTYPES, FORMAT_VERSION, LARGEST_HEADER, damaged, digest_of, read_header

__all__ = ["FORMAT_VERSION", "TensorFile", "file_size", "sha256", "write_tensors"]

_CHUNK = 1 << 18  # bytes read together: little memory beside a mapped tensor
_CODES = {dtype: code for code, dtype in DTYPES.items()}


def write_tensors(
    path: Path, tensors: dict[str, torch.Tensor], about: dict[str, Any] | None = None, small: Collection[str] = ()
) -> None:
    """Write ``tensors`` and the JSON ``about`` to ``path``: temporary file, fsync, rename.

    With ``about`` None the file is a plain safetensors file that names no winnow. Tensors in ``small`` share a checksum.
    Raises WinnowError where the disk is full or read-only; then ``path`` is as it was.
    """
    order, header = _header(path.name, tensors, about, small, real=True)
    with disk_errors(path), atomic_file(path) as part, open(part, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for key in order:
            for chunk in _bytes_of(tensors[key]):
                file.write(chunk)


def file_size(
    tensors: dict[str, torch.Tensor], about: dict[str, Any] | None = None, small: Collection[str] = ()
) -> int:
    """Bytes of the file that :func:`write_tensors` would write, header included. The values of ``tensors`` are not
    looked at: they may be on the meta device."""
    _, header = _header("the file", tensors, about, small, real=False)
    return 8 + len(header) + sum(t.numel() * t.element_size() for t in tensors.values())


def _header(
    name: str, tensors: dict[str, torch.Tensor], about: dict[str, Any] | None, small: Collection[str], *, real: bool
) -> tuple[list[str], bytes]:
    """(keys in the order of the file, its header). With ``real`` False the checksums are empty ones of the same length."""
    # Wide types first, so that every tensor starts at a multiple of its item size.
    order = sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))
    entries: dict[str, Any] = {}
    checksums, together, end = {}, hashlib.blake2b(digest_size=16), 0
    for key in order:
        tensor = tensors[key]
        if tensor.dtype not in _CODES:
            raise InputError(f"{key} has type {tensor.dtype}, which safetensors cannot hold: convert or exclude it")
        start, end = end, end + tensor.numel() * tensor.element_size()
        entry = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        entries[key] = entry
        if about is None:
            continue
        if key not in small:
            checksums[key] = [entry["dtype"], entry["shape"], digest_of(_bytes_of(tensor) if real else ())]
        elif real:
            _add(together, key, entry, _bytes_of(tensor))
    metadata = {"format": "pt"}
    if about is not None:
        shared = {"small": together.hexdigest()} if small else {}
        text = json.dumps({**about, **shared, "checksums": checksums}, sort_keys=True, separators=(",", ":"))
        metadata |= {"winnow": text, "winnow_blake2b": digest_of([text.encode()])}
    header = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > LARGEST_HEADER:
        raise InputError(f"{name} would hold {len(tensors)} tensors, more than one file can: use smaller shards")
    return order, header


class TensorFile:
    """A file of :func:`write_tensors`, opened for reading: header verified, tensors read one at a time.

    Raises FormatError, before anything of a claimed size is allocated, for a file that is missing, truncated or
    altered, has an impossible header, or is of an unknown version; :meth:`read` raises it for altered values.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.about, self._entries, self._start, self.header_digest = read_header(path)
        self._checksums: dict[str, list] = self.about.pop("checksums")
        self._together = self.about.pop("small", None)  # the checksum of all other tensors
        self._together_sound = False
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
        return DTYPES[self._entries[key]["dtype"]]

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._entries[key]["shape"])

    def read(self, key: str) -> torch.Tensor:
        """The tensor ``key``, its checksum verified."""
        buffer = torch.empty(self.nbytes(key), dtype=torch.uint8)
        view = memoryview(buffer.numpy().data)
        with open_regular(self.path) as file:
            file.seek(self._start + self._entries[key]["data_offsets"][0])
            read = file.readinto(view)
        if read != len(view):
            raise damaged(self.path, f"{key} is cut short")
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
        with open_regular(self.path) as file:
            self._check(key, self._values(file, key))
        if self._mapped is None:
            with disk_errors(self.path, "read"):
                self._mapped = torch.UntypedStorage.from_file(str(self.path), False, self.path.stat().st_size)
        flat = torch.empty(0, dtype=dtype).set_(
            self._mapped, begin // dtype.itemsize, (length // dtype.itemsize,), (1,)
        )
        return flat.reshape(self.shape(key))

    def verify(self, but: Collection[str] = ()) -> None:
        """Check the values of every tensor, except those of the keys in ``but``, in constant memory."""
        with open_regular(self.path) as file:
            for key in self._entries:
                if key in self._checksums and key not in but:
                    self._check(key, self._values(file, key))
        self._check_together()

    def _values(self, file: BinaryIO, key: str) -> Iterator[bytes]:
        """The bytes of a tensor, some at a time."""
        begin, end = self._entries[key]["data_offsets"]
        file.seek(self._start + begin)
        left = end - begin
        while left and (chunk := file.read(min(_CHUNK, left))):
            left -= len(chunk)
            yield chunk

    def _check(self, key: str, data: Iterable[bytes | memoryview]) -> None:
        if key not in self._checksums:
            self._check_together()
        elif digest_of(data) != self._checksums[key][2]:
            raise damaged(self.path, f"the values of {key} are not the ones that were written")

    def _check_together(self) -> None:
        """The tensors that share a checksum, once."""
        if self._together_sound or self._checksums.keys() == self._entries.keys():
            return
        digest = hashlib.blake2b(digest_size=16)
        with open_regular(self.path) as file:
            for key, entry in sorted(self._entries.items(), key=lambda item: item[1]["data_offsets"]):
                if key not in self._checksums:
                    _add(digest, key, entry, self._values(file, key))
        if digest.hexdigest() != self._together:
            raise damaged(self.path, "the values of its small tensors are not the ones that were written")
        self._together_sound = True


def sha256(path: Path) -> str:
    """SHA-256 of a file, read in chunks. Raises WinnowError where it cannot be read."""
    with disk_errors(path, "read"):
        return ownership.sha256(path)


def _add(digest: Any, key: str, entry: dict[str, Any], data: Iterable[bytes | memoryview]) -> None:
    """One more tensor for a checksum over several: what it is, and its values."""
    what = json.dumps([key, entry["dtype"], entry["shape"]], separators=(",", ":"))
    digest.update(len(what).to_bytes(8, "little") + what.encode())
    for chunk in data:
        digest.update(chunk)


def _bytes_of(tensor: torch.Tensor) -> Iterable[memoryview]:
    """The values of a tensor, row-major, without copying what is already laid out so."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        view = memoryview(flat.view(torch.uint8).numpy().data)
        for start in range(0, len(view), _CHUNK):
            yield view[start : start + _CHUNK]
