"""Weights that are trained through other numbers: the optimizer steps factors, the model holds what they stand for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.train.masking import zero
from winnow.train.shards import is_sharded, local, part, stacked_as, whole
from winnow.train.targets import held


class Factors:
    """Tensors that an optimizer steps in the place of weights theta = merge(factors), by weight name: [k, *shape], or, where a
    mask removes weights, [k, n] of the n that stay, in their order: at 90% sparsity two factors and their momentum take less
    memory than the momentum of the dense weight. Factors of a weight that ``fully_shard`` has cut up are [k, *shape] under
    any mask, cut as the weight is, so that what writes sharded checkpoints knows where every entry belongs.

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
        # By name: the mask that was, and the entries that it keeps (None: factors are of all)
        self._laid: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
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
                    _restart(optimizer, weight, self.tensors[name])

    @torch.no_grad()
    def follow(self, *, zeros: bool = False, everywhere: bool = False) -> None:
        """Splits the weights anew that are not what their factors stand for; with ``zeros`` also those whose factors are all
        zero, as where a weight has come back, with ``everywhere`` all (a reset of the factors' scales). Moments stay."""
        for name in self.tensors:
            if self._masks.get(name) is not (self._laid[name][0] if name in self._laid else None):
                self._move(name)
            factors, values = local(self.tensors[name]), self._values(name, self._weights[name])
            merged = None if everywhere else self._method.merge(name, factors)
            if merged is not None and not zeros and values.dtype == merged.dtype and torch.equal(values, merged):
                continue  # what every step comes to
            split = self._method.split(name, values)
            if merged is not None:
                stale = values != merged
                if zeros:  # pruned shards keep their places, and factors of zero
                    sharded = name in self._laid and self._index(name) is None
                    stale |= (values == 0) if sharded else (factors == 0).all(0)
                split = torch.where(stale, split, factors)
            factors.copy_(split)
            self._write(name)

    @torch.no_grad()
    def write(self) -> None:
        """Writes the weights anew where the method's ``merge`` has changed; :meth:`follow` first, and before it changes."""
        for name in self.tensors:
            self._write(name)

    def enter(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """When a step begins; what it is to be called with instead, where that is a closure."""
        present = held([optimizer])
        if not any(id(self._weights[n]) in present for n in self.tensors):
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
    def leave(self, optimizer: torch.optim.Optimizer) -> Collection[str]:
        """When a step is over: the weights are what the factors have become. Names those that need no mask any more."""
        if optimizer not in self._entered:
            return ()
        self._entered.remove(optimizer)
        # A fused optimizer divides by it, in place, the gradients of what it steps.
        scale: torch.Tensor | None = getattr(optimizer, "grad_scale", None)
        written = _exchange(optimizer, self.tensors, self._weights)
        for name in written:
            self.tensors[name].grad = None
            self._write(name)
            for leaf in (self._weights[name], self._shared(name)):
                if scale is not None and leaf is not None and leaf.grad is not None:
                    leaf.grad.div_(scale)
        return {name for name in written if self._index(name) is not None}  # zero elsewhere

    def release(self) -> None:
        """Leaves plain weights to the optimizers; the moments were those of factors and are forgotten."""
        for optimizer in self._optimizers:
            self.leave(optimizer)
            for name in self.tensors:
                _restart(optimizer, self._weights[name], self._weights[name])
        self.expect(())

    def state(self) -> dict[str, torch.Tensor]:
        self.follow()
        return {n: whole(f.detach()) for n, f in self.tensors.items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """The inverse of :meth:`state`. Raises InputError where they are of another method or other weights."""
        if bool(state) != hasattr(self._method, "split") or not set(state) <= set(self._weights):
            raise InputError("the checkpoint holds factors of another method: attach with the method it was made with.")
        for name, tensor in state.items():
            self._lay(name)
            weight = self._weights[name]
            tensor = part(tensor, weight, lead=1) if tensor.shape[1:] == weight.shape else tensor
            self._place(name, tensor.to(weight.device, copy=True))

    def expect(self, names: Collection[str]) -> None:
        """Forgets the factors: those of a checkpoint come, of these weights. The optimizers hold their moments already."""
        self.tensors.clear()
        self._laid.clear()
        self._expected = frozenset(names)

    def places(self) -> list[torch.Tensor]:
        """What says of which entries the factors are."""
        return [places for _, places in self._laid.values() if places is not None]

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
            sharded = is_sharded(self._weights[name])
            self._laid[name] = mask, None if sharded else mask.reshape(-1).nonzero().squeeze(1)

    def _move(self, name: str) -> None:
        """Factors and moments from the entries of an earlier mask to those of the mask of now; what is new is zero."""
        factors, weight, old = self.tensors[name], self._weights[name], self._laid.get(name)
        self._lay(name)
        new = self._laid.get(name)
        if is_sharded(weight):
            masks = [laid[0] for laid in (old, new) if laid is not None]
            for state in (optimizer.state.get(weight, {}) for optimizer in self._optimizers):
                for moment in (v for v in state.values() if torch.is_tensor(v) and v.shape == factors.shape):
                    for entries in local(moment):
                        for mask in masks:
                            zero(entries, mask, name)
            return
        before, after = (None if laid is None else laid[1] for laid in (old, new))

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            flat = tensor.detach().reshape(len(tensor), -1)
            if before is not None:
                flat = flat.new_zeros(len(tensor), weight.numel()).index_copy_(1, before, flat)
            return flat.index_select(1, after) if after is not None else flat.reshape(-1, *weight.shape)

        for optimizer in self._optimizers:
            state = optimizer.state.get(weight, {})
            if any(torch.is_tensor(v) and v.ndim and v.shape != factors.shape for v in state.values()):
                del optimizer.state[weight]  # means over rows and columns that are no longer the same (Adafactor)
                continue
            state.update({k: moved(v) for k, v in state.items() if torch.is_tensor(v) and v.shape == factors.shape})
        self.tensors[name] = nn.Parameter(moved(factors))

    def _values(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The entries of a tensor of the weight's shape that the factors stand for."""
        tensor, index = local(tensor).detach(), self._index(name)
        return tensor if index is None else tensor.reshape(-1).index_select(0, index)

    def _index(self, name: str) -> torch.Tensor | None:
        return self._laid[name][1] if name in self._laid else None

    def _place(self, name: str, tensor: torch.Tensor) -> None:
        weight = self._weights[name]
        shape = self._values(name, weight).shape
        if tensor.shape[1:] != shape or tensor.ndim != len(shape) + 1 or tensor.dtype != weight.dtype:
            raise InputError(
                f"the factors of {name} are {tensor.dtype} {list(tensor.shape)}: "
                f"give {weight.dtype} [k, {', '.join(map(str, shape))}]."
            )
        self.tensors[name] = nn.Parameter(stacked_as(tensor, weight))
        with torch.no_grad():
            self._write(name)

    def _write(self, name: str) -> None:
        """The weight that the factors stand for, all of it."""
        weight, index = local(self._weights[name]), self._index(name)
        merged = self._method.merge(name, local(self.tensors[name]))
        if index is None:
            weight.copy_(merged)
        elif weight.is_contiguous():  # half the time of index_copy_ and masking
            weight.zero_().view(-1).scatter_(0, index, merged)
        else:  # channels last
            weight.zero_().put_(index, merged)

    def _enter(self, optimizer: torch.optim.Optimizer) -> None:
        self.follow()
        for name in _exchange(optimizer, self._weights, self.tensors):
            factors, gradient = self.tensors[name], self._weights[name].grad
            if gradient is not None:
                found = self._chain(name, local(factors).detach(), self._values(name, local(gradient).to_dense()))
                factors.grad = stacked_as(found, self._weights[name])
        self._entered.add(optimizer)

    def _chain(self, name: str, factors: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """dL/dfactors: in closed form where the method knows it, else by autograd through its ``merge``."""
        shared = self._shared(name)
        if shared is None and hasattr(self._method, "vjp"):
            with torch.no_grad():
                return self._method.vjp(name, factors, gradient)
        with torch.enable_grad():
            merged = self._method.merge(name, factors.requires_grad_())
            upstream = gradient.to(merged.dtype)
            if shared is None:
                return torch.autograd.grad(merged, factors, upstream)[0]
            found, shared.grad = torch.autograd.grad(merged, (factors, shared), upstream)
            return found


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


def _restart(optimizer: torch.optim.Optimizer, weight: nn.Parameter, stepped: torch.Tensor) -> None:
    """An optimizer that has never stepped this weight, of which it is going to step factors (or the weight itself)."""
    state = optimizer.state.pop(weight, None)
    if state is not None and isinstance(optimizer, torch.optim.Adagrad):  # makes its state when it is constructed
        start = torch.full_like(stepped, optimizer.defaults["initial_accumulator_value"], requires_grad=False)
        optimizer.state[weight] = {"step": torch.zeros_like(state["step"]), "sum": start}
