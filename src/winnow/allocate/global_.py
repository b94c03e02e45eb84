"""One ranking over all layers."""

from __future__ import annotations

from collections.abc import Sequence

from winnow.allocate.layer import LayerInfo
from winnow.masks.ranking import global_counts


def global_(layers: Sequence[LayerInfo], zeros: int, caps: Sequence[int]) -> list[int]:
    """Each layer loses what it holds among the ``zeros`` lowest scores of the whole model.

    Needs ``scores``; they are compared as float32, ties go to the earlier layer.
    """
    sources = {layer.name: layer.score_matrix for layer in layers}
    counts = global_counts(sources, zeros, {layer.name: cap for layer, cap in zip(layers, caps)})
    return [counts[layer.name] for layer in layers]
