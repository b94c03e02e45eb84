"""The coupled units of one module, from the probes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn

from winnow.coupled.call import ERRORS, Call, record
from winnow.coupled.cut import CutProbe, Rows
from winnow.coupled.graph import Component, Separation, find_components, mask_of, owners_of, separate
from winnow.coupled.site import site_of
from winnow.coupled.unit import CoupledUnit, Entries, Kind, Member, Refused
from winnow.coupled.weights import WeightProbe
from winnow.masks.experts import dotted
from winnow.masks.prunable import CONVOLUTIONS, Prunable, Scope

ESCAPES = "its features are also read outside the layers that can be pruned (a residual stream or the output)"
MIXED = "all its features depend on each other (a normalization, or a single head), so none can go alone"
ADDED = "another path adds to the same features (a residual), so they do not become constant"
LEAKS = "probing found that its features reach layers in a way that does not split into units"
SPLITS = "a grouped convolution reads input channels that stay"
UNPROBED = "its layer was not run by the example: give an example that reaches it"
ALONE = "no unit starts or ends here: it reads or writes features that other layers share"


@dataclass
class Coupling:
    """Units of all kinds found, and the prunable tensors that belong to none."""

    units: list[CoupledUnit] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)


def module_coupling(module: nn.Module, path: str, call: Call, scope: Scope) -> Coupling:
    """The units inside one module (a repeated block or the whole model), proven separate by probes.

    ``path`` is the module's path in the model that ``scope`` speaks of, ``call`` one recorded call of it;
    a few tokens or pixels are enough. Only this module has to hold its weights.
    """
    inside = {n: p for n, p in scope.prunables.items() if not path or n.startswith(f"{path}.")}
    found = Coupling()
    reasons: dict[str, str] = {}

    def attempt(work: Callable[[], list[CoupledUnit]], names: Sequence[str]) -> None:
        try:
            found.units += work()
        except ERRORS as error:
            reasons.update(dict.fromkeys(names, f"probing its code failed ({error})".splitlines()[0]))

    local = {p.module: module.get_submodule(p.module[len(path) + 1 :] if path else p.module) for p in inside.values()}
    owners = sorted(owner for owner, m in local.items() if site_of(m) is None)  # read their parameters directly
    relative = {owner: owner[len(path) + 1 :] if path else owner for owner in owners}
    held = {o: {n: p for n, p in inside.items() if n.startswith(f"{o}." if o else "")} for o in owners}
    direct = {n: p for n, p in inside.items() if not any(n in names for names in held.values())}
    attempt(lambda: cut_units(CutProbe(module, call), path, scope, reasons), list(direct))
    calls: dict[str, Call] = {}
    if owners:
        fresh = call.fresh()
        with suppress(*ERRORS):
            calls = record(module, lambda: module(*fresh.args, **fresh.kwargs), list(relative.values()))
    for owner in owners:
        if relative[owner] not in calls:
            reasons.update(dict.fromkeys(held[owner], UNPROBED))
            continue
        prunables = {n[len(owner) + 1 :] if owner else n: p for n, p in held[owner].items()}
        probe = partial(WeightProbe, module.get_submodule(relative[owner]), calls[relative[owner]], prunables)
        attempt(partial(_weight_units, probe, owner, reasons), list(held[owner]))
    used = {member.name for unit in found.units for member in unit.members}
    found.refused = [Refused(path, (n,), reasons.get(n, ALONE)) for n in inside if n not in used]
    return found


def _keep(
    reasons: dict[str, str],
    prefix: str,
    leaf: str,
    components: list[Component],
    good: Callable[[Component], bool],
    why: str,
) -> list[Component]:
    """Those that are good; the parameters of the others get ``why`` as their reason."""
    verdicts = [good(c) for c in components]
    for names in {c.names for c, kept in zip(components, verdicts) if not kept}:
        for name in (*names[0], *names[1]):
            reasons.setdefault(dotted(prefix, name, leaf), why)
    return [c for c, kept in zip(components, verdicts) if kept]


def _several(components: list[Component]) -> Callable[[Component], bool]:
    counts = Counter(c.names for c in components)
    return lambda c: counts[c.names] > 1


def _avoids(name: str, component: Component) -> bool:
    return name not in component.rows and name not in component.cols


def cut_units(probe: CutProbe, path: str, scope: Scope, reasons: dict[str, str]) -> list[CoupledUnit]:
    """The coupled units of a probed module at ``path``; ``reasons`` gets why a parameter of the scope has none."""

    def prunable(name: str) -> Prunable | None:
        return scope.prunables.get(dotted(path, name, "weight"))

    keep = partial(_keep, reasons, path, "weight")
    components = find_components(probe)
    outside = {n for n in (*probe.producers, *probe.consumers) if prunable(n) is None}
    for name in sorted(outside):
        why = f"{dotted(path, name, 'weight')} shares its units but is not in the scope"
        components = keep(components, partial(_avoids, name), why)
    components = keep(components, lambda c: not c.escapes, ESCAPES)
    components = keep(components, _several(components), MIXED)
    if not components:
        return []
    parted = separate(probe, components)
    owner = {id(c): n for n, c in enumerate(components)}
    kept = keep(components, lambda c: owner[id(c)] not in parted.failed, LEAKS)
    kept = keep(kept, lambda c: _whole_groups(probe, c, owner[id(c)], parted), SPLITS)
    constant = _constant(probe, kept, {name: owners >= 0 for name, owners in parted.norms.items()})
    kept = keep(kept, lambda c: id(c) in constant, ADDED)
    kept = keep(kept, _several(kept), MIXED)
    norms = _norm_entries(probe, path, parted)
    units = []
    for component in kept:
        members, biases, convs = [], [], False
        for name, rows in component.rows.items():
            p, module = prunable(name), probe.sites[name].module
            assert p is not None
            convs |= p.kind in CONVOLUTIONS
            members.append(Member(p.name, "rows", rows, parts=p.parts))
            if getattr(module, "bias", None) is not None:
                biases.append(Entries(dotted(path, name, "bias"), rows))
        for name, cols in component.cols.items():
            p, module = prunable(name), probe.sites[name].module
            assert p is not None
            width = p.kernel
            wide = tuple(c * width + k for c in cols for k in range(width))
            bias = dotted(path, name, "bias") if getattr(module, "bias", None) is not None else None
            members.append(Member(p.name, "cols", wide, parts=p.parts, bias=bias))
        biases += norms.get(owner[id(component)], [])
        kind: Kind = "channel" if convs else "neuron" if all(len(c) == 1 for c in component.cols.values()) else "head"
        units.append((kind, tuple(members), tuple(biases)))
    return _numbered(units, path, scope.prunables)


def _numbered(
    units: Sequence[tuple[Kind, tuple[Member, ...], tuple[Entries, ...]]], path: str, prunables: Mapping[str, Prunable]
) -> list[CoupledUnit]:
    out: list[CoupledUnit] = []
    counts: Counter[tuple[str, ...]] = Counter()
    for kind, members, biases in units:
        blocks = {prunables[m.name].block for m in members}
        block = path or (blocks.pop() if len(blocks) == 1 else None) or ""
        unit = CoupledUnit(kind, block, 0, members, biases)
        out.append(replace(unit, index=counts[unit.group[1]]))
        counts[unit.group[1]] += 1
    return out


def _norm_entries(probe: CutProbe, path: str, parted: Separation) -> dict[int, list[Entries]]:
    entries: dict[int, list[Entries]] = {}
    for name, owners in parted.norms.items():
        for param, tensor in probe.norm_modules[name]._parameters.items():
            if tensor is not None and tensor.numel() == len(owners):
                for number in set(owners.tolist()) - {-1, -2}:
                    index = tuple((owners == number).nonzero().flatten().tolist())
                    entries.setdefault(number, []).append(Entries(dotted(path, name, param), index))
    return entries


def _whole_groups(probe: CutProbe, component: Component, number: int, parted: Separation) -> bool:
    """A grouped convolution loses whole groups: all output rows of a group go with all its input channels."""
    for name, rows in component.rows.items():
        site = probe.sites[name]
        if not site.through:
            continue
        groups = site.module.groups
        out, into = site.outputs // groups, site.inputs // groups  # type: ignore[operator]
        for group in {row // out for row in rows}:
            if not set(range(group * out, (group + 1) * out)) <= set(rows):
                return False
            if bool((parted.between[name][group * into : (group + 1) * into] != number).any()):
                return False
    return True


def _constant(probe: CutProbe, components: Sequence[Component], norms: Rows) -> set[int]:
    """Components whose columns stop changing when one of their producers gives zero (ids of the components).

    This holds for a gate, for attention (the values) and for a chain of layers, and fails where a second
    path adds to the same features. Compared between two runs in which everything else is noise.
    """
    constant: set[int] = set()
    vary: Rows = {name: torch.ones(1) for c in components for name in c.rows}
    cols = owners_of(components, "cols", probe.consumers)
    for turn in range(max((len(c.rows) for c in components), default=0)):
        rows: dict[str, list[int]] = {}
        for component in components:
            for name in sorted(component.rows)[turn : turn + 1]:
                rows.setdefault(name, []).extend(component.rows[name])
        silent = {name: mask_of(index, probe.producers[name]) for name, index in rows.items()}
        steady = probe.steady(silent, vary, norms)
        moving: set[int] = set()
        for name, owner in cols.items():
            moving |= set(owner[~steady[name]].tolist() if name in steady else owner.tolist())
        constant |= {id(c) for n, c in enumerate(components) if n not in moving}
    return constant


def _weight_units(make: Callable[[], WeightProbe], owner: str, reasons: dict[str, str]) -> list[CoupledUnit]:
    probe = make()
    prunables, params = probe.prunables, dict(probe.module.named_parameters())
    keep = partial(_keep, reasons, owner, "")
    components = keep(find_components(probe), lambda c: not c.escapes, ESCAPES)
    components = keep(components, _several(components), MIXED)
    if not components:
        return []
    failed = separate(probe, components).failed
    fine = {id(c) for n, c in enumerate(components) if n not in failed}
    components = keep(components, lambda c: id(c) in fine, LEAKS)
    biases = {name: bias for name in prunables if (bias := _bias_of(name, prunables[name], params)) is not None}
    rows = {n: owner >= 0 for n, owner in owners_of(components, "rows", probe.producers).items()}
    silent = probe.silenced(rows, {biases[name]: mask for name, mask in rows.items() if name in biases})
    components = keep(components, lambda c: all(bool(silent[n][list(i)].all()) for n, i in c.cols.items()), ADDED)
    units = []
    for c in _extended(components, prunables):
        members = [Member(prunables[n].name, "rows", i, parts=prunables[n].parts) for n, i in c.rows.items()]
        entries = tuple(Entries(dotted(owner, biases[n]), i) for n, i in c.rows.items() if n in biases)
        for name, index in c.cols.items():
            p, bias = prunables[name], biases.get(name)
            part = index[0] // p.cols if p.parts > 1 else None
            cols = tuple(i % p.cols for i in index)
            members.append(Member(p.name, "cols", cols, part, p.parts, dotted(owner, bias) if bias else None))
        kind: Kind = "neuron" if all(len(i) == 1 for i in c.cols.values()) else "head"
        units.append((kind, tuple(members), entries))
    block = next(iter(prunables.values())).block or ""
    return _numbered(units, block, {p.name: p for p in prunables.values()})


def _extended(components: list[Component], prunables: Mapping[str, Prunable]) -> list[Component]:
    """Adds the units of experts that no token was sent to: all experts of one tensor run the same code."""
    if not components or any(p.kind != "experts" for p in prunables.values()):
        return components
    parts = next(iter(prunables.values())).parts
    patterns: dict[int, set[tuple[tuple[tuple[str, tuple[int, ...]], ...], ...]]] = {}
    for c in components:
        sides, of = [], set()
        for side, sizes in ((c.rows, lambda p: p.rows // p.parts), (c.cols, lambda p: p.cols)):
            of |= {i // sizes(prunables[n]) for n, index in side.items() for i in index}
            sides.append(tuple(sorted((n, tuple(i % sizes(prunables[n]) for i in index)) for n, index in side.items())))
        if len(of) != 1:
            return components
        patterns.setdefault(of.pop(), set()).add(tuple(sides))
    if len({frozenset(p) for p in patterns.values()}) != 1:
        return components
    order = sorted(next(iter(patterns.values())), key=lambda sides: sides[1])
    return [
        Component(
            {n: tuple(e * (prunables[n].rows // parts) + i for i in index) for n, index in rows},
            {n: tuple(e * prunables[n].cols + i for i in index) for n, index in cols},
            False,
        )
        for e in range(parts)
        for rows, cols in order
    ]


def _bias_of(name: str, p: Prunable, params: Mapping[str, torch.Tensor]) -> str | None:
    """The bias beside a weight parameter: named after it, with one entry a row."""
    for candidate in (name.replace("weight", "bias"), f"{name}_bias", f"{name}.bias"):
        if candidate != name and candidate in params and params[candidate].numel() == p.rows:
            return candidate
    return None
