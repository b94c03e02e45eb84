"""What an evaluation says beside its figure: that it is none, or no better than one answer for all."""

from __future__ import annotations

import math

import numpy as np

from winnow.measure.evaluation import Evaluation


def usual_answer(evaluation: Evaluation) -> np.ndarray | None:
    """Which examples, bool [n], one answer for all has right: that of the most frequent class of the test data itself.

    None where the metric is not an accuracy or the labels are not known.
    """
    if evaluation.metric != "accuracy" or evaluation.truth is None:
        return None
    _, which, counts = np.unique(evaluation.truth, return_inverse=True, return_counts=True)
    return which.reshape(-1) == counts.argmax()


def over_usual(evaluation: Evaluation, usual: np.ndarray) -> tuple[float, float, float]:
    """Share of examples by which the model is better than one answer for all, with its paired 95 % interval."""
    from winnow.measure.intervals import paired_proportions

    right = evaluation.per_example == 1
    won, lost = int((right & ~usual).sum()), int((~right & usual).sum())
    return (won - lost) / evaluation.n, *paired_proportions(won, lost, evaluation.n)


def remarks(evaluation: Evaluation, zeros: int) -> list[str]:
    """Sentences for the notes of a ticket of so many zeros; none where there is nothing to say."""
    if not math.isfinite(evaluation.value):
        lost = evaluation.details.get("nan_examples")
        where = f" (on {lost:,} of {evaluation.n:,} examples)" if lost else ""
        return [f"the evaluation gave {evaluation.value}, not a number{where}: look for NaN in the evaluation data."]
    usual = usual_answer(evaluation)
    if usual is None or usual.shape != evaluation.per_example.shape:
        return []
    value, low, _ = over_usual(evaluation, usual)
    if low > 0:
        return []
    how = "no better" if value <= 0 else "not clearly better"
    fewer = ", or ask for fewer zeros" if zeros else ""
    return [
        f"an accuracy of {100 * evaluation.value:.2f} % on {evaluation.n:,} examples is {how} than always giving the most "
        f"frequent answer ({100 * usual.mean():.2f} %): train longer or at another learning rate{fewer}."
    ]
