"""A batch is what a model's forward takes: a dict (keywords), a tuple or list (positional), or one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from winnow.forward.dtypes import match_dtype


def call(model: nn.Module, batch: Any, **settings: Any) -> Any:
    """``model(**batch)``, ``model(*batch)`` or ``model(batch)``, whichever the batch's type means.

    Floating-point tensors follow the model's arithmetic.
    """
    batch = match_dtype(model, batch)
    if isinstance(batch, Mapping):
        return model(**batch, **settings)
    return model(*(batch if isinstance(batch, (tuple, list)) else (batch,)), **settings)


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's first parameter; the CPU where it has none."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def first_tensor(batch: Any) -> torch.Tensor | None:
    """The first tensor of a batch, however nested, that has a dimension; None without one."""
    leaves = tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch)
    return next((t for t in leaves if torch.is_tensor(t) and t.ndim), None)


def first_example(batch: Any) -> Any | None:
    """The batch cut to its first example, or None where its tensors do not share a first dimension."""
    items = (
        list(batch.values()) if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else [batch]
    )
    tensors = [t for t in items if isinstance(t, torch.Tensor)]
    if not tensors or any(t.dim() == 0 for t in tensors) or len({t.shape[0] for t in tensors}) > 1:
        return None
    cut = [t[:1] if isinstance(t, torch.Tensor) else t for t in items]
    if isinstance(batch, Mapping):
        return dict(zip(batch.keys(), cut))
    return cut if isinstance(batch, (tuple, list)) else cut[0]


def token_count(batches: list[Any]) -> int:
    """Positions that count: unpadded tokens where there is a mask, otherwise rows (images, feature vectors)."""
    total = 0
    for batch in batches:
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        first = first_tensor(batch) if mask is None else None
        if first is None:
            total += int(mask.sum()) if mask is not None else 0
        else:
            tokens = first.ndim == 2 and (isinstance(batch, Mapping) or not first.is_floating_point())
            total += first.numel() if tokens else len(first)
    return total


def example_count(batches: Sequence[Any]) -> int:
    """Examples in calibration batches: rows of their first tensor."""
    return sum(len(t) for t in map(first_tensor, batches) if t is not None)
