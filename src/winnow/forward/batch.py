"""A batch is what a model's forward takes: a dict (keywords), a tuple or list (positional), or one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from winnow.forward.arithmetic import following


def call(model: nn.Module, batch: Any) -> Any:
    """``model(**batch)``, ``model(*batch)`` or ``model(batch)``, whichever the batch's type means.

    Floating-point tensors follow the model's arithmetic.
    """
    batch = following(model, batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(*batch)
    return model(batch)


def token_count(batches: list[Any]) -> int:
    """Positions that count: unpadded tokens where there is a mask, otherwise rows (images, feature vectors)."""
    total = 0
    for batch in batches:
        if isinstance(batch, Mapping):
            mask = batch.get("attention_mask")
            first = mask if mask is not None else next(v for v in batch.values() if torch.is_tensor(v))
            total += (
                int(mask.sum()) if mask is not None else first.shape[0] * (first.shape[1] if first.ndim == 2 else 1)
            )
        else:
            first = batch[0] if isinstance(batch, (tuple, list)) else batch
            integer = not first.is_floating_point() and first.ndim == 2
            total += first.numel() if integer else first.shape[0]
    return total


def example_count(batches: Sequence[Any]) -> int:
    """Examples in calibration batches: rows of their first tensor."""
    count = 0
    for batch in batches:
        tensors = (
            batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else [batch]
        )
        count += next((len(t) for t in tensors if torch.is_tensor(t) and t.ndim), 0)
    return count
