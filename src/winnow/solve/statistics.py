"""Statistics of a layer's outputs, and the correction that gives a pruned layer the dense layer's mean and deviation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from winnow.masks.blocks import is_transposed_linear
from winnow.masks.prunable import Prunable


def corrected(prunable: Prunable, layer: nn.Module) -> bool:
    """Whether a prunable is the weight of a layer that puts out one channel a row of its matrix."""
    own = isinstance(layer, (nn.Linear, _ConvNd)) or is_transposed_linear(layer)
    return own and prunable.name.rpartition(".")[2] == "weight"


class Moments:
    """Mean and standard deviation of every output channel, in float64; sums over all positions that count."""

    def __init__(self) -> None:
        self.count = 0
        self.sum: torch.Tensor | None = None  # [channels]
        self.square: torch.Tensor | None = None  # [channels]

    def add(self, output: torch.Tensor, counts: torch.Tensor | None, *, conv: bool) -> None:
        """Adds outputs [N, C, *space] of a convolution or [..., C] of a linear layer.

        ``counts``: bool, one a position of a linear layer's output; used where the numbers agree.
        """
        rows = (output.transpose(0, 1).flatten(1).t() if conv else output.reshape(-1, output.shape[-1])).double()
        if counts is not None and counts.numel() == len(rows):
            rows = rows[counts.to(rows.device)]
        self.count += len(rows)
        total, square = rows.sum(0), rows.square().sum(0)
        self.sum = total if self.sum is None else self.sum + total
        self.square = square if self.square is None else self.square + square

    @property
    def mean(self) -> torch.Tensor:
        assert self.sum is not None
        return self.sum / max(self.count, 1)

    @property
    def deviation(self) -> torch.Tensor:
        assert self.square is not None
        return (self.square / max(self.count, 1) - self.mean.square()).clamp_min(0).sqrt()


def correction(dense: Moments, pruned: Moments, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scale of every row and the new bias that give outputs the dense mean and deviation; float64 [channels].

    scale = std(dense) / std(pruned), bias' = mean(dense) - scale (mean(pruned) - bias): the statistics and bias
    correction of POT (Lazarevich et al., "Post-training deep neural network pruning via layer-wise calibration",
    2021). A channel that puts out a constant is not scaled. Without a bias only the deviation is corrected.
    """
    scale = dense.deviation / pruned.deviation
    dead = pruned.deviation <= 1e-6 * pruned.mean.abs() + 1e-12
    scale = torch.where(dead | ~torch.isfinite(scale), torch.ones_like(scale), scale)
    return scale, None if bias is None else dense.mean - scale * (pruned.mean - bias.double())


@contextmanager
def watching(
    module: nn.Module, paths: Mapping[str, str], seen: Callable[[str, nn.Module, torch.Tensor], torch.Tensor | None]
) -> Iterator[None]:
    """Calls ``seen(name, layer, output)`` for every output of these layers (path inside ``module`` by name).

    What it returns, where it returns something, goes on in place of the output.
    """
    with ExitStack() as stack:
        for name, path in paths.items():

            def hook(layer: nn.Module, args: object, output: torch.Tensor, name: str = name) -> torch.Tensor | None:
                return seen(name, layer, output)

            stack.callback(module.get_submodule(path).register_forward_hook(hook).remove)
        yield


def is_conv(layer: nn.Module) -> bool:
    return isinstance(layer, _ConvNd)
