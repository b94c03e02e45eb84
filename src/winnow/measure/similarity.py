"""Similarity of sentence embeddings against human scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from winnow.data.records import Records
from winnow.data.tokens import context_length
from winnow.errors import InputError
from winnow.forward.model import call, embeddings_of
from winnow.measure.evaluation import Evaluation, Watch
from winnow.measure.feed import Feed
from winnow.measure.intervals import spearman, spearman_interval
from winnow.measure.task import Progress, Task


class SimilarityTask(Task):
    """Spearman correlation of the cosine of two texts' embeddings with their gold score.

    An embedding is the mean of the last hidden states over the attention mask, normalised to length 1 (as
    sentence-transformers does by default). Each distinct text is encoded once.
    """

    name = "Spearman correlation"
    metric = "spearman"

    def __init__(
        self,
        records: Records,
        tokenizer: Any,
        *,
        length: int | None = None,
        limit: int | None = None,
        config: Any = None,
    ) -> None:
        """
        Args:
            records: pairs of texts with scores.
            length: tokens a text is cut to; by default the model's context, at most 512.
            limit: at most so many pairs, evenly spaced.

        Raises:
            InputError: the records are not pairs, or their scores are missing, not numbers or all equal.
        """
        if records.kind != "pairs":
            raise InputError(
                f"{records.name} holds {records.kind}: similarity needs two text columns (--column sentence1,sentence2)."
            )
        records = records.limited(limit)
        self.records = records
        self.truth = records.scores()
        if len(np.unique(self.truth)) < 2:
            raise InputError(
                f"{records.name}: all scores are {self.truth[0]:g}, which no similarity correlates with: check --label."
            )
        self._encoder = Encoder(
            [text for pair in records.inputs for text in pair],
            tokenizer,
            length or context_length(tokenizer, config, "similarity"),
        )
        super().__init__(records.name, records.sha256, len(records))

    def _answers(self) -> int:
        return self._encoder.n

    def _measure(self, model: nn.Module, watch: Watch, progress: Progress) -> Evaluation:
        vectors = self._encoder.embed(model, watch, lambda done, total: progress(done * self.n // total, self.n))
        pairs = vectors.view(self.n, 2, -1)
        cosines = (pairs[:, 0] * pairs[:, 1]).sum(-1).double().numpy()
        rho = spearman(cosines, self.truth)
        low, high = spearman_interval(rho, self.n)
        details: dict[str, Any] = {}
        if np.isnan(cosines).any():
            details["nan_examples"] = int(np.isnan(cosines).sum())
        return Evaluation(self.metric, rho, low, high, cosines, cosines, self.n, self.truth, details)

    def _agreement(self, evaluation: Evaluation, dense: Evaluation, watch: Watch) -> dict[str, Any]:
        """Embeddings have no top-1 answer: how far they turned, and how alike the order of the pairs is."""
        distance = watch.distance
        return {
            "embedding_cosine": None if distance is None else 1 - distance,
            "rank_agreement": spearman(evaluation.predictions, dense.predictions),
        }


class Encoder:
    """Texts, each distinct one encoded once."""

    def __init__(self, texts: Sequence[str], tokenizer: Any, length: int) -> None:
        unique = list(dict.fromkeys(texts))
        number = {text: i for i, text in enumerate(unique)}
        self._of_text = torch.tensor([number[text] for text in texts])
        self._feed = Feed(Records("text", unique), tokenizer, length)
        self.n = len(unique)

    def embed(self, model: nn.Module, watch: Watch, progress: Progress) -> torch.Tensor:
        """Embeddings of all texts in their order, float32 [texts, width] of length 1."""
        found: torch.Tensor | None = None
        done = 0
        for rows, batch in self._feed.batches(model):
            mask = batch.get("attention_mask") if isinstance(batch, dict) else None
            vectors = embeddings_of(call(model, batch), mask).cpu()
            if found is None:
                found = torch.empty(self.n, vectors.shape[-1])
            found[torch.from_numpy(rows)] = vectors
            watch.embeddings(done, vectors)
            done += len(rows)
            progress(done, self.n)
        assert found is not None
        return found[self._of_text]
