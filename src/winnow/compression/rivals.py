"""What the chosen model is set beside: the best candidate of its size, and the nearest plain-quantized model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from winnow.compression.outcome import Outcome
from winnow.measure.compare import Comparison, compare
from winnow.measure.task import Task
from winnow.records.compression import Baseline

if TYPE_CHECKING:
    from winnow.records.compression import Candidate

SAME_SIZE = 0.01  # files that differ by less are as near as each other
PRACTICAL = 100  # times the examples at hand; a difference that needs more is called zero
T = TypeVar("T", Outcome, "Candidate")


def winner(chosen: T, others: Sequence[T], limit: int | None = None) -> T | None:
    """The candidate to take instead: of at most ``limit`` bytes (the size of ``chosen``, unless more was allowed), measured no
    worse than ``chosen``, and strictly ahead in quality or size; or None. Both are outcomes, or rows of a report.

    Of several the smallest among those whose quality is that of the best of them, as far as can be told: within half the
    paired 95% interval of the best one's loss. A much smaller file is not passed over for a difference that is noise, nor a
    much better model for a few bytes. Plain quantization that was requested is overruled as any other candidate is. A drop
    that is not a number (the outputs hold NaN) is worse than any other.
    """
    if chosen.file_bytes is None or chosen.drop is None:
        return None
    room, lost = max(chosen.file_bytes, limit or 0), math.inf if math.isnan(chosen.drop) else chosen.drop
    ahead = [
        (o.drop, o.file_bytes, i)
        for i, o in enumerate(others)
        if o.file_bytes is not None and o.drop is not None and o.file_bytes <= room and o.drop <= lost
        if o.file_bytes < chosen.file_bytes or o.drop < lost
    ]
    if not ahead:
        return None
    best, _, first = min(ahead)
    close = best + _half(others[first])
    return others[min((bytes_, drop, i) for drop, bytes_, i in ahead if drop <= close)[2]]


def _half(candidate: Outcome | Candidate) -> float:
    """Half of the paired interval of a loss; 0 where there is none."""
    if isinstance(candidate, Outcome):
        found = candidate.comparison
        low, high = (found.low, found.high) if found is not None else (None, None)
    else:
        low, high = candidate.drop_low, candidate.drop_high
    half = 0.0 if low is None or high is None else (high - low) / 2
    return half if math.isfinite(half) else 0.0


def nearest(chosen: Outcome, plain: Sequence[Outcome], limit: int | None = None) -> Outcome | None:
    """The plain-quantized model to judge ``chosen`` by; None where there is none.

    1. Where some are no larger (or within ``limit`` bytes) and measured no worse, one of which is ahead: the one that
       :func:`winner` takes.
    2. Else the one closest in bytes (by ratio), the best in quality of those within 1% of its size.

    One whose outputs hold NaN comes last.
    """
    if (ahead := winner(chosen, plain, limit)) is not None:
        return ahead
    lost = [math.nan if o.drop is None else o.drop for o in plain]
    sound = [i for i, drop in enumerate(lost) if not math.isnan(drop)] or list(range(len(plain)))
    if not sound:
        return None
    sizes = [max(o.file_bytes, 1) for o in plain]
    closest = min(sound, key=lambda i: abs(math.log(sizes[i] / max(chosen.file_bytes, 1))))
    near = [i for i in sound if abs(sizes[i] - sizes[closest]) <= SAME_SIZE * sizes[closest]]
    return plain[min(near, key=lambda i: (lost[i], sizes[i]))]


def baseline(
    chosen: Outcome, others: Sequence[Outcome], task: Task, limit: int | None = None, level: str = "all"
) -> Baseline:
    """The nearest plain-quantized model beside the chosen one, or why there is none.

    Args:
        limit: bytes that were allowed, where a size was requested.
        level: which baselines the run was to measure ("none", "rtn", "all").
    """
    if chosen.candidate.kind == "quantized":
        return Baseline(missing="it is itself plain quantization")
    plain = [o for o in others if o.candidate.kind == "quantized" and o.evaluation is not None]
    if (near := nearest(chosen, plain, limit)) is None:
        return Baseline(missing=f"plain quantization was not measured{' (baselines: none)' if level == 'none' else ''}")
    return beside(chosen, near, task, dominates=winner(chosen, plain, limit) is near)


def beside(chosen: Outcome, other: Outcome, task: Task, *, dominates: bool) -> Baseline:
    """What ``chosen`` lost against ``other``, paired by example."""
    assert chosen.evaluation is not None and other.evaluation is not None
    loss = compare(other.evaluation, chosen.evaluation, higher_is_better=task.higher_is_better)
    value = task.scale * other.evaluation.value
    found = Baseline(
        name=other.name,
        label=other.candidate.label,
        file_bytes=other.file_bytes,
        quality=None if math.isnan(value) else value,
        dominates=dominates,
        n=loss.n,
        needed=examples_needed(loss),
    )
    if not math.isnan(loss.drop):
        found.drop, found.drop_low, found.drop_high = loss.drop, loss.low, loss.high
        found.chosen_is = "worse" if loss.low > 0 else "better" if loss.high < 0 else "undecided"
    return found


def examples_needed(loss: Comparison, apart_from: float = 0.0) -> int | None:
    """About how many examples would tell an observed difference from ``apart_from``: None where no practical number would,
    or where the examples at hand are too few for an interval.

    m = n (h / |d|)^2: the half-width h of a paired 95% interval shrinks with the square root of the number n of examples, and
    an interval around the observed difference d excludes ``apart_from`` once h < |d - apart_from|. Perplexities, whose
    differences are ratios, are taken by their logarithms. Rounded up to two digits; None above 100 n, where d is as good as
    zero. At m examples the odds to see a true difference of d are even; twice as many see it four times in five.
    """
    d, low, high, bound = loss.drop, loss.low, loss.high, apart_from
    if loss.relative:
        d, low, high, bound = (math.log1p(v / 100) if v > -100 else -math.inf for v in (d, low, high, bound))
    half, distance = (high - low) / 2, abs(d - bound)
    if not math.isfinite(half) or not 0 < distance < math.inf or half > distance * math.sqrt(PRACTICAL):
        return None
    exact = max(loss.n * (half / distance) ** 2, loss.n + 1)
    step = 10 ** max(0, math.floor(math.log10(exact)) - 1)
    return math.ceil(exact / step - 1e-9) * step
