"""Mixture-of-experts parts of a model: which parameters hold experts, which way round, and who routes to them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.rnn import RNNBase
from torch.nn.parameter import is_lazy


@dataclass
class ExpertGroup:
    """The experts that one router chooses from."""

    path: str  # module that holds router and experts, "" for the model itself
    experts: int
    routers: set[str] = field(default_factory=set)  # parameters that score the experts
    stacked: dict[str, bool] = field(default_factory=dict)  # 3-D parameter -> True where stored [E, in, out]


def find_experts(model: nn.Module) -> list[ExpertGroup]:
    """Every group of experts of a model, by structure alone (no forward, no model names).

    Experts are 3-D parameters [E, ., .] of a module or of its children, or a list of E equal modules; a router
    is a matrix with E rows beside them (its own module may wrap it once if it is called router or gate). Gates
    with one output beside experts (shared experts) count as routers. 3-D parameters without a router, such as
    position tables, are experts only where their module says so in its name.
    """
    groups: list[ExpertGroup] = []
    for path, module in model.named_modules():
        group = _group(path, module)
        # The module that owns stacked experts is met again below the one that holds the router too.
        if group is not None and not any(group.stacked and group.stacked.keys() <= g.stacked.keys() for g in groups):
            groups.append(group)
    return groups


def dotted(*parts: str) -> str:
    """A path in a model of its parts, of which some may be empty."""
    return ".".join(part for part in parts if part)


# Modules whose tensors of three dimensions are known to be something else: filters, products of two inputs, biases.
_KNOWN = (_ConvNd, nn.Bilinear, nn.MultiheadAttention, nn.Embedding, nn.EmbeddingBag, RNNBase, nn.LayerNorm)


def _stacks(module: nn.Module, path: str) -> dict[str, torch.Tensor]:
    if isinstance(module, _KNOWN):
        return {}
    named = ((n, p) for n, p in module._parameters.items() if p is not None and not is_lazy(p) and p.dim() == 3)
    return {dotted(path, name): p for name, p in named if min(p.shape) > 1}


def _group(path: str, module: nn.Module) -> ExpertGroup | None:
    holders: dict[str, nn.Module] = {}
    stacks = _stacks(module, path)
    count = next(iter(stacks.values())).shape[0] if stacks else 0
    for name, child in module.named_children():
        own = _stacks(child, dotted(path, name))
        if own:
            count = next(iter(own.values())).shape[0]
        elif isinstance(child, (nn.ModuleList, nn.ModuleDict)) and len(child) > 1:
            members = list(child.children())
            if len({type(m) for m in members}) > 1 or next(members[0].children(), None) is None:
                continue
            count = len(members)
        else:
            continue
        stacks.update(own)
        holders[name] = child
    if not count:
        return None
    matrices, gates = _routers(path, module, holders, count)
    widths = _widths(stacks, holders, count)
    matrices = {name: p for name, p in matrices.items() if p.shape[1] in widths}
    if not matrices and not (stacks and any("expert" in name.lower() for name in [*holders, path.rpartition(".")[2]])):
        return None
    stacks = {name: p for name, p in stacks.items() if p.shape[0] == count}
    group = ExpertGroup(path, count, set(matrices) | gates)
    if stacks:
        declared = next((getattr(m, "is_transposed", None) for m in [*holders.values(), module]), None)
        width = next((int(p.shape[1]) for p in matrices.values()), None)
        group.stacked = dict.fromkeys(stacks, _transposed(list(stacks.values()), declared, width))
    return group


def _widths(stacks: dict[str, torch.Tensor], holders: dict[str, nn.Module], count: int) -> set[int]:
    """Widths of the tokens that the experts may take: a router reads the same ones."""
    found = {int(n) for p in stacks.values() if p.shape[0] == count for n in p.shape[1:]}
    for holder in holders.values():
        members = list(holder.children()) if isinstance(holder, (nn.ModuleList, nn.ModuleDict)) else []
        for p in members[0].parameters() if members else ():
            found |= {int(n) for n in p.shape} if not is_lazy(p) and p.dim() > 1 else set()
    return found


def _routers(
    path: str, module: nn.Module, holders: dict[str, nn.Module], count: int
) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Matrices with one row per expert beside the experts, and one-output gates."""
    beside: list[tuple[str, nn.Module]] = [(path, module)]
    for name, child in module.named_children():
        if name in holders:
            continue
        beside.append((dotted(path, name), child))
        if any(word in name.lower() for word in ("router", "gat")):
            beside += [(dotted(path, name, key), m) for key, m in child.named_children()]
    matrices: dict[str, torch.Tensor] = {}
    gates: set[str] = set()
    for where, owner in beside:
        for key, p in owner._parameters.items():
            if p is None or is_lazy(p) or p.dim() != 2 or "bias" in key:
                continue
            if p.shape[0] == count:
                matrices[dotted(where, key)] = p
            elif p.shape[0] == 1 and owner is not module:
                gates.add(dotted(where, key))
    return matrices, gates


def _transposed(stacks: list[torch.Tensor], declared: object, width: int | None) -> bool:
    """Whether the stacks are stored [E, in, out].

    What the module declares (``is_transposed``) comes first. Otherwise first and last stack must fit together,
    for tokens of width H go in and come out again: [E, out, in] needs in(first) = out(last) and out(first) a
    multiple of in(last) (2 with a fused gate), [E, in, out] the reverse. With a fused gate only one of the two
    can hold; without, the router's width is H. For experts square in every respect [E, out, in] is assumed,
    and calibration stops if it sees the other multiplication.
    """
    if isinstance(declared, bool):
        return declared
    (_, a, b), (_, c, d) = stacks[0].shape, stacks[-1].shape
    plain, flipped = b == c and a % d == 0, a == d and b % c == 0
    if plain == flipped and width is not None:
        plain, flipped = b == width, a == width
    return flipped and not plain
