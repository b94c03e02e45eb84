"""Agreement with the dense model, for data without labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from winnow.errors import InputError
from winnow.forward.model import call, embeddings_of, has_logits, logits_of
from winnow.measure.evaluation import Evaluation, OutputRecorder, Reference
from winnow.measure.intervals import mean_interval
from winnow.measure.task import Progress, RecordsTask, bounded, matches


class AgreementTask(RecordsTask):
    """How often a model gives the dense model's answer; no labels are needed, and none are used.

    Models with logits: the share of equal top-1 answers (averaged over positions where an example has several). Models
    that put out hidden states: the mean cosine of an example's embedding with the dense model's. Without a reference
    the model is compared with itself: 1.
    """

    name = "agreement with the dense model"
    metric = "agreement"
    of_dense = True

    def _measure(self, model: nn.Module, watch: OutputRecorder, progress: Progress) -> Evaluation:
        answers: list[np.ndarray] = []
        order: list[np.ndarray] = []
        for done, rows, batch in self._batches(model, progress):
            output = call(model, batch)
            if has_logits(output):
                logits = logits_of(output)
                logits = logits.movedim(1, -1) if logits.ndim == 4 else logits  # segmentation: [n, classes, h, w]
                if logits.ndim < 2 or logits.shape[-1] < 2:
                    raise InputError(
                        "the model puts out one number, which is always its largest: agreement needs two or more outputs - "
                        "leave out --task, or give --task regression."
                    )
                top = logits.argmax(-1)
                answers += list(top.masked_fill(logits.isnan().any(-1), -1).cpu().numpy().astype(np.int32))
                # One row of log-probabilities per example: its last position.
                watch.log_probs(done, logits.reshape(len(rows), -1, logits.shape[-1])[:, -1])
            else:
                vectors = embeddings_of(output, batch)
                answers += list(vectors.cpu().numpy())
                watch.embeddings(done, vectors)
            order.append(rows)
        predictions = _stacked(answers, np.concatenate(order))
        return self._evaluation(predictions, watch.reference)

    def _evaluation(self, predictions: np.ndarray, reference: Reference | None) -> Evaluation:
        dense = reference.evaluation.predictions if reference is not None else predictions
        details: dict[str, Any] = {}
        if predictions.dtype.kind == "f":
            same = np.einsum(
                "nd,nd->n", predictions.astype(np.float64), dense.astype(np.float64)
            )  # cosines: of length 1
            bad = np.isnan(same)
        else:
            same = matches(predictions, dense)
            bad = (predictions < 0).reshape(self.n, -1).any(axis=1)
        low, high = bounded(mean_interval(same))
        value = float(same.mean())
        if bad.any():
            details["nan_examples"] = int(bad.sum())
            value = low = high = float("nan")
        return Evaluation(self.metric, value, low, high, same, predictions, self.n, details=details)

    def _agreement(self, evaluation: Evaluation, dense: Evaluation, watch: OutputRecorder) -> dict[str, Any]:
        if evaluation.predictions.dtype.kind == "f":
            return {"embedding_cosine": evaluation.value}
        return super()._agreement(evaluation, dense, watch)


def _stacked(answers: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
    shapes = {answer.shape for answer in answers}
    if len(shapes) > 1:
        raise InputError(
            "the model answers with a different number of positions per text: measure perplexity (--task perplexity)."
        )
    stacked = np.empty((len(answers), *answers[0].shape), dtype=answers[0].dtype)
    stacked[rows] = np.stack(answers)
    return stacked
