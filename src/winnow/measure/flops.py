"""Floating-point operations of a forward pass: how many belong to each prunable tensor, and how many to the rest."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from winnow.errors import InputError
from winnow.forward.batch import call, example_count
from winnow.forward.modes import plain_eval
from winnow.masks.prunable import Scope

TRAINING = 3  # a step over a forward: the backward pass has a product for the inputs and one for the weights
COPIES = {"clone", "_to_copy", "contiguous", "copy"}  # a copy of a weight is multiplied in its place


@dataclass(frozen=True)
class Flops:
    """Forward FLOPs of one example, a multiplication and an addition counted as two.

    Attributes:
        tensors: of each prunable tensor's products with the activations, 2 x rows x cols x positions: positions are
            tokens, or pixels of a convolution's output; one where a layer sees each example once. 0 for a tensor that is
            looked up or never used. For experts: of the tokens these examples sent to them.
        rest: of everything else that multiplies: attention between activations, embeddings, heads, the loss.

    Elementwise work (activations, norms, softmax) is not counted, as is usual.
    """

    tensors: dict[str, float] = field(default_factory=dict)
    rest: float = 0.0

    @property
    def prunable(self) -> float:
        return sum(self.tensors.values())

    @property
    def total(self) -> float:
        return self.prunable + self.rest

    def sparse(self, density: float | Mapping[str, float]) -> float:
        """Forward FLOPs if zeros cost nothing, at one density of all prunable tensors or at one of each (default 1)."""
        if isinstance(density, Mapping):
            return self.rest + sum(f * density.get(name, 1.0) for name, f in self.tensors.items())
        return self.rest + density * self.prunable

    def training(self, density: float = 1.0) -> float:
        """A training step's FLOPs on one example: three forwards (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).

        An upper bound for a model part of which is frozen.
        """
        return TRAINING * self.sparse(density)


def forward_flops(
    model: nn.Module,
    batches: Sequence[Any],
    scope: Scope | None = None,
    *,
    forward: Callable[[nn.Module, Any], Any] = call,
) -> Flops:
    """Counts the products of a model's forward, mean over the examples of ``batches``.

    Every product that torch carries out is seen (linear layers, convolutions, attention, ``bmm``), whoever calls it: a
    product with a prunable parameter, a slice, a view or a copy of it is that tensor's, all others are the rest. The
    padding of a batch counts, since it is computed.

    Args:
        batches: real inputs, the first dimension of their first tensor counting examples; run in evaluation mode without
            gradients, random numbers untouched.
        scope: the prunable tensors; none where it is left out.
        forward: (model, batch) -> anything; by default the model called with the batch.

    Raises:
        InputError: no example.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    examples = example_count(batches)
    if not examples:
        raise InputError("FLOPs are counted on real inputs and there is no example: give at least one.")
    names = list(scope.prunables) if scope is not None else []
    by_tensor = _ByTensor({name: model.get_parameter(name) for name in names})
    # The counter does not know the fused attention of every device: it is written out, as its two products.
    aside = (plain_eval(model), torch.no_grad(), torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH))
    with ExitStack() as stack, by_tensor, FlopCounterMode(display=False) as counter:
        for context in aside:
            stack.enter_context(context)
        for batch in batches:
            forward(model, batch)
    total = counter.get_total_flops()
    tensors = {name: by_tensor.flops[name] / examples for name in names}
    return Flops(tensors, (total - sum(by_tensor.flops.values())) / examples)


class _ByTensor(TorchDispatchMode):
    """Adds up the FLOPs of products one side of which is a known parameter, recognized by its place in memory.

    It stands below the counter, which hands it the operators that it has taken apart already.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.flops = dict.fromkeys(parameters, 0)
        self._places: list[tuple[int, int, str]] = []  # first and last address, name; sorted
        self._held: list[torch.Tensor] = []  # copies: freed, their addresses would be given to others
        for name, parameter in parameters.items():
            self._know(parameter, name)

    def _know(self, tensor: torch.Tensor, name: str) -> None:
        if tensor.numel():
            start = tensor.data_ptr()
            insort(self._places, (start, start + tensor.numel() * tensor.element_size(), name))
            self._held.append(tensor)

    def _name(self, value: Any) -> str | None:
        if not torch.is_tensor(value) or not self._places or not value.numel():
            return None
        at = value.data_ptr()
        i = bisect_right(self._places, at, key=lambda place: place[0]) - 1
        return self._places[i][2] if i >= 0 and at < self._places[i][1] else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            name = next((n for n in map(self._name, args) if n is not None), None)
            if name is not None:
                self.flops[name] += flop_registry[packet](*args, **kwargs, out_val=out)
        elif packet.__name__ in COPIES and torch.is_tensor(out):
            name = self._name(args[0])
            if name is not None and self._name(out) is None:
                self._know(out, name)
        return out
