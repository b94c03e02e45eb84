"""How well a model's single output ranks examples by a score."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from winnow.data.records import Records
from winnow.data.tokens import context_length
from winnow.errors import InputError
from winnow.forward.model import call, logits_of
from winnow.measure.evaluation import Evaluation, Watch
from winnow.measure.feed import Feed
from winnow.measure.intervals import spearman, spearman_interval
from winnow.measure.task import Progress, Task


class ScoreTask(Task):
    """Spearman correlation of a model's one output per example with the gold score; its mean squared error in ``details``.

    Unlike :class:`winnow.measure.similarity.SimilarityTask` both texts of a pair go through the model together.
    """

    name = "Spearman correlation"
    metric = "spearman"

    def __init__(
        self, records: Records, processor: Any = None, *, length: int | None = None, config: Any = None
    ) -> None:
        """
        Raises:
            InputError: scores that are missing, not numbers or all equal.
        """
        self.truth = records.scores()
        if len(np.unique(self.truth)) < 2:
            raise InputError(
                f"{records.name}: all scores are {self.truth[0]:g}, which nothing correlates with: check --label."
            )
        self._feed = Feed(records, processor, length or context_length(processor, config, "classification"))
        super().__init__(records.name, records.sha256, len(records))

    def _answers(self) -> int:
        return self.n

    def _measure(self, model: nn.Module, watch: Watch, progress: Progress) -> Evaluation:
        scores = np.full(self.n, np.nan)
        done = 0
        for rows, batch in self._feed.batches(model):
            output = logits_of(call(model, batch))
            if output.numel() != len(rows):
                raise InputError(
                    f"the model returned {list(output.shape)} for {len(rows)} examples: a score is one number each."
                )
            scores[rows] = output.reshape(-1).double().cpu().numpy()
            done += len(rows)
            progress(done, self.n)
        rho = spearman(scores, self.truth)
        low, high = spearman_interval(rho, self.n)
        details: dict[str, Any] = {"mse": float(np.mean((scores - self.truth) ** 2))}
        if np.isnan(scores).any():
            details["nan_examples"] = int(np.isnan(scores).sum())
        return Evaluation(self.metric, rho, low, high, scores, scores, self.n, self.truth, details)

    def _agreement(self, evaluation: Evaluation, dense: Evaluation, watch: Watch) -> dict[str, Any]:
        return {"rank_agreement": spearman(evaluation.predictions, dense.predictions)}
