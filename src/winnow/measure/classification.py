"""Accuracy of a classifier of texts, images or tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from winnow.data.records import Records
from winnow.errors import InputError
from winnow.forward.model import call, logits_of
from winnow.measure.evaluation import Evaluation, OutputRecorder
from winnow.measure.intervals import proportion_interval
from winnow.measure.task import Progress, RecordsTask


class ClassificationTask(RecordsTask):
    """Accuracy, with the recall of each class and macro-F1 (the plain mean of the classes' F1) in ``details``.

    Works for models whose output has ``.logits`` and for plain modules that return logits [n, classes], or one number an
    example: the logit of class 1 of two. Where the dense model's numbers all lie between 0 and 1 they are probabilities.
    """

    name = "accuracy"
    metric = "accuracy"

    truth: np.ndarray

    def __init__(self, records: Records, processor: Any = None, *, trained: bool = False, **options: Any) -> None:
        """
        Args:
            trained: the model is trained on such data, which says what its outputs stand for.
            options: as for :class:`winnow.measure.task.RecordsTask`.

        Raises:
            InputError: no labels, or labels that are not classes.
        """
        self._trained = trained
        super().__init__(records, processor, **options)

    def _targets(self, config: Any) -> np.ndarray:
        self.class_names = _names(self.records, config)
        return model_order(self.records, config, trained=self._trained)

    def _measure(self, model: nn.Module, watch: OutputRecorder, progress: Progress) -> Evaluation:
        predictions = np.full(self.n, -1, dtype=np.int64)
        single = np.full(self.n, np.nan)
        classes = 0
        for done, rows, batch in self._batches(model, progress):
            logits = logits_of(call(model, batch))
            if is_single(logits) and len(logits) == len(rows):
                single[rows] = logits.reshape(-1).double().cpu().numpy()
                logits = torch.stack([torch.zeros_like(logits.reshape(-1)), logits.reshape(-1)], dim=1)
            if logits.ndim != 2 or len(logits) != len(rows):
                raise InputError(
                    f"the model returned {list(logits.shape)} for {len(rows)} examples: accuracy needs a classifier."
                )
            classes = logits.shape[1]
            if int(self.truth.max()) >= classes:
                raise InputError(
                    f"{self.data_name} has label {int(self.truth.max())}, the model knows the {classes} classes 0 to "
                    f"{classes - 1}: check --label, or use the model trained on this data.",
                    option="label",
                )
            top = logits.argmax(-1).cpu().numpy()
            predictions[rows] = np.where(logits.isnan().any(-1).cpu().numpy(), -1, top)
            watch.log_probs(done, logits)
        if np.isnan(single).all():
            return self._evaluation(predictions, classes)
        known = watch.reference.evaluation.details.get("threshold") if watch.reference is not None else None
        threshold = known if known is not None else 0.5 if np.nanmin(single) >= 0 and np.nanmax(single) <= 1 else 0.0
        evaluation = self._evaluation(np.where(np.isnan(single), -1, single > threshold).astype(np.int64), classes)
        evaluation.details["threshold"] = threshold
        return evaluation

    def _evaluation(self, predictions: np.ndarray, classes: int) -> Evaluation:
        right = (predictions == self.truth).astype(np.float64)
        low, high = proportion_interval(int(right.sum()), self.n)
        names = self.class_names or [str(i) for i in range(classes)]
        details: dict[str, Any] = {"classes": names[:classes] + [str(i) for i in range(len(names), classes)]}
        details |= class_figures(self.truth, predictions, classes)
        value = float(right.mean())
        if (predictions < 0).any():
            details["nan_examples"] = int((predictions < 0).sum())
            value = low = high = float("nan")
        return Evaluation(self.metric, value, low, high, right, predictions, self.n, self.truth, details)


def is_single(output: torch.Tensor) -> bool:
    """Whether an output is one number an example: [n], [n, 1]."""
    return output.ndim == 1 or (output.ndim == 2 and output.shape[1] == 1)


def class_figures(truth: np.ndarray, predictions: np.ndarray, classes: int) -> dict[str, Any]:
    """Support and recall of each class (None without examples), and macro-F1 over the classes seen or answered."""
    support = np.bincount(truth, minlength=classes)
    answered = np.bincount(predictions[predictions >= 0], minlength=classes)
    hits = np.bincount(truth[truth == predictions], minlength=classes)
    recall = [float(h / s) if s else None for h, s in zip(hits, support)]
    occurs = support + answered > 0
    f1 = 2 * hits[occurs] / (support + answered)[occurs]
    return {"support": support.tolist(), "recall": recall, "macro_f1": float(f1.mean())}


def model_order(records: Records, config: Any, *, trained: bool = False) -> np.ndarray:
    """Class numbers as the model counts them: by its ``label2id`` where the labels are words.

    A model that does not name its classes (``LABEL_0`` ...), and folders of images (which are often called by codes), are
    numbered in the sorted order of the words, as training scripts do: that says which is which only where there are as many
    words as classes. With ``trained`` fewer will do: what an output stands for is then taught on this data.

    Raises:
        InputError: words that are not the model's classes.
    """
    labels = records.class_labels()
    names, known = records.label_names, _known(config)
    if names is None or not known:
        return labels
    numbers = {name.lower(): number for name, number in known.items()}
    if all(name.lower() in numbers for name in names):
        return np.asarray([numbers[name.lower()] for name in names], dtype=np.int64)[labels]
    enough = len(names) == len(known) or (trained and len(names) < len(known))
    if enough and (records.kind == "images" or _generic(known)):
        return labels
    unknown = next(name for name in names if name.lower() not in numbers)
    own = ", ".join(sorted(known, key=known.__getitem__)[:12])
    more = f" ... ({len(known)} classes)" if len(known) > 12 else ""
    raise InputError(
        f"{records.name}: label {unknown!r} is none of the model's classes ({own}{more}): name their column with --label, or use "
        "the model trained on this data.",
        option="label",
    )


def _known(config: Any) -> dict[str, int]:
    """The model's classes by name; empty where its configuration names none."""
    given = getattr(config, "label2id", None) or {v: k for k, v in (getattr(config, "id2label", None) or {}).items()}
    return {str(name): int(number) for name, number in given.items()}


def _generic(known: dict[str, int]) -> bool:
    return all(name.upper() == f"LABEL_{number}" for name, number in known.items())


def _names(records: Records, config: Any) -> list[str] | None:
    given = getattr(config, "id2label", None) or {}
    named = [str(given[i]) for i in sorted(given)]
    if named and not all(name.upper() == f"LABEL_{i}" for i, name in enumerate(named)):
        return named
    return list(records.label_names) if records.label_names is not None else None
