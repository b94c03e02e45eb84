"""Where a model repeats itself: the blocks that calibration walks one after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


@dataclass(frozen=True)
class Block:
    """One of the repeated blocks of a model."""

    path: str  # "model.layers.0"
    module: nn.Module


def common_path(paths: Iterable[str]) -> str:
    """The dotted beginning that all paths share, "" where they share none."""
    levels = zip(*(path.split(".") for path in paths))
    return ".".join(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))


def is_transposed_linear(module: nn.Module) -> bool:
    """True for GPT-2's Conv1D, a linear layer that stores its weight [in, out] (recognised by its shape, not by import)."""
    weight = getattr(module, "weight", None)
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and weight is not None and weight.dim() == 2


def holds_weights(module: nn.Module) -> bool:
    """True where a module or one below it multiplies by a matrix that could be pruned."""
    for child in module.modules():
        if isinstance(child, (nn.Linear, _ConvNd, nn.MultiheadAttention)) or is_transposed_linear(child):
            return True
        if isinstance(child, nn.Bilinear):
            continue
        own = (p for p in child._parameters.values() if p is not None and not is_lazy(p))
        if any(p.dim() == 3 and min(p.shape) > 1 for p in own):
            return True
    return False


def _kind(module: nn.Module) -> tuple[type, tuple[str, ...]]:
    # A plain nn.Sequential says nothing about what is in it: there, the names of the parameters must agree too.
    names = tuple(n for n, _ in module.named_parameters()) if type(module) in CONTAINERS else ()
    return type(module), names


def _members(container: nn.Module) -> list[tuple[str, nn.Module]]:
    """Children that are blocks: all that have weights below them, if at least two are of one kind."""
    children = container.named_children()  # leaves out a module that is listed twice
    members = [(n, child) for n, child in children if next(child.children(), None) is not None and holds_weights(child)]
    kinds = [_kind(child) for _, child in members]
    return members if any(kinds.count(kind) > 1 for kind in kinds) else []


def _search(module: nn.Module, path: str) -> Iterator[Block]:
    members = _members(module) if isinstance(module, CONTAINERS) else []
    if members:
        for name, child in members:
            yield Block(f"{path}.{name}" if path else name, child)
        return
    for name, child in module.named_children():
        yield from _search(child, f"{path}.{name}" if path else name)


def find_blocks(model: nn.Module) -> list[Block]:
    """The repeated blocks of a model in module order, found by structure alone.

    A ModuleList, Sequential or ModuleDict counts when at least two of its children are of one class, have
    children of their own and hold weights that could be pruned; then all its children of that sort are
    blocks (a hybrid model alternates classes). Only outermost containers count: experts inside a layer are
    part of the layer. Needs no forward pass and no values, so it works on a meta-device skeleton. Empty for
    a model without repetition.
    """
    return list(_search(model, ""))
