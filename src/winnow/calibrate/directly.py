"""Weights that no call of their own module shows: parameters that a forward multiplies with itself, layers read from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from winnow.calibrate.capture import Capture, hooked, time_first
from winnow.calibrate.multiply import WatchMultiplications
from winnow.calibrate.walk_units import Options
from winnow.forward.batch import call as call_model
from winnow.forward.batch import device_of
from winnow.forward.padding import Padding
from winnow.inputs import InputStats
from winnow.masks.prunable import Prunable


@contextmanager
def recording_called(model: nn.Module, prunables: Iterable[Prunable]) -> Iterator[set[nn.Module]]:
    """Collects the owners of these prunables that forwards call meanwhile."""
    called: set[nn.Module] = set()
    with ExitStack() as stack:
        for owner in {model.get_submodule(p.module) for p in prunables}:
            stack.callback(owner.register_forward_pre_hook(lambda module, args: called.add(module)).remove)
        yield called


def weights_read_directly(
    model: nn.Module, prunables: Iterable[Prunable], called: set[nn.Module], run: Callable[[], Any]
) -> set[str]:
    """Names of the layers' weights that ``run``, a forward, multiplies with though it does not call their module.

    A module may read ``self.proj.weight`` itself (Mamba's fast path, F.linear on a layer's weight); a hook on the layer
    sees nothing then. ``called`` are the modules that such a forward calls; where all are, nothing runs.
    """
    owners = {p.name: model.get_submodule(p.module) for p in prunables}
    layers = [p for p in prunables if hooked(owners[p.name], p)]
    silent = {p.name: (p, model.get_parameter(p.name)) for p in layers if owners[p.name] not in called}
    found: set[str] = set()
    if silent:
        with WatchMultiplications(silent, Padding(None), lambda p, parts, x, rows: found.add(p.name)):
            run()
    return found


def watched(model: nn.Module, p: Prunable) -> bool:
    """Whether the inputs of a prunable are seen, if at all, by watching the products of a forward that is not its layer's own."""
    owner = model.get_submodule(p.module)
    above = model.get_submodule(p.module.rpartition(".")[0])
    attention = any(isinstance(m, nn.MultiheadAttention) for m in (owner, above))
    return not (hooked(owner, p) or p.kind == "experts" or attention)


def dense_statistics(options: Options) -> dict[str, list[InputStats]]:
    """Statistics of prunables that no unit's forward stops at (``aside``), from forwards of the whole model as it is.

    Only those are returned whose inputs were seen.
    """
    model = options.model
    capture = Capture(model, "", options.aside, options.gram, device_of(model), options.direct)
    with torch.no_grad():
        for batch in options.batches:
            padding = Padding(batch)
            padding.enter((), {}, whole=True, time_first=time_first(model))
            with capture.watching(padding, routed=False):
                call_model(model, batch)
    found = capture.results(ran=False)
    return {name: parts for name, parts in found.items() if any(part.tokens for part in parts)}
