"""Which unit every row and column of a matrix belongs to, and what goes when units go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from winnow.coupled.unit import Member, member_parts
from winnow.errors import InputError
from winnow.masks.prunable import Prunable


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
