"""How well a model's single output ranks examples by a score."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from winnow.errors import InputError
from winnow.forward.model import call, logits_of
from winnow.measure.evaluation import Evaluation, OutputRecorder
from winnow.measure.intervals import spearman, spearman_interval
from winnow.measure.task import Progress, RecordsTask, distinct_scores


class SpearmanTask(RecordsTask):
    """Spearman correlation of one number per example with its gold score."""

    name = "Spearman correlation"
    metric = "spearman"
    truth: np.ndarray

    def _evaluation(self, found: np.ndarray, details: dict[str, Any]) -> Evaluation:
        rho = spearman(found, self.truth)
        low, high = spearman_interval(rho, self.n)
        if np.isnan(found).any():
            details["nan_examples"] = int(np.isnan(found).sum())
        return Evaluation(self.metric, rho, low, high, found, found, self.n, self.truth, details)

    def _agreement(self, evaluation: Evaluation, dense: Evaluation, watch: OutputRecorder) -> dict[str, Any]:
        return {"rank_agreement": spearman(evaluation.predictions, dense.predictions)}


class ScoreTask(SpearmanTask):
    """Spearman correlation of a model's one output per example with the gold score; its mean squared error in ``details``.

    Unlike :class:`winnow.measure.similarity.SimilarityTask` both texts of a pair go through the model together.
    """

    def _targets(self, config: Any) -> np.ndarray:
        return distinct_scores(self.records, "which nothing correlates with")

    def _measure(self, model: nn.Module, watch: OutputRecorder, progress: Progress) -> Evaluation:
        scores = np.full(self.n, np.nan)
        for _, rows, batch in self._batches(model, progress):
            output = logits_of(call(model, batch))
            if output.numel() != len(rows):
                raise InputError(
                    f"the model returned {list(output.shape)} for {len(rows)} examples: a score is one number each."
                )
            scores[rows] = output.reshape(-1).double().cpu().numpy()
        return self._evaluation(scores, {"mse": float(np.mean((scores - self.truth) ** 2))})
