"""The units that a structure's name stands for."""

from __future__ import annotations

from typing import Any

from torch import nn

from winnow.errors import InputError
from winnow.fcpts.units import Elements, Units
from winnow.fcpts.units_blocks import Blocks
from winnow.fcpts.units_channels import Channels
from winnow.fcpts.units_patterns import Patterns
from winnow.masks.prunable import Scope
from winnow.masks.structure import NM, BlockShape, Coupled, parse_structure


def make_units(structure: str, scope: Scope, model: nn.Module, example: Any = None, *, window: float = 1.0) -> Units:
    """What thresholds decide about under a structure: unstructured, n:m, block:RxC, neuron, head or channel.

    Args:
        example: one calibration batch, on which coupled units are found by running the model; the others need none.
        window: distance from the threshold within which gradients pass, in units of the magnitude.

    Raises:
        InputError: an unknown structure, one that does not fit the scope's tensors, or coupled units without an example.
    """
    shape = parse_structure(structure)
    if not scope.prunables:
        raise InputError("nothing is prunable here: name tensors to include, or choose another model")
    if isinstance(shape, NM):
        return Patterns(scope, shape, window=window)
    if isinstance(shape, BlockShape):
        return Blocks(scope, shape, window=window)
    if isinstance(shape, Coupled):
        if example is None:
            raise InputError(f"{shape} units are found by running the model: give calibration data")
        from winnow.coupled.find import find_coupled_units

        return Channels(find_coupled_units(model, scope, example, shape.unit), scope, window=window)
    return Elements(scope, window=window)
