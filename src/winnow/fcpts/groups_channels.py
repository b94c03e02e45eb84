"""Coupled units - neurons, heads, channels - under one threshold for those that are alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from winnow.coupled.select import select_units
from winnow.coupled.unit import CoupledUnit, Member, member_parts, unit_masks, unit_sizes, zero_biases
from winnow.errors import InputError
from winnow.fcpts.groups import Matrices
from winnow.fcpts.straight_through import root, step, wide
from winnow.masks.blocks import common_path
from winnow.masks.prunable import Prunable, Scope


@dataclass
class LineUnits:
    """Owners of the rows and columns of one prunable matrix [R, C] of P bands.

    A row belongs to at most one unit, and so does a column in each band; the number U stands for none. Weights where a
    row of one group crosses a column of another are counted once, half with each of the two groups.
    """

    row_unit: torch.Tensor  # int64 [R]
    col_unit: torch.Tensor  # int64 [P, C]
    row_group: torch.Tensor  # int64 [R], index into row_groups
    col_group: torch.Tensor  # int64 [P, C], index into col_groups
    row_groups: torch.Tensor  # int64 [I], group numbers; the number of groups stands for none
    col_groups: torch.Tensor  # int64 [J]
    units: int  # U
    share: torch.Tensor  # float64 [I, J]: of the weights where they cross, what counts with the rows' group
    total: torch.Tensor  # float64 [I, J]: weights where they cross

    @classmethod
    def of(cls, p: Prunable, members: Sequence[tuple[int, Member]], owner: torch.Tensor) -> LineUnits:
        """Reads the owners off the members that lie in ``p``, each with the number of its unit; ``owner`` [U] is the
        group of each unit. Raises InputError when two units share a line."""
        none = len(owner)
        rows = torch.full((p.rows,), none)
        cols = torch.full((p.parts, p.cols), none)
        at: dict[str, list[int]] = {"rows": [], "cols": []}
        unit: dict[str, list[int]] = {"rows": [], "cols": []}
        for i, m in members:
            bands = member_parts(m) if m.axis == "cols" else range(1)
            for band in bands:
                at[m.axis] += [band * p.cols + index for index in m.indices]
                unit[m.axis] += [i] * len(m.indices)
        for axis, lines in (("rows", rows), ("cols", cols.view(-1))):
            if len(set(at[axis])) < len(at[axis]):
                raise InputError(f"two units share {axis} of {p.name}: find units with one call of find_units")
            lines[at[axis]] = torch.tensor(unit[axis], dtype=torch.int64)
        group_of = torch.cat([owner, owner.max().reshape(1) + 1])
        row_groups, row_group = group_of[rows].unique(return_inverse=True)
        col_groups, col_group = group_of[cols].unique(return_inverse=True)
        zero = torch.zeros(len(row_groups), len(col_groups), dtype=torch.float64)
        found = cls(rows, cols, row_group, col_group, row_groups, col_groups, none, zero, zero)
        found.total = found._crossings(torch.ones(none + 1))
        here, there = (row_groups <= owner.max())[:, None], (col_groups <= owner.max())[None]
        half = (found.total / 2).ceil() / found.total.clamp(min=1)
        found.share = torch.where(here & there, half, here.double().expand_as(half))
        return found

    @cached_property
    def has_rows(self) -> bool:
        """Whether some row belongs to a unit."""
        return bool((self.row_unit < self.units).any())

    @cached_property
    def has_cols(self) -> bool:
        """Whether some column belongs to a unit."""
        return bool((self.col_unit < self.units).any())

    def rows_of(self, units: int) -> torch.Tensor:
        """Rows of each unit, [U]."""
        return self.row_unit.bincount(minlength=units + 1)[:-1]

    def mask(self, weight: torch.Tensor, stays: torch.Tensor) -> torch.Tensor:
        """``weight`` [R, C] times what stays of each column's unit; ``stays`` [U + 1], 1 at the end.

        Rows are left alone: a unit reaches nothing but its columns, so that the model's outputs are those without the unit,
        while its activations live on and tell, through the columns, what it would be worth.
        """
        if not self.has_cols:
            return weight
        cols = stays[self.col_unit.to(stays.device)].to(weight.dtype)
        parts, width = cols.shape
        return (weight.reshape(parts, -1, width) * cols[:, None]).reshape(weight.shape)

    def count(self, numels: torch.Tensor, sizes: torch.Tensor) -> None:
        """Adds the weights counted with each group (int64 [G]) and each unit (float64 [U])."""
        groups = len(numels)
        numels += self._by_group(self.total, groups).round().long()
        parts = self.col_group.shape[0]
        ones = torch.ones(self.units + 1)
        rows_in, cols_in = self._rows(ones), self._cols(ones)  # [P, I], [P, J]
        row_part = torch.arange(len(self.row_unit)) // (len(self.row_unit) // parts)
        per_row = (cols_in @ self.share.t())[row_part, self.row_group]
        per_col = (rows_in @ (1 - self.share)).gather(1, self.col_group)
        for unit, value in ((self.row_unit, per_row), (self.col_unit.flatten(), per_col.flatten())):
            sizes += torch.zeros(self.units + 1, dtype=torch.float64).index_add(0, unit, value)[:-1]

    def removed(self, stays: torch.Tensor, groups: int) -> torch.Tensor:
        """Weights that are removed, by the group they count with, float64 [G]."""
        return self._by_group(self.total - self._crossings(stays.cpu()), groups).to(stays.device)

    def _by_group(self, crossings: torch.Tensor, groups: int) -> torch.Tensor:
        out = torch.zeros(groups + 1, dtype=torch.float64)
        out.index_add_(0, self.row_groups, (crossings * self.share).sum(1))
        out.index_add_(0, self.col_groups, (crossings * (1 - self.share)).sum(0))
        return out[:-1]

    def _crossings(self, stays: torch.Tensor) -> torch.Tensor:
        """Weights that stay where the rows of one group cross the columns of another, float64 [I, J]."""
        return self._rows(stays).t() @ self._cols(stays)

    def _rows(self, stays: torch.Tensor) -> torch.Tensor:
        """Rows that stay, by band and group, float64 [P, I]."""
        parts, count = self.col_group.shape[0], len(self.row_groups)
        place = self.row_group.reshape(parts, -1) + count * torch.arange(parts)[:, None]
        return place.flatten().bincount(stays[self.row_unit].double(), parts * count).reshape(parts, count)

    def _cols(self, stays: torch.Tensor) -> torch.Tensor:
        """Columns that stay, by band and group, float64 [P, J]."""
        parts, count = self.col_group.shape[0], len(self.col_groups)
        place = self.col_group + count * torch.arange(parts)[:, None]
        return place.flatten().bincount(stays[self.col_unit].double().flatten(), parts * count).reshape(parts, count)


class Channels:
    """Coupled units (:func:`winnow.coupled.find.find_coupled_units`); one threshold for the units of one ``Unit.group``.

    A unit's magnitude is the root mean square of its producers' rows: the norm of all of them together over the square root
    of their length. At or under the threshold its columns in the consumers are zero (:meth:`mask`) and, in the end, its rows in
    the producers too (:meth:`select`); the model puts out the same either way.

    Where one group has rows and another columns of the same matrix, a weight lies in two units. It goes when either
    does and is counted once: half of such weights count with the rows' group, half with the columns'
    (``numels``, ``sizes`` and the removed weights alike). Groups are named after the module that holds their producers.
    """

    def __init__(self, units: Sequence[CoupledUnit], scope: Scope, *, window: float = 1.0) -> None:
        if not units:
            raise InputError("there is no coupled unit to learn about: choose another structure")
        self.units, self.scope, self.window = list(units), scope, window
        number = {group: i for i, group in enumerate(dict.fromkeys(u.group for u in units))}
        self.owner = torch.tensor([number[u.group] for u in units])  # group of each unit, [U]
        self.groups = _names(self.units, self.owner.tolist(), scope)
        members: dict[str, list[tuple[int, Member]]] = {}
        for i, unit in enumerate(units):
            for m in unit.members:
                members.setdefault(m.name, []).append((i, m))
        self.lines = {n: LineUnits.of(scope.prunables[n], ms, self.owner) for n, ms in members.items()}
        self.numels = torch.zeros(len(number), dtype=torch.int64)
        self._sizes = torch.zeros(len(units), dtype=torch.float64)
        self._length = torch.zeros(len(units))  # weights in the producers' rows, [U]
        for name, lines in self.lines.items():
            lines.count(self.numels, self._sizes)
            self._length += lines.rows_of(len(units)) * scope.prunables[name].cols
        self._sizes = _whole(self._sizes, self.owner, len(number))

    def _magnitudes(self, weights: Matrices) -> torch.Tensor:
        """[U]"""
        square: torch.Tensor | None = None
        for name, lines in self.lines.items():
            if lines.has_rows:
                rows = wide(weights[name]).square().sum(1)
                square = rows.new_zeros(len(self.units) + 1) if square is None else square
                square = square.index_add(0, lines.row_unit.to(rows.device), rows)
        assert square is not None  # every unit has a producer
        return root(square[:-1] / self._length.to(square))

    def magnitudes(self, weights: Matrices) -> list[torch.Tensor]:
        found = self._magnitudes({n: weights[n].detach() for n in self.lines}).float()
        return [found[self.owner.to(found.device) == g] for g in range(len(self.groups))]

    def sizes(self) -> list[torch.Tensor | int]:
        return [self._sizes[self.owner == g] for g in range(len(self.groups))]

    def mask(self, weights: Matrices, thresholds: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        magnitude = self._magnitudes(weights)
        stays = step(magnitude, thresholds[self.owner.to(thresholds.device)], self.window)
        padded = torch.cat([stays, stays.new_ones(1)])  # the last: lines that belong to no unit
        removed = stays.new_zeros(len(self.groups), dtype=torch.float64)
        masked = dict(weights)
        for name, lines in self.lines.items():
            masked[name] = lines.mask(weights[name], padded)
            removed += lines.removed(padded.detach(), len(self.groups))
        return masked, removed.float()

    def select(self, weights: Matrices, thresholds: torch.Tensor, zeros: int) -> dict[str, torch.Tensor]:
        """Keep masks of every tensor of the scope, ``zeros`` removed to within one unit.

        Units go in ascending order of magnitude / threshold, as in :func:`winnow.coupled.select.select_units`: one that
        no longer fits is passed over, and one unit of every group stays.
        Raises InputError when units cannot give so many weights, or a magnitude is NaN.
        """
        magnitude = self._magnitudes({n: weights[n].detach() for n in self.lines}).double().cpu()
        relative = magnitude / thresholds.detach().double().cpu()[self.owner]
        if bool(relative.isnan().any()):
            raise InputError("the weights of a unit hold NaN: check the model, or lower the learning rate")
        rank = torch.empty(len(self.units), dtype=torch.float64)
        rank[torch.sort(relative, stable=True).indices] = torch.arange(len(self.units), dtype=torch.float64)
        # select_units divides by the units' weights; a rank, being whole, comes out of that as it was.
        scores = rank * torch.tensor(unit_sizes(self.units, self.scope), dtype=torch.float64)
        chosen = select_units(self.units, scores, zeros, self.scope).chosen
        keep = unit_masks(self.units, chosen, self.scope)
        return {
            name: keep[name].to(weights[name].device)
            if name in keep
            else torch.ones_like(weights[name], dtype=torch.bool)
            for name in self.scope.prunables
        }

    def chosen(self, keeps: Mapping[str, torch.Tensor]) -> list[int]:
        """Numbers of the units that keep masks of :meth:`select` remove: those none of whose rows keeps a weight."""
        alive = {n: keeps[n].any(1).cpu() for n, lines in self.lines.items() if lines.has_rows}
        return [
            i
            for i, unit in enumerate(self.units)
            if not any(bool(alive[m.name][list(m.indices)].any()) for m in unit.members if m.axis == "rows")
        ]

    def entries(
        self, keeps: Mapping[str, torch.Tensor], tensors: nn.Module | Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """New values of the biases and normalization parameters that have entries of removed units: those are zero.

        With masks and entries applied, a removed unit is zero everywhere and :func:`winnow.shrink` can take it out. The
        model's outputs do not change by it: what the entries send on meets columns of zeros. ``tensors``: the model, or its stored
        tensors by name; neither is changed.
        """
        return zero_biases(self.units, self.chosen(keeps), tensors)


def _whole(sizes: torch.Tensor, owner: torch.Tensor, groups: int) -> torch.Tensor:
    """Sizes as whole numbers with the same sum in every group, int64 [U]."""
    whole = torch.zeros(len(sizes), dtype=torch.int64)
    for g in range(groups):
        at = owner == g
        reached = sizes[at].cumsum(0).round().long()
        whole[at] = reached.diff(prepend=reached.new_zeros(1))
    return whole


def _names(units: Sequence[CoupledUnit], owner: Sequence[int], scope: Scope) -> tuple[str, ...]:
    """The module that holds each group's producers; experts, which share theirs, with the number of the expert."""
    names: dict[int, str] = {}
    seen: Counter[str] = Counter()
    for unit, group in zip(units, owner):
        if group in names:
            continue
        paths = [scope.prunables[m.name].module for m in unit.members if m.axis == "rows"]
        common = common_path(paths)
        name = (common if common != unit.block else "") or paths[0] or unit.kind
        part = next((m.part for m in unit.members if m.part is not None), None)
        name = name if part is None else f"{name}[{part}]"
        seen[name] += 1
        names[group] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return tuple(names[g] for g in range(len(names)))
