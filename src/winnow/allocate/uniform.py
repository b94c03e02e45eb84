"""The same rate everywhere."""

from __future__ import annotations

from collections.abc import Sequence

from winnow.allocate.layer import LayerInfo
from winnow.budget import largest_remainder


def uniform(layers: Sequence[LayerInfo], zeros: int, caps: Sequence[int]) -> list[int]:
    """Every layer loses the same share of its weights, to the nearest weight by largest remainder."""
    return largest_remainder([layer.numel for layer in layers], zeros, caps)
