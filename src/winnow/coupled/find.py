"""Coupled units of a model: FFN neurons, attention heads or KV groups, conv channels, found by probing."""

from __future__ import annotations

from typing import Any

from torch import nn

from winnow.coupled.call import record_blocks
from winnow.coupled.module import Coupling, module_coupling
from winnow.coupled.unit import CoupledUnit, Kind, Refused
from winnow.errors import InputError
from winnow.masks.prunable import CONVOLUTIONS, Scope


def find_coupling(model: nn.Module, scope: Scope, example: Any, unit: Kind) -> Coupling:
    """The coupled units of one kind, and for every prunable tensor that is in none of them the reason.

    No architecture is known by name. Each repeated block is called once with the arguments it gets in one
    forward of ``model`` on ``example`` (a tensor, a tuple, or a mapping of keyword arguments, of which two
    rows and sixteen tokens are used), then probed: its linear and convolution layers are cut, and gradients and NaN
    sent through the code between them show which output feature reaches which input feature. Features
    that reach each other only make one unit:

    - neuron: a row of up (and gate) with a column of down;
    - head: the query, key and value rows and the output columns of a head; with grouped queries, of a KV
      group (one key/value head and all its query heads);
    - channel: an output channel (and its BatchNorm entries) with the input columns of the next layers.
      Channels are looked for in the whole model. Depthwise and grouped convolutions on the way go along by
      whole groups.

    A unit is returned only after probes have shown that its columns depend on no other rows, that its rows
    reach nothing else, and that its columns become constant when its rows are zero. Features of a residual
    stream fail this and stay. Parameters shared by all heads (relative position tables, attention sinks)
    are left as they are.
    Raises InputError when the model cannot run on the example.
    """
    prunables = scope.prunables.values()
    paths = list(dict.fromkeys(p.block for p in prunables if p.block is not None))
    found = Coupling()
    if unit != "channel" and paths:
        calls = record_blocks(model, example, paths)
        for path in paths:
            if path not in calls:
                names = tuple(p.name for p in prunables if p.block == path)
                found.refused.append(Refused(path, names, "the example does not reach this block"))
                continue
            part = module_coupling(model.get_submodule(path), path, calls[path], scope)
            found.units += [u for u in part.units if u.kind == unit]
            found.refused += part.refused
    if not found.units and (unit != "channel" or any(p.kind in CONVOLUTIONS for p in prunables)):
        calls = record_blocks(model, example, [""])
        whole = module_coupling(model, "", calls[""], scope)
        found = Coupling([u for u in whole.units if u.kind == unit], whole.refused)
    return found


def find_coupled_units(model: nn.Module, scope: Scope, example: Any, unit: Kind) -> list[CoupledUnit]:
    """The coupled units of one kind, in the model's order; see :func:`find_coupling`.

    Raises InputError when there are none, with the reason probing gave for the first layer.
    """
    found = find_coupling(model, scope, example, unit)
    if not found.units:
        why = f" ({found.refused[0].names[0]}: {found.refused[0].reason})" if found.refused else ""
        raise InputError(f"this model has no {unit} that can be removed as a whole{why}; use another structure")
    return found.units
