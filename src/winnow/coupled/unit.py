"""What a coupled unit is: rows of producers and columns of consumers that must go together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from winnow.errors import InputError
from winnow.masks.prunable import Scope

Kind = Literal["neuron", "head", "channel"]
Axis = Literal["rows", "cols"]
AXES: tuple[Axis, Axis] = ("rows", "cols")


@dataclass(frozen=True)
class Member:
    """Rows or columns of one prunable matrix [R, C] that belong to a unit."""

    name: str  # the prunable
    axis: Axis
    indices: tuple[int, ...]  # ascending; rows of the whole matrix, or columns
    part: int | None = None  # columns of this band of rows only (an expert); None: of every row
    parts: int = 1  # number of bands the matrix has
    bias: str | None = None  # columns: the consumer's bias parameter, None where it has none


@dataclass(frozen=True)
class Entries:
    """Entries of a bias or normalization parameter (flattened) that go with a unit's rows."""

    name: str
    indices: tuple[int, ...]


@dataclass(frozen=True)
class CoupledUnit:
    """An FFN neuron, an attention head or KV group, or a conv channel, with all the weights it is made of.

    With the rows and ``biases`` zero the unit's columns see a constant (zero after ReLU, GELU, SiLU and
    attention); with the columns zero too it contributes nothing, which equals a smaller dense layer.
    """

    kind: Kind
    block: str  # path of the repeated block, "" for the model itself
    index: int  # number of the unit in its group, in the order of its consumer's columns
    members: tuple[Member, ...]
    biases: tuple[Entries, ...] = ()

    @property
    def group(self) -> tuple[str, tuple[str, ...]]:
        """Units of one group are alike and share their tensors: one of them must stay."""
        names = tuple(sorted({(m.name, m.axis, m.part if m.part is not None else -1) for m in self.members}))
        return self.block, tuple(f"{name}:{axis}:{part}" for name, axis, part in names)


@dataclass(frozen=True)
class Refused:
    """Layers whose units cannot be told apart or removed, and why."""

    block: str
    names: tuple[str, ...]
    reason: str


class Removal:
    """Counts the weights that go when units are removed; a weight two units share is counted once."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        self.shapes = shapes  # name -> (R, C)
        self.zeros = 0
        self._gone: dict[tuple[str, Axis, int], set[int]] = {}  # by matrix, axis and band of rows
        self._bands: dict[str, int] = {}  # rows in one band

    def gain(self, unit: CoupledUnit) -> int:
        """Weights that removing ``unit`` would add to what is removed already."""
        return self._gain(self._new(unit))

    def add(self, unit: CoupledUnit) -> int:
        """Removes ``unit`` and returns its gain."""
        new = self._new(unit)
        gain = self._gain(new)
        for key, indices in new.items():
            self._gone.setdefault(key, set()).update(indices)
        self.zeros += gain
        return gain

    def _new(self, unit: CoupledUnit) -> dict[tuple[str, Axis, int], set[int]]:
        new: dict[tuple[str, Axis, int], set[int]] = {}
        for member in unit.members:
            if member.name not in self.shapes:
                raise InputError(f"a unit holds {member.name}, which is not in the scope: find units with this scope")
            band = self._bands.setdefault(member.name, self.shapes[member.name][0] // member.parts)
            if member.axis == "rows":
                where = [(i // band, i) for i in member.indices]
            else:
                where = [(p, i) for p in member_parts(member) for i in member.indices]
            for part, i in where:
                if i not in self._gone.get((member.name, member.axis, part), ()):
                    new.setdefault((member.name, member.axis, part), set()).add(i)
        return new

    def _gain(self, new: Mapping[tuple[str, Axis, int], set[int]]) -> int:
        gain = 0
        for name, part in {(name, part) for name, _, part in new}:
            rows, cols = (len(new.get((name, axis, part), ())) for axis in AXES)
            rows_gone, cols_gone = (len(self._gone.get((name, axis, part), ())) for axis in AXES)
            gain += rows * (self.shapes[name][1] - cols_gone) + cols * (self._bands[name] - rows_gone) - rows * cols
        return gain


def member_parts(member: Member) -> range:
    """The bands of rows a member's columns lie in."""
    return range(member.parts) if member.part is None else range(member.part, member.part + 1)


def shapes_of(scope: Scope) -> dict[str, tuple[int, int]]:
    return {name: (p.rows, p.cols) for name, p in scope.prunables.items()}


def unit_sizes(units: Sequence[CoupledUnit], scope: Scope) -> list[int]:
    """Weights of each unit when it is removed alone (a row and a column of one matrix share a weight)."""
    shapes = shapes_of(scope)
    return [Removal(shapes).gain(unit) for unit in units]


def unit_masks(units: Sequence[CoupledUnit], chosen: Iterable[int], scope: Scope) -> dict[str, torch.Tensor]:
    """Keep masks (bool [R, C], False in the chosen units) of every prunable the units touch."""
    shapes = shapes_of(scope)
    keep = {
        name: torch.ones(shapes[name], dtype=torch.bool)
        for name in dict.fromkeys(member.name for unit in units for member in unit.members)
    }
    for i in chosen:
        for member in units[i].members:
            mask, index = keep[member.name], torch.tensor(member.indices)
            if member.axis == "rows":
                mask[index] = False
            else:
                (mask if member.part is None else mask.chunk(member.parts)[member.part])[:, index] = False
    return keep


def zero_biases(
    units: Sequence[CoupledUnit], chosen: Iterable[int], tensors: nn.Module | Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """New values of the bias and normalization parameters in which the chosen units have entries: those are zero.

    Without this a removed row still sends its bias on. ``tensors`` is the model, or its stored tensors by
    name; neither is changed.
    """
    entries: dict[str, set[int]] = {}
    for i in chosen:
        for bias in units[i].biases:
            entries.setdefault(bias.name, set()).update(bias.indices)
    found = {}
    for name, indices in entries.items():
        tensor = (tensors.get_parameter(name) if isinstance(tensors, nn.Module) else tensors[name]).detach().clone()
        tensor.view(-1)[torch.tensor(sorted(indices), device=tensor.device)] = 0
        found[name] = tensor
    return found
