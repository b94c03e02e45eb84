"""Labelled examples, and which of them a model gets right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

Inputs = torch.Tensor | dict[str, torch.Tensor]


@dataclass(frozen=True)
class Split:
    """Inputs as the model's forward takes them, and labels int64 [n]."""

    inputs: Inputs
    labels: torch.Tensor


def correct(model: torch.nn.Module, split: Split, batch: int = 250) -> np.ndarray:
    """Whether each example's label is what the model says, bool [n]."""
    model.eval()
    found = torch.zeros(len(split.labels), dtype=torch.bool)
    order = torch.arange(len(found))
    if isinstance(split.inputs, dict):  # texts of like lengths together: little padding is computed
        order = split.inputs["attention_mask"].sum(1).argsort()
    with torch.inference_mode():
        for index in order.split(batch):
            output = _output(model, split.inputs, index)
            found[index] = output.argmax(1) == split.labels[index]
    return found.numpy()


def _output(model: torch.nn.Module, inputs: Inputs, index: torch.Tensor) -> torch.Tensor:
    if isinstance(inputs, dict):
        width = int(inputs["attention_mask"][index].sum(1).max())
        output = model(**{k: v[index, :width] for k, v in inputs.items()})
    else:
        output = model(inputs[index])
    return output if torch.is_tensor(output) else output.logits
