"""The existing zeros of a model that is sparse already."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from winnow.allocate.layer import LayerInfo
from winnow.errors import InputError


def zeros(layers: Sequence[LayerInfo], zeros: int, caps: Sequence[int]) -> list[int]:
    """Every layer keeps its zeros and gets no others, whatever the limits.

    Needs ``weight``. Raises InputError when ``zeros`` is another number than there are.
    """
    counts = [zero_entries(layer.matrix()) for layer in layers]
    if sum(counts) != zeros:
        raise InputError(
            f"these layers hold {sum(counts):,} zeros and {zeros:,} were requested: request as many, or choose another allocation"
        )
    return counts


def zero_entries(weight: torch.Tensor) -> int:
    """Entries of a tensor that are zero, of either sign."""
    return weight.numel() - int(torch.count_nonzero(weight))
