"""The pieces of a model that calibration stops at, one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from winnow.masks.blocks import find_blocks
from winnow.masks.prunable import Prunable, Scope


@dataclass(frozen=True)
class WalkUnit:
    """One piece of a model that is run, pruned and run again as a whole.

    A repeated block (also one without prunables: it is run there, and streamed), a prunable layer outside the
    blocks, or the whole model (path "").
    """

    path: str
    module: nn.Module
    prunables: list[Prunable]


def find_walk_units(
    model: nn.Module, scope: Scope, by: Literal["block", "layer"] = "block"
) -> tuple[list[WalkUnit], list[WalkUnit]]:
    """The units of a model in module order, and those that no forward can stop at.

    ``by`` "layer" stops at every prunable layer, inside blocks too. The second kind are owners of prunables that were
    asked for by name and have units below them.
    """
    blocks = find_blocks(model)
    prunables: dict[str, list[Prunable]] = {block.path: [] for block in blocks if by == "block"}
    modules = dict(model.named_modules(remove_duplicate=False))
    for p in scope.prunables.values():
        path = p.block if p.block and by == "block" else _callable(p, modules)
        prunables.setdefault(path, []).append(p)
    if not blocks and by == "block":
        return [whole_model(model, scope)], []
    order = {path: i for i, path in enumerate(modules)}
    units: list[WalkUnit] = []
    loose: list[WalkUnit] = []
    for path in sorted(prunables, key=order.__getitem__):
        above = any(other != path and (not path or other.startswith(f"{path}.")) for other in prunables)
        (loose if above else units).append(WalkUnit(path, modules[path], prunables[path]))
    return units, loose


def one_stream(model: nn.Module) -> bool:
    """Whether a layer alone tells which padding its input has: one stack of blocks, or nothing embedded (images).

    Encoder-decoders and several towers need the arguments of the whole block for that, and torch's
    MultiheadAttention reads its weights inside one call.
    """
    if any(isinstance(m, nn.MultiheadAttention) for m in model.modules()):
        return False
    stacks = {block.path.rpartition(".")[0] for block in find_blocks(model)}
    return len(stacks) < 2 or not any(isinstance(m, nn.Embedding) for m in model.modules())


def whole_model(model: nn.Module, scope: Scope) -> WalkUnit:
    """The model as one unit."""
    return WalkUnit("", model, list(scope.prunables.values()))


def _callable(p: Prunable, modules: Mapping[str, nn.Module]) -> str:
    above = p.module.rpartition(".")[0]
    return above if isinstance(modules[above], nn.MultiheadAttention) else p.module


def probe(units: list[WalkUnit], forward: Callable[[], Any]) -> list[str]:
    """Paths of the units in the order ``forward`` calls them, repetitions included."""
    calls: list[str] = []
    with ExitStack() as stack:
        for unit in units:
            hook = unit.module.register_forward_pre_hook(lambda module, args, path=unit.path: calls.append(path))
            stack.callback(hook.remove)
        forward()
    return calls


@dataclass
class Options:
    """What a walk is given and notes, as :class:`winnow.calibrate.walker.Walker` takes them; the last five are found, and filled."""

    model: nn.Module
    batches: Sequence[Any]
    gram: Callable[[Prunable], bool]
    device: torch.device
    enter: Callable[[WalkUnit], None]
    leave: Callable[[WalkUnit], None]
    spill: Path | None
    progress: Callable[[int, int, str], None] | None
    loose: list[WalkUnit] = field(default_factory=list)  # with weights that no forward stops at
    direct: set[str] = field(default_factory=set)  # weights of layers that other modules multiply with
    aside: list[Prunable] = field(default_factory=list)  # that get the statistics of the dense model
    notes: list[str] = field(default_factory=list)
    unreached: list[Prunable] = field(default_factory=list)
