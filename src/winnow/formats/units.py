"""How packed and dense tensors share one file: the unit of work that is saved, resumed, and adopted as a shard."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch

from winnow.errors import FormatError, InputError
from winnow.formats.packed import PackedTensor
from winnow.formats.tensorfile import FORMAT_VERSION, TensorFile, write_tensors
from winnow.masks.prunable import Kind, Prunable

SUFFIXES = ("mask", "values", "scales")


def stored_key(name: str, suffix: str) -> str:
    """Key in the file of one part of a packed tensor, e.g. ``model.fc.weight.winnow_mask``."""
    return f"{name}.winnow_{suffix}"


def flatten(
    packed: dict[str, tuple[Prunable, PackedTensor]], dense: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(file key -> tensor, name -> description) of packed and dense tensors. Raises InputError for a name clash."""
    tensors: dict[str, torch.Tensor] = {}
    described: dict[str, Any] = {}
    for name, (prunable, tensor) in packed.items():
        if prunable.name != name or (prunable.rows, prunable.cols) != (tensor.rows, tensor.cols):
            raise InputError(f"{name} is {prunable.rows} x {prunable.cols}, packed as {tensor.rows} x {tensor.cols}")
        parts = tensor.tensors()
        PackedTensor.from_tensors(tensor.meta(), parts)  # zero count and pattern, once more, as they are written
        described[name] = describe(prunable, tensor)
        tensors |= {stored_key(name, suffix): part for suffix, part in parts.items()}
    for name, plain in dense.items():
        if name in packed or name in tensors or any(name.endswith(f".winnow_{suffix}") for suffix in SUFFIXES):
            raise InputError(f"the tensor name {name} clashes with a packed tensor: rename it")
        tensors[name] = plain
    return tensors, described


def describe(prunable: Prunable, tensor: PackedTensor) -> dict[str, Any]:
    """JSON of a packed tensor and of the parameter it stands for."""
    return {**tensor.meta(), "stored": {**asdict(prunable), "shape": list(prunable.shape)}}


def prunable_of(name: str, description: Any) -> Prunable:
    """The parameter a description speaks of. Raises FormatError where it is garbled."""
    try:
        stored = dict(description["stored"])
        prunable = Prunable(**{**stored, "shape": tuple(stored["shape"])})
        sizes = [*prunable.shape, prunable.parts]
        sound = (
            prunable.name == name
            and isinstance(prunable.module, str)
            and isinstance(prunable.block, str | None)
            and isinstance(prunable.transposed, bool)
            and prunable.kind in get_args(Kind)
            and all(type(size) is int and 0 < size < 1 << 48 for size in sizes)
            and len(prunable.shape)
            == {"conv1d": 2, "attention_in": 2, "experts": 3}.get(prunable.kind, len(prunable.shape))
            and len(prunable.shape) >= (1 if prunable.kind == "linear" else 2)
            and (prunable.rows, prunable.cols) == (description["rows"], description["cols"])
            and prunable.rows * prunable.cols == prunable.numel
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise FormatError(f"the description of {name} is garbled ({error}): write the file again") from None
    if not sound:
        raise FormatError(f"the description of {name} does not fit its shape: copy or write the file again")
    return prunable


def read_packed(file: TensorFile, name: str, description: dict[str, Any]) -> PackedTensor:
    """One packed tensor of a file, checksums, counts and shapes verified."""
    keys = {suffix: stored_key(name, suffix) for suffix in SUFFIXES}
    return PackedTensor.from_tensors(
        description, {suffix: file.read(key) for suffix, key in keys.items() if key in file}
    )


def split_keys(file: TensorFile) -> tuple[dict[str, Any], list[str]]:
    """(packed name -> description, dense names) of a file. Raises FormatError where tensors and descriptions differ."""
    described = file.about.get("packed")
    if not isinstance(described, dict):
        raise FormatError(f"{file.path} does not say what is packed in it: copy or write it again")
    parts = {stored_key(name, suffix): name for name in described for suffix in SUFFIXES}
    present = {parts[key] for key in file.keys if key in parts and key.endswith("values")}
    if present != described.keys():
        raise FormatError(f"{file.path} describes packed tensors that it does not hold: copy or write it again")
    return described, [key for key in file.keys if key not in parts]


def save_packed(
    path: Path, packed: dict[str, tuple[Prunable, PackedTensor]], dense: dict[str, torch.Tensor] | None = None
) -> None:
    """Save finished tensors to one file, atomically, with checksums: a safetensors file that
    :meth:`ArtifactWriter.adopt` can take over. Raises WinnowError where the disk is full or read-only."""
    tensors, described = flatten(packed, dense or {})
    write_tensors(Path(path), tensors, {"format_version": FORMAT_VERSION, "packed": described})


def load_packed(path: Path) -> tuple[dict[str, tuple[Prunable, PackedTensor]], dict[str, torch.Tensor]]:
    """The packed and the dense tensors of a file of :func:`save_packed`. Raises FormatError for a damaged file."""
    file = TensorFile(Path(path))
    described, dense = split_keys(file)
    packed = {name: (prunable_of(name, about), read_packed(file, name, about)) for name, about in described.items()}
    return packed, {key: file.read(key) for key in dense}
