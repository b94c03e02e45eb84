"""What an allocation reads of a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from winnow.errors import InputError

Lazy = torch.Tensor | Callable[[], torch.Tensor] | None


@dataclass(frozen=True, eq=False)
class LayerInfo:
    """One prunable matrix [rows, cols]. ``weight`` and ``scores`` may be callables, called when needed and freed
    afterwards, so that a large model is never in memory at once."""

    name: str
    rows: int
    cols: int
    block: str | None = None  # path of the repeated block
    shape: tuple[int, ...] = ()  # as stored; empty means (rows, cols)
    weight: Lazy = None
    scores: Lazy = None
    index: int | None = None  # place of the block in the model, for callers without block paths

    @property
    def numel(self) -> int:
        return self.rows * self.cols

    @property
    def group(self) -> str:
        """What shares one rate in block-wise allocations: the block, or the layer itself outside all blocks."""
        if self.block is not None:
            return f"block {self.block}"
        return f"layer {self.name}" if self.index is None else f"index {self.index}"

    def matrix(self) -> torch.Tensor:
        """The weight [rows, cols]; InputError when it was not given or has another shape."""
        return self._get(self.weight, "weight")

    def score_matrix(self) -> torch.Tensor:
        """The scores [rows, cols]; InputError when they were not given or have another shape."""
        return self._get(self.scores, "scores")

    def _get(self, value: Lazy, what: str) -> torch.Tensor:
        if value is None:
            raise InputError(f"this allocation needs the {what} of {self.name}: give LayerInfo({what}=...)")
        tensor = (value() if callable(value) else value).detach()
        if tuple(tensor.shape) != (self.rows, self.cols):
            raise InputError(
                f"the {what} of {self.name} is {tuple(tensor.shape)}, not {self.rows} x {self.cols}: give the matrix"
            )
        return tensor


def groups_of(layers: Sequence[LayerInfo]) -> Mapping[str, list[int]]:
    """Indices of the layers of each :attr:`LayerInfo.group`, in order."""
    found: dict[str, list[int]] = {}
    for i, layer in enumerate(layers):
        found.setdefault(layer.group, []).append(i)
    return found
