"""One ranking over all tensors of a model, with an exact number of zeros."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from winnow.errors import InputError
from winnow.masks.ranking import Source, global_counts, limits, lowest

MAX_RATE = 0.99  # as in winnow.allocate: a global ranking alone may empty a tensor, and the model with it


def global_magnitude(
    matrices: Mapping[str, torch.Tensor], keeps: Mapping[str, torch.Tensor], zeros: int, max_rate: float = MAX_RATE
) -> dict[str, torch.Tensor]:
    """Keep masks with exactly ``zeros`` zeros: one ranking of |w| over all tensors, already pruned weights stay pruned.

    Ties go by tensor order and index. ``matrices`` and ``keeps`` are [rows, cols] by name (Jaiswal et al. 2023, the
    magnitude pruning of algorithm 1: one global ranking, not one per layer).

    Raises:
        InputError: as :func:`prune_globally`.
    """
    return prune_globally({n: m.abs for n, m in matrices.items()}, keeps, zeros, max_rate)


def prune_globally(
    scores: Mapping[str, Source], keeps: Mapping[str, torch.Tensor], zeros: int, max_rate: float = MAX_RATE
) -> dict[str, torch.Tensor]:
    """Keep masks with exactly ``zeros`` zeros, the lowest of ``scores`` over all tensors; no weight comes back.

    Scores are compared as float32, ties go by tensor order and index. A score may be a callable that makes its tensor
    [rows, cols] when called; only one is in memory at a time. Where a tensor would lose more than ``max_rate`` of its weights
    the others lose the rest (:func:`caps`); 1 is the pure ranking of the papers, which may empty a tensor.

    Raises:
        InputError: fewer zeros than there are already, more than there are weights, NaN scores, or a ``max_rate``
            outside 0 to 1.
    """
    pruned = sum(int((~k).count_nonzero()) for k in keeps.values())
    if zeros < pruned:
        raise InputError(
            f"{pruned} weights are gone already, more than the {zeros} requested: a mask only loses weights."
        )
    numel = sum(k.numel() for k in keeps.values())
    if zeros > numel:
        raise InputError(f"{zeros} zeros were requested of {numel} weights: request fewer.")
    ranked = {n: _ranked(s, keeps[n]) for n, s in scores.items()}
    counts = global_counts(ranked, zeros, caps(keeps, zeros, max_rate))
    return {n: ~lowest(make(), counts[n]) for n, make in ranked.items()}


def caps(keeps: Mapping[str, torch.Tensor], zeros: int, max_rate: float) -> dict[str, int]:
    """How many zeros each tensor may have: ``max_rate`` of its weights, its even share of ``zeros`` or what it has already."""
    most = limits([k.numel() for k in keeps.values()], zeros, max_rate)
    return {n: max(cap, int((~k).count_nonzero())) for (n, k), cap in zip(keeps.items(), most)}


def _ranked(score: Source, keep: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Pruned weights below all others: no live score is minus infinity, so that none of them can take their place."""

    def make() -> torch.Tensor:
        values = (score() if callable(score) else score).detach().float()
        return values.clamp_min(torch.finfo(torch.float32).min).masked_fill_(~keep, -torch.inf)

    return make
