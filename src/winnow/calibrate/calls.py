"""The calls that wait at one unit, and what its dense weights make of them: what reconstruction fits to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from winnow.calibrate.spill import Spill
from winnow.calibrate.suspend import SuspendedPass
from winnow.calibrate.walk_units import Options, WalkUnit
from winnow.forward.padding import Padding
from winnow.solve.calls import Call, held_out, output_of
from winnow.solve.statistics import Moments, corrected, is_conv, watching


class WalkState(Protocol):
    """Of a :class:`winnow.calibrate.walk.Walk`: the passes that wait, and how one is run."""

    options: Options
    passes: list[SuspendedPass]
    spill: Spill

    def forward(self, unit: WalkUnit, i: int) -> Any: ...


class SuspendedCalls:
    """The suspended calls of a unit with their targets; a :class:`winnow.solve.reconstruct.Calls`.

    Hidden states that are parked on disk are in memory only while their call is open, and targets are parked
    beside them. A unit that writes to its own inputs gets copies of them.
    """

    def __init__(self, walk: WalkState, unit: WalkUnit, here: list[int]) -> None:
        self._walk, self._unit, self._here = walk, unit, here
        self.targets: dict[int, torch.Tensor] = {}  # by number of the call
        self._counts: dict[int, torch.Tensor | None] = {}
        start = len(unit.path) + 1 if unit.path else 0
        self._layers = {
            p.name[start:]: path
            for p in unit.prunables
            if corrected(p, unit.module.get_submodule(path := p.module[start:]))
        }
        self.moments: dict[str, Moments] = {}
        self.copies = False  # whether the unit writes to its inputs

    def __len__(self) -> int:
        return len(self._here)

    @contextmanager
    def at(self, index: int) -> Iterator[Call]:
        """One call, on the walk's device; what it yields is valid inside only."""
        i, spill, device = self._here[index], self._walk.spill, self._walk.options.device
        spill.fetch(i)
        spill.fetch(self._key(i))
        content = (*self._walk.passes[i].call, self.targets[i])
        if device.type != "cpu":
            content = tree_map_only(torch.Tensor, lambda t: t.to(device), content)
        elif self.copies:
            content = tree_map_only(torch.Tensor, torch.clone, content)
        args, kwargs, target = content
        try:
            yield Call(args, kwargs, target, self._counts[i])
        finally:
            del args, kwargs, target, content
            spill.drop(i)
            spill.drop(self._key(i))

    def run(self, i: int, padding: Padding) -> Any:
        """The output of the dense unit on call ``i``; what its layers put out meanwhile goes into ``moments``.

        Not of the calls that are held out: what is estimated on the others is judged on them.
        """
        call = self._walk.passes[i].call
        batch = i % len(self._walk.options.batches)  # a twin runs the same batch
        if batch in {self._here[n] for n in held_out(len(self._here))}:
            return self._walk.forward(self._unit, i)
        counts = _positions(call, padding, self._unit.path)

        def seen(name: str, layer: Any, output: torch.Tensor) -> None:
            self.moments.setdefault(name, Moments()).add(output, counts, conv=is_conv(layer))

        with watching(self._unit.module, {n: path for n, path in self._layers.items() if path}, seen):
            output = self._walk.forward(self._unit, i)
        for name in (n for n, path in self._layers.items() if not path):  # the unit itself runs without hooks
            seen(name, self._unit.module, output)
        return output

    def set_target(self, i: int, output: Any, of: int, padding: Padding) -> None:
        """Makes ``output``, which came from call ``of``, the target of call ``i``."""
        walk, call = self._walk, self._walk.passes[of].call
        target = output_of(output)
        inputs = {t.untyped_storage().data_ptr() for t in tensors_in(call)}
        if of != i or target.untyped_storage().data_ptr() in inputs:
            target = target.clone()  # the pass goes on with the output, and may write to it
        self.targets[i], self._counts[i] = target, _positions(call, padding, self._unit.path)
        walk.spill.park(self._key(i), target)

    def close(self) -> None:
        """Drops the targets, on disk too."""
        for i in self.targets:
            self._walk.spill.release(self._key(i))
        self.targets.clear()

    def _key(self, i: int) -> int:
        return len(self._walk.passes) + i


def tensors_in(call: Any) -> list[torch.Tensor]:
    """Every tensor among the arguments of a call."""
    return [t for t in tree_leaves(call) if isinstance(t, torch.Tensor)]


def _positions(call: Any, padding: Padding, path: str) -> torch.Tensor | None:
    """Which positions of the stream that a unit reads are no padding."""
    x = next((t for t in tensors_in(call) if t.ndim > 1), None)
    if x is None:
        return None
    return padding.rows(x if x.is_floating_point() else x.unsqueeze(-1), path)
