"""The plan of a choice of units: which indices of which tensor stay, and what follows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from winnow.coupled.unit import CoupledUnit
from winnow.masks.prunable import Scope
from winnow.shrinking.attributes import carriers, config_edits, module_edits, rebuilds
from winnow.shrinking.dead_units import Group, norms_of
from winnow.shrinking.rebuild import PARTS, VERSION
from winnow.shrinking.tree import find_tensor

Drops = dict[tuple[str, int], dict[int, set[int]]]  # (tensor, axis) -> expert (-1: all of the tensor) -> indices


@dataclass(frozen=True)
class Choice:
    """Units of one group that go, as positions in it."""

    group: Group
    positions: tuple[int, ...]

    @property
    def kept(self) -> list[int]:
        dropped = set(self.positions)
        return [i for i in range(len(self.group.units)) if i not in dropped]


class PlanWriter:
    """Writes plans for choices among the groups of one model."""

    def __init__(self, model: nn.Module, scope: Scope, groups: Sequence[Group]) -> None:
        self.model, self.prunables, self.groups = model, scope.prunables, groups
        self._configs: dict[Any, list[dict[str, Any]]] = {}

    def plan(self, choices: Sequence[Choice], config: bool = True) -> dict[str, Any]:
        """The JSON of :func:`winnow.shrinking.apply`; ``config``: with what a config can say about it."""
        plan: dict[str, Any] = {"version": VERSION, **{part: [] for part in PARTS}}
        drops: Drops = {}
        for choice in choices:
            for i in choice.positions:
                self._drop(drops, choice.group.units[i])
            self._follow(choice, drops, plan)
        plan["folds"] = self._folds(choices)
        plan["cuts"] = [self._cut(name, axis, dropped) for (name, axis), dropped in drops.items()]
        if config:
            plan["config"] = self._config(choices)
        return plan

    def _drop(self, drops: Drops, unit: CoupledUnit) -> None:
        for m in unit.members:
            p = self.prunables[m.name]
            if p.kind == "experts":
                band = p.rows // p.parts
                out, into = (2, 1) if p.transposed else (1, 2)
                experts = range(m.parts) if m.part is None else (m.part,)
                for i in m.indices:
                    where = [(i // band, i % band)] if m.axis == "rows" else [(e, i) for e in experts]
                    for expert, index in where:
                        _add(drops, m.name, out if m.axis == "rows" else into, expert, index)
            else:
                axis = int((m.axis == "cols") != p.transposed)
                width = p.kernel if m.axis == "cols" else 1
                for i in m.indices:
                    _add(drops, m.name, axis, -1, i // width)
        for b in unit.biases:
            shape = find_tensor(self.model, b.name)[2].shape
            for i in b.indices:
                entry = (1, i // shape[1], i % shape[1]) if len(shape) == 2 else (0, -1, i)  # two axes: experts
                _add(drops, b.name, *entry)
            for buffer in norms_of(self.model, b.name):
                for i in b.indices:
                    _add(drops, buffer, 0, -1, i)

    def _cut(self, name: str, axis: int, dropped: dict[int, set[int]]) -> dict[str, Any]:
        shape = find_tensor(self.model, name)[2].shape
        size = shape[axis]
        experts = range(-1, 0) if -1 in dropped else range(shape[0])
        keep = [[i for i in range(size) if i not in dropped.get(e, ())] for e in experts]
        return {"name": name, "axis": axis, "of": size, "keep": keep[0] if -1 in dropped else keep}

    def _follow(self, choice: Choice, drops: Drops, plan: dict[str, Any]) -> None:
        """What is no weight of the units and yet counts them: attributes, and tables with a column a head."""
        group, kept = choice.group, choice.kept
        share = self._experts(group)
        total, stay = len(group.units) // share, len(kept) // share
        for path in carriers(group, self.prunables, self.model):
            module = self.model.get_submodule(path)
            if group.kind == "head" and isinstance(module, nn.MultiheadAttention):
                plan["narrow"].append({"module": path, "of": total, "keep": kept})
                continue
            for name, value in module_edits(module, group.kind, total, stay).items():
                plan["attributes"].append({"module": path, "name": name, "value": value})
            if group.kind == "head":
                self._tables(path, choice, drops)

    def _tables(self, path: str, choice: Choice, drops: Drops) -> None:
        """Parameters beside the projections with one entry or column a query head: sinks, position biases."""
        group, module = choice.group, self.model.get_submodule(path)
        width = self._head_width(group)
        reads = next(len(m.indices) for m in group.units[0].members if m.axis == "cols")
        share = max(1, reads // width) if width else 1  # query heads of one unit
        tables: dict[str, torch.Tensor] = {
            n: p for n, p in module.named_parameters(path, recurse=False) if n not in self.prunables
        }
        for key, child in module.named_children():
            if isinstance(child, nn.Embedding):
                tables[f"{path}.{key}.weight"] = child.weight
        for name, p in tables.items():
            axes = [axis for axis, size in enumerate(p.shape) if size == share * len(group.units)]
            if len(axes) == 1 and (name, axes[0]) not in drops:
                for i in choice.positions:
                    for k in range(share):
                        _add(drops, name, axes[0], -1, i * share + k)

    def _folds(self, choices: Sequence[Choice]) -> list[dict[str, Any]]:
        values: dict[tuple[str, str], dict[int, float]] = {}
        for choice in choices:
            for i in choice.positions:
                for name, constants in choice.group.dead[i].items():
                    bias = next(m.bias for m in choice.group.units[i].members if (m.name, m.axis) == (name, "cols"))
                    assert bias is not None
                    values.setdefault((name, bias), {}).update(constants)
        return [
            {
                "weight": name,
                "bias": bias,
                "axis": 0 if self.prunables[name].transposed else 1,
                "inputs": sorted(constants),
                "values": [constants[i] for i in sorted(constants)],
            }
            for (name, bias), constants in values.items()
        ]

    def _config(self, choices: Sequence[Choice]) -> list[dict[str, Any]]:
        """What the config can say: of a kind of which every block of one size keeps as many units."""
        chosen = {id(choice.group): choice for choice in choices}
        edits: list[dict[str, Any]] = []
        for kind in ("neuron", "head"):
            sizes: dict[int, set[int]] = {}
            for group in self.groups:
                if group.kind == kind and group.units[0].block:
                    share = self._experts(group)
                    choice = chosen.get(id(group))
                    stay = len(choice.kept) if choice else len(group.units)
                    sizes.setdefault(len(group.units) // share, set()).add(stay // share)
            kept = {total: next(iter(stays)) for total, stays in sizes.items() if len(stays) == 1}
            kept = {total: stay for total, stay in kept.items() if stay < total}
            own = [c for c in choices if c.group.kind == kind and c.group.units[0].block]
            if kept and own and hasattr(self.model, "config"):
                key = (kind, tuple(sorted(kept.items())), tuple((id(c.group), c.positions) for c in own))
                if key not in self._configs:
                    found = config_edits(self.model, kind, kept, self._head_width(own[0].group))
                    plan = {**self.plan(own, config=False), "config": found}
                    self._configs[key] = found if found and rebuilds(self.model, plan) else []
                edits += self._configs[key]
        return edits

    def _experts(self, group: Group) -> int:
        """How many experts share the units of a group, 1 where there are none."""
        among = (self.prunables[m.name] for m in group.units[0].members)
        return max((p.parts for p in among if p.kind == "experts"), default=1)

    def _head_width(self, group: Group) -> int | None:
        """Features of one head: the fewest rows of a layer that belong to one unit (of keys, with grouped queries)."""
        if group.kind != "head":
            return None
        for path in carriers(group, self.prunables, self.model):
            width = getattr(self.model.get_submodule(path), "head_dim", None)
            if isinstance(width, int):
                return width
        return min(len(m.indices) for m in group.units[0].members if m.axis == "rows")


def _add(drops: Drops, name: str, axis: int, expert: int, index: int) -> None:
    drops.setdefault((name, axis), {}).setdefault(expert, set()).add(index)
