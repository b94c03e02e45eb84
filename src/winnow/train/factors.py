"""Weights that are trained through other numbers: the optimizer steps factors, the model holds what they stand for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.train.targets import held


class Factors:
    """Tensors that an optimizer steps in the place of weights theta = merge(factors), by weight name: [k, *shape], or, where a
    mask removes weights, [k, n] of the n that stay, in their order: at 90% sparsity two factors and their momentum take less
    memory than the momentum of the dense weight.

    Only inside ``optimizer.step`` do they stand in its parameter groups, with gradients by the chain rule from those of
    the weights. At all other times model and optimizer hold the weights, and gradients are dL/dtheta: accumulation, loss
    scaling, gradient clipping, DistributedDataParallel, ``state_dict`` and closures work as for plain weights. The
    optimizer's moments are those of the factors, of their shape, under the weight's number in its state dict; an optimizer
    that reads matrices (Muon, Adafactor) sees tensors of other dimensions, and starts anew where masks change. A weight that comes back, or that somebody else
    has written, is split anew before the next step; its moments start from zero.

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
        self._laid: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # by name: the mask that was, and what it keeps
        self._entered: set[torch.optim.Optimizer] = set()
        self._expected: frozenset[str] = frozenset()

    def start(self) -> None:
        """Splits the weights as the method says; an optimizer that has stepped them before forgets it."""
        for name, weight in self._weights.items() if hasattr(self._method, "split") else ():
            self._lay(name)
            split = self._method.split(name, self._values(name, weight))
            if split is not None:
                self._place(name, split.detach().clone())
                for optimizer in self._optimizers:
                    _restart(optimizer, weight, split.shape)

    @torch.no_grad()
    def follow(self, *, zeros: bool = False, everywhere: bool = False) -> None:
        """Splits the weights anew that are not what their factors stand for; with ``zeros`` also those whose factors are all
        zero, as where a weight has come back, with ``everywhere`` all (a reset of the factors' scales). Moments stay."""
        for name in self.tensors:
            if self._masks.get(name) is not (self._laid[name][0] if name in self._laid else None):
                self._move(name)
            factors, values = self.tensors[name], self._values(name, self._weights[name])
            stale = values != self._method.merge(name, factors)
            stale = torch.ones_like(stale) if everywhere else stale | (factors == 0).all(0) if zeros else stale
            if bool(stale.any()):
                factors.copy_(torch.where(stale, self._method.split(name, values), factors))
                self._write(name)

    @torch.no_grad()
    def write(self) -> None:
        """Writes the weights anew where the method's ``merge`` has changed; :meth:`follow` first, and before it changes."""
        for name in self.tensors:
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
            # A fused optimizer divides by it, in place, the gradients of what it steps.
            scale: torch.Tensor | None = getattr(optimizer, "grad_scale", None)
            for name in _exchange(optimizer, self.tensors, self._weights):
                self.tensors[name].grad = None
                self._write(name)
                for leaf in (self._weights[name], self._shared(name)):
                    if scale is not None and leaf is not None and leaf.grad is not None:
                        leaf.grad.div_(scale)

    def release(self) -> None:
        """Leaves plain weights to the optimizers; the moments were those of factors and are forgotten."""
        for optimizer in self._optimizers:
            self.leave(optimizer)
            for name in self.tensors:
                _restart(optimizer, self._weights[name], self._weights[name].shape)
        self.expect(())

    def state(self) -> dict[str, torch.Tensor]:
        self.follow()
        return {n: f.detach() for n, f in self.tensors.items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """The inverse of :meth:`state`. Raises InputError where they are of another method or other weights."""
        if bool(state) != hasattr(self._method, "split") or not set(state) <= set(self._weights):
            raise InputError("the checkpoint holds factors of another method: attach with the method it was made with.")
        for name, tensor in state.items():
            self._lay(name)
            self._place(name, tensor.to(self._weights[name].device, copy=True))

    def expect(self, names: Collection[str]) -> None:
        """Forgets the factors: those of a checkpoint come, of these weights. The optimizers hold their moments already."""
        self.tensors.clear()
        self._laid.clear()
        self._expected = frozenset(names)

    def __contains__(self, name: str) -> bool:
        """Whether the optimizers' moments under a weight are those of factors."""
        return name in self.tensors or name in self._expected

    def _shared(self, name: str) -> nn.Parameter | None:
        """What the method trains beside the factors of this weight."""
        find = getattr(self._method, "shared", None)
        return None if find is None else find(name)

    def _lay(self, name: str) -> None:
        """What the mask of now keeps becomes the order of the factors' entries."""
        mask = self._masks.get(name)
        if mask is None:
            self._laid.pop(name, None)
        else:
            self._laid[name] = mask, mask.reshape(-1).nonzero().squeeze(1)

    def _move(self, name: str) -> None:
        """Factors and moments from the entries of an earlier mask to those of the mask of now; what is new is zero."""
        factors, weight, old = self.tensors[name], self._weights[name], self._laid.get(name)
        self._lay(name)
        new = self._laid.get(name)

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            flat = tensor.detach().reshape(len(tensor), -1)
            if old is not None:
                flat = flat.new_zeros(len(tensor), weight.numel()).index_copy_(1, old[1], flat)
            return flat.index_select(1, new[1]) if new is not None else flat.reshape(-1, *weight.shape)

        for optimizer in self._optimizers:
            state = optimizer.state.get(weight, {})
            if any(torch.is_tensor(v) and v.ndim and v.shape != factors.shape for v in state.values()):
                del optimizer.state[weight]  # means over rows and columns that are no longer the same (Adafactor)
                continue
            state.update({k: moved(v) for k, v in state.items() if torch.is_tensor(v) and v.shape == factors.shape})
        self.tensors[name] = nn.Parameter(moved(factors))

    def _values(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The entries of a tensor of the weight's shape that the factors stand for."""
        tensor = tensor.detach()
        return tensor.reshape(-1).index_select(0, self._laid[name][1]) if name in self._laid else tensor

    def _place(self, name: str, tensor: torch.Tensor) -> None:
        weight = self._weights[name]
        shape = self._values(name, weight).shape
        if tensor.shape[1:] != shape or tensor.ndim != len(shape) + 1 or tensor.dtype != weight.dtype:
            raise InputError(
                f"the factors of {name} are {tensor.dtype} {list(tensor.shape)}: "
                f"give {weight.dtype} [k, {', '.join(map(str, shape))}]."
            )
        self.tensors[name] = nn.Parameter(tensor)
        with torch.no_grad():
            self._write(name)

    def _write(self, name: str) -> None:
        """The weight that the factors stand for."""
        weight, merged = self._weights[name], self._method.merge(name, self.tensors[name])
        if name not in self._laid:
            weight.copy_(merged)
        elif weight.is_contiguous():
            weight.view(-1).index_copy_(0, self._laid[name][1], merged)
        else:  # channels last
            weight.put_(self._laid[name][1], merged)

    def _enter(self, optimizer: torch.optim.Optimizer) -> None:
        self.follow()
        for name in _exchange(optimizer, self._weights, self.tensors):
            factors, gradient = self.tensors[name], self._weights[name].grad
            if gradient is not None:
                with torch.enable_grad():
                    merged = self._method.merge(name, factors)
                    upstream = self._values(name, gradient.to_dense()).to(merged.dtype)
                    shared = self._shared(name)
                    if shared is None:
                        (factors.grad,) = torch.autograd.grad(merged, factors, upstream)
                    else:
                        factors.grad, shared.grad = torch.autograd.grad(merged, (factors, shared), upstream)
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
