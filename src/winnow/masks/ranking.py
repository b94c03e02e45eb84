"""Exact counts of lowest scores: in one matrix, row by row, and across many tensors with one alive at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from winnow.errors import InputError

Source = torch.Tensor | Callable[[], torch.Tensor]

_CHUNK = 1 << 20
_BINS = 1 << 16


def comparable(scores: torch.Tensor, name: str = "") -> torch.Tensor:
    """Scores in a dtype with an exact total order here: float32 and float64 stay, half types become float32.

    Raises InputError when a score is NaN or minus infinity (reserved for weights that are already zero).
    """
    scores = scores.detach()
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.to(torch.float32 if scores.is_floating_point() else torch.float64)
    if scores.numel():
        low = float(scores.min())  # min() hands a NaN on
        if low != low or low == -np.inf:
            raise InputError(
                f"the scores{f' of {name}' if name else ''} hold {'NaN' if low != low else 'minus infinity'}: "
                "check the weights and the calibration data for NaN or Inf values"
            )
    return scores


def lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """True at exactly ``count`` entries of ``scores`` [R, C]: the lowest, and among equals the lowest flat index."""
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if count >= scores.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = _kth(scores.reshape(1, -1), count)
    chosen, ties = scores < threshold, scores == threshold
    tied = _per_row(ties)
    need = count - chosen.count_nonzero()
    quota = (need - (tied.cumsum(0) - tied)).clamp(min=0).minimum(tied)  # rows in order take what they can
    return _take_ties(chosen, ties, tied, quota)


def lowest_per_row(scores: torch.Tensor, count: int) -> torch.Tensor:
    """True at exactly ``count`` entries of ``scores`` [R, C], each row with its share by largest remainder.

    Every row has the same claim, so each gets ``count // R`` and the first ``count % R`` rows one more.
    """
    rows = scores.shape[0]
    base, extra = divmod(count, rows) if rows else (0, 0)
    threshold = scores.new_full((rows, 1), -np.inf)
    if extra:
        threshold[:extra] = _kth(scores[:extra], base + 1)
    if base:
        threshold[extra:] = _kth(scores[extra:], base)
    chosen, ties = scores < threshold, scores == threshold
    quotas = torch.full((rows,), base, device=scores.device)
    quotas[:extra] += 1
    return _take_ties(chosen, ties, _per_row(ties), quotas - _per_row(chosen))


def lowest_of_groups(scores: torch.Tensor, count: int) -> torch.Tensor:
    """True at the ``count`` lowest of each row of ``scores`` [G, m], m small; the earlier goes first among equals."""
    columns = scores.t().contiguous()
    size = columns.shape[0]
    rank = torch.zeros_like(columns, dtype=torch.int16)
    for i in range(size):
        for j in range(i + 1, size):
            later_is_lower = columns[j] < columns[i]
            rank[i] += later_is_lower
            rank[j] += ~later_is_lower
    return (rank < count).t()


def global_counts(sources: Mapping[str, Source], total: int, caps: Mapping[str, int] | None = None) -> dict[str, int]:
    """How many entries each tensor holds among the ``total`` lowest of all, with exact sum.

    Scores are compared as float32. Ties go to the tensors in their order. A tensor whose share would pass its cap
    stops there and the others lose more. Two histogram passes over 16 bits each find the threshold exactly, so a
    source may be a callable that builds its tensor when called: only one is in memory at a time.

    Raises InputError on NaN scores, or when the caps leave room for fewer than ``total``.
    """
    if not total:
        return dict.fromkeys(sources, 0)
    # reached[b]: what all tensors give up to and including bin b, none beyond its cap
    reached = torch.zeros(_BINS, dtype=torch.int64)
    limit: dict[str, int] = {}
    for name, source in sources.items():
        own = torch.zeros_like(reached)
        for keys in _keys(source, name):
            own += torch.bincount((keys >> 16) + _BINS // 2, minlength=_BINS).cpu()
        limit[name] = int(own.sum()) if caps is None else caps[name]
        reached += own.cumsum(0).clamp(max=limit[name])
    if total > int(reached[-1]):
        raise InputError(
            f"{total} weights do not fit into the tensors and their limits: raise max_rate or ask for fewer"
        )
    high = _first_bin(reached, total) - _BINS // 2
    reached.zero_()
    below: dict[str, int] = {}
    sparse: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # of the entries in bin ``high``, by their low bits
    for name, source in sources.items():
        own = torch.zeros_like(reached)
        below[name] = 0
        for keys in _keys(source, name):
            top = keys >> 16
            below[name] += int((top < high).count_nonzero())
            own += torch.bincount(keys[top == high] & 0xFFFF, minlength=_BINS).cpu()
        reached += (below[name] + own.cumsum(0)).clamp(max=limit[name])
        bins = own.nonzero().flatten()
        sparse[name] = (bins, own[bins])
    low = _first_bin(reached, total)
    counts, ties = {}, {}
    for name, (bins, sizes) in sparse.items():
        counts[name] = min(below[name] + int(sizes[bins < low].sum()), limit[name])
        ties[name] = min(below[name] + int(sizes[bins <= low].sum()), limit[name]) - counts[name]
    rest = total - sum(counts.values())
    for name, tied in ties.items():
        take = min(rest, tied)
        counts[name] += take
        rest -= take
    return counts


def _kth(rows: torch.Tensor, k: int) -> torch.Tensor:
    """The k-th smallest (from 1) of each row of [G, K], as [G, 1]."""
    if rows.device.type == "cpu":  # numpy's selection is vectorised and an order of magnitude ahead of kthvalue
        return torch.from_numpy(np.partition(rows.numpy(), k - 1, axis=1)[:, k - 1 : k].copy())
    return rows.kthvalue(k, dim=1, keepdim=True).values


def _per_row(mask: torch.Tensor) -> torch.Tensor:
    if mask.device.type == "cpu":  # as in _kth
        return torch.from_numpy(np.count_nonzero(mask.numpy(), axis=1).astype(np.int64))
    return mask.count_nonzero(dim=1)


def _take_ties(chosen: torch.Tensor, ties: torch.Tensor, tied: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
    """Adds to ``chosen`` the first ``quota`` [R] of each row's ``ties``; ``tied`` [R] counts them."""
    chosen |= ties & ((quota == tied) & (quota > 0))[:, None]
    partly = ((quota > 0) & (quota < tied)).nonzero().flatten()
    if partly.numel():
        rows = ties[partly]
        chosen[partly] |= rows & (rows.cumsum(1, dtype=torch.int32) <= quota[partly, None])
    return chosen


def _first_bin(reached: torch.Tensor, count: int) -> int:
    """The first bin at which a running total comes to ``count``."""
    return int(torch.searchsorted(reached, torch.tensor(count)))


def _keys(source: Source, name: str) -> Iterator[torch.Tensor]:
    """int32 keys in the order of the float32 scores, chunk by chunk."""
    scores = (source() if callable(source) else source).detach().reshape(-1)
    for chunk in scores.split(_CHUNK):
        values = chunk.to(torch.float32) + 0.0  # -0.0 becomes 0.0: they compare equal
        if values.numel() and bool(values.min().isnan()):
            raise InputError(
                f"the scores of {name} hold NaN: check the weights and the calibration data for NaN or Inf"
            )
        bits = values.view(torch.int32)
        yield bits ^ ((bits >> 31) & 0x7FFFFFFF)


def limits(numels: Sequence[int], zeros: int, max_rate: float) -> list[int]:
    """How many zeros each layer may take: ``floor(max_rate * numel)``, or its even share where the total is higher.

    Raises InputError when ``zeros`` is more than there is.
    """
    total = sum(numels)
    if not 0 <= zeros <= total:
        raise InputError(f"{zeros} zeros do not fit {total} prunable weights: ask for fewer, or widen the scope")
    if not 0 < max_rate <= 1:
        raise InputError(
            f"max_rate {max_rate} is outside 0 to 1: give the share a layer may lose at most, such as 0.99"
        )
    return [max(int(max_rate * n), -(-zeros * n // total)) for n in numels] if total else [0] * len(numels)
