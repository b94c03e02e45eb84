"""Mask soup: the candidates made one mask, in the ways that the paper, its code and this library have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Literal

import torch

from winnow.masks.global_ranking import MAX_RATE, caps, global_magnitude, prune_globally
from winnow.masks.mask import MaskSet
from winnow.masks.soup import soup
from winnow.tickets.methods.isp.candidates import Pool

Aggregate = Literal["vote", "mean_abs", "forecast", "union", "intersect", "literal"]
EXACT = ("vote", "mean_abs", "forecast", "literal")  # ways that meet the target in every round


def denoise(
    how: Aggregate,
    pool: Pool,
    weights: Mapping[str, torch.Tensor],
    keeps: Mapping[str, torch.Tensor],
    zeros: int,
    *,
    most: int | None = None,
    max_rate: float = MAX_RATE,
    mean: Mapping[str, torch.Tensor] | None = None,
    reach: float = 1.0,
) -> MaskSet:
    """One keep mask out of a round's candidates, within the present one (Jaiswal et al. 2023, algorithm 2).

    =========  ==========================================================================  ====================
    how        rule                                                                        zeros
    =========  ==========================================================================  ====================
    vote       kept by most candidates, among equals largest |theta|                       ``zeros``
    mean_abs   largest mean over the candidates of |theta_j| (or their scores)             ``zeros``
    forecast   largest |theta + reach (mean_j theta_j - theta)|: the way goes on     ``zeros``
    union      kept by any candidate                                                       at most ``zeros``
    intersect  kept by all candidates; where that is too few, the largest |theta| besides  ``zeros`` to ``most``
    literal    the paper's line by line: any candidate or theta itself, then by |theta|    ``zeros``
    =========  ==========================================================================  ====================

    ``literal`` is the magnitude mask of theta whatever the candidates say: theta's own mask lies in the union, and the
    adjustment by |theta| takes everything else out again. It is there as a control. ``forecast`` is this library's own: with
    a reach of 1 the magnitudes of the candidates' mean, with more those it would come to if training went on like that.

    Args:
        pool: the candidates; their masks lie within ``keeps`` and have ``zeros`` zeros each.
        weights: theta of the main model, matrices [rows, cols]; in all ways but forecast any scores may stand for |theta|.
        keeps: the present masks.
        zeros: target over all tensors, earlier rounds included.
        most: zeros that must not be passed (``intersect``); ``zeros`` unless given.
        max_rate: share of its weights that a tensor may lose at most; a tensor that stops there leaves the rest to others.
        mean: the candidates' mean as matrices (``forecast``).
    """
    if how == "mean_abs":
        assert pool.total is not None  # sums rank as means do
        return MaskSet(prune_globally(pool.total, keeps, zeros, max_rate))
    if how == "forecast":
        assert mean is not None
        ahead = {n: partial(_ahead, w, mean[n], reach) for n, w in weights.items()}
        return MaskSet(prune_globally(ahead, keeps, zeros, max_rate))
    own = _Magnitudes(weights, keeps)
    scores = [own] * len(pool.masks)
    if how == "vote":
        return soup(pool.masks, "vote", zeros, scores, caps(keeps, zeros, max_rate))
    if how == "literal":
        union = soup([MaskSet(global_magnitude(weights, keeps, zeros, max_rate)), *pool.masks], "union")
        return adjust(union, weights, zeros, max_rate)
    if how == "union":
        return soup(pool.masks, "union")
    count = min(soup(pool.masks, "intersection").zeros, zeros if most is None else most)
    return soup(pool.masks, "intersection", count, scores, caps(keeps, count, max_rate))


def adjust(masks: MaskSet, weights: Mapping[str, torch.Tensor], zeros: int, max_rate: float = MAX_RATE) -> MaskSet:
    """The masks with more weights taken, lowest |theta| first, to exactly ``zeros`` zeros (algorithm 2, last line)."""
    keeps = {n: m.unpack(weights[n].device) for n, m in masks.items()}
    return MaskSet(global_magnitude(weights, keeps, zeros, max_rate))


def disagreement(masks: Sequence[MaskSet], active: int) -> float:
    """Mean over pairs of candidates of (weights on which they differ) / (weights active before the round); 0 for one."""
    pairs = [a.hamming(b).overall for a, b in combinations(masks, 2)]
    return sum(pairs) / len(pairs) / active if pairs and active else 0.0


def unanimous(masks: Sequence[MaskSet], pruned: int, zeros: int) -> float:
    """Of the weights that a round was to prune, the share that every candidate would; 1 where there were none."""
    return (soup(masks, "union").zeros - pruned) / (zeros - pruned) if zeros > pruned else 1.0


def _ahead(weight: torch.Tensor, mean: torch.Tensor, reach: float) -> torch.Tensor:
    return torch.lerp(weight, mean, reach).abs()


class _Magnitudes(Mapping[str, torch.Tensor]):
    """|theta| for the soup, a tensor at a time; pruned weights lie below kept ones that are exactly zero."""

    def __init__(self, weights: Mapping[str, torch.Tensor], keeps: Mapping[str, torch.Tensor]) -> None:
        self.weights, self.keeps = weights, keeps

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.weights[name].abs().masked_fill(~self.keeps[name], -1.0)

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)
