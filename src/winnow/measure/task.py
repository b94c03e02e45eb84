"""What every task has in common: built once from data, evaluated on many models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import nn

from winnow.data.records import Records
from winnow.data.text import Batch
from winnow.data.tokens import context_length
from winnow.errors import InputError
from winnow.forward.model import evaluating
from winnow.measure.evaluation import Evaluation, OutputRecorder, Reference
from winnow.measure.feed import Feed
from winnow.measure.intervals import mean_interval

Progress = Callable[[int, int], None]


class Task(ABC):
    """Quality on one data set.

    Attributes:
        name: what is measured, for a person.
        metric: "perplexity", "accuracy", "spearman", "R2" or "agreement".
        higher_is_better: whether more is better.
        unit: unit of a difference between two models: "points" (hundredths) or "%" (of perplexity).
        of_dense: whether the dense model's answers are the truth, so that a figure needs a reference to mean anything.
        scale: factor from :attr:`Evaluation.value` to the usual way to write it (100 for accuracy, 1 for perplexity).
        n: examples (segments of a text).
        data_name: where the data came from; ``data_sha256`` its contents.
    """

    name: str
    metric: str
    higher_is_better: bool = True
    unit: str = "points"
    scale: float = 100.0
    of_dense: bool = False

    def __init__(self, data_name: str, data_sha256: str, n: int) -> None:
        if n < 2:
            raise InputError(f"{data_name} gives {n} examples to evaluate on: give at least two.")
        self.data_name = data_name
        self.data_sha256 = data_sha256
        self.n = n

    def describe(self) -> str:
        """One line: figure, data and their number."""
        return f"{self.name} on {self.data_name}, {self.n:,} examples"

    def evaluate(
        self, model: nn.Module, reference: Reference | None = None, progress: Progress | None = None
    ) -> Evaluation:
        """Runs the model over all examples, in eval and inference mode.

        Args:
            reference: the dense model's answers (:meth:`reference`); ``details`` then holds "agreement" (share of equal
                top-1 answers) with "agreement_low" and "agreement_high", "kl" (mean KL(dense || model) over the answers, of a
                text its tokens, in nats) and "kl_p99" (its 99th percentile).
            progress: called with (examples done, examples in all) after each batch.
        """
        return self._run(model, reference, keep=False, progress=progress)[0]

    def reference(self, model: nn.Module, progress: Progress | None = None) -> Reference:
        """The dense model's evaluation and answers, in one pass."""
        evaluation, watch = self._run(model, None, keep=True, progress=progress)
        return Reference(evaluation, *watch.outputs())

    def _run(
        self, model: nn.Module, reference: Reference | None, *, keep: bool, progress: Progress | None
    ) -> tuple[Evaluation, OutputRecorder]:
        if reference is not None and (reference.evaluation.n, reference.evaluation.metric) != (self.n, self.metric):
            raise InputError("the reference was made by another task: make it with this task's reference(dense_model).")
        watch = OutputRecorder(self._answers(), reference, keep)
        with evaluating(model):
            evaluation = self._measure(model, watch, progress or (lambda done, total: None))
        if reference is not None:
            evaluation.details.update(self._agreement(evaluation, reference.evaluation, watch))
        return evaluation, watch

    def share(self, batches: int, done: int) -> float:
        """Which share of an evaluation its first ``batches`` are, at the end of which progress said ``done``."""
        return done / self.n

    def _agreement(self, evaluation: Evaluation, dense: Evaluation, watch: OutputRecorder) -> dict[str, Any]:
        same = matches(evaluation.predictions, dense.predictions)
        low, high = bounded(mean_interval(same))
        agreement = {"agreement": float(same.mean()), "agreement_low": low, "agreement_high": high}
        return {**agreement, "kl": watch.distance, "kl_p99": watch.tail}

    @abstractmethod
    def _answers(self) -> int:
        """How many answers the model gives: examples, or tokens."""

    @abstractmethod
    def _measure(self, model: nn.Module, watch: OutputRecorder, progress: Progress) -> Evaluation:
        """One pass over the data."""


class RecordsTask(Task):
    """A task on the answers that a model gives to records, read through :class:`winnow.measure.feed.Feed`."""

    def __init__(
        self,
        records: Records,
        processor: Any = None,
        *,
        length: int | None = None,
        limit: int | None = None,
        config: Any = None,
    ) -> None:
        """
        Args:
            processor: the tokenizer; for images the image processor, its settings, or a function of uint8 images.
            length: tokens a text is cut to; by default the model's context, at most 512.
            limit: at most so many examples, evenly spaced.
            config: the model's configuration: context length, and ``label2id`` for labels that are words.

        Raises:
            InputError: labels that the task cannot use.
        """
        self.records = records.limited(limit)
        self.truth = self._targets(config)
        self._feed = Feed(self._inputs(), processor, length or context_length(processor, config, "evaluation"))
        super().__init__(records.name, self.records.sha256, len(self.records))

    def _targets(self, config: Any) -> np.ndarray | None:
        """Labels or scores [n]; None for a task without."""
        return None

    def _inputs(self) -> Records:
        """What the model is run on."""
        return self.records

    def _answers(self) -> int:
        return self.n

    def share(self, batches: int, done: int) -> float:
        return self._feed.share(batches)

    def _batches(self, model: nn.Module, progress: Progress) -> Iterator[tuple[int, np.ndarray, Batch]]:
        """(inputs before the batch, numbers of its inputs, batch); reports each batch when the next one is taken."""
        done = 0
        for rows, batch in self._feed.batches(model):
            yield done, rows, batch
            done += len(rows)
            progress(done, self._answers())


def distinct_scores(records: Records, consequence: str) -> np.ndarray:
    """Labels as finite numbers, float64 [n]. Raises InputError, saying the ``consequence``, where all are equal."""
    scores = records.scores()
    if len(np.unique(scores)) < 2:
        raise InputError(f"{records.name}: all scores are {scores[0]:g}, {consequence}: check --label.")
    return scores


def matches(predictions: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Share of equal answers of each example, float64 [n]; an answer of -1 (NaN) equals nothing."""
    same = (predictions == others) & (predictions >= 0)
    return same.reshape(len(same), -1).mean(axis=1, dtype=np.float64)


def bounded(interval: tuple[float, float]) -> tuple[float, float]:
    """An interval of a share, cut to [0, 1]."""
    return max(0.0, interval[0]), min(1.0, interval[1])


def written_unit(task: Task) -> str:
    """What stands behind a figure of this task: "%" for shares, nothing for perplexities and correlations."""
    return "%" if task.metric in ("accuracy", "agreement") else ""
