"""Whether a figure could fall at all: a model no better than a constant answer loses nothing when it is destroyed."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from winnow.measure.compare import Comparison, constant
from winnow.measure.evaluation import Evaluation
from winnow.measure.language import LanguageModelTask
from winnow.measure.task import Task

NOTICEABLE = 1.0  # points, or per cent of perplexity


def at_chance(task: Task, dense: Evaluation) -> str | None:
    """A sentence where the dense model does no better, with confidence, than an answer that ignores the input; else None."""
    if math.isnan(dense.value):
        return f"the dense model's {task.metric} is not a number."
    if dense.metric == "accuracy" and dense.truth is not None:
        share = float(np.bincount(dense.truth.astype(np.int64)).max()) / dense.n
        if dense.low <= share:
            return (
                f"the dense model's accuracy of {100 * dense.value:.1f}% is no better, with 95% confidence, than always "
                f"giving the most frequent answer ({100 * share:.1f}%)."
            )
    elif dense.metric == "agreement" and constant(dense.predictions):
        return "the dense model gives the same answer to every example, so that agreement with it cannot fall."
    elif dense.metric in ("R2", "spearman") and dense.low <= 0:
        what = "explain the scores" if dense.metric == "R2" else "follow the scores"
        return f"the dense model's outputs do not {what}, with 95% confidence ({task.metric} {task.scale * dense.value:.1f})."
    elif isinstance(task, LanguageModelTask) and dense.value >= (bound := by_frequency(task)):
        return (
            f"the dense model's perplexity of {dense.value:.1f} is no better than that of guessing by the frequency of the "
            f"tokens ({bound:.1f})."
        )
    return None


def too_good(loss: Comparison, among: int = 1) -> str | None:
    """A sentence where a model is better than the dense one by more than chance and :data:`NOTICEABLE`; else None.

    ``among``: how many models were compared; the interval is widened so that one of them all is wrong in 5% of cases
    (Bonferroni, with the quantiles of a normal distribution).
    """
    wider = NormalDist().inv_cdf(1 - 0.025 / among) / NormalDist().inv_cdf(0.975)
    if not (loss.drop + wider * (loss.high - loss.drop) < 0 and loss.drop < -NOTICEABLE):
        return None
    unit = "per cent" if loss.relative else "points"
    return (
        f"it measures better than the dense model, by {-loss.drop:.1f} {unit} and not by chance, which compression does not do: "
        "look for a fault in how the model is fed (mean and deviation of images, tokenizer, labels) before believing it."
    )


def by_frequency(task: LanguageModelTask) -> float:
    """Perplexity of predicting each token of the data by how often it is among the others, one added to every count."""
    targets = task.segments[:, 1:].reshape(-1).numpy()
    counts = np.bincount(targets)
    vocabulary = max(task.vocabulary, len(counts))
    seen = counts[counts > 0].astype(np.float64)
    nll = -(seen * np.log(seen / (len(targets) - 1 + vocabulary))).sum() / len(targets)
    return float(np.exp(nll))
