"""Smaller dense shapes where whole coupled units are zero."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from winnow.coupled.call import ERRORS, crop_example, forward, probing_mode, tensors_in
from winnow.errors import InputError
from winnow.kernels.swap import require_dense
from winnow.masks.prunable import Scope
from winnow.masks.unwrap import plain_module, require_initialised, working_copy
from winnow.notebook import Card, Shown
from winnow.shrinking.attributes import name_of
from winnow.shrinking.dead_units import DeadUnits, Group, coupled_units, grouped, wide_scope
from winnow.shrinking.example import make_example
from winnow.shrinking.plan_writer import Choice, PlanWriter
from winnow.shrinking.rebuild import apply

SMALL = 1 << 27  # weights of a model that is checked in float64
# Largest difference, relative to the largest output: float64 runs keep float32 islands (norms, softmax, rotary tables).
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}


class Check:
    """Runs the given model once and every smaller one on the same input."""

    def __init__(self, model: nn.Module, example: Any) -> None:
        """Raises InputError when the model cannot run on the example."""
        self.model, self.example = model, crop_example(example)
        try:
            self.outputs = _outputs(model, self.example)
        except ERRORS:
            self.example = example
            try:
                self.outputs = _outputs(model, example)
            except ERRORS as error:
                why = f"{type(error).__name__}: {error}".splitlines()[0]
                raise InputError(
                    f"the model cannot be run on the example: give what its forward takes ({why})"
                ) from error
        if sum(p.numel() for p in model.parameters()) <= SMALL:
            with suppress(*ERRORS):
                double, wide = working_copy(model).double(), _double(self.example)
                self.outputs = _outputs(double, wide)
                self.model, self.example = double, wide
        self.dtype = next((t.dtype for t in self.outputs), torch.float32)

    def reason(self, plan: Mapping[str, Any]) -> str:
        """Why the model that a plan makes is not the given one; empty where it is."""
        try:
            outputs = _outputs(apply(self.model, plan), self.example)
        except ERRORS as error:  # InputError is a ValueError
            return f"without them the model does not run ({type(error).__name__}: {error})".splitlines()[0]
        if [t.shape for t in outputs] != [t.shape for t in self.outputs]:
            return "without them the model's outputs have another shape"
        for new, old in zip(outputs, self.outputs):
            if not torch.equal(new.isnan(), old.isnan()):
                return "without them the model puts out NaN elsewhere"
            new, old = (t.double().nan_to_num(0.0) for t in (new, old))
            worst = float((new - old).abs().max()) if old.numel() else 0.0
            scale = float(old.abs().max()) if old.numel() else 0.0
            if worst > TOLERANCE.get(self.dtype, 1e-4) * scale:
                return f"without them the model's outputs differ (by {worst:.2g} of {scale:.2g})"
        return ""


def _outputs(model: nn.Module, example: Any) -> list[torch.Tensor]:
    with probing_mode(model), torch.no_grad():
        return tensors_in(forward(model, example))


def _double(example: Any) -> Any:
    if isinstance(example, Mapping):
        return {k: _double(v) for k, v in example.items()}
    if isinstance(example, (tuple, list)):
        return tuple(map(_double, example))
    return example.double() if isinstance(example, torch.Tensor) and example.is_floating_point() else example


LAST = "all of them are zero, and one has to stay"
UNEVEN = "experts are stacked in one tensor: each has to lose as many, to a width that grouped products take"
STEP = 8  # grouped products of experts take rows of a multiple of 16 bytes
APART = "these heads are zero here, but not in every layer that shares its number of heads with this one"


@dataclass(frozen=True)
class Removed:
    """Units that went from one place of the model."""

    kind: str  # neuron | head | channel
    name: str  # path of the module that holds them
    count: int
    total: int


@dataclass(frozen=True)
class Skipped:
    """Zero units, or (kind "row") zero rows of a layer that belongs to no unit, that stay, and why."""

    kind: str
    name: str
    count: int
    reason: str


@dataclass(frozen=True, repr=False)
class ShrinkResult(Shown):
    """The smaller model, what went, what stayed and why, and the plan that makes it again (:func:`apply`)."""

    model: nn.Module
    removed: list[Removed]
    skipped: list[Skipped]
    plan: dict[str, Any] = field(repr=False)

    def _card(self) -> Card:
        kinds = dict.fromkeys(r.kind for r in self.removed)
        went = ", ".join(f"{sum(r.count for r in self.removed if r.kind == k):,} {k}s removed" for k in kinds)
        removed, skipped = [vars(r) for r in self.removed], [vars(s) for s in self.skipped]
        parameters = sum(p.numel() for p in self.model.parameters())
        facts = [("model", f"{type(self.model).__name__}, {parameters:,} parameters")]
        return Card(
            "ShrinkResult",
            went or "nothing was removed",
            facts,
            [("removed", removed), ("what stays, and why", skipped)],
        )


def shrink(model: nn.Module, example: Any = None) -> ShrinkResult:
    """A model whose coupled units that are entirely zero are gone from its dense shapes.

    A unit (neuron, attention head or KV group, conv channel) goes when all that read it are zero, or when its own
    rows are and what comes of them is constant: zero, or a number that moves into the next layer's bias. With it
    go the columns of its readers, entries of biases and normalizations, depthwise filters, and the counts
    kept in attributes and (where all layers agree) in a transformers config; where they do not, ``save_pretrained`` of
    the smaller model refuses, and the model as it was is saved instead and shrunk whenever it is loaded. Every removal is run against
    the given model - in float64 up to 134 million weights - and reverted with its reason where they differ.

    The given model stays as it was; parameters that are not cut are shared with it. ``example`` is what
    its forward takes (a tensor, a tuple, or keyword arguments); without one an input is made from its config or
    its first layer. Raises InputError when no example can be made or the model cannot run on it.
    """
    model = plain_module(model)
    made, removed, skipped = _decide(model, example)
    small = apply(model, made)
    if known := getattr(small, "winnow_zeros", None):  # units that are gone took their zeros with them
        left = dict(small.named_parameters())
        small.winnow_zeros = {n: int((left[n] == 0).sum()) for n in known if n in left}  # type: ignore[assignment]
    return ShrinkResult(small, removed, skipped, made)


def plan(model: nn.Module, example: Any = None) -> dict[str, Any]:
    """What :func:`shrink` would do, as the JSON that :func:`apply` takes."""
    return _decide(plain_module(model), example)[0]


def _decide(model: nn.Module, example: Any) -> tuple[dict[str, Any], list[Removed], list[Skipped]]:
    require_initialised(model)
    if any(p.is_meta for p in model.parameters()):
        raise InputError("a model on the meta device holds no values to look for zeros in: load its weights first")
    require_dense(model)
    scope = wide_scope(model)
    if not scope.prunables:
        return PlanWriter(model, scope, []).plan([]), [], []
    if example is None:
        example = make_example(model)
    check = Check(model, example)
    units, refused = coupled_units(model, scope, example)
    groups = grouped(units, scope)
    dead = DeadUnits(check.model, scope, groups, check.example)
    dead.find()
    skipped = [
        Skipped("row", scope.prunables[name].module, count, r.reason)
        for r in refused
        for name in r.names
        if (count := dead.zero_row_count(name))
    ]

    def skip(group: Group, count: int, reason: str) -> None:
        skipped.append(Skipped(group.kind, name_of(group, scope.prunables), count, reason))

    choices = []
    for group in groups:
        for reason in dict.fromkeys(group.refused.values()):
            skip(group, list(group.refused.values()).count(reason), reason)
        positions, why = _removable(group, scope)
        if len(positions) < len(group.dead):
            skip(group, len(group.dead) - len(positions), why)
        if positions:
            choices.append(Choice(group, positions))
    writer = PlanWriter(model, scope, groups)
    kept = _Settler(writer, check, skip).settle(choices)
    removed = [
        Removed(c.group.kind, name_of(c.group, scope.prunables), len(c.positions), len(c.group.units)) for c in kept
    ]
    return _best(writer, check, kept)[0], removed, skipped


def _removable(group: Group, scope: Scope) -> tuple[tuple[int, ...], str]:
    """Dead units that may go: one stays, and of stacked experts each loses as many."""
    dead = sorted(group.dead)
    experts = [m for m in group.units[0].members if m.part is not None and scope.prunables[m.name].kind == "experts"]
    if not experts:
        return tuple(dead[len(dead) == len(group.units) :]), LAST
    owner = [next(m.part for m in u.members if m.part is not None) for u in group.units]
    by_expert: dict[int, list[int]] = {e: [] for e in owner}
    for i in dead:
        by_expert[owner[i]].append(i)
    size = len(group.units) // len(by_expert)
    least = min(min(map(len, by_expert.values())), size - 1)
    if size % STEP == 0:
        least -= least % STEP
    return tuple(sorted(i for found in by_expert.values() for i in found[len(found) - least :])), UNEVEN


def _best(writer: PlanWriter, check: Check, choices: Sequence[Choice]) -> tuple[dict[str, Any], str]:
    """The plan of a choice and what is wrong with it: with config entries where it runs with them, else without."""
    made = writer.plan(choices)
    why = check.reason(made)
    if why and made["config"]:
        plain = {**made, "config": []}
        if not (other := check.reason(plain)):
            return plain, other
    return made, why


class _Settler:
    """Finds the largest part of the choices that leaves the outputs as they were."""

    def __init__(self, writer: PlanWriter, check: Check, skip: Any) -> None:
        self.writer, self.check, self.skip = writer, check, skip

    def settle(self, choices: list[Choice]) -> list[Choice]:
        if not choices or not _best(self.writer, self.check, choices)[1]:
            return choices
        kept: list[Choice] = []
        for kind in dict.fromkeys(c.group.kind for c in choices):
            own = [c for c in choices if c.group.kind == kind]
            kept = self._halves(kept, own) if kind != "head" else self._heads(kept, own)
        return kept

    def _heads(self, kept: list[Choice], own: list[Choice]) -> list[Choice]:
        """Heads that only go together with those of other layers (a table shared by all layers) go where all agree."""
        for agreed in (own, self._agreed(own)):
            if agreed and not _best(self.writer, self.check, kept + agreed)[1]:
                went = {id(c.group): len(c.positions) for c in agreed}
                for c in own:
                    if len(c.positions) > (n := went.get(id(c.group), 0)):
                        self.skip(c.group, len(c.positions) - n, APART)
                return kept + agreed
        return self._halves(kept, own)

    def _agreed(self, own: list[Choice]) -> list[Choice]:
        """Of groups that are called alike in all layers, the positions that are dead in each."""
        alike: dict[str, list[Choice]] = {}
        counts: dict[str, int] = {}
        for group in self.writer.groups:
            if group.kind == "head":
                counts[self._pattern(group)] = counts.get(self._pattern(group), 0) + 1
        for c in own:
            alike.setdefault(self._pattern(c.group), []).append(c)
        found = []
        for pattern, members in alike.items():
            common = set.intersection(*(set(c.positions) for c in members))
            if common and len(members) == counts[pattern]:
                found += [Choice(c.group, tuple(sorted(common))) for c in members]
        return found

    def _pattern(self, group: Group) -> str:
        return re.sub(r"\d+", "*", name_of(group, self.writer.prunables))

    def _halves(self, kept: list[Choice], own: list[Choice]) -> list[Choice]:
        why = _best(self.writer, self.check, kept + own)[1]
        if not why:
            return kept + own
        if len(own) == 1:
            self.skip(own[0].group, len(own[0].positions), why)
            return kept
        middle = len(own) // 2
        return self._halves(self._halves(kept, own[:middle]), own[middle:])
