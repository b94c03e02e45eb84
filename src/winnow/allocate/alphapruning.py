"""Rates from how heavy-tailed the weight spectra are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from winnow.allocate.exact import meet_total
from winnow.allocate.layer import LayerInfo, groups_of
from winnow.errors import InputError

LARGE = 1024  # eigenvalues from which the tail's beginning is searched for


def alphapruning(layers: Sequence[LayerInfo], zeros: int, caps: Sequence[int], eps: float = 0.3) -> list[int]:
    """Blocks with a heavier spectral tail (smaller exponent) keep more (Lu et al. 2024, NeurIPS, AlphaPruning).

    Each matrix's tail exponent is a Hill estimate (:func:`hill_exponent`), averaged over its block; block rates are linear
    in it from 1 - ``eps`` (heaviest) to 1 + ``eps`` (lightest), scaled together until the total is exact with every layer held
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
    return meet_total(lambda t: np.minimum(t * rates * numels, bounds), zeros, caps, 0.0, high)


def eigenvalues(layer: LayerInfo) -> np.ndarray:
    """Positive eigenvalues of W^T W, ascending, float64: those above 1e-6 of the largest, of large matrices above 1e-12.

    The official code leaves none out; in small spectra the lowest ones are rounding.
    """
    weight = layer.matrix().to(torch.float64)
    gram = weight @ weight.t() if layer.rows < layer.cols else weight.t() @ weight
    if not bool(gram.isfinite().all()):
        raise InputError(f"the weights of {layer.name} hold NaN or Inf: repair the model first")
    values = torch.linalg.eigvalsh(gram).cpu().numpy()
    least = 1e-12 if len(values) >= LARGE else 1e-6
    return values[values > least * values[-1]] if values[-1] > 0 else values[:0]


def hill_exponent(values: np.ndarray) -> float:
    """The exponent of the tail of a spectrum, 1 + k / sum(ln(value / x_min)) over the k ``values`` from x_min on (Hill 1975).

    ``values`` are ascending eigenvalues. The paper's "fix-finger" rule puts x_min at the peak of the density of
    log10(values); its code takes that as a bound only and searches below 1.5 times the peak for the x_min of least
    Kolmogorov-Smirnov distance between tail and power law. From 1024 eigenvalues on that is what is done here. Smaller
    spectra have too few values for the search (on a language model of width 384 it put the exponent of one projection
    at 17 and gave its block a rate above 1), so there x_min is the peak itself: another, steadier estimate than
    the official one. Infinite tails (all values equal) and spectra of fewer than two values give the neutral exponent 2.
    """
    if len(values) < 2 or values[0] == values[-1]:
        return 2.0
    logs = np.log(values)
    # The left edge of the fullest of 100 bins, fewer in small spectra so that a bin holds 4 on average.
    counts, edges = np.histogram(logs, bins=int(np.clip(len(values) // 4, 1, 100)))
    peak = float(edges[int(counts.argmax())])
    if len(values) >= LARGE:
        return _least_distance(logs, peak + float(np.log(1.5)))
    start = min(int(np.searchsorted(logs, peak, side="left")), len(logs) - 2)
    return _hill(logs[start:])


def _hill(logs: np.ndarray) -> float:
    excess = float((logs - logs[0]).sum())
    return 1 + len(logs) / excess if excess > 0 else 2.0


def _least_distance(logs: np.ndarray, highest: float) -> float:
    """The Hill exponent of the tail that is nearest a power law, among those that begin at a value up to ``highest``."""
    last = max(int(np.searchsorted(logs, highest, side="right")), 1)
    nearest, exponent = np.inf, 2.0
    for start in range(min(last, len(logs) - 1)):
        tail = logs[start:]
        alpha = _hill(tail)
        fitted = 1 - np.exp((1 - alpha) * (tail - tail[0]))
        distance = float(np.abs(fitted - np.arange(len(tail)) / len(tail)).max())
        if distance < nearest:
            nearest, exponent = distance, alpha
    return exponent
