"""Layer-adaptive magnitude."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from winnow.allocate.exact import ranked
from winnow.allocate.layer import LayerInfo

_CHUNK = 1 << 20


def lamp(layers: Sequence[LayerInfo], zeros: int, caps: Sequence[int]) -> list[int]:
    """Each layer loses what it holds among the ``zeros`` lowest LAMP scores (Lee et al. 2021, ICLR, equation 4):
    w^2 over the sum of squares of all weights of its layer that are at least as large (itself included).

    Needs ``weight``. Sums in float64, ranking in float32, ties to the earlier layer.
    """
    return ranked(layers, lamp_scores, zeros, caps)


def lamp_scores(layer: LayerInfo) -> torch.Tensor:
    """The layer's LAMP scores in ascending order, [numel] float32; equal weights count in turn, as sorted."""
    scores = layer.matrix().to("cpu", torch.float32).abs().reshape(-1).numpy()
    scores.sort()
    above = 0.0
    for stop in range(len(scores), 0, -_CHUNK):  # from the top, so that float64 never holds a whole layer
        part = scores[max(stop - _CHUNK, 0) : stop]
        square = part.astype(np.float64) ** 2
        tail = np.cumsum(square[::-1])[::-1] + above  # 0 only where all that remain are 0
        above = tail[0]
        part[:] = np.divide(square, tail, out=tail, where=tail > 0)
    return torch.from_numpy(scores)
