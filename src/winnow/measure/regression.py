"""How near a model's numbers come to given ones: models that put out one number an example, and no classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from winnow.errors import InputError
from winnow.forward.model import call, logits_of
from winnow.measure.evaluation import Evaluation, OutputRecorder, Reference
from winnow.measure.intervals import mean_interval
from winnow.measure.task import Progress, RecordsTask, distinct_scores


class RegressionTask(RecordsTask):
    """The share of variance a model explains, R2 = 1 - sum (y - f)^2 / sum (y - mean y)^2, of the scores that the data
    give or, where they give none, of what the dense model puts out (then the dense model has 1).

    Several numbers an example (columns, positions) are pooled, each about its own mean. ``per_example`` has R2 as its mean:
    1 - (an example's squared error) / (mean squared deviation of the targets). 0 is what the mean of the targets would
    have; a model can fall below it without bound.
    """

    name = "share of variance explained (R2)"
    metric = "R2"

    def _targets(self, config: Any) -> np.ndarray | None:
        self.of_dense = self.records.labels is None
        return None if self.of_dense else distinct_scores(self.records, "of which nothing can be explained")

    def describe(self) -> str:
        of = "the dense model's outputs" if self.truth is None else "the scores"
        return f"R2 of {of} on {self.data_name}, {self.n:,} examples"

    def _measure(self, model: nn.Module, watch: OutputRecorder, progress: Progress) -> Evaluation:
        outputs: np.ndarray | None = None
        for _, rows, batch in self._batches(model, progress):
            values = logits_of(call(model, batch))
            if not values.ndim or len(values) != len(rows):
                raise InputError(
                    f"the model returned {list(values.shape)} for {len(rows)} examples: R2 needs numbers for each."
                )
            found = values.reshape(len(rows), -1).float().cpu().numpy()
            if outputs is None:
                outputs = np.full((self.n, found.shape[1]), np.nan, dtype=np.float32)
            if found.shape[1] != outputs.shape[1]:
                raise InputError(
                    "the model puts out different numbers of values per example: R2 needs as many for each."
                )
            outputs[rows] = found
        assert outputs is not None
        if self.truth is not None and outputs.shape[1] != 1:
            raise InputError(
                f"the model puts out {outputs.shape[1]} numbers for each of {self.data_name}'s scores: give a model of one "
                "output, or data without scores to measure how near it stays to the dense model."
            )
        return self._evaluation(outputs, watch.reference)

    def _evaluation(self, outputs: np.ndarray, reference: Reference | None) -> Evaluation:
        if self.truth is not None:
            target = self.truth[:, None]
        else:
            target = (reference.evaluation.predictions if reference is not None else outputs).astype(np.float64)
        if target.shape != outputs.shape:
            raise InputError("the two models put out different numbers of values per example: they cannot be compared.")
        spread = float(((target - target.mean(0)) ** 2).sum()) / self.n
        error = ((outputs.astype(np.float64) - target) ** 2).sum(1)
        bad = ~np.isfinite(error)
        details: dict[str, Any] = {"mse": float(error.mean()) / outputs.shape[1]}
        if bad.any():
            details["nan_examples"] = int(bad.sum())
        same = 1 - error / spread if spread > 0 else np.full(self.n, np.nan)
        value = float(same.mean()) if not bad.any() else float("nan")
        low, high = (min(1.0, bound) for bound in mean_interval(same))
        return Evaluation(self.metric, value, low, high, same, outputs, self.n, self.truth, details)

    def _agreement(self, evaluation: Evaluation, dense: Evaluation, watch: OutputRecorder) -> dict[str, Any]:
        return {}
