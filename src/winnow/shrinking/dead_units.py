"""Which coupled units of a model are entirely zero, or give the same constant whatever the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from winnow.coupled.call import record_blocks
from winnow.coupled.cut import Cols, CutProbe, Rows
from winnow.coupled.module import cut_units, module_coupling
from winnow.coupled.site import norm_features, site_of
from winnow.coupled.unit import CoupledUnit, Member, Refused
from winnow.errors import InputError
from winnow.masks.prunable import CONVOLUTIONS, Prunable, Scope
from winnow.masks.scope import find_scope
from winnow.shrinking.input_ranges import InputRange, input_ranges
from winnow.shrinking.tree import find_tensor, replace_tensor, shared_copy

FLAT = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Threshold)  # no gradient over half a line
EXTENT = 3  # pixels a side from which a map has a middle and a border
# Reasons of layers that may lose inputs.
AROUND = ("output head", "outside the repeated blocks", "transposed convolution")
CHEAP = 24  # layers of a model that is also probed as a whole where its blocks have units of their own
DIRECT = "its module reads its weights directly, so the bias that stays cannot move on"
UNFOLDED = "its constant output has no bias of the next layer to go to"
BORDER = "its constant meets the zero padding of a convolution on its way, so it is another near the border"
TINY = f"its constant was seen on a map of fewer than {EXTENT} pixels a side, without a border: give a larger example"
OVERLAPPED = "its constant meets a transposed convolution, which adds it up differently from place to place"
PADDED = "its constant output meets the zero padding of the next convolution, so no bias can stand for it"
Constants = dict[str, dict[int, float]]  # prunable -> input feature -> what the unit always gives it


@dataclass
class Group:
    """Units that are alike and share their tensors; some of them dead."""

    units: list[CoupledUnit]
    dead: dict[int, Constants] = field(default_factory=dict)  # position in units -> constants to fold
    refused: dict[int, str] = field(default_factory=dict)  # silent, but cannot go, and why

    @property
    def kind(self) -> str:
        return self.units[0].kind


def wide_scope(model: nn.Module) -> Scope:
    """What may be pruned, and the layers around it that only lose inputs: the head, layers outside the blocks."""
    try:
        skipped = find_scope(model).skipped
    except InputError:
        return Scope()
    parts = [(*entry.name.rpartition("."), entry.name) for entry in skipped if entry.reason in AROUND]
    around = [n for path, _, key, n in parts if key == "weight" and site_of(model.get_submodule(path)) is not None]
    return find_scope(model, include=around)


def coupled_units(model: nn.Module, scope: Scope, example: Any) -> tuple[list[CoupledUnit], list[Refused]]:
    """Units of all kinds, also channels of a residual stream that several layers write to.

    The latter, unlike the others, become constant only when all their producers do. Raises InputError when the
    model cannot run on the example.
    """
    if not scope.prunables:
        return [], []
    twin = _awake(model)
    units: list[CoupledUnit] = []
    refused: list[Refused] = []
    paths = list(dict.fromkeys(p.block for p in scope.prunables.values() if p.block is not None))
    calls = record_blocks(twin, example, [*paths, ""])
    for path in paths:
        if path in calls:
            part = module_coupling(twin.get_submodule(path), path, calls[path], scope)
            units += part.units
            refused += part.refused
    if not units:
        whole = module_coupling(twin, "", calls[""], scope)
        units, refused = whole.units, whole.refused
    if any(p.kind in CONVOLUTIONS for p in scope.prunables.values()) or len(scope.prunables) <= CHEAP:
        taken = {(m.name, m.axis) for u in units for m in u.members}
        joined = cut_units(_Joined(twin, calls[""]), "", scope, {})
        units += [u for u in joined if not any((m.name, m.axis) in taken for m in u.members)]
    used = {m.name for u in units for m in u.members}
    return units, [r for r in refused if not used.intersection(r.names)]


class _Joined(CutProbe):
    """Takes it on trust that features become constant with their rows: here that is measured afterwards."""

    def steady(self, rows: Rows, vary: Rows, norms: Rows) -> Cols:
        return {name: torch.ones(n, dtype=torch.bool) for name, n in self.consumers.items()}


def _awake(model: nn.Module) -> nn.Module:
    """The model with noise for its norms and grouped convolutions, and activations that are nowhere flat.

    Who reads whom is the same, and shows where the model's own values or a dead ReLU would hide it.
    """
    twin, generator = shared_copy(model), torch.Generator().manual_seed(0)
    for module in list(twin.modules()):
        for key, child in module.named_children():
            if type(child) in FLAT:
                module._modules[key] = nn.LeakyReLU(0.5)
    for module in twin.modules():
        if norm_features(module) is not None or (isinstance(module, _ConvNd) and module.groups > 1):
            for key, p in list(module._parameters.items()):
                if p is not None and (p.dim() == 1 or isinstance(module, _ConvNd)):
                    value = 0.5 + torch.rand(p.shape, generator=generator)
                    replace_tensor(module, key, value.to(p.device, p.dtype))
    return twin


def grouped(units: Sequence[CoupledUnit], scope: Scope) -> list[Group]:
    """Units by the tensors they share; the neurons of all experts that share one tensor."""
    groups: dict[Any, Group] = {}
    for unit in units:
        stacked = any(scope.prunables[m.name].kind == "experts" for m in unit.members)
        shared = (unit.block, tuple(sorted({(m.name, m.axis) for m in unit.members}))) if stacked else unit.group
        groups.setdefault((unit.kind, *shared), Group([])).units.append(unit)
    return list(groups.values())


class DeadUnits:
    """Finds the dead units of all groups, again after each find: what only they read or fed may be dead too.

    A unit is dead when nothing reads it (its columns are zero in every row that stays) or when what it gives is
    constant: zero, or a number that the bias of each layer that reads it can take over.
    """

    def __init__(self, model: nn.Module, scope: Scope, groups: Sequence[Group], example: Any) -> None:
        self.model, self.scope, self.groups, self.example = model, scope, groups, example
        names = {m.name for g in groups for u in g.units for m in u.members}
        self.prunables = {n: p for n, p in scope.prunables.items() if n in names}
        self.rows = {n: torch.ones(p.rows, dtype=torch.bool) for n, p in self.prunables.items()}  # that stay
        self.cols = {n: torch.ones(p.parts, p.cols, dtype=torch.bool) for n, p in self.prunables.items()}
        self.zero_rows: dict[str, list[bool]] = {}
        self.zero_cols: dict[str, list[list[bool]]] = {}

    def find(self) -> None:
        """Fills in ``dead`` and ``refused`` of every group."""
        stale = set(self.prunables)
        while stale:
            for name in stale:
                self._lines(self.prunables[name])
            live = {n: ~torch.tensor(self.zero_rows[n]) for n in self.prunables}
            ranges = input_ranges(self.model, self.example, self.prunables, live)
            stale = set()
            for group in self.groups:
                for i, unit in enumerate(group.units):
                    if i not in group.dead and (constants := self._verdict(group, i, unit, ranges)) is not None:
                        group.dead[i] = constants
                        stale |= self._remove(unit)

    def zero_row_count(self, name: str) -> int:
        """Rows of a tensor of no unit that are zero as stored."""
        p = self.scope.prunables[name]
        return int((~(p.matrix(find_tensor(self.model, name)[2].detach()) != 0).any(1)).sum())

    def _lines(self, p: Prunable) -> None:
        matrix = p.matrix(find_tensor(self.model, p.name)[2].detach())
        rows, cols = self.rows[p.name].to(matrix.device), self.cols[p.name].to(matrix.device)
        zero_rows, zero_cols = [], []
        for part, band in enumerate(matrix.chunk(p.parts)):
            stay = rows.chunk(p.parts)[part]
            zero_rows += (~(band[:, cols[part]] != 0).any(1)).tolist()
            zero_cols.append((~(band[stay] != 0).any(0)).tolist())
        self.zero_rows[p.name], self.zero_cols[p.name] = zero_rows, zero_cols

    def _verdict(self, group: Group, i: int, unit: CoupledUnit, ranges: dict[str, InputRange]) -> Constants | None:
        """What the next layers' biases must take over; None where the unit is alive or cannot go."""
        cols = [m for m in unit.members if m.axis == "cols"]
        rows = [m for m in unit.members if m.axis == "rows"]
        if all(self._unread(m) for m in cols):
            return {}
        norms = (b for b in unit.biases if b.name.endswith("weight"))
        # Something in the weights has to silence the unit: all rows of a layer, or a normalization's scale.
        if not any(map(self._silent, rows)) and not any(self._zero(b.name, b.indices) for b in norms):
            return None
        live = not all(self._zero(b.name, b.indices) for b in unit.biases)
        if any(site_of(self.model.get_submodule(self.prunables[m.name].module)) is None for m in rows):
            # Read directly (packed attention, experts): the finder has shown that zero rows and biases give zero.
            if not all(self._silent(m) for m in rows):
                return None
            if live:
                group.refused[i] = DIRECT
            return None if live else {}
        if any(self._borders(m, ranges) for m in rows):
            group.refused[i] = BORDER
            return None
        if live and any(self._tiny(m, ranges) for m in unit.members):
            group.refused[i] = TINY
            return None
        constants: Constants = {}
        for m in cols:
            p = self.prunables[m.name]
            width = p.cols // ranges[p.module].features if p.module in ranges else 0
            for feature in {c // width for c in m.indices} if width else ():
                value = ranges[p.module].value(feature)
                if value is None:
                    return None
                if value:
                    constants.setdefault(m.name, {})[feature] = value
            if not width:
                return None
            if m.name in constants and (why := self._unfoldable(m)):
                group.refused[i] = why
                return None
        group.refused.pop(i, None)
        return constants

    def _unread(self, m: Member) -> bool:
        parts = range(m.parts) if m.part is None else (m.part,)
        return all(self.zero_cols[m.name][part][c] for part in parts for c in m.indices)

    def _silent(self, m: Member) -> bool:
        return all(self.zero_rows[m.name][r] for r in m.indices)

    def _zero(self, name: str, indices: Sequence[int]) -> bool:
        tensor = find_tensor(self.model, name)[2].detach().flatten()
        return not bool(tensor[list(indices)].any())

    def _borders(self, m: Member, ranges: dict[str, InputRange]) -> bool:
        """Whether a grouped convolution computes on something that is not zero: padding shows on larger maps at the latest."""
        site = site_of(self.model.get_submodule(self.prunables[m.name].module))
        if site is None or not site.through or self._silent(m):
            return False
        p, groups = self.prunables[m.name], self.prunables[m.name].parts
        into = site.inputs // groups
        inputs = {g * into + k for g in {r // (p.rows // groups) for r in m.indices} for k in range(into)}
        return p.module not in ranges or any(ranges[p.module].value(i) != 0 for i in inputs)

    def _unfoldable(self, m: Member) -> str:
        if m.bias is None:
            return UNFOLDED
        module = self.model.get_submodule(self.prunables[m.name].module)
        if isinstance(module, _ConvTransposeNd):
            return OVERLAPPED
        if not isinstance(module, _ConvNd) or module.padding_mode != "zeros" or module.padding == "valid":
            return ""
        return PADDED if module.padding == "same" or any(module.padding) else ""

    def _tiny(self, m: Member, ranges: dict[str, InputRange]) -> bool:
        """Whether a convolution saw only maps on which what padding does to a constant need not show."""
        p = self.prunables[m.name]
        return p.kind in CONVOLUTIONS and p.module in ranges and ranges[p.module].extent < EXTENT

    def _remove(self, unit: CoupledUnit) -> set[str]:
        for m in unit.members:
            index = list(m.indices)
            if m.axis == "rows":
                self.rows[m.name][index] = False
            else:
                self.cols[m.name][slice(None) if m.part is None else m.part, index] = False
        return {m.name for m in unit.members}


def norms_of(model: nn.Module, name: str) -> list[str]:
    """Buffers beside a normalization's parameter, one number a feature (running mean and variance)."""
    owner, _, tensor = find_tensor(model, name)
    path = name.rpartition(".")[0]
    if not isinstance(owner, _NormBase):
        return []
    return [f"{path}.{k}" for k, b in owner._buffers.items() if b is not None and b.shape == tensor.shape]
