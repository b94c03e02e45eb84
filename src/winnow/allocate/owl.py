"""Outlier-weighed layer-wise sparsity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from winnow.allocate.exact import meet_total
from winnow.allocate.layer import LayerInfo, groups_of
from winnow.errors import InputError


def owl(layers: Sequence[LayerInfo], zeros: int, caps: Sequence[int], m: float = 5.0, lam: float = 0.08) -> list[int]:
    """Blocks with more outlying scores keep more (Yin et al. 2024, ICML, OWL).

    A block's outlier share is the part of its scores above ``m`` times their mean over the block. Densities are
    those shares stretched to a range of 2 * ``lam``, the same inside a block, then shifted until the total is exact
    with every layer's rate held between 0 and its limit. Needs ``scores`` (Wanda's in the paper).
    """
    if not (m > 0 and lam >= 0):
        raise InputError(
            f"owl needs m above 0 and lam of 0 or more, not m={m} and lam={lam}: the paper takes 5 and 0.08"
        )
    density = np.zeros(len(layers))
    for members in groups_of(layers).values():
        density[members] = outlier_share([layers[i] for i in members], m)
    spread = density.max() - density.min()
    density = (density - density.min()) / spread * 2 * lam if spread > 0 else density * 0
    numels = np.array([layer.numel for layer in layers], dtype=np.float64)
    bounds = np.array(caps, dtype=np.float64)
    return meet_total(lambda t: np.clip(numels * (t - density), 0, bounds), zeros, caps, 0.0, 1.0 + 2 * lam)


def outlier_share(block: Sequence[LayerInfo], m: float) -> float:
    """Share of a block's scores above ``m`` times their mean."""
    numel = sum(layer.numel for layer in block)
    if not numel:
        return 0.0
    mean = sum(float(layer.score_matrix().sum(dtype=torch.float64)) for layer in block) / numel
    if not np.isfinite(mean):
        raise InputError(f"the scores of {block[0].name} or its block are not finite: check for NaN or Inf")
    return sum(int((layer.score_matrix() > m * mean).count_nonzero()) for layer in block) / numel
