"""What a walk over a model is given, and what it notes on its way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.calibrate.walk_units import WalkUnit
from winnow.masks.prunable import Prunable


@dataclass
class Options:
    """As :class:`winnow.calibrate.walker.Walker` takes them; the last five are found, and filled."""

    model: nn.Module
    batches: Sequence[Any]
    gram: Callable[[Prunable], bool]
    device: torch.device
    enter: Callable[[WalkUnit], None]
    leave: Callable[[WalkUnit], None]
    spill: Path | None
    progress: Callable[[int, int, str], None] | None
    loose: list[WalkUnit] = field(default_factory=list)  # with weights that no forward stops at
    direct: set[str] = field(default_factory=set)  # weights of layers that other modules multiply with
    aside: list[Prunable] = field(default_factory=list)  # that get the statistics of the dense model
    notes: list[str] = field(default_factory=list)
    unreached: list[Prunable] = field(default_factory=list)
