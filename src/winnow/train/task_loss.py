"""What a task is trained on: the loss of a batch, made of a model's logits and the batch's labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from winnow.errors import InputError
from winnow.forward.model import call, logits_of

Loss = Callable[[nn.Module, Any], torch.Tensor]


@dataclass(frozen=True)
class TaskLoss:
    """(model, batch) -> mean loss of the batch.

    ``classes``: cross entropy of the logits; ``scores``: squared error of one output per example; ``own``: what the model
    itself computes from ``labels``. Batches are dicts with "labels" or tuples whose last tensor is the labels.
    """

    kind: Literal["classes", "scores", "own"]

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        if self.kind == "own":
            loss = getattr(call(model, batch), "loss", None)
            if loss is None:
                raise InputError(
                    f"{type(model).__name__} computes no loss from labels: give loss=, a function of (model, batch)."
                )
            return loss
        inputs, labels = split_labels(batch)
        logits = logits_of(call(model, inputs)).float()
        labels = labels.to(logits.device)
        if self.kind == "classes":
            return F.cross_entropy(logits, labels)
        return F.mse_loss(logits.reshape(len(labels), -1).squeeze(1), labels.float())


def split_labels(batch: Any) -> tuple[Any, torch.Tensor]:
    """Model inputs and labels of a batch.

    Raises:
        InputError: no labels in it.
    """
    if isinstance(batch, Mapping):
        if "labels" not in batch:
            raise InputError(f"a batch of {', '.join(map(str, batch))} has no labels: add them under 'labels'.")
        return {k: v for k, v in batch.items() if k != "labels"}, batch["labels"]
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return tuple(batch[:-1]), batch[-1]
    raise InputError("a batch has no labels: give (inputs, labels), or a dict with 'labels'.")
