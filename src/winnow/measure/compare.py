"""Two models on the same examples: what was lost, with a paired 95% interval, and where."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from winnow.errors import InputError
from winnow.measure.classification import ClassificationTask
from winnow.measure.evaluation import Evaluation
from winnow.measure.intervals import UNKNOWN, paired_mean, paired_proportions, paired_spearman
from winnow.measure.language import LanguageModelTask
from winnow.measure.spearman import SimilarityTask
from winnow.measure.task import Task


@dataclass(frozen=True)
class Comparison:
    """What ``other`` lost against ``dense``; positive is worse.

    Attributes:
        drop: in points (hundredths) of accuracy, correlation or agreement; in per cent of perplexity if ``relative``.
        low, high: paired 95% interval of the drop; infinite where the examples are too few for a bound.
        relative: whether the drop is in per cent of the dense figure.
        n: examples both were measured on.
        method: how the interval was found.
    """

    drop: float
    low: float
    high: float
    relative: bool
    n: int
    method: str


def compare(dense: Evaluation, other: Evaluation, *, higher_is_better: bool) -> Comparison:
    """The drop from ``dense`` to ``other``, paired by example.

    Accuracy: Tango's score interval for paired proportions. Spearman: bootstrap over examples. Perplexity:
    100 (exp(mean difference of the segments' nll) - 1), t interval with Newey-West variance on the differences.
    Anything else: that interval on the differences of ``per_example``. NaN in either model gives NaN, which no
    limit is satisfied by.

    Raises:
        InputError: the evaluations are not of the same examples.
    """
    if dense.metric != other.metric or dense.n != other.n:
        raise InputError(
            f"{dense.metric} on {dense.n} examples and {other.metric} on {other.n} cannot be compared: evaluate both on one task."
        )
    relative = dense.metric == "perplexity"
    if math.isnan(dense.value) or math.isnan(other.value):
        return Comparison(math.nan, math.nan, math.nan, relative, dense.n, "none: a model put out NaN")
    sign = 1.0 if higher_is_better else -1.0
    if relative:
        difference = float((other.per_example - dense.per_example).mean())
        low, high = paired_mean(other.per_example, dense.per_example)
        drop, low, high = (_percent(v) for v in (difference, low, high))
        return Comparison(drop, low, high, True, dense.n, "paired t, Newey-West")
    drop = sign * (dense.value - other.value)
    if dense.metric == "accuracy":
        lost = int(((dense.per_example == 1) & (other.per_example == 0)).sum())
        gained = int(((dense.per_example == 0) & (other.per_example == 1)).sum())
        low, high = paired_proportions(lost, gained, dense.n)
        method = "Tango score, paired proportions"
    elif dense.metric == "spearman":
        if dense.truth is None:
            raise InputError("the stored evaluation lacks its gold scores: evaluate again.")
        low, high = paired_spearman(dense.truth, dense.predictions, other.predictions)
        method = "paired bootstrap, 2,000 resamples"
    elif dense.metric == "agreement" and constant(dense.predictions):
        low, high = UNKNOWN
        method = "none: the dense model gives every example the same answer"
    else:
        low, high = paired_mean(dense.per_example, other.per_example)
        method = "paired t, Newey-West"
    if sign < 0:
        low, high = -high, -low
    return Comparison(100 * drop, 100 * low, 100 * high, False, dense.n, method)


def constant(predictions: np.ndarray) -> bool:
    """Whether every example got the same answer: classes [n, ...], or vectors of length 1 [n, width]."""
    if predictions.dtype.kind != "f":
        return bool((predictions == predictions[:1]).all())
    return bool((predictions.astype(np.float64) @ predictions[0].astype(np.float64) > 1 - 1e-6).all())


def _percent(difference: float) -> float:
    """A difference of mean nll as per cent of perplexity."""
    try:
        return 100 * math.expm1(difference)
    except OverflowError:
        return math.inf


def class_changes(dense: Evaluation, other: Evaluation) -> list[dict[str, Any]]:
    """Recall of each class before and after, the largest loss first; classes without examples are left out.

    Each entry: name, n (examples), before, after, change (after - before).
    """
    if "recall" not in dense.details or "recall" not in other.details:
        return []
    entries = []
    names, support = dense.details["classes"], dense.details["support"]
    for name, n, before, after in zip(names, support, dense.details["recall"], other.details["recall"]):
        if before is not None and after is not None:
            entries.append({"name": name, "n": n, "before": before, "after": after, "change": after - before})
    return sorted(entries, key=lambda entry: (entry["change"], entry["name"]))


def changed_examples(task: Task, dense: Evaluation, other: Evaluation, k: int = 8) -> list[dict[str, Any]]:
    """Up to ``k`` examples whose answer changed, losses first.

    Each entry: index, input (text, or None for an image or tensor), truth, dense, pruned (answers as words, None where
    there is none). For perplexity these are words of the text; for similarity, pairs whose rank moved most, with scores.
    """
    if isinstance(task, LanguageModelTask):
        return _changed_words(task, dense, other, k)
    if isinstance(task, SimilarityTask):
        return _moved_pairs(task, dense, other, k)
    if isinstance(task, ClassificationTask) or (dense.predictions.ndim == 1 and dense.predictions.dtype.kind == "i"):
        return _changed_classes(task, dense, other, k)
    return []


def _changed_classes(task: Any, dense: Evaluation, other: Evaluation, k: int) -> list[dict[str, Any]]:
    changed = np.flatnonzero(dense.predictions != other.predictions)
    # Right turned wrong first, then wrong turned otherwise wrong, then gains.
    loss = dense.per_example[changed] - other.per_example[changed]
    order = changed[np.argsort(-loss, kind="stable")][:k]
    names = getattr(task, "class_names", None)
    return [
        {
            "index": int(i),
            "input": _shown(task.records, int(i)),
            "truth": None if dense.truth is None else _class_name(names, dense.truth[i]),
            "dense": _class_name(names, dense.predictions[i]),
            "pruned": _class_name(names, other.predictions[i]),
        }
        for i in order
    ]


def _changed_words(task: LanguageModelTask, dense: Evaluation, other: Evaluation, k: int) -> list[dict[str, Any]]:
    entries = []
    for i in np.argsort(-(other.per_example - dense.per_example), kind="stable"):
        truth = task.segments[i, 1:].numpy()
        before, after = dense.predictions[i], other.predictions[i]
        lost = np.flatnonzero((before == truth) & (after != truth))
        if not lost.size:
            continue
        # With context to read, where the segment has such a place.
        place = int(lost[np.searchsorted(lost, min(32, lost[-1]))])
        entries.append(
            {
                "index": int(i),
                "input": task.text(int(i), place - 31, place + 1),
                "truth": task.words([truth[place]]),
                "dense": task.words([before[place]]),
                "pruned": task.words([after[place]]) if after[place] >= 0 else None,
            }
        )
        if len(entries) == k:
            break
    return entries


def _moved_pairs(task: SimilarityTask, dense: Evaluation, other: Evaluation, k: int) -> list[dict[str, Any]]:
    from scipy.stats import rankdata

    moved = np.abs(rankdata(other.predictions) - rankdata(dense.predictions))
    return [
        {
            "index": int(i),
            "input": " | ".join(task.records.inputs[i]),
            "truth": f"{task.truth[i]:g}",
            "dense": f"{dense.predictions[i]:.3f}",
            "pruned": f"{other.predictions[i]:.3f}",
        }
        for i in np.argsort(-moved, kind="stable")[:k]
        if moved[i] > 0
    ]


def _shown(records: Any, index: int) -> str | None:
    if records.kind == "text":
        return records.inputs[index].strip()
    if records.kind == "pairs":
        return " | ".join(text.strip() for text in records.inputs[index])
    return None


def _class_name(names: list[str] | None, number: Any) -> str | None:
    if number < 0:
        return None
    return names[number] if names is not None and number < len(names) else str(int(number))
