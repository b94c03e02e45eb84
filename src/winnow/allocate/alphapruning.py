"""Rates from how heavy-tailed the weight spectra are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from winnow.allocate.exact import meet
from winnow.allocate.layer import LayerInfo, groups_of
from winnow.errors import InputError


def alphapruning(layers: Sequence[LayerInfo], zeros: int, caps: Sequence[int], eps: float = 0.3) -> list[int]:
    """Blocks with a heavier spectral tail (smaller exponent) keep more (Lu et al. 2024, NeurIPS, AlphaPruning).

    Each matrix's tail exponent is a Hill estimate, averaged over its block; block rates are linear in it from
    1 - ``eps`` (heaviest) to 1 + ``eps`` (lightest), scaled together until the total is exact with every layer held
    within its limit. Needs ``weight``.
    """
    if not 0 <= eps <= 1:
        raise InputError(f"alphapruning needs eps between 0 and 1, not {eps}: the paper takes 0.3")
    alphas = np.array([hill_exponent(eigenvalues(layer)) for layer in layers])
    for members in groups_of(layers).values():
        alphas[members] = alphas[members].mean()
    spread = alphas.max() - alphas.min()
    rates = 1 - eps + 2 * eps * (alphas - alphas.min()) / spread if spread > 0 else np.ones(len(layers))
    numels = np.array([layer.numel for layer in layers], dtype=np.float64)
    bounds = np.array(caps, dtype=np.float64)
    # A factor of 1 / smallest positive rate takes every layer to its limit.
    high = 1 / max(float(rates[rates > 0].min()), 1e-9)
    return meet(lambda t: np.minimum(t * rates * numels, bounds), zeros, caps, 0.0, high)


def eigenvalues(layer: LayerInfo) -> np.ndarray:
    """Positive eigenvalues of W^T W, ascending, float64: those above 1e-6 of the largest."""
    weight = layer.matrix().to(torch.float64)
    gram = weight @ weight.t() if layer.rows < layer.cols else weight.t() @ weight
    if not bool(gram.isfinite().all()):
        raise InputError(f"the weights of {layer.name} hold NaN or Inf: repair the model first")
    values = torch.linalg.eigvalsh(gram).cpu().numpy()
    return values[values > 1e-6 * values[-1]] if values[-1] > 0 else values[:0]


def hill_exponent(values: np.ndarray) -> float:
    """1 + k / sum(ln(value / x_min)) over the k ascending ``values`` above x_min (Hill 1975).

    x_min is the peak of the density of log10(values), as the paper's "fix-finger" rule: the left edge of the fullest
    of 100 histogram bins, fewer in small spectra so that a bin holds 4 on average. Infinite tails (all values equal)
    and spectra of fewer than two values give the neutral exponent 2.
    """
    if len(values) < 2 or values[0] == values[-1]:
        return 2.0
    logs = np.log(values)
    counts, edges = np.histogram(logs, bins=int(np.clip(len(values) // 4, 1, 100)))
    start = min(int(np.searchsorted(logs, edges[int(counts.argmax())], side="left")), len(logs) - 2)
    excess = float((logs[start:] - logs[start]).sum())
    return 1 + (len(logs) - start) / excess if excess > 0 else 2.0
