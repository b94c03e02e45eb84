"""Erdos-Renyi-Kernel densities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from winnow.allocate.exact import meet_total
from winnow.allocate.layer import LayerInfo


def erk(layers: Sequence[LayerInfo], zeros: int, caps: Sequence[int]) -> list[int]:
    """Density in proportion to the sum of a tensor's sides over their product (Evci et al. 2020, RigL, section 3).

    For a matrix (rows + cols) / (rows * cols), for a convolution with kernel (out + in + kh + kw) / (out * in * kh *
    kw), for experts stored in one tensor that of a single expert. Layers that would need a density above 1 stay
    dense and the scale is solved again for the others, until the total is exact.
    """
    numels = np.array([layer.numel for layer in layers], dtype=np.float64)
    claims = np.array([_density(layer) for layer in layers])
    floors = 1 - np.array(caps) / np.maximum(numels, 1)

    def zeros_at(t: float) -> np.ndarray:
        # all dense at t = 0, everything at its limit at t = 1
        scale = (1 - t) / max(t, 1e-300)
        return numels * (1 - np.clip(scale * claims, floors, 1))

    return meet_total(zeros_at, zeros, caps, 0.0, 1.0)


def _density(layer: LayerInfo) -> float:
    shape = layer.shape or (layer.rows, layer.cols)
    if len(shape) == 3 and shape[0] not in (layer.rows, layer.cols) and layer.rows % shape[0] == 0:
        shape = (layer.rows // shape[0], layer.cols)  # experts [E, out, in]: rows = E * out
    return sum(shape) / float(np.prod(shape, dtype=np.float64))
