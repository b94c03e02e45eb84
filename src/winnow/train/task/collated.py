"""Evaluation on a data set that comes as ready batches: indexed and collated, labels inside."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from winnow.data.records import raw_bytes
from winnow.measure.classification import ClassificationTask
from winnow.measure.spearman import ScoreTask
from winnow.measure.task import Task
from winnow.train.examples import Examples
from winnow.train.task.loss import split_labels


class CollatedFeed:
    """Examples in order, as (rows, inputs without labels)."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples
        self.labels: np.ndarray
        digest, labels = hashlib.sha256(), []
        for _, batch in examples.all():
            inputs, found = split_labels(batch)
            labels.append(found.detach().cpu())
            for leaf in tree_leaves(inputs):
                digest.update(raw_bytes(leaf) if torch.is_tensor(leaf) else repr(leaf).encode())
        self.labels = _array(torch.cat(labels)) if all(t.ndim == 1 for t in labels) else np.zeros((0, 0))
        digest.update(self.labels.tobytes())
        self.sha256 = digest.hexdigest()

    def batches(self, model: nn.Module) -> Iterator[tuple[np.ndarray, Any]]:
        for index, batch in self.examples.all():
            yield index.numpy(), split_labels(batch)[0]


class _Classes(ClassificationTask):
    def __init__(self, feed: CollatedFeed, name: str, names: list[str] | None) -> None:
        self.truth, self.class_names, self._feed = feed.labels.astype(np.int64), names, feed  # type: ignore[assignment]
        Task.__init__(self, name, feed.sha256, len(feed.labels))


class _Scores(ScoreTask):
    def __init__(self, feed: CollatedFeed, name: str) -> None:
        self.truth, self._feed = feed.labels.astype(np.float64), feed  # type: ignore[assignment]
        Task.__init__(self, name, feed.sha256, len(feed.labels))


def collated_task(examples: Examples, name: str, config: Any = None) -> Task | None:
    """Accuracy for one class number per example, rank correlation for one real number; None for other labels.

    Raises:
        InputError: batches without labels, or a single example.
    """
    feed = CollatedFeed(examples)
    if feed.labels.ndim != 1:
        return None
    if feed.labels.dtype.kind == "f":
        return _Scores(feed, name)
    named = getattr(config, "id2label", None) or {}
    return _Classes(feed, name, [str(named[i]) for i in sorted(named)] or None)


def _array(labels: torch.Tensor) -> np.ndarray:
    return (labels.float() if labels.dtype == torch.bfloat16 else labels).numpy()  # numpy does not know bfloat16
