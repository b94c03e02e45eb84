"""The same number of kept weights in every layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from winnow.allocate.exact import meet_total
from winnow.allocate.layer import LayerInfo


def balanced(layers: Sequence[LayerInfo], zeros: int, caps: Sequence[int]) -> list[int]:
    """Every layer keeps as many weights as the others; one that has fewer stays dense, and its surplus goes to the others.

    (Gadhikar et al. 2023, "Why random pruning is all we need to start sparse", arXiv 2210.02412; their code
    passes a surplus on to later layers only and draws every weight by itself, so that counts are nearly those asked for.)
    """
    numels = np.array([layer.numel for layer in layers], dtype=np.float64)
    least = numels - np.array(caps)

    def zeros_at(t: float) -> np.ndarray:
        # all dense at t = 0, everything at its limit at t = 1
        return numels - np.clip((1 - t) * numels.max(initial=0), least, numels)

    return meet_total(zeros_at, zeros, caps, 0.0, 1.0)
