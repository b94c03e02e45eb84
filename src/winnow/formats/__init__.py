"""Packed files and the folders that hold them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from winnow.formats.artifact import ArtifactWriter
    from winnow.formats.packed import PackedTensor, pack
    from winnow.formats.packed_file import load_packed, save_packed
    from winnow.formats.reader import Artifact, is_artifact, read_artifact

# Looked up on first use: the import hook for transformers lives in this package and must cost nothing.
_HOMES = {
    "Artifact": "winnow.formats.reader",
    "ArtifactWriter": "winnow.formats.artifact",
    "is_artifact": "winnow.formats.reader",
    "read_artifact": "winnow.formats.reader",
    "export_dense": "winnow.exports.verb",
    "load": "winnow.kernels.load",
    "PackedTensor": "winnow.formats.packed",
    "pack": "winnow.formats.packed",
    "load_packed": "winnow.formats.packed_file",
    "save_packed": "winnow.formats.packed_file",
}

__all__ = [
    "Artifact",
    "ArtifactWriter",
    "PackedTensor",
    "export_dense",
    "is_artifact",
    "load",
    "load_packed",
    "pack",
    "read_artifact",
    "save_packed",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
