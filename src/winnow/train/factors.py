"""Weights that are trained through other numbers: the optimizer steps factors, the model holds what they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.train.masking import zero
from winnow.train.targets import held


class Factors:
    """Tensors [k, *shape], by weight name, that an optimizer steps in the place of weights theta = merge(factors).

    Only inside ``optimizer.step`` do they stand in its parameter groups, with gradients by the chain rule from those of
    the weights. At all other times model and optimizer hold the weights, and gradients are dL/dtheta: accumulation, loss
    scaling, gradient clipping, DistributedDataParallel, ``state_dict`` and closures work as for plain weights. The
    optimizer's moments are those of the factors, [k, *shape], under the weight's number in its state dict; an optimizer
    that reads matrices (Muon, Adafactor) sees tensors of one dimension more. Where a mask
    removes a weight, its factors are zero too, so that weight decay moves nothing; a weight that comes back, or that
    somebody else has written, is split anew before the next step.

    Attributes:
        tensors: the factors by name; empty where the method has no ``split``.
    """

    def __init__(
        self,
        method: Any,
        weights: Mapping[str, nn.Parameter],
        optimizers: Sequence[torch.optim.Optimizer],
        masks: Mapping[str, torch.Tensor],
    ) -> None:
        self._method, self._weights, self._optimizers, self._masks = method, weights, optimizers, masks
        self.tensors: dict[str, nn.Parameter] = {}
        self._entered: set[torch.optim.Optimizer] = set()

    def start(self) -> None:
        """Splits the weights as the method says; an optimizer that has stepped them before forgets it."""
        for name, weight in self._weights.items() if hasattr(self._method, "split") else ():
            split = self._method.split(name, weight.detach())
            if split is not None:
                self._place(name, split.detach().clone())
                for optimizer in self._optimizers:
                    _restart(optimizer, weight, split.shape)

    @torch.no_grad()
    def follow(self, *, zeros: bool = False, everywhere: bool = False) -> None:
        """Splits the weights anew that are not what their factors stand for; with ``zeros`` also those that are zero,
        with ``everywhere`` all (a reset of the factors' scales). Moments stay."""
        for name, factors in self.tensors.items():
            weight = self._weights[name]
            stale = weight != self._merged(name)
            stale = torch.ones_like(stale) if everywhere else stale | (weight == 0) if zeros else stale
            if bool(stale.any()):
                factors.copy_(torch.where(stale, self._method.split(name, weight.detach()), factors))
                self._write(name)

    def enter(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """When a step begins; what it is to be called with instead, where that is a closure."""
        if not any(id(self._weights[n]) in held([optimizer]) for n in self.tensors):
            return None
        self._enter(optimizer)
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            return None

        def evaluated() -> Any:  # the closure zeroes and fills the gradients of the weights
            self.leave(optimizer)
            result = closure()
            self._enter(optimizer)
            return result

        return (args[0], evaluated, *args[2:]), {k: v for k, v in kwargs.items() if k != "closure"}

    @torch.no_grad()
    def leave(self, optimizer: torch.optim.Optimizer) -> None:
        """When a step is over: the weights are what the factors have become."""
        if optimizer in self._entered:
            self._entered.remove(optimizer)
            for name in _exchange(optimizer, self.tensors, self._weights):
                self.tensors[name].grad = None
                self._write(name)

    def release(self) -> None:
        """Leaves plain weights to the optimizers; the moments were those of factors and are forgotten."""
        for optimizer in self._optimizers:
            self.leave(optimizer)
            for name in self.tensors:
                _restart(optimizer, self._weights[name], self._weights[name].shape)
        self.tensors.clear()

    def state(self) -> dict[str, torch.Tensor]:
        self.follow()
        return {n: f.detach() for n, f in self.tensors.items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """The inverse of :meth:`state`. Raises InputError where they are of another method or other weights."""
        known = set(self.tensors) or set(self._weights)
        if bool(state) != hasattr(self._method, "split") or not set(state) <= known:
            raise InputError("the checkpoint holds factors of another method: attach with the method it was made with.")
        for name, tensor in state.items():
            self._place(name, tensor.to(self._weights[name].device, copy=True))

    def _place(self, name: str, tensor: torch.Tensor) -> None:
        weight = self._weights[name]
        if tensor.shape[1:] != weight.shape or tensor.ndim != weight.ndim + 1 or tensor.dtype != weight.dtype:
            raise InputError(
                f"the factors of {name} are {tensor.dtype} {list(tensor.shape)}: "
                f"give {weight.dtype} [k, {', '.join(map(str, weight.shape))}]."
            )
        self.tensors[name] = nn.Parameter(tensor)
        with torch.no_grad():
            self._write(name)

    def _merged(self, name: str) -> torch.Tensor:
        found, mask = self._method.merge(name, self.tensors[name]), self._masks.get(name)
        return found if mask is None else torch.where(mask, found, torch.zeros_like(found))

    def _write(self, name: str) -> None:
        """Zeros in the factors where the mask says so, and the weight that they stand for."""
        for part in self.tensors[name].detach() if name in self._masks else ():
            zero(part, self._masks[name], name)
        self._weights[name].copy_(self._merged(name))

    def _enter(self, optimizer: torch.optim.Optimizer) -> None:
        self.follow()
        for name in _exchange(optimizer, self._weights, self.tensors):
            factors, gradient = self.tensors[name], self._weights[name].grad
            if gradient is not None:
                with torch.enable_grad():
                    merged = self._method.merge(name, factors)
                    (factors.grad,) = torch.autograd.grad(
                        merged, factors, gradient.detach().to_dense().to(merged.dtype)
                    )
        self._entered.add(optimizer)


def _exchange(
    optimizer: torch.optim.Optimizer, old: Mapping[str, nn.Parameter], new: Mapping[str, nn.Parameter]
) -> list[str]:
    """Parameters in the places of others, in the groups and the state of an optimizer; the names of those it holds."""
    present = held([optimizer])
    names = [n for n in old if n in new and id(old[n]) in present]
    by_id = {id(old[n]): new[n] for n in names}
    for group in optimizer.param_groups:
        group["params"][:] = [by_id.get(id(p), p) for p in group["params"]]
    for name in names:
        if old[name] in optimizer.state:
            optimizer.state[new[name]] = optimizer.state.pop(old[name])
    return names


def _restart(optimizer: torch.optim.Optimizer, weight: nn.Parameter, shape: Sequence[int]) -> None:
    """An optimizer that has never stepped this weight, of which it is going to step factors (or weights) of a shape."""
    state = optimizer.state.pop(weight, None)
    if state is not None and isinstance(optimizer, torch.optim.Adagrad):  # makes its state when it is constructed
        start = weight.new_full(tuple(shape), optimizer.defaults["initial_accumulator_value"])
        optimizer.state[weight] = {"step": torch.zeros_like(state["step"]), "sum": start}
