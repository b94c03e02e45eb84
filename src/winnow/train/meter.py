"""Measures a training from within its hooks."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from winnow.measure.flops import TRAINING, Flops
from winnow.train.cost import TrainingCost
from winnow.train.factors import Factors
from winnow.train.products import Products

FIRST, LAST = 3, 20  # steps whose times are kept: the very first ones allocate

log = logging.getLogger(__name__)


class Metered(Protocol):
    """What is read of :class:`winnow.train.attached.Attached`."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    method: Any
    weights: dict[str, nn.Parameter]
    keeps: dict[str, torch.Tensor]
    factors: Factors
    _masks: dict[str, torch.Tensor]


class Meter:
    """Two readings of a clock around every hook, and layers watched during the second step: loss scaling may have skipped
    some before the first, and copies of the model are made before it."""

    def __init__(self, attached: Metered) -> None:
        self._attached = attached
        self._inside, self._ended, self._taken = 0.0, 0.0, 0
        self._times: list[tuple[float, float]] = []  # of a step: in the hooks, in all
        self._changes, self._change = 0, 0.0  # steps that changed masks, and seconds in their hooks
        self._keeps: dict[str, torch.Tensor] = {}  # the masks of the step that is under way, and the share they keep
        self._densities: dict[str, float] = {}
        self._under: list[dict[str, float]] = []  # densities of steps that the totals do not hold yet
        self._products: Products | None = None
        self._flops: Flops | None = None
        self._unseen: tuple[str, ...] = ()
        self._told = False
        self.totals: list[float] | None = [0.0, 0.0]  # training FLOPs dense and sparse; None where a step's are unknown

    def begin(self) -> None:
        """Before the first step, under its masks."""
        self._look()

    def restore(self, totals: Any) -> None:
        """Goes on from the ``totals`` of a checkpoint, under its masks."""
        self.totals = None if totals is None else [float(t) for t in totals]
        self._look()

    def timed(self, hook: Callable[..., Any], last: bool = False) -> Callable[..., Any]:
        """The hook, its time counted; with the ``last`` one a step is over."""

        def run(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                result = hook(*args)
            finally:
                self._inside += time.perf_counter() - began
            if last:
                self._stepped()
            return result

        return run

    def _stepped(self) -> None:
        now, self._taken = time.perf_counter(), self._taken + 1
        self._under.append(dict(self._densities))
        if self._taken == 1 and not self._told:
            self._products = Products(self._attached.model, self._attached.weights)
        elif self._products is not None:
            self._flops, self._unseen = self._products.close()
            self._products = None
            if self._unseen or not self._flops.total:
                self._flops = self.totals = None
        if self._taken > 1:
            if self._flops is not None and self.totals is not None:
                self.totals[0] += TRAINING * self._flops.total * len(self._under)
                self.totals[1] += TRAINING * sum(map(self._flops.sparse, self._under))
            self._under.clear()
        if self._look():
            self._changes, self._change = self._changes + 1, self._change + self._inside
        if FIRST <= self._taken <= LAST:
            self._times.append((self._inside, now - self._ended))
        if self._taken == LAST and not self._told:
            log.info("%s: %s", type(self._attached.method).__name__, self.cost())
        self._inside, self._ended = 0.0, time.perf_counter()

    def close(self) -> None:
        """Takes the layers' hooks off, where they are still on; nothing is logged from here on."""
        if self._products is not None:
            self._products.close()
        if self._flops is None:
            self._products = self.totals = None
        self._told = True

    def cost(self) -> TrainingCost:
        attached, flops = self._attached, self._flops
        factors, weights = attached.factors.tensors, attached.weights
        state, plain = 0, (parameters := sum(map(_bytes, attached.model.parameters())))
        split = {id(weights[n]): (weights[n], factor) for n, factor in factors.items()}
        for parameter, entry in [item for o in attached.optimizers for item in o.state.items()]:
            weight, factor = split.get(id(parameter), (None, None))
            for tensor in (t for t in entry.values() if torch.is_tensor(t)):
                state += _bytes(tensor)
                dense = weight is not None and factor is not None and tensor.shape == factor.shape
                plain += _local(weight).numel() * tensor.element_size() if dense else _bytes(tensor)
        beside = [attached.keeps, attached._masks, attached.factors.places(), _values(attached.method)]
        shared = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in map(_local, _tensors(beside))}
        own = shared.keys() - {_local(p).untyped_storage().data_ptr() for p in attached.model.parameters()}
        return TrainingCost(
            parameters=parameters, optimizer=state, factors=sum(map(_bytes, factors.values())),
            masks=sum(shared[place] for place in own), plain=plain if self._taken else None,
            hooks=statistics.median(t for t, _ in self._times) if self._times else None,
            step=statistics.median(t for _, t in self._times) if self._times else None,
            changes=self._changes, change=self._change / self._changes if self._changes else None,
            dense=TRAINING * flops.total if flops else None,
            sparse=TRAINING * flops.sparse(self._densities) if flops else None,
            dense_total=self.totals[0] if flops and self.totals else None,
            sparse_total=self.totals[1] if flops and self.totals else None, unseen=self._unseen,
        )  # fmt: skip

    def _look(self) -> bool:
        """Whether masks are others than they were."""
        changed = {n: keep for n, keep in self._attached.keeps.items() if self._keeps.get(n) is not keep}
        self._keeps.update(changed)
        self._densities |= {n: float(keep.count_nonzero()) / max(keep.numel(), 1) for n, keep in changed.items()}
        return bool(changed)


def _values(method: Any) -> list[Any]:
    """What a method holds, and the method within it."""
    inner = getattr(method, "inner", None)
    return [*getattr(method, "__dict__", {}).values(), *(_values(inner) if inner is not None else ())]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def _bytes(tensor: torch.Tensor) -> int:
    """In this process."""
    return _local(tensor).numel() * tensor.element_size()


def _local(tensor: Any) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
