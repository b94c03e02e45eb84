"""Which weight matters less? One pure function a file: (weight, statistics of its inputs) -> scores, high = keep."""

from __future__ import annotations

from collections.abc import Callable

import torch

from winnow.errors import InputError
from winnow.inputs import InputStats
from winnow.scores.magnitude import magnitude
from winnow.scores.random import random
from winnow.scores.ria import ria
from winnow.scores.wanda import wanda

__all__ = ["NAMES", "magnitude", "needs_data", "random", "ria", "score", "wanda"]

_WITHOUT_DATA: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"magnitude": magnitude}
_WITH_DATA: dict[str, Callable[[torch.Tensor, InputStats], torch.Tensor]] = {"wanda": wanda, "ria": ria}

NAMES: tuple[str, ...] = ("magnitude", "wanda", "ria", "random")


def needs_data(name: str) -> bool:
    """Whether the score reads statistics of the layer's inputs.

    Raises:
        InputError: the name is unknown.
    """
    if name not in NAMES:
        raise InputError(f"unknown score {name!r}: choose one of {', '.join(NAMES)}")
    return name in _WITH_DATA


def score(name: str, weight: torch.Tensor, stats: InputStats | None, seed: int = 0) -> torch.Tensor:
    """Scores of a weight matrix [R, C] as float32 [R, C], finite for finite input; the lowest are removed first.

    ``seed`` is read by ``random`` only; give each layer a seed of its own.

    Raises:
        InputError: the name is unknown, or the score reads input statistics and ``stats`` is None or does not fit.
    """
    if not needs_data(name):
        return random(weight, seed) if name == "random" else _WITHOUT_DATA[name](weight)
    if stats is None:
        raise InputError(f"the score {name!r} reads the layer's inputs: give calibration data, or use 'magnitude'")
    if stats.cols != weight.shape[1]:
        raise InputError(f"the statistics are of {stats.cols} inputs the weight has {weight.shape[1]}: pass its own")
    return _WITH_DATA[name](weight, stats)
