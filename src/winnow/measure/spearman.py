"""How well a model ranks examples by a score: with its single output, or with the similarity of two embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from winnow.data.records import Records
from winnow.errors import InputError
from winnow.forward.model import call, embeddings_of, logits_of
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

    Unlike :class:`SimilarityTask` both texts of a pair go through the model together.
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


class SimilarityTask(SpearmanTask):
    """Spearman correlation of the cosine of two texts' embeddings with their gold score.

    An embedding is the mean of the last hidden states over the attention mask, normalised to length 1 (as
    sentence-transformers does by default). Each distinct text is encoded once.
    """

    def _targets(self, config: Any) -> np.ndarray:
        if self.records.kind != "pairs":
            raise InputError(
                f"{self.records.name} holds {self.records.kind}: similarity needs two text columns (--column sentence1,sentence2)."
            )
        return distinct_scores(self.records, "which no similarity correlates with")

    def _inputs(self) -> Records:
        texts = [text for pair in self.records.inputs for text in pair]
        self._distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        self._of_pair = torch.tensor([self._distinct[text] for text in texts]).view(-1, 2)
        return Records("text", list(self._distinct))

    def _answers(self) -> int:
        return len(self._distinct)

    def _measure(self, model: nn.Module, watch: OutputRecorder, progress: Progress) -> Evaluation:
        vectors: torch.Tensor | None = None  # float32 [distinct texts, width], of length 1
        for done, rows, batch in self._batches(model, lambda done, total: progress(done * self.n // total, self.n)):
            found = embeddings_of(call(model, batch), batch).cpu()
            if vectors is None:
                vectors = torch.empty(self._answers(), found.shape[-1])
            vectors[torch.from_numpy(rows)] = found
            watch.embeddings(done, found)
        assert vectors is not None
        pairs = vectors[self._of_pair]
        cosines = (pairs[:, 0] * pairs[:, 1]).sum(-1).double().numpy()
        return self._evaluation(cosines, {})

    def _agreement(self, evaluation: Evaluation, dense: Evaluation, watch: OutputRecorder) -> dict[str, Any]:
        """Embeddings have no top-1 answer: how far they turned, and how alike the order of the pairs is."""
        cosine = None if watch.distance is None else 1 - watch.distance
        return {"embedding_cosine": cosine, **super()._agreement(evaluation, dense, watch)}
