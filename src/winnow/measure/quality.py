"""Quality of a model on data: the tasks, and the one that fits."""

from __future__ import annotations

from typing import Any

import numpy as np

from winnow.data.records import Records
from winnow.errors import InputError
from winnow.measure.agreement import AgreementTask
from winnow.measure.classification import ClassificationTask
from winnow.measure.compare import Comparison, changed_examples, class_changes, compare
from winnow.measure.evaluation import Evaluation, Reference
from winnow.measure.language import LanguageModelTask
from winnow.measure.similarity import SimilarityTask
from winnow.measure.task import Task

TASKS = ("perplexity", "classification", "similarity", "agreement")
_ALIASES = {
    "lm": "perplexity",
    "language-model": "perplexity",
    "accuracy": "classification",
    "classify": "classification",
}


def open_task(
    records: Records,
    processor: Any = None,
    *,
    model_kind: str,
    task: str | None = None,
    length: int | None = None,
    limit: int | None = None,
    config: Any = None,
) -> Task:
    """The task by name, or the one that model and data suggest.

    Without ``task``: perplexity for a causal language model; similarity for pairs with fractional scores; classification
    where labels are classes; agreement with the dense model otherwise.

    Args:
        processor: tokenizer, or what prepares images.
        model_kind: as for :func:`winnow.data.calibration_batches`; "causal-lm" decides for perplexity.
        task: one of "perplexity", "classification", "similarity", "agreement".

    Raises:
        InputError: an unknown task, or one that the data cannot serve.
    """
    name = _ALIASES.get(task, task) if task else _suggested(records, model_kind, config)
    if name == "perplexity":
        return LanguageModelTask(records, processor, length=length, limit=limit, config=config)
    if name == "classification":
        return ClassificationTask(records, processor, length=length, limit=limit, config=config)
    if name == "similarity":
        return SimilarityTask(records, processor, length=length, limit=limit, config=config)
    if name == "agreement":
        return AgreementTask(records, processor, length=length, limit=limit, config=config)
    raise InputError(f"the task {task!r} is not known: give --task {', '.join(TASKS[:-1])} or {TASKS[-1]}.")


def _suggested(records: Records, model_kind: str, config: Any) -> str:
    if model_kind == "causal-lm":
        return "perplexity"
    if records.labels is None:
        return "agreement"
    real = records.labels.dtype.kind == "f"
    if real and records.kind == "pairs":
        return "similarity"
    whole = not real or bool(np.all(records.labels == np.round(records.labels)))  # 1.0 is a class number, too
    return "classification" if whole and (not real or getattr(config, "num_labels", 2) != 1) else "agreement"


__all__ = [
    "TASKS",
    "AgreementTask",
    "ClassificationTask",
    "Comparison",
    "Evaluation",
    "LanguageModelTask",
    "Reference",
    "SimilarityTask",
    "Task",
    "changed_examples",
    "class_changes",
    "compare",
    "open_task",
]
