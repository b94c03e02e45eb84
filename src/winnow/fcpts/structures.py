"""What thresholds decide about under each structure."""

from __future__ import annotations

from typing import Any

from torch import nn

from winnow.errors import InputError
from winnow.fcpts.groups import Elements, UnitGroups
from winnow.fcpts.groups_blocks import Blocks
from winnow.fcpts.groups_channels import Channels
from winnow.fcpts.groups_patterns import Patterns
from winnow.masks.prunable import Scope
from winnow.masks.structure import NM, BlockShape, Coupled, Structure


def make_units(
    structure: Structure, scope: Scope, model: nn.Module, example: Any = None, *, window: float = 1.0
) -> UnitGroups:
    """What thresholds decide about: single weights, patterns of whole layers, blocks or coupled units.

    Args:
        example: one calibration batch, on which coupled units are found by running the model; the others need none.
        window: distance from the threshold within which gradients pass, in units of the magnitude.

    Raises:
        InputError: a structure that does not fit the scope's tensors, or coupled units without an example.
    """
    if not scope.prunables:
        raise InputError("nothing is prunable here: name tensors to include, or choose another model")
    if isinstance(structure, NM):
        return Patterns(scope, structure, window=window)
    if isinstance(structure, BlockShape):
        return Blocks(scope, structure, window=window)
    if isinstance(structure, Coupled):
        if example is None:
            raise InputError(f"{structure} units are found by running the model: give calibration data")
        from winnow.coupled.find import find_coupled_units

        return Channels(find_coupled_units(model, scope, example, structure.unit), scope, window=window)
    return Elements(scope, window=window)
