"""What is benchmarked: an artifact, its dense baseline, and what is known of both without loading them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from winnow.errors import InputError
from winnow.formats.reader import Artifact, read_artifact
from winnow.formats.validation import FLOATS
from winnow.masks.unwrap import working_copy
from winnow.models.reference import open_reference
from winnow.models.source import ModelSource, open_model, quiet_transformers

Kind = Literal["dense", "quantized", "pruned", "pruned+quantized"]


@dataclass
class Subject:
    """``source`` is what was named; ``artifact`` is set where winnow wrote it; ``reference`` is the dense original."""

    source: ModelSource
    artifact: Artifact | None
    reference: ModelSource | None

    @property
    def folder(self) -> Path | None:
        return self.source.folder

    @property
    def tensors(self) -> dict[str, Any]:
        """Packed tensor -> what its file says about it."""
        return self.artifact.descriptions if self.artifact is not None else {}

    @property
    def base(self) -> str:
        """Which model the dense contenders are."""
        return "artifact" if self.reference is None else "reference"

    def dense(self, base: str, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The dense model of a base, a copy where the user's own module was given."""
        if base == "artifact" and self.artifact is not None:
            return self._load(dtype, packed=False)
        source = self.reference if base == "reference" and self.reference is not None else self.source
        model = source.load()
        if source.module is not None:
            model = working_copy(model)
        return model.to(dtype).eval()

    def packed(self, dtype: torch.dtype) -> nn.Module:
        """The artifact's model with its packed layers as they are, everything else in ``dtype``."""
        return self._load(dtype, packed=True)

    def _load(self, dtype: torch.dtype, packed: bool) -> nn.Module:
        from winnow.formats import load

        assert self.artifact is not None
        if self.source.factory is not None:
            return load(self.artifact.folder, factory=self.source.factory, packed=packed, dtype=dtype).eval()
        with quiet_transformers():
            return load(self.artifact.folder, packed=packed, dtype=dtype).eval()

    def weights(self) -> str:
        """What the packed weights are: "int4, 70% sparsity"."""
        if self.artifact is None:
            return "dense"
        about = [self.tensors[name] for name in self.artifact.pruned_names]
        zeros, numel = sum(a["zeros"] for a in about), sum(a["rows"] * a["cols"] for a in about)
        share = f", {100 * zeros / numel:.0f}% sparsity" if zeros else ""
        return f"{' and '.join(sorted({a['values'] for a in about}))}{share}"

    def packed_kind(self) -> Kind:
        """How figures and tables mark the packed model."""
        if self.artifact is None:
            return "dense"
        about = [self.tensors[name] for name in self.artifact.pruned_names]
        pruned, rounded = any(a["zeros"] for a in about), any(a["values"].startswith("int") for a in about)
        return "pruned+quantized" if pruned and rounded else "quantized" if rounded else "pruned" if pruned else "dense"

    def file_bytes(self, base: str) -> int | None:
        """Bytes of the weights on disk; None for a model in memory."""
        source = self.reference if base == "reference" and self.reference is not None else self.source
        files = source.weight_files()
        return sum(file.stat().st_size for file in files) or None

    def dense_bytes(self) -> int:
        """Bytes the model's tensors would take dense, in their own data types: computed, not read."""
        assert self.artifact is not None
        packed = sum(a["rows"] * a["cols"] * FLOATS[a["dtype"]].itemsize for a in self.tensors.values())
        return packed + self.artifact.bytes["dense"]


def open_subject(
    folder: str | Path | nn.Module,
    *,
    factory: str | None = None,
    reference: str | Path | nn.Module | None = None,
) -> Subject:
    """Opens what ``bench`` was given. Loads no weights.

    Raises:
        InputError: no such folder, a plain torch artifact without ``factory``, a factory for a folder that needs none.
    """
    if factory is None:
        source = open_model(folder)
    else:
        if isinstance(folder, nn.Module):
            raise InputError("a model in memory needs no --factory: leave it out.")
        source = open_model(factory, folder)
    original = open_reference(source, reference) if reference is not None else None
    artifact = read_artifact(source.folder) if source.is_artifact and source.folder is not None else None
    if artifact is not None and artifact.is_transformers and factory is not None:
        raise InputError(f"{folder} is a transformers model and needs no --factory: leave it out.")
    return Subject(source, artifact, original)
