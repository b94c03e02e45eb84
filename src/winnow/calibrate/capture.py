"""Input statistics of one unit while it runs: which layer reads what, each shared input counted once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.conv import _ConvNd

from winnow.calibrate.multiply import WatchMultiplications
from winnow.calibrate.windows import update_windows
from winnow.errors import InputError
from winnow.forward.padding import Padding
from winnow.inputs import InputStats
from winnow.masks.prunable import CONVOLUTIONS, Prunable

Slot = tuple[str, int]  # prunable, part


class ActivationKey:
    """Recognises one activation: the same memory, still alive and not written to since."""

    def __init__(self, x: torch.Tensor) -> None:
        self._alive = StorageWeakRef(x.untyped_storage())
        self._key = (x.untyped_storage().data_ptr(), x.storage_offset(), x.numel(), x.shape[-1], x._version)

    def same(self, other: ActivationKey) -> bool:
        return self._key == other._key and not self._alive.expired()


@dataclass
class LastInputs:
    """The inputs that the last layer read, pass by pass, and their statistics."""

    inputs: dict[int, ActivationKey]
    stats: InputStats
    gram: bool

    def serves(self, p: Prunable, seen: dict[int, ActivationKey], gram: bool) -> bool:
        return (
            self.stats.cols == p.cols
            and self.gram == gram
            and seen.keys() == self.inputs.keys()
            and all(self.inputs[i].same(one) for i, one in seen.items())
        )


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """What a layer that is called like this multiplies with."""
    return args[0] if args else next(v for v in kwargs.values() if isinstance(v, torch.Tensor))


class Capture:
    """Statistics of every prunable of a unit, filled by the dense runs inside :meth:`watching`.

    Linear layers and convolutions are seen by hooks; stacked experts, MultiheadAttention, recurrent layers and parameters
    that some forward multiplies with itself by watching the matrix multiplications. ``direct`` names weights of
    linear layers whose modules are not called: another module reads them.
    """

    def __init__(
        self,
        unit: nn.Module,
        path: str,
        prunables: list[Prunable],
        gram: Callable[[Prunable], bool],
        device: Any,
        direct: Collection[str] = (),
    ) -> None:
        self._gram = {p.name: gram(p) for p in prunables}
        self._prunables = {p.name: p for p in prunables}
        self._device = device
        self._stats: dict[Slot, InputStats] = {}
        self._last: dict[int, tuple[ActivationKey, set[Slot]]] = {}  # by id of the statistics
        self._calls: dict[Slot, int] = {}
        self.padding: Padding | None = None
        self._hooked: dict[nn.Module, list[Prunable]] = {}
        self._direct: dict[str, torch.Tensor] = {}
        self._attention: set[str] = set()
        self._recurrent: set[str] = set()
        self._strict: set[str] = set()  # whose inputs are there to be seen
        self._watch: WatchMultiplications | None = None
        attention = [m for m in unit.modules() if isinstance(m, nn.MultiheadAttention)]
        read_directly = {id(w) for m in attention for w in m.parameters()}
        for p in prunables:
            inner, _, key = (p.name[len(path) + 1 :] if path else p.name).rpartition(".")
            owner = unit.get_submodule(inner)
            weight = owner.get_parameter(key)
            if id(weight) in read_directly:
                self._attention.add(p.name)
            if isinstance(owner, nn.RNNBase):
                self._recurrent.add(p.name)
            if id(weight) in read_directly or p.kind == "experts":
                self._direct[p.name] = weight
                self._strict.add(p.name)
            elif key == "weight" and hooked(owner, p) and p.name not in direct:
                self._hooked.setdefault(owner, []).append(p)
            else:
                self._direct[p.name] = weight

    @contextmanager
    def watching(self, padding: Padding, *, routed: bool) -> Iterator[None]:
        """Add one run of the unit. ``routed``: experts inside gather their tokens, whose padding must be followed."""
        self.padding = padding
        self._last.clear()
        self._calls.clear()
        with ExitStack() as stack:
            for module in self._hooked:
                handle = module.register_forward_pre_hook(self._hook, with_kwargs=True)
                stack.callback(handle.remove)
            if self._direct or (routed and padding.active):
                direct = {n: (self._prunables[n], w) for n, w in self._direct.items()}
                self._watch = stack.enter_context(WatchMultiplications(direct, padding, self._multiplied, self._strict))
            yield
        self._check_sharing()
        self._last.clear()
        self.padding = self._watch = None

    def read(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """What the hook does, for a unit that is such a layer itself (its forward is called without hooks)."""
        if module in self._hooked:
            self._hook(module, args, kwargs)

    def _hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        x = first_input(args, kwargs)
        for p in self._hooked[module]:
            if p.kind in CONVOLUTIONS:
                assert isinstance(module, _ConvNd)
                size = kwargs.get("output_size", args[1] if len(args) > 1 else None)
                update_windows(self._windows(p), module, x, size)
                continue
            assert self.padding is not None
            rows = self._watch.known(x) if self._watch is not None else None
            self._add(p, range(1), x, self.padding.rows(x, p.module) if rows is None else rows)

    def _windows(self, p: Prunable) -> list[InputStats]:
        if (p.name, 0) not in self._stats:
            stats = InputStats.stacked(p.parts, p.cols, gram=self._gram[p.name], device=self._device)
            self._stats.update({(p.name, part): s for part, s in enumerate(stats)})
        return [self._stats[p.name, part] for part in range(p.parts)]

    def _multiplied(self, p: Prunable, parts: range, x: torch.Tensor, rows: torch.Tensor | None) -> None:
        if p.name in self._attention and self.padding is not None:
            memory = p.kind == "attention_in" and 0 not in parts
            rows = self.padding.time_major(x.shape[0], memory=memory)
        elif p.name in self._recurrent and self.padding is not None:
            step = self._calls.get((p.name, 0), 0)
            rows = self.padding.time_major(x.shape[0], memory=False)
            rows = self.padding.step(x.shape[0], step, p.name.endswith("_reverse")) if rows is None else rows
        elif p.kind == "experts" and rows is None and parts:
            # Experts that run on all tokens at once get zeros for those that another expert takes.
            routed = x.ne(0).any(-1)
            rows = None if bool(routed.all()) else routed
        self._add(p, parts, x, rows)

    def _add(self, p: Prunable, parts: range, x: torch.Tensor, rows: torch.Tensor | None) -> None:
        seen = ActivationKey(x)
        for part in parts:
            slot = (p.name, part)
            self._calls[slot] = self._calls.get(slot, 0) + 1
            stats = self._stats.get(slot)
            if stats is None:
                # What a hand-written step reads first, such as a state of zeros, it need not go on sharing.
                mine = p.name in self._direct and p.name not in self._strict
                stats = self._stats[slot] = (None if mine else self._shared(p, seen)) or self._empty(p)
            last = self._last.get(id(stats))
            if last is not None and last[0].same(seen) and slot not in last[1]:
                last[1].add(slot)
                continue
            self._last[id(stats)] = (seen, {slot})
            tokens = x.reshape(-1, x.shape[-1])
            stats.update(tokens if rows is None else tokens[rows])

    def _empty(self, p: Prunable) -> InputStats:
        return InputStats.zeros(p.cols, gram=self._gram[p.name], device=self._device)

    def _shared(self, p: Prunable, seen: ActivationKey) -> InputStats | None:
        for slot, stats in self._stats.items():
            if slot[0] in self._direct and slot[0] not in self._strict:
                continue
            last = self._last.get(id(stats))
            same = last is not None and stats.cols == p.cols and last[0].same(seen)
            if same and self._gram[slot[0]] == self._gram[p.name]:
                return stats
        return None

    def _check_sharing(self) -> None:
        users: dict[int, list[Slot]] = {}
        for slot, stats in self._stats.items():
            users.setdefault(id(stats), []).append(slot)
        for slots in users.values():
            if len({self._calls.get(slot, 0) for slot in slots}) > 1:
                raise InputError(
                    f"{slots[0][0]} and {slots[1][0]} read one input in some batches and different ones in others: "
                    "calibrate with batches of one kind"
                )

    def results(self, *, ran: bool) -> dict[str, list[InputStats]]:
        """Statistics of every prunable, one a part. Raises InputError for NaN or infinite inputs."""
        found: dict[str, list[InputStats]] = {}
        for p in self._prunables.values():
            if ran and p.name in self._strict and not any((p.name, part) in self._stats for part in range(p.parts)):
                raise InputError(
                    f"cannot see which inputs {p.name} is multiplied with: leave it out with exclude={[p.name]!r}"
                )
            slots = [(p.name, part) for part in range(p.parts)]
            found[p.name] = [self._stats.get(slot) or self._empty(p) for slot in slots]
            if not all(stats.finite for stats in found[p.name]):
                raise InputError(
                    f"NaN or infinite values reach {p.module or 'the model'}: check the weights and the calibration "
                    "data, and load a half-precision model in float32 or bfloat16"
                )
        return found


def hooked(owner: nn.Module, p: Prunable) -> bool:
    """Whether the inputs of a prunable are the arguments that its module is called with."""
    return p.kind == "conv1d" or (p.kind != "experts" and isinstance(owner, (nn.Linear, _ConvNd)))


def time_first(unit: nn.Module) -> bool:
    """Whether the unit's activations are [T, B, C]: torch's attention, unless set otherwise."""
    return any(isinstance(m, nn.MultiheadAttention) and not m.batch_first for m in unit.modules())
