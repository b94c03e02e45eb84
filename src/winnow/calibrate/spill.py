"""Keeps the hidden states of waiting passes on disk: the memory goes, every reference to it stays valid."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from winnow.errors import WinnowError
from winnow.machine.memory import trim_heap

SMALLEST = 1 << 12  # bytes; less is not worth a file


class Spill:
    """Writes storages to a folder, one file each, and frees their memory while nobody computes with them.

    Without a folder nothing is written and every method does nothing.
    ``owned`` are storages that are left in memory (parameters, buffers, the caller's batches). A storage once parked
    for a pass is parked again at its later stops for as long as the model still holds it.
    """

    def __init__(self, folder: Path | None, owned: Iterable[torch.Tensor] = ()) -> None:
        self.folder = folder
        self._owned = {t.untyped_storage().data_ptr() for t in owned if t.device.type == "cpu"}
        self._parked: dict[int, list[tuple[torch.UntypedStorage, Path]]] = {}
        self._known: dict[int, list[StorageWeakRef]] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def park(self, key: int, call: Any) -> int:
        """Free the memory of the floating tensors in ``call``; returns the bytes freed."""
        if self.folder is None:
            return 0
        found: dict[int, torch.UntypedStorage] = {}
        for ref in self._known.get(key, []):
            storage = torch.UntypedStorage._new_with_weak_ptr(ref.cdata)
            if storage is not None and storage.nbytes():
                found[storage.data_ptr()] = storage
        for leaf in tree_leaves(call):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.dim() > 1 and not leaf.is_meta:
                storage = leaf.untyped_storage()
                if leaf.device.type == "cpu" and storage.resizable() and storage.nbytes() >= SMALLEST:
                    found.setdefault(storage.data_ptr(), storage)
        parked, freed = [], 0
        for slot, (pointer, storage) in enumerate(found.items()):
            if pointer in self._owned:
                continue
            path = self.folder / f"{key}-{slot}.bin"
            self._write(path, storage)
            freed += storage.nbytes()
            parked.append((storage, path, storage.nbytes()))
        self._known[key] = [StorageWeakRef(storage) for storage, _, _ in parked]
        for storage, _, _ in parked:
            storage.resize_(0)
        self._parked[key] = [(storage, path) for storage, path, _ in parked]
        trim_heap()
        return freed

    def fetch(self, key: int) -> None:
        """Bring everything parked for ``key`` back into memory (the files stay valid until the next park)."""
        for storage, path in self._parked.get(key, []):
            if storage.nbytes():
                continue
            size = path.stat().st_size
            storage.resize_(size)
            with open(path, "rb") as file:
                if file.readinto(_bytes(storage)) != size:
                    raise WinnowError(f"{path} was cut short while it was needed: free disk space and run again")

    def drop(self, key: int) -> None:
        """Free the memory again after :meth:`fetch`, when nothing has been written to it since."""
        for storage, _ in self._parked.get(key, []):
            storage.resize_(0)

    def release(self, key: int) -> None:
        """Drop the files: from here on the pass owns its memory again."""
        for _, path in self._parked.pop(key, []):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the files, bringing nothing back."""
        for key in list(self._parked):
            self.release(key)
        self._known.clear()
        if self.folder is not None:
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # only when it is empty

    def _write(self, path: Path, storage: torch.UntypedStorage) -> None:
        try:
            with open(path, "wb") as file:
                file.write(_bytes(storage))
        except OSError as error:
            raise WinnowError(
                f"cannot write hidden states to {self.folder} ({error.strerror or error}): free disk space, "
                "or name another folder"
            ) from error


def _bytes(storage: torch.UntypedStorage) -> memoryview:
    # Not through numpy(): that would make the storage one that cannot be resized.
    return memoryview((ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())).cast("B")
