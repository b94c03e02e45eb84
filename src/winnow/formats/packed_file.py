"""How packed and dense tensors share one file: the unit of work that is saved, resumed, and adopted as a shard."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import torch

from winnow.errors import FormatError, InputError
from winnow.formats.packed import PackedTensor
from winnow.formats.tensorfile import FORMAT_VERSION, TensorFile, write_tensors
from winnow.masks.prunable import Kind, Prunable

SUFFIXES = ("mask", "values", "scales")
_META = {"encoding", "values", "dtype", "structure", "zeros", "pattern", "group"}  # of a packed matrix, but its size
_STORED = tuple(field.name for field in fields(Prunable) if field.name != "name")


def stored_key(name: str, suffix: str) -> str:
    """Key in the file of one part of a packed tensor, e.g. ``model.fc.weight.winnow_mask``."""
    return f"{name}.winnow_{suffix}"


def stored_keys(file: TensorFile, name: str) -> dict[str, str]:
    """Suffix -> key of the parts that a file holds of one packed tensor."""
    return {suffix: key for suffix in SUFFIXES if (key := stored_key(name, suffix)) in file}


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


_IN_FULL = ("encoding", "zeros", "shape")  # stored for every tensor, whether others share them or not
_DERIVED = ("rows", "cols")


def compact(described: dict[str, Any]) -> dict[str, Any]:
    """The descriptions of a file's packed tensors as version 2 stores them: ``packed`` (name -> what is its own) and
    ``common`` (what holds of every tensor that does not say otherwise). Names and sizes are not repeated."""
    records = {}
    for name, about in described.items():
        record = {**{k: v for k, v in about.items() if k not in ("stored", *_DERIVED)}, **about["stored"]}
        del record["name"]
        if record["module"] == name.rpartition(".")[0]:
            del record["module"]
        records[name] = record
    common = {}
    for field in sorted({field for record in records.values() for field in record} - {*_IN_FULL, "module"}):
        counts = Counter(json.dumps(record[field]) for record in records.values())
        common[field] = json.loads(counts.most_common(1)[0][0])
    packed = {
        name: {field: value for field, value in record.items() if field not in common or value != common[field]}
        for name, record in records.items()
    }
    return {"common": common, "packed": packed}


def expanded(about: dict[str, Any], where: Any) -> dict[str, Any]:
    """The inverse of :func:`compact`: name -> description in full, as :func:`describe` gives it. Raises FormatError."""
    packed, common = about.get("packed"), about.get("common", {})
    if not isinstance(packed, dict) or not all(isinstance(record, dict) for record in packed.values()):
        raise FormatError(f"{where} does not say what is packed in it: copy or write it again")
    if about["format_version"] == 1:
        return packed
    if not isinstance(common, dict):
        raise FormatError(f"{where} does not say what its packed tensors share: copy or write it again")
    described = {}
    for name, record in packed.items():
        whole = {"module": name.rpartition(".")[0], **common, **record}
        stored = {field: whole.pop(field) for field in _STORED if field in whole}
        if whole.keys() - _META:
            raise FormatError(
                f"the description of {name} is garbled ({min(whole.keys() - _META)}): write the file again"
            )
        full = {**whole, "stored": {"name": name, **stored}}
        prunable = _prunable(name, full)
        described[name] = {**full, "rows": prunable.rows, "cols": prunable.cols}
    return described


def prunable_of(name: str, description: Any) -> Prunable:
    """The parameter a description speaks of. Raises FormatError where it is garbled."""
    prunable = _prunable(name, description)
    if (prunable.rows, prunable.cols) != (description.get("rows"), description.get("cols")):
        raise FormatError(f"the description of {name} does not fit its shape: copy or write the file again")
    return prunable


def _prunable(name: str, description: dict[str, Any]) -> Prunable:
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
            and prunable.rows * prunable.cols == prunable.numel
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError, RuntimeError) as error:
        raise FormatError(f"the description of {name} is garbled ({error}): write the file again") from None
    if not sound:
        raise FormatError(f"the description of {name} does not fit its shape: copy or write the file again")
    return prunable


def read_packed(file: TensorFile, name: str, description: dict[str, Any]) -> PackedTensor:
    """One packed tensor of a file, checksums, counts and shapes verified."""
    parts = {suffix: file.read(key) for suffix, key in stored_keys(file, name).items()}
    return PackedTensor.from_tensors(description, parts)


def stored_parts(file: TensorFile, name: str) -> dict[str, torch.Tensor]:
    """The parts of one packed tensor of a file by their keys, without the values: on the meta device."""
    keys = stored_keys(file, name).values()
    return {key: torch.empty(file.shape(key), dtype=file.dtype(key), device="meta") for key in keys}


def split_keys(file: TensorFile) -> tuple[dict[str, Any], list[str]]:
    """(packed name -> description, dense names) of a file. Raises FormatError where tensors and descriptions differ."""
    described = expanded(file.about, file.path)
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
    # Every tensor gets a checksum of its own: units are read tensor by tensor.
    write_tensors(Path(path), tensors, {"format_version": FORMAT_VERSION, **compact(described)})


def load_packed(path: Path) -> tuple[dict[str, tuple[Prunable, PackedTensor]], dict[str, torch.Tensor]]:
    """The packed and the dense tensors of a file of :func:`save_packed`. Raises FormatError for a damaged file."""
    file = TensorFile(Path(path))
    described, dense = split_keys(file)
    packed = {name: (prunable_of(name, about), read_packed(file, name, about)) for name, about in described.items()}
    return packed, {key: file.read(key) for key in dense}
