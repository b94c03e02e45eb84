"""What a ticket changed: answers and classes against the dense model, masks against another's, tensors nearly empty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from winnow.errors import InputError
from winnow.masks.mask import MaskSet
from winnow.measure.classification import class_figures
from winnow.measure.compare import compare
from winnow.measure.evaluation import Evaluation
from winnow.records.allocation import AllocationLayer, AllocationRecord
from winnow.records.ticket import Changes, ClassLine, Figure, OverlapLine, TensorLine
from winnow.tickets.search import Ticket
from winnow.train.distil.fit import downsample
from winnow.train.methods.by_name import title


def figure(evaluation: Evaluation, scale: float) -> Figure:
    """The figure of one evaluation in the unit it is told in."""
    return Figure(value=scale * evaluation.value, low=scale * evaluation.low, high=scale * evaluation.high)


def drop(dense: Evaluation, other: Evaluation, higher: bool) -> Figure:
    """What was lost against the dense model on the same examples, with its paired interval."""
    found = compare(dense, other, higher_is_better=higher)
    return Figure(value=found.drop, low=found.low, high=found.high)


def pooled(figures: Sequence[Figure], ends: tuple[float, float] = (-math.inf, math.inf)) -> Figure | None:
    """The mean over seeds. Its interval is the wider of two: over seeds (Student's t), and over examples (their mean).

    The first says what another seed would give, the second what other examples would; seeds that agree by luck do not make
    a figure certain, nor do many examples make one seed typical. Below three seeds only the second is known.
    """
    if not figures:
        return None
    values = np.asarray([f.value for f in figures])
    n, mean = len(values), float(values.mean())
    lows = [f.low for f in figures if f.low is not None]
    highs = [f.high for f in figures if f.high is not None]
    low = float(np.mean(lows)) if len(lows) == n else None
    high = float(np.mean(highs)) if len(highs) == n else None
    spread = float(values.std(ddof=1)) if n > 1 else None
    if n > 2 and spread is not None and math.isfinite(spread):
        from scipy.stats import t

        half = float(t.ppf(0.975, n - 1)) * spread / math.sqrt(n)
        low = mean - half if low is None else min(low, mean - half)
        high = mean + half if high is None else max(high, mean + half)
    if low is not None and high is not None:
        low, high = max(low, ends[0]), min(high, ends[1])
    return Figure(value=mean, low=low, high=high, seeds=n, spread=spread)


def changes(dense: Evaluation, other: Evaluation) -> Changes | None:
    """How many answers turned; None where an example has no single answer that is right or wrong."""
    if not _classes(dense, other):
        return None
    was, now = dense.per_example == 1, other.per_example == 1
    same = (dense.predictions == other.predictions) & (other.predictions >= 0)
    return Changes(
        n=dense.n,
        right_to_wrong=int((was & ~now).sum()),
        wrong_to_right=int((~was & now).sum()),
        wrong_to_wrong=int((~was & ~now & ~same).sum()),
        agreement=float(same.mean()),
    )


def classes(dense: Evaluation, other: Evaluation) -> list[ClassLine]:
    """Each class before and after, the largest loss first; classes without examples are left out."""
    if not _classes(dense, other) or dense.truth is None:
        return []
    truth = np.asarray(dense.truth)
    count = 1 + int(max(truth.max(), dense.predictions.max(), other.predictions.max()))
    names = list(dense.details.get("classes", []))
    names += [str(i) for i in range(len(names), count)]
    before, after = (class_figures(truth, e.predictions, count) for e in (dense, other))
    was, now = dense.per_example == 1, other.per_example == 1
    found = []
    for i, (n, first, second) in enumerate(zip(before["support"], before["recall"], after["recall"], strict=True)):
        if n:
            lost, won = int(((truth == i) & was & ~now).sum()), int(((truth == i) & ~was & now).sum())
            shares = {"dense": 100 * first, "ticket": 100 * second}
            found.append(ClassLine(name=str(names[i]), n=n, right_to_wrong=lost, wrong_to_right=won, **shares))
    return sorted(found, key=lambda c: (c.ticket - c.dense, c.name))


def _classes(dense: Evaluation, other: Evaluation) -> bool:
    if dense.metric != other.metric or dense.n != other.n:
        raise InputError(
            f"{dense.metric} on {dense.n} examples and {other.metric} on {other.n} cannot be compared: evaluate both on one task."
        )
    return dense.metric == "accuracy" and dense.predictions.ndim == 1


def overlap(masks: MaskSet, other: MaskSet, against: str) -> OverlapLine:
    """Cosine and intersection over union of the kept sets, beside what chance gives.

    By chance: independent random masks that keep as much of each tensor as these do. They share sum_l n_l p_l q_l weights
    in expectation, p_l and q_l being the shares that the two keep of tensor l: what is above that is agreement about
    weights, not about layers.

    Raises:
        InputError: masks of other tensors.
    """
    likeness, shared = masks.cosine(other).overall, masks.overlap(other).iou.overall
    both = sum(m.nonzeros * other[name].nonzeros / m.numel for name, m in masks.items() if m.numel)
    p, q = masks.nonzeros, other.nonzeros
    return OverlapLine(
        against=against, cosine=likeness, iou=shared,
        chance_cosine=both / math.sqrt(p * q) if p and q else 0.0, chance_iou=both / (p + q - both) if p + q else 0.0,
    )  # fmt: skip


def tensors(masks: MaskSet, flops: Mapping[str, float]) -> list[TensorLine]:
    """What is left of each tensor, in the model's order."""
    return [
        TensorLine(name=name, numel=m.numel, kept=m.nonzeros, flops=flops.get(name, 0.0)) for name, m in masks.items()
    ]


def training(ticket: Ticket, settings: Mapping[str, Any]) -> AllocationRecord:
    """A sparse training's masks, losses and time; ``settings`` are those of :mod:`winnow.tickets.methods.sparse_training`."""
    masks, name, options = ticket.masks, settings.get("by", ""), settings.get("options", {})
    total = sum(p.numel() for p in ticket.model.parameters())
    return AllocationRecord(
        method=title(name, options) if name else "sparse training", zeros=ticket.zeros, numel=masks.numel, total_parameters=total,
        target=ticket.sparsity, exact_rate=ticket.sparsity, exact_rate_all=ticket.zeros / total,
        layers=[AllocationLayer(name=n, numel=m.numel, rate=m.zeros / m.numel) for n, m in masks.items()],
        losses=downsample(ticket.losses), steps=ticket.cost.steps, seconds=ticket.cost.seconds,
        settings={k: str(v) for k, v in options.items()},
    )  # fmt: skip
