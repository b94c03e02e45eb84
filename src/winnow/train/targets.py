"""What is attached to: the bare model and optimizers, what is prunable, and where its parameters are held."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.masks.prunable import Scope
from winnow.train.shards import is_cut_up, whole

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]


def plain_optimizers(given: Optimizers) -> list[torch.optim.Optimizer]:
    found = list(given) if isinstance(given, Sequence) else [given]
    for i, optimizer in enumerate(found):
        while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
            optimizer = inner
        if isinstance(optimizer, torch.optim.LBFGS):
            raise InputError("LBFGS moves all weights along directions of earlier masks: take another optimizer.")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InputError(f"{type(optimizer).__name__} is no torch optimizer: give the one that trains this model.")
        found[i] = optimizer
    if not found:
        raise InputError("there is no optimizer: give the one that trains this model.")
    return found


def scope_of(model: nn.Module, include: Sequence[str], exclude: Sequence[str], scope: Scope | None) -> Scope:
    cut_up = is_cut_up(model)
    if scope is None:
        from winnow.masks.scope import find_scope, scope_in_place

        scope = (scope_in_place if cut_up else find_scope)(model, include=include, exclude=exclude)
    elif include or exclude:
        raise InputError("a scope says already what is prunable: give it, or include and exclude.")
    if not scope.prunables:
        raise InputError("nothing of this model is prunable: name tensors with include, or choose another model.")
    return scope


Place = tuple[dict[str, Any], str]  # a module's parameters, and the key of one of them


def places_of(model: nn.Module, scope: Scope) -> dict[str, Place]:
    """Where the model holds the prunable parameters, by name. Raises InputError for a scope of another model."""
    places: dict[str, Place] = {}
    for name, prunable in scope.prunables.items():
        path, _, key = name.rpartition(".")
        try:
            parameters: dict[str, Any] = model.get_submodule(path)._parameters
        except AttributeError:
            raise InputError(f"the model has no {name}: give a scope of this model.") from None
        weight = parameters.get(key)
        if weight is None or tuple(weight.shape) != prunable.shape:
            raise InputError(f"the model has no {name} of the scope's shape: give a scope of this model.")
        places[name] = parameters, key
    return places


def held(optimizers: Iterable[torch.optim.Optimizer]) -> set[int]:
    """The ids of the parameters that optimizers train."""
    return set(groups_of(optimizers))


def groups_of(optimizers: Iterable[torch.optim.Optimizer]) -> dict[int, dict[str, Any]]:
    """The parameter groups, by the ids of the parameters in them."""
    return {id(p): group for o in optimizers for group in o.param_groups for p in group["params"]}


def require_trained(weights: Mapping[str, nn.Parameter], optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Raises InputError unless the weights are finite, each a parameter of its own, and some of them are trained."""
    trained = held(optimizers)
    if not any(id(p) in trained for p in weights.values()):
        raise InputError(
            "the optimizer trains none of the prunable weights: make it of this model's parameters, once the model is where "
            "and as it is trained (moved, sharded)."
        )
    if len({id(p) for p in weights.values()}) < len(weights):
        raise InputError("two prunable tensors are one parameter: leave one of the tied names out of the scope.")
    for name, weight in weights.items():
        if not bool(whole(torch.isfinite(weight.detach()).all())):
            raise InputError(f"{name} holds NaN or infinity: start from a checkpoint with finite weights.")


def require_known(optimizer: torch.optim.Optimizer, known: set[int], model: nn.Module) -> int:
    """The number of an optimizer's groups. Raises InputError where one holds matrices that were nowhere when masks were put on."""
    names = {id(p): n for n, p in model.named_parameters()}
    for number, group in enumerate(optimizer.param_groups):
        for p in group["params"]:
            if id(p) not in known and p.ndim > 1:
                name = names.get(id(p), f"a tensor {list(p.shape)}")
                raise InputError(
                    f"{name} came to the optimizer (group {number}) after attach and would be trained without a mask: detach() "
                    "and attach again, with exclude if it is to stay dense."
                )
    return len(optimizer.param_groups)
