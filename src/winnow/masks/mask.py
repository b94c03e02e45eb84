"""Keep masks as values: one bit per weight, their algebra, and their file."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from winnow.disk.files import atomic_file
from winnow.errors import FormatError, InputError, disk_errors

VERSION = 1
_KEY = "winnow_masks"  # one metadata key: several would be written in random order
_ONES = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


@dataclass(frozen=True, eq=False)
class Mask:
    """A keep mask [R, C] in ``bits`` uint8 [R, ceil(C / 8)]: column j of a row is bit j % 8 (lowest first) of byte
    j // 8, 1 where the weight stays; the bits beyond C are 0."""

    bits: torch.Tensor
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        rows, cols = self.shape
        if self.bits.dtype != torch.uint8 or tuple(self.bits.shape) != (rows, (cols + 7) // 8):
            raise FormatError(
                f"bits of shape {tuple(self.bits.shape)} and type {self.bits.dtype} are no mask of {rows} x {cols}: "
                "the file is damaged, write it again"
            )
        if cols % 8 and rows and bool((self.bits[:, -1] >> (cols % 8)).any()):
            raise FormatError(f"a mask of {rows} x {cols} has bits set beyond its last column: write the file again")

    def __repr__(self) -> str:
        return f"Mask({self.shape[0]} x {self.shape[1]}, {self.zeros:,} of {self.numel:,} weights pruned)"

    @classmethod
    def pack(cls, keep: torch.Tensor) -> Mask:
        """The mask of a bool matrix [R, C] on any device; InputError when it is not one."""
        if keep.dtype != torch.bool or keep.ndim != 2:
            raise InputError(f"a keep mask is a bool matrix, not {keep.dtype} of shape {tuple(keep.shape)}: convert it")
        bits = np.packbits(keep.detach().cpu().numpy(), axis=1, bitorder="little")
        return cls(torch.from_numpy(bits), (keep.shape[0], keep.shape[1]))

    def unpack(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """The bool matrix [R, C]."""
        flat = np.unpackbits(self.bits.numpy(), axis=1, count=self.shape[1], bitorder="little")
        return torch.from_numpy(flat.view(np.bool_)).to(device)

    @property
    def numel(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def nonzeros(self) -> int:
        return _count(self.bits)

    @property
    def zeros(self) -> int:
        return self.numel - self.nonzeros

    @property
    def sparsity(self) -> float:
        return self.zeros / self.numel if self.numel else 0.0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and self.shape == other.shape and torch.equal(self.bits, other.bits)

    def __hash__(self) -> int:
        return hash((self.shape, self.bits.numpy().tobytes()))


class LayerCount(NamedTuple):
    """One line of :attr:`MaskSet.table`."""

    name: str
    numel: int
    zeros: int
    sparsity: float


@dataclass(frozen=True)
class PerLayer:
    """A figure over all weights and for each layer."""

    overall: float
    layers: dict[str, float]


@dataclass(frozen=True)
class Overlap:
    """How far two kept sets A, B agree: ``iou`` = |A and B| / |A or B|, ``shared`` = |A and B| / |A|."""

    iou: PerLayer
    shared: PerLayer


class MaskSet(Mapping[str, Mask]):
    """Names and their masks, in order. Values do not change once made."""

    def __init__(self, masks: Mapping[str, Mask | torch.Tensor]) -> None:
        """From masks or bool keep matrices [R, C]; InputError for anything else."""
        self._masks = {name: mask if isinstance(mask, Mask) else Mask.pack(mask) for name, mask in masks.items()}

    def __getitem__(self, name: str) -> Mask:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"MaskSet({len(self)} tensors, {self.zeros} of {self.numel} weights pruned)"

    @property
    def numel(self) -> int:
        return sum(mask.numel for mask in self.values())

    @property
    def nonzeros(self) -> int:
        return sum(mask.nonzeros for mask in self.values())

    @property
    def zeros(self) -> int:
        return self.numel - self.nonzeros

    @property
    def sparsity(self) -> float:
        return self.zeros / self.numel if self.numel else 0.0

    @property
    def table(self) -> list[LayerCount]:
        """Weights, zeros and sparsity of every layer, in order."""
        return [LayerCount(name, mask.numel, mask.zeros, mask.sparsity) for name, mask in self.items()]

    def apply(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A copy of ``state`` (name -> matrix [R, C]) with zeros where the masks say so; other names pass through.

        Raises InputError when a masked name is missing or has another shape.
        """
        result = dict(state)
        for name, mask in self.items():
            if name not in state or tuple(state[name].shape) != mask.shape:
                found = f"is {tuple(state[name].shape)}" if name in state else "is missing"
                raise InputError(
                    f"the mask of {name} wants a matrix of {mask.shape} but it {found}: give Prunable.matrix"
                )
            result[name] = state[name].masked_fill(~mask.unpack(state[name].device), 0)
        return result

    def overlap(self, other: MaskSet) -> Overlap:
        """Agreement of the kept sets; two empty sets agree fully. InputError when names or shapes differ."""
        both, either, own = self._counts(other, "and"), self._counts(other, "or"), self._counts(self, "and")
        return Overlap(_ratios(both, either), _ratios(both, own))

    def hamming(self, other: MaskSet) -> PerLayer:
        """Number of weights on which the two disagree. InputError when names or shapes differ."""
        counts = self._counts(other, "xor")
        return PerLayer(float(sum(counts.values())), {name: float(count) for name, count in counts.items()})

    def cosine(self, other: MaskSet) -> PerLayer:
        """Cosine similarity of the 0/1 keep vectors (the cosine distance is one minus it).

        Two empty sets count as 1. InputError when names or shapes differ.
        """
        both, own, their = self._counts(other, "and"), self._counts(self, "and"), other._counts(other, "and")

        def similarity(common: int, a: int, b: int) -> float:
            return common / math.sqrt(a * b) if a and b else float(a == b)

        layers = {name: similarity(both[name], own[name], their[name]) for name in self}
        return PerLayer(similarity(sum(both.values()), sum(own.values()), sum(their.values())), layers)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file, whole or not at all; the same masks give the same bytes.

        Raises WinnowError where the disk is full or read-only.
        """
        from safetensors.torch import save_file

        header = {
            "version": VERSION,
            "masks": [{"name": n, "shape": list(m.shape), "sha256": _digest(m.bits)} for n, m in self.items()],
        }
        target = Path(path)
        with disk_errors(target), atomic_file(target) as part:
            save_file({n: m.bits.contiguous() for n, m in self.items()}, part, metadata={_KEY: json.dumps(header)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MaskSet:
        """Reads what :meth:`save` wrote. InputError when there is no such file, FormatError when it is damaged."""
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise InputError(f"{path} is not a file: give the file that MaskSet.save wrote")
        try:
            with safe_open(str(path), framework="pt") as file:
                header = _header(path, file.metadata())
                if sorted(file.keys()) != sorted(entry[0] for entry in header):
                    raise FormatError(f"{path} lists other masks than it holds: write it again")
                masks = {}
                for name, shape, digest in header:
                    mask = Mask(file.get_tensor(name), shape)
                    if _digest(mask.bits) != digest:
                        raise FormatError(f"the mask of {name} in {path} does not match its checksum: write it again")
                    masks[name] = mask
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{path} is truncated or no safetensors file ({error}): write it again") from error
        return cls(masks)

    def _counts(self, other: MaskSet, how: str) -> dict[str, int]:
        """Set bits of ``self how other`` in each layer."""
        require_same(self, other)
        operation = {"and": torch.bitwise_and, "or": torch.bitwise_or, "xor": torch.bitwise_xor}[how]
        return {name: _count(operation(self[name].bits, other[name].bits)) for name in self}


def require_same(first: MaskSet, other: MaskSet) -> None:
    shapes, theirs = ({name: mask.shape for name, mask in masks.items()} for masks in (first, other))
    if shapes != theirs:
        name = next(n for n in [*shapes, *theirs] if shapes.get(n) != theirs.get(n))
        raise InputError(f"the masks differ in {name}: compare mask sets of one model and one scope")


def _count(bits: torch.Tensor) -> int:
    return int(_ONES[bits.numpy()].sum(dtype=np.int64))


def _digest(bits: torch.Tensor) -> str:
    return hashlib.sha256(bits.contiguous().numpy().tobytes()).hexdigest()


def _ratios(part: Mapping[str, int], whole: Mapping[str, int]) -> PerLayer:
    layers = {name: part[name] / whole[name] if whole[name] else 1.0 for name in whole}
    total = sum(whole.values())
    return PerLayer(sum(part.values()) / total if total else 1.0, layers)


def _header(path: Any, metadata: Mapping[str, str] | None) -> Sequence[tuple[str, tuple[int, int], str]]:
    try:
        header = json.loads((metadata or {})[_KEY])
        version = header["version"]
        entries = [(str(e["name"]), tuple(int(side) for side in e["shape"]), str(e["sha256"])) for e in header["masks"]]
        if any(len(shape) != 2 or min(shape) < 0 for _, shape, _ in entries):
            raise ValueError("a shape is not two sides")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path} holds no winnow masks or a damaged header: write it again") from error
    if version != VERSION:
        raise FormatError(f"{path} is of mask format {version}, this winnow reads {VERSION}: update winnow")
    return entries  # type: ignore[return-value]
