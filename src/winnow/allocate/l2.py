"""Magnitudes relative to the norm of their layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from winnow.allocate.exact import ranked
from winnow.allocate.layer import LayerInfo

_CHUNK = 1 << 20


def l2(layers: Sequence[LayerInfo], zeros: int, caps: Sequence[int]) -> list[int]:
    """Each layer loses what it holds among the ``zeros`` lowest ``|w| / ||W||`` of the whole model, ||W|| being the
    Euclidean norm of its layer (the L2-normalised start of FCPTS, Gong et al., AAAI 2024, and of POT).

    Needs ``weight``. Quotients in float64, ranking in float32, ties to the earlier layer. A layer of zeros goes first.
    """
    return ranked(layers, l2_scores, zeros, caps)


def l2_scores(layer: LayerInfo) -> torch.Tensor:
    """|w| / ||W|| of every weight of the layer, [numel] float32; 0 where all weights are 0."""
    weight = layer.matrix()
    norm = float(torch.linalg.vector_norm(weight, dtype=torch.float64)) or 1.0
    scores = weight.to(torch.float32).abs().reshape(-1)
    for part in scores.split(_CHUNK):  # so that float64 never holds a whole layer
        part.copy_(part.double() / norm)
    return scores
