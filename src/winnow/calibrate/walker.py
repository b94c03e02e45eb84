"""Block by block through any model: statistics of each dense block fed by its already pruned predecessors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from winnow.calibrate.directly import recording_called, watched, weights_read_directly
from winnow.calibrate.walk import Fit, Visit, Walk
from winnow.calibrate.walk_units import Options, WalkUnit, find_walk_units, one_stream, probe, whole_model
from winnow.errors import InputError
from winnow.forward.batch import call as call_model
from winnow.forward.batch import first_example
from winnow.forward.modes import calibrating
from winnow.masks.prunable import Prunable, Scope


class Walker:
    """Walks the units of a model over calibration batches, without tracing and without knowing the architecture.

    The model's ordinary forward of every batch waits at the unit in work (:class:`SuspendedPass`). The unit
    is run dense on all of them while its input statistics are taken, ``visit`` prunes it in place, and it is
    run again so that the passes go on with what the pruned unit puts out. Masks, rotary tables and cross
    attention are the model's own throughout, so encoder-decoders and several towers need nothing special.

    A batch is a mapping (``model(**batch)``), a tuple or list (``model(*batch)``) or a tensor; padding is left out
    by its ``attention_mask`` and ``decoder_attention_mask`` (or torch's key padding masks). ``gram`` says which
    prunables get a Gram matrix. ``by`` "layer" stops at every prunable layer instead of every block: a layer's inputs
    then come from all pruned layers before it, those of its own block too, and every layer runs once instead of twice
    (its statistics need only its input), while more hidden states wait at a time. ``device`` runs units on an accelerator, "cpu" leaves them where their weights
    are. ``enter`` and ``leave`` are called around the time a unit's weights are needed. ``spill`` is a folder for
    the hidden states of waiting batches. ``progress`` gets (runs done, runs in all, path of the unit).

    ``notes`` and ``unreached`` (prunables the data never came to) are filled by :meth:`walk`.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        scope: Scope,
        *,
        gram: bool | Callable[[Prunable], bool],
        by: Literal["block", "layer"] = "block",
        device: torch.device | str = "cpu",
        enter: Callable[[WalkUnit], None] | None = None,
        leave: Callable[[WalkUnit], None] | None = None,
        spill: Path | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        if not len(batches):
            raise InputError("there is no calibration data: give at least one batch")
        self._model, self._batches, self._scope, self._by = model, batches, scope, by
        self._units: list[WalkUnit] | None = None
        wants = gram if callable(gram) else (lambda p: bool(gram))
        enter, leave = enter or (lambda unit: None), leave or (lambda unit: None)
        self._options = Options(model, batches, wants, torch.device(device), enter, leave, spill, progress)
        self.notes, self.unreached = self._options.notes, self._options.unreached

    def units(self) -> list[WalkUnit]:
        """The units in the order a first example reaches them (in module order on a meta-device skeleton)."""
        if self._units is None:
            if self._by == "layer" and not one_stream(self._model):
                raise InputError(
                    "this model has several stacks of blocks or torch's MultiheadAttention: calibrate it block by block"
                )
            units, self._options.loose = find_walk_units(self._model, self._scope, self._by)
            if not any(p.is_meta for p in self._model.parameters()):
                units = self._ordered(units)
            self._units = units
        return self._units

    @property
    def watched(self) -> set[str]:
        """Names of the prunables whose inputs no call of a layer shows: recurrent weights, parameters a forward multiplies with."""
        return self._options.direct | {p.name for p in self._scope.prunables.values() if watched(self._model, p)}

    def _aside(self) -> list[Prunable]:
        """Prunables that no unit's forward stops at: their owners have units below them, or are not called."""
        silent = [u for u in self._units or [] if {p.module for p in u.prunables} == {u.path}]
        return [
            *(p for unit in self._options.loose for p in unit.prunables),
            *(p for unit in silent for p in unit.prunables if p.name in self._options.direct),
        ]

    def _ordered(self, units: list[WalkUnit]) -> list[WalkUnit]:
        kinds = {frozenset(b) if isinstance(b, Mapping) else None: b for b in reversed(self._batches)}
        with calibrating(self._model):
            runs = [self._calls(units, batch) for batch in reversed(kinds.values())]
        if len(units) == 1:
            return units
        runs.sort(key=len, reverse=True)  # stable; the batches that reach most set the order
        calls = [path for run in runs for path in run]
        weighty = {unit.path for unit in units if unit.prunables}
        twice = next((path for run in runs for path in run if path in weighty and run.count(path) > 1), None)
        if twice is not None:
            self.notes.append(
                f"{twice} runs more than once in a forward, so the whole model is calibrated as one block"
            )
            self._options.loose = []
            return [whole_model(self._model, self._scope)]
        first = {path: i for i, path in reversed(list(enumerate(calls)))}
        return sorted(units, key=lambda unit: first.get(unit.path, len(calls)))  # stable: unreached ones come last

    def _calls(self, units: list[WalkUnit], batch: Any) -> list[str]:
        """What one example of a batch calls; the whole batch where it cannot be cut along one dimension."""
        example = first_example(batch)
        if example is not None:
            with contextlib.suppress(Exception):
                return self._probe(units, partial(call_model, self._model, example))
        return self._probe(units, partial(call_model, self._model, batch))

    def _probe(self, units: list[WalkUnit], run: Callable[[], Any]) -> list[str]:
        """Paths of the units in the order a forward calls them; notes which weights it reads without their module."""
        prunables = list(self._scope.prunables.values())
        with torch.no_grad(), recording_called(self._model, prunables) as called:
            calls = probe(units, run)
            self._options.direct |= weights_read_directly(self._model, prunables, called, run)
        return calls

    def walk(self, visit: Visit, *, skip: Callable[[WalkUnit], bool] | None = None) -> None:
        """Visit every unit that has prunables with the statistics of its inputs, one list entry a part.

        Order: ``enter(unit)``, the dense runs, ``visit(unit, stats)``, the runs that feed the next unit,
        ``leave(unit)``. ``visit`` changes the unit's parameters in place. Where ``skip(unit)`` is true (asked
        after ``enter``) the unit is run as it is, once, and not visited. Units no batch reaches are visited
        at the end with statistics of no tokens. An exception in the model, in ``visit`` or from the keyboard
        leaves the model's forwards, modes and settings as they were.
        """
        self._walk(skip, visit=visit)

    def fit(self, fit: Fit, *, skip: Callable[[WalkUnit], bool] | None = None, follow: bool = True) -> None:
        """As :meth:`walk`, with ``fit(unit, stats, calls)``: the unit's waiting calls and what should come out of them.

        ``calls`` (:class:`winnow.calibrate.calls.SuspendedCalls`) opens them one at a time, with the inputs that the pruned
        prefix made. The targets are what the dense model puts out there: with ``follow`` every batch has a twin that passes
        through dense units only, which doubles the hidden states that wait. Without it they are what the unit's
        own dense weights make of the waiting inputs. ``enter`` must leave the dense weights in place; ``skip``
        is asked after the twins have passed, and may put a finished unit's weights in then.
        """
        self._walk(skip, fit=fit, twins=follow)

    def _walk(self, skip: Callable[[WalkUnit], bool] | None, **work: Any) -> None:
        self.unreached.clear()
        units = self.units()
        self._options.aside = self._aside()
        Walk(self._options, units, skip or (lambda unit: False), **work).run()
