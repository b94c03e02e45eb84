"""A layer's weight and inputs, the statistics that calibration would take of them, and calls of a unit."""

import contextlib

import torch

from winnow.inputs import InputStats
from winnow.solve.calls import Call
from winnow.solve.statistics import Moments


def stats_of(inputs: torch.Tensor) -> InputStats:
    inputs = inputs.double()
    gram = (inputs.T @ inputs).float()
    return InputStats(inputs.shape[1], len(inputs), inputs.sum(0), inputs.square().sum(0), gram)


def make_layer(rows: int, cols: int, seed: int = 0, tokens: int = 300) -> tuple[torch.Tensor, torch.Tensor, InputStats]:
    """Weights, correlated float64 inputs of unequal size, and their statistics."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(cols, cols, generator=generator, dtype=torch.float64) / cols**0.5
    inputs = torch.randn(tokens, cols, generator=generator, dtype=torch.float64) @ mix
    inputs = inputs * torch.randn(cols, generator=generator, dtype=torch.float64).exp()
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(1000 + seed))
    return weight, inputs, stats_of(inputs)


class CallsInMemory:
    """A :class:`winnow.solve.calls.Calls` of calls in memory."""

    def __init__(self, calls: list[Call], moments: dict[str, Moments] | None = None) -> None:
        self.calls, self.moments = calls, moments or {}

    def __len__(self) -> int:
        return len(self.calls)

    @contextlib.contextmanager
    def at(self, index):
        yield self.calls[index]
