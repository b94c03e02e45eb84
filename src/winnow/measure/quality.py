"""Quality of a model on data: the tasks, and the one that fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from winnow.data.records import Records
from winnow.errors import InputError, meant
from winnow.forward.model import call, evaluating, has_logits, logits_of
from winnow.measure.agreement import AgreementTask
from winnow.measure.classification import ClassificationTask
from winnow.measure.feed import Feed
from winnow.measure.language import LanguageModelTask
from winnow.measure.regression import RegressionTask
from winnow.measure.spearman import SimilarityTask
from winnow.measure.task import Task

_TASKS: dict[str, Callable[..., Task]] = {
    "perplexity": LanguageModelTask,
    "classification": ClassificationTask,
    "similarity": SimilarityTask,
    "regression": RegressionTask,
    "agreement": AgreementTask,
}
TASKS = tuple(_TASKS)
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
    single: bool | None = None,
) -> Task:
    """The task by name, or the one that model and data suggest.

    Without ``task``: perplexity for a causal language model. For a model of one output: classification, by its sign, where
    labels are two classes, else regression, against the scores or (without labels) the dense model's outputs. For others:
    similarity for pairs with fractional scores; classification where labels are classes; agreement with the dense model
    otherwise.

    Args:
        processor: tokenizer, or what prepares images.
        model_kind: as for :func:`winnow.data.calibration_batches`; "causal-lm" decides for perplexity.
        task: one of "perplexity", "classification", "similarity", "regression", "agreement".
        single: whether the model puts out one number where others have classes (:func:`single_output`).

    Raises:
        InputError: an unknown task, or one that the data cannot serve.
    """
    name = _ALIASES.get(task, task) if task else _suggested(records, model_kind, config, single)
    if single and name == "classification":
        if not _binary(records):
            raise InputError(
                f"the model has a single output, which separates two classes, and the labels of {records.name} are not 0 and "
                "1: give --task regression, or --label the column of the classes."
            )
        records = replace(records, labels=(np.asarray(records.labels) > 0).astype(np.int64))
    if single and name == "agreement":
        raise InputError(
            "the model puts out one number, which is always its largest: agreement needs two or more outputs - leave out "
            "--task, or give --task regression."
        )
    if name not in _TASKS:
        raise InputError(
            f"the task {task!r} is not known{meant(task, (*TASKS, *_ALIASES))}: give --task {', '.join(TASKS[:-1])} or {TASKS[-1]}."
        )
    return _TASKS[name](records, processor, length=length, limit=limit, config=config)


def _suggested(records: Records, model_kind: str, config: Any, single: bool | None) -> str:
    if model_kind == "causal-lm":
        return "perplexity"
    if single:
        return "classification" if _binary(records) else "regression"
    if records.labels is None:
        return "agreement"
    real = records.labels.dtype.kind == "f"
    if real and records.kind == "pairs":
        return "similarity"
    whole = not real or bool(np.all(records.labels == np.round(records.labels)))  # 1.0 is a class number, too
    return "classification" if whole and (not real or getattr(config, "num_labels", 2) != 1) else "agreement"


def single_output(
    model: nn.Module, records: Records, processor: Any = None, *, model_kind: str, length: int | None = None
) -> bool | None:
    """Whether a model puts out one number where others have classes: [n], [n, 1], or [n, 1, height, width] for images.

    Two records are run. None where this is unknown: no head, or a model that does not take the records.
    """
    if model_kind in ("causal-lm", "seq2seq", "clip"):
        return None
    try:
        with evaluating(model):
            _, batch = next(Feed(records.subset(range(min(2, len(records)))), processor, length).batches(model))
            output = call(model, batch)
    except MemoryError:
        raise
    except Exception:  # whatever a forward raises
        return None  # said where it is measured
    if not has_logits(output):
        return None
    values = logits_of(output)
    return values.ndim == 1 or (values.ndim > 1 and values.shape[1 if values.ndim == 4 else -1] == 1)


def _binary(records: Records) -> bool:
    """Whether labels are two classes, numbered 0 and 1 or -1 and 1, of whatever type."""
    values = set(np.unique(records.labels).tolist()) if records.labels is not None else set()
    return bool(values) and (values <= {0, 1} or values == {-1, 1})
