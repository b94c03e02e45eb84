"""Importance scores. One pure function a file: (weight, statistics of its inputs or a seed) -> scores, high = keep."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch

from winnow.errors import InputError, meant
from winnow.inputs import InputStats
from winnow.scores.magnitude import magnitude
from winnow.scores.random import random
from winnow.scores.ria import ria
from winnow.scores.wanda import wanda

__all__ = ["NAMES", "magnitude", "needs_data", "random", "ria", "score", "wanda"]

# name -> function of the weight and of what else it names: ``stats`` of the layer's inputs, a ``seed``
_SCORES: dict[str, Callable[..., torch.Tensor]] = {"magnitude": magnitude, "wanda": wanda, "ria": ria, "random": random}

NAMES: tuple[str, ...] = tuple(_SCORES)


def needs_data(name: str) -> bool:
    """Whether the score reads statistics of the layer's inputs.

    Raises:
        InputError: the name is unknown.
    """
    if name not in NAMES:
        raise InputError(f"unknown score {name!r}{meant(name, NAMES)}: choose one of {', '.join(NAMES)}")
    return "stats" in inspect.signature(_SCORES[name]).parameters


def score(name: str, weight: torch.Tensor, stats: InputStats | None, seed: int = 0) -> torch.Tensor:
    """Scores of a weight matrix [R, C] as float32 [R, C], finite for finite input; the lowest are removed first.

    ``seed`` is read by ``random`` only; give each layer a seed of its own.

    Raises:
        InputError: the name is unknown, or the score reads input statistics and ``stats`` is None or does not fit.
    """
    if needs_data(name):
        if stats is None:
            raise InputError(f"the score {name!r} reads the layer's inputs: give calibration data, or use 'magnitude'")
        if stats.cols != weight.shape[1]:
            raise InputError(
                f"the statistics are of {stats.cols} inputs and the weight has {weight.shape[1]}: pass its own"
            )
    reads = inspect.signature(_SCORES[name]).parameters
    return _SCORES[name](weight, **{key: value for key, value in (("stats", stats), ("seed", seed)) if key in reads})
