"""Shards of one model, written as they fill: never more than one of them in memory."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch

from winnow.disk.files import link_or_copy, write_text
from winnow.errors import InputError, disk_errors
from winnow.formats.header import digest_of
from winnow.formats.names import INDEX, PACKED_INDEX, shard_name
from winnow.formats.packed_file import SUFFIXES, compact, stored_key
from winnow.formats.tensorfile import FORMAT_VERSION, TensorFile, file_size, write_tensors

SHARD_BYTES = 512 << 20
SMALL = 4096  # bytes of a tensor below which it has no checksum of its own


def small_tensors(tensors: dict[str, torch.Tensor]) -> list[str]:
    """The keys of a shard's tensors that share a checksum: those stored as they are, of less than a page."""
    parts = tuple(stored_key("", suffix) for suffix in SUFFIXES)
    return [k for k, t in tensors.items() if t.numel() * t.element_size() < SMALL and not k.endswith(parts)]


class ShardWriter:
    """Collects tensors into files of at most ``shard_bytes`` (a larger tensor gets a file of its own).

    ``described`` False writes plain safetensors files, without a word of winnow, under the names that transformers knows.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES, described: bool = True) -> None:
        self._folder = folder
        self._limit = shard_bytes
        self._described = described
        self._tensors: dict[str, torch.Tensor] = {}
        self._packed: dict[str, Any] = {}
        self._pending = 0
        self._keys: list[list[str]] = []
        self._seen: set[str] = set()
        self._bytes = 0

    def add(self, tensors: dict[str, torch.Tensor], packed: dict[str, Any]) -> None:
        """Append tensors that belong together (one packed tensor's parts stay in one file)."""
        self._claim(tensors)
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        if self._tensors and self._pending + size > self._limit:
            self._flush()
        # A view would keep its whole storage alive while it waits: copy it unless it spans most of it.
        self._tensors |= {
            key: t.detach().clone() if 2 * t.numel() * t.element_size() < t.untyped_storage().nbytes() else t.detach()
            for key, t in tensors.items()
        }
        self._packed |= packed
        self._pending += size
        if self._pending >= self._limit:
            self._flush()

    def adopt(self, file: TensorFile) -> None:
        """Take over a finished file as a shard of its own; its content is verified, not loaded."""
        self._claim(file.keys)
        file.verify()
        link_or_copy(file.path, self._path())
        self._keys.append(file.keys)
        self._bytes += sum(file.nbytes(key) for key in file.keys)

    def flush(self) -> None:
        """Write what is pending; where nothing was added at all, one shard without tensors."""
        if self._tensors or not self._keys:
            self._flush()

    def close(self) -> dict[str, str]:
        """Write what is pending and give the shards their final names, with an index where there are several.

        Returns ``weights``, the file to begin with (the only shard, or the index), and, of packed shards, its ``checksum``: of
        the shard's header, or of the whole index, which holds those of the headers.
        """
        self.flush()
        count, paths = len(self._keys), []
        weight_map: dict[str, str] = {}
        for index, keys in enumerate(self._keys, start=1):
            name = shard_name(index, count, packed=self._described)
            paths.append(self._folder / name)
            with disk_errors(paths[-1]):
                self._path(index - 1).rename(paths[-1])
            weight_map |= dict.fromkeys(keys, name)
        digests = {path.name: TensorFile(path).header_digest for path in paths} if self._described else {}
        if count == 1:
            return {"weights": paths[0].name, "checksum": digests.get(paths[0].name, "")}
        metadata: dict[str, Any] = {"total_size": self._bytes}
        if self._described:
            metadata["winnow"] = {"files": digests}
        text = json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"
        path = self._folder / (PACKED_INDEX if self._described else INDEX)
        write_text(path, text)
        return {"weights": path.name, "checksum": digest_of([text.encode()])}

    def _write(self, tensors: dict[str, torch.Tensor], about: dict[str, Any] | None, small: Collection[str]) -> None:
        write_tensors(self._path(), tensors, about, small)

    def _path(self, index: int | None = None) -> Path:
        return self._folder / f"shard-{len(self._keys) if index is None else index:05d}"

    def _claim(self, keys: dict[str, torch.Tensor] | list[str]) -> None:
        for key in keys:
            if key in self._seen:
                raise InputError(f"{key} is written twice: give every tensor a name of its own")
            self._seen.add(key)

    def _flush(self) -> None:
        about = {"format_version": FORMAT_VERSION, **compact(self._packed)} if self._described else None
        self._write(self._tensors, about, small_tensors(self._tensors) if self._described else ())
        self._keys.append(list(self._tensors))
        self._bytes += self._pending
        self._tensors, self._packed, self._pending = {}, {}, 0


Layout = dict[str, torch.Tensor]  # of tensors whose values are not looked at: they may be on the meta device


class _Sizes(ShardWriter):
    """Adds up what would be written."""

    total = 0

    def _write(self, tensors: dict[str, torch.Tensor], about: dict[str, Any] | None, small: Collection[str]) -> None:
        self.total += file_size(tensors, about, small)


def weights_bytes(
    dense: Layout,
    packed: Iterable[tuple[Layout, dict[str, Any]]],
    shard_bytes: int = SHARD_BYTES,
    described: bool = True,
) -> int:
    """Bytes of the weights files that :class:`ArtifactWriter` would write, headers included: exact, and nothing is read.
    With ``described`` False, of plain safetensors files.

    Args:
        dense: name -> tensor of everything that is stored as it is, in the order in which it would be added.
        packed: for each packed tensor its parts by their keys in the file, and {name: description} (``units.describe``).
    """
    sizes = _Sizes(Path(), shard_bytes, described)
    for name, tensor in dense.items():
        sizes.add({name: tensor}, {})
    for parts, about in packed:
        sizes.add(parts, about)
    sizes.flush()
    return sizes.total
