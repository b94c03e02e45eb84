"""One walk over the units of a model: the suspended passes, where each waits, and what remains to be done."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_map_only

from winnow.calibrate.calls import SuspendedCalls, tensors_in
from winnow.calibrate.capture import ActivationKey, Capture, LastInputs, first_input, time_first
from winnow.calibrate.directly import dense_statistics
from winnow.calibrate.spill import Spill
from winnow.calibrate.suspend import SuspendedPass, pool_size, stopping_at
from winnow.calibrate.walk_units import Options, WalkUnit
from winnow.errors import InputError
from winnow.forward.batch import call as call_model
from winnow.forward.batch import device_of
from winnow.forward.modes import calibrating
from winnow.forward.padding import Padding
from winnow.inputs import InputStats
from winnow.masks.experts import find_experts
from winnow.masks.prunable import CONVOLUTIONS

Visit = Callable[[WalkUnit, dict[str, list[InputStats]]], None]
Fit = Callable[[WalkUnit, dict[str, list[InputStats]], SuspendedCalls], None]


class Walk:
    """One walk: the passes, where each waits, and what remains to be done.

    Passes past the number of batches are twins: the same batches once more, through dense units only.
    """

    def __init__(
        self,
        options: Options,
        units: list[WalkUnit],
        skip: Callable[[WalkUnit], bool],
        visit: Visit | None = None,
        fit: Fit | None = None,
        *,
        twins: bool = False,
    ) -> None:
        self.options, self.units, self.skip, self.visit, self.fit = options, units, skip, visit, fit
        self.batches = [*options.batches, *options.batches] if twins else list(options.batches)
        self.rank = {unit.path: i for i, unit in enumerate(units)}
        self.left = {unit.path for unit in units if unit.prunables}
        self.finished: set[str] = set()
        self.routed = {group.path for group in find_experts(options.model)}
        self.steps, self.total = 0, (3 if twins else 2) * len(units) * len(options.batches)
        self.passes: list[SuspendedPass] = []
        self.paddings: list[Padding] = []
        self.spill = Spill(None)
        self.recent: LastInputs | None = None
        self.aside: dict[str, list[InputStats]] = {}  # of the dense model, for those that no forward stops at

    def run(self) -> None:
        model = self.options.model
        with calibrating(model), stopping_at({u.module: u for u in self.units}) as self.forwards, self._spilling():
            if self.options.aside and not any(p.is_meta for p in model.parameters()):
                self.aside = dense_statistics(self.options)
            try:
                self._start()
                while self.left and (unit := self._next()) is not None:
                    self._unit(unit)
            finally:
                for one in self.passes:
                    one.halt()
            for unit in [*self.units, *self.options.loose]:
                if unit.path not in self.finished and unit.prunables:
                    self._unreached(unit)
        self._report(self.total - self.steps, self.units[-1])

    @contextmanager
    def _spilling(self) -> Iterator[None]:
        if self.options.spill is not None:
            batches = [dict(b) if isinstance(b, Mapping) else b for b in self.options.batches]
            owned = [*self.options.model.parameters(), *self.options.model.buffers(), *tensors_in(batches)]
            self.spill = Spill(self.options.spill, [t for t in owned if not t.is_meta])
        try:
            yield
        finally:
            self.spill.close()

    def _start(self) -> None:
        model, threads = self.options.model, pool_size(len(self.batches))
        for i, batch in enumerate(self.batches):
            self.paddings.append(Padding(batch))
            self.passes.append(SuspendedPass(partial(call_model, model, batch), threads))
            self.passes[i].start()
            self._settle(i)

    def _settle(self, i: int) -> None:
        """After pass ``i`` has moved: where it met a unit that is done already, run that and let it go on."""
        one = self.passes[i]
        while not one.finished and one.stop.path in self.finished:
            unit = one.stop
            if unit.prunables:
                self._again(unit)
            self.options.enter(unit)
            with self._placed(unit):
                output = self.forward(unit, i)
            self.options.leave(unit)
            one.resume(output)
        if not one.finished:
            self.spill.park(i, one.call)

    def _again(self, unit: WalkUnit) -> None:
        if any(p.is_meta for p in self.options.model.parameters()):
            raise InputError(
                f"{unit.path} runs more than once in a forward, so this model cannot be streamed block by block: "
                "run it without a memory limit"
            )
        note = f"{unit.path} was reached again after it was pruned; that call is not in its statistics"
        if note not in self.options.notes:
            self.options.notes.append(note)

    def _next(self) -> WalkUnit | None:
        waiting = [one.stop for one in self.passes if not one.finished]
        return min(waiting, key=lambda unit: self.rank[unit.path], default=None)

    def _unit(self, unit: WalkUnit) -> None:
        here = [i for i, one in enumerate(self.passes) if one.stop is unit]
        self.options.enter(unit)
        with self._placed(unit):
            calls = None
            if unit.prunables:
                count = len(self.options.batches)
                here, twins = [i for i in here if i < count], [i for i in here if i >= count]
                calls = SuspendedCalls(self, unit, here) if self.fit is not None else None
                if calls is not None:
                    self._dense(unit, twins, calls)
                if not self.skip(unit):
                    self._give(unit, self._statistics(unit, here, calls), calls)
                if calls is not None:
                    calls.close()
            self.finished.add(unit.path)
            self.left.discard(unit.path)
            if self.left:  # after the last unit nobody needs the outputs, nor the head
                for i in here:
                    self.spill.fetch(i)
                    output = self.forward(unit, i)
                    self.spill.release(i)
                    self._report(1, unit)
                    self.passes[i].resume(output)
                    del output
                    self._settle(i)
        self.options.leave(unit)
        for i in range(len(self.options.batches), len(self.passes) if self.left else 0):
            if self.passes[i].stop is unit:
                self._settle(i)  # a twin that came back to the unit it had just left

    def _give(self, unit: WalkUnit, stats: dict[str, list[InputStats]], calls: SuspendedCalls | None) -> None:
        if self.fit is not None and calls is not None:
            self.fit(unit, stats, calls)
        elif self.visit is not None:
            self.visit(unit, stats)

    def _dense(self, unit: WalkUnit, twins: list[int], calls: SuspendedCalls) -> None:
        """Runs the dense passes through a unit that is still dense; what comes out is the target of their twins."""
        ahead = bool(self.left - {unit.path})
        for i in twins:
            self.spill.fetch(i)
            self._pad(unit, i)
            output = calls.run(i, self.paddings[i])
            calls.set_target(i - len(self.options.batches), output, i, self.paddings[i])
            self.spill.release(i)
            self._report(1, unit)
            if ahead:
                self.passes[i].resume(output)
                if self.passes[i].stop is not unit:
                    self._settle(i)
            del output

    def _pad(self, unit: WalkUnit, i: int) -> None:
        args, kwargs = self.passes[i].call
        self.paddings[i].enter(args, kwargs, whole=not unit.path, time_first=time_first(unit.module))

    def _statistics(self, unit: WalkUnit, here: list[int], calls: SuspendedCalls | None) -> dict[str, list[InputStats]]:
        if calls is None and self._runs_once(unit):
            return self._read(unit, here)
        capture = self._capture(unit, self.options.direct)
        routed = any(not unit.path or f"{path}.".startswith(f"{unit.path}.") for path in self.routed)
        writes = False
        for n, i in enumerate(here):
            self.spill.fetch(i)
            self._pad(unit, i)
            call = self.passes[i].call
            args, kwargs = call
            tensors = tensors_in(call)
            # A block that writes to its own input would see its own traces in the second run.
            copies = [t.clone() for t in tensors] if writes or n == 0 else []
            versions = [t._version for t in tensors]
            with capture.watching(self.paddings[i], routed=routed):
                capture.read(unit.module, args, kwargs)
                if calls is not None and i not in calls.targets:
                    calls.set_target(i, calls.run(i, self.paddings[i]), i, self.paddings[i])
                else:
                    self.forward(unit, i)
            writes = writes or [t._version for t in tensors] != versions
            if writes:
                for tensor, copy in zip(tensors, copies):
                    tensor.copy_(copy)
            del copies, tensors, call, args, kwargs
            self.spill.drop(i)
            self._report(1, unit)
        if calls is not None:
            calls.copies = writes
        return capture.results(ran=bool(here))

    def _runs_once(self, unit: WalkUnit) -> bool:
        """Whether the unit is a layer whose statistics need its input only."""
        if len(unit.prunables) != 1 or unit.prunables[0].module != unit.path:
            return False
        return isinstance(unit.module, (nn.Linear, _ConvNd)) or unit.prunables[0].kind == "conv1d"

    def _capture(self, unit: WalkUnit, direct: Collection[str] = ()) -> Capture:
        return Capture(unit.module, unit.path, unit.prunables, self.options.gram, device_of(unit.module), direct)

    def _read(self, unit: WalkUnit, here: list[int]) -> dict[str, list[InputStats]]:
        """Statistics of one layer from its waiting inputs; those of the layer before where it reads the same."""
        p = unit.prunables[0]
        seen: dict[int, ActivationKey] = {}
        if self.spill.folder is None and p.kind not in CONVOLUTIONS:
            seen = {i: ActivationKey(first_input(*self.passes[i].call)) for i in here}
            last = self.recent
            if last is not None and last.serves(p, seen, self.options.gram(p)):
                self._report(len(here), unit)
                return {p.name: [last.stats]}
        capture = self._capture(unit)
        for i in here:
            self.spill.fetch(i)
            args, kwargs = self.passes[i].call
            self.paddings[i].enter(args, kwargs, whole=False, time_first=False)
            with capture.watching(self.paddings[i], routed=False):
                capture.read(unit.module, args, kwargs)
            del args, kwargs
            self.spill.drop(i)
            self._report(1, unit)
        found = capture.results(ran=bool(here))
        self.recent = LastInputs(seen, found[p.name][0], self.options.gram(p)) if seen else None
        return found

    def forward(self, unit: WalkUnit, i: int) -> Any:
        args, kwargs = self.passes[i].call
        device = self.options.device
        if device.type == "cpu":
            return self.forwards[unit.module](*args, **kwargs)
        home = next((t.device for t in tensors_in((args, kwargs))), torch.device("cpu"))
        args, kwargs = tree_map_only(torch.Tensor, lambda t: t.to(device), (args, kwargs))
        output = self.forwards[unit.module](*args, **kwargs)
        return tree_map_only(torch.Tensor, lambda t: t.to(home), output)

    @contextmanager
    def _placed(self, unit: WalkUnit) -> Iterator[None]:
        device = self.options.device
        homes = {p.device for p in unit.module.parameters()}
        if device.type == "cpu" or homes <= {device}:
            yield
            return
        home = next(iter(homes), torch.device("cpu"))
        unit.module.to(device)
        try:
            yield
        finally:
            unit.module.to(home)

    def _unreached(self, unit: WalkUnit) -> None:
        self.options.enter(unit)
        self.options.unreached.extend(p for p in unit.prunables if p.name not in self.aside)
        if not self.skip(unit):
            with self._placed(unit):
                stats = self._capture(unit).results(ran=False)
                stats |= {p.name: self.aside[p.name] for p in unit.prunables if p.name in self.aside}
                self._give(unit, stats, SuspendedCalls(self, unit, []) if self.fit is not None else None)
        self.options.leave(unit)

    def _report(self, steps: int, unit: WalkUnit) -> None:
        self.steps += steps
        if self.options.progress is not None:
            self.options.progress(self.steps, self.total, unit.path)
