"""Several candidate masks made one, to an exact count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Literal, get_args

import torch

from winnow.errors import InputError
from winnow.masks.mask import MaskSet, require_same
from winnow.masks.ranking import global_counts, lowest

How = Literal["vote", "mean", "union", "intersection"]


def soup(
    masks: Sequence[MaskSet],
    how: How = "vote",
    zeros: int | None = None,
    scores: Sequence[Mapping[str, torch.Tensor]] | None = None,
    caps: Mapping[str, int] | None = None,
) -> MaskSet:
    """One mask out of several candidates for the same model (Jaiswal et al. 2023, Instant Soup, algorithm 2).

    Every weight gets a class, and within its class a second key; one ranking over all tensors then removes exactly
    ``zeros`` weights, the lowest first, among equals by tensor order and index.

    ============  ================================  =======================================
    how           class                             second key
    ============  ================================  =======================================
    vote          candidates that keep the weight   mean score, if scores are given
    mean          the same for all                  mean score (``scores`` needed)
    union         kept by any                       mean score if given, else the votes
    intersection  kept by all                       mean score if given, else the votes
    ============  ================================  =======================================

    ``scores`` holds one mapping name -> [R, C] per candidate (for ISP |weight| of each look-ahead model; one's own
    magnitude for all gives the plain adjust step). ``zeros=None`` leaves union and intersection at the count they
    come to; vote and mean then take the candidates' own count, which must be the same for all. ``caps`` are the zeros
    that a tensor may have at most, by name; where it would get more, the others get them.

    Raises InputError when candidates differ in names or shapes, scores are missing or not finite, no count is implied,
    or the caps leave no room for it.
    """
    if how not in get_args(How):
        raise InputError(f"unknown way to aggregate masks {how!r}: use one of {', '.join(get_args(How))}")
    if not masks:
        raise InputError("a soup needs at least one mask: give a list of MaskSet")
    for other in masks[1:]:
        require_same(masks[0], other)
    if scores is not None and len(scores) != len(masks):
        raise InputError(f"{len(scores)} scores for {len(masks)} masks: give one mapping of scores per candidate")
    if how == "mean" and scores is None:
        raise InputError("a mean soup ranks by scores: give the scores of each candidate")
    if zeros is None:
        if how in ("union", "intersection"):
            return MaskSet({name: _classes(masks, how, name).bool() for name in masks[0]})
        found = {candidate.zeros for candidate in masks}
        if len(found) > 1:
            raise InputError(f"the candidates have {min(found)} to {max(found)} zeros: give the number with zeros=")
        zeros = found.pop()
    if not 0 <= zeros <= masks[0].numel:
        raise InputError(f"{zeros} zeros do not fit {masks[0].numel} weights: ask for 0 to {masks[0].numel}")
    key = partial(_key, masks, how, scores)
    most = {name: masks[0][name].numel for name in masks[0]} if caps is None else caps
    boundary = _boundary_class(((_classes(masks, how, name), most[name]) for name in masks[0]), zeros)
    counts = global_counts({name: partial(key, boundary, name) for name in masks[0]}, zeros, caps)
    # A tensor that stops at its cap has a lower boundary of its own.
    own = {n: _boundary_class([(_classes(masks, how, n), most[n])], counts[n]) if caps else boundary for n in masks[0]}
    return MaskSet({name: ~lowest(key(own[name], name), counts[name]) for name in masks[0]})


def _votes(masks: Sequence[MaskSet], name: str) -> torch.Tensor:
    votes = torch.zeros(masks[0][name].shape, dtype=torch.int16)
    for candidate in masks:
        votes += candidate[name].unpack()
    return votes


def _classes(masks: Sequence[MaskSet], how: str, name: str) -> torch.Tensor:
    votes = _votes(masks, name)
    if how in ("vote", "mean"):
        return votes if how == "vote" else torch.zeros_like(votes)
    return (votes > 0 if how == "union" else votes == len(masks)).to(torch.int16)


def _boundary_class(classes: Iterable[tuple[torch.Tensor, int]], zeros: int) -> int:
    """The class in which the count is reached when no tensor gives more than its cap: lower ones go, higher ones stay."""
    reached = torch.zeros(1 << 15, dtype=torch.int64)
    for each, cap in classes:
        reached += torch.bincount(each.flatten(), minlength=len(reached)).cumsum(0).clamp(max=cap)
    return int(torch.searchsorted(reached, torch.tensor(max(zeros, 1))))


def _key(
    masks: Sequence[MaskSet], how: str, scores: Sequence[Mapping[str, torch.Tensor]] | None, boundary: int, name: str
) -> torch.Tensor:
    """float32 [R, C] that ranks by (class, second key): finite only within the class where the count is reached."""
    classes = _classes(masks, how, name)
    if scores is not None:
        second = torch.zeros(masks[0][name].shape)
        for each in scores:
            if name not in each or tuple(each[name].shape) != masks[0][name].shape:
                raise InputError(f"the scores of {name} are missing or of another shape: give a matrix for every mask")
            second += each[name].detach().to("cpu", torch.float32) / len(scores)
        if not bool(second.isfinite().all()):
            raise InputError(f"the scores of {name} are not all finite: check the candidates for NaN or Inf")
    else:
        second = _votes(masks, name).float() if how != "vote" else torch.zeros(masks[0][name].shape)
    second.masked_fill_(classes < boundary, -torch.inf)
    return second.masked_fill_(classes > boundary, torch.inf)
