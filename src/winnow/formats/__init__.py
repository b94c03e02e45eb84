"""Packed files and the folders that hold them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from winnow.formats.artifact import ArtifactWriter
    from winnow.formats.loading import export_dense, load
    from winnow.formats.packed import PackedTensor, pack
    from winnow.formats.reader import Artifact, is_artifact, read_artifact
    from winnow.formats.units import load_packed, save_packed

# Looked up on first use: the import hook for transformers lives in this package and must cost nothing.
_HOMES = {
    "Artifact": "reader",
    "ArtifactWriter": "artifact",
    "is_artifact": "reader",
    "read_artifact": "reader",
    "export_dense": "loading",
    "load": "loading",
    "PackedTensor": "packed",
    "pack": "packed",
    "load_packed": "units",
    "save_packed": "units",
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
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
