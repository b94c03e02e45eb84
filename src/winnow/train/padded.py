"""Texts of several lengths as one padded batch, and mini-batches of it without the padding they do not need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

_MASK = "attention_mask"


@dataclass(frozen=True)
class Padded:
    """All examples, padded on the right to the longest; ``masks`` names the mask that each padded tensor follows."""

    joined: dict[str, torch.Tensor]
    masks: dict[str, str]
    lengths: torch.Tensor  # int64 [examples], of the main mask

    def cut(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch taken from ``joined`` without the columns that are padding in all its examples."""
        widths = {name: max(int(batch[name].sum(1).max()), 1) for name in set(self.masks.values())}
        return {k: t[:, : widths[self.masks[k]]] if k in self.masks else t for k, t in batch.items()}


def join_padded(batches: Sequence[Any]) -> Padded | None:
    """Joins mappings of tensors [B, T, ...] padded on the right to a width of their own, or None where that is unsafe.

    Safe is: every batch has the same names; each tensor whose width differs from batch to batch has the width of its mask
    (``decoder_attention_mask`` for names with ``decoder_`` before them, else ``attention_mask``); masks are 1 and then 0;
    and what stands in the padding is one and the same value wherever there is any, so that more can be added (models
    read their padding token, too). Labels are padded with -100.
    """
    if not all(isinstance(b, Mapping) and all(torch.is_tensor(t) and t.ndim for t in b.values()) for b in batches):
        return None
    names = list(batches[0])
    if any(list(b) != names or len({len(t) for t in b.values()}) != 1 for b in batches) or _MASK not in names:
        return None
    masks: dict[str, str] = {}
    fills: dict[str, float] = {}
    for name in names:
        tensors = [b[name] for b in batches]
        if len({_shape(t, 1) for t in tensors}) == 1:
            continue
        mask = f"decoder_{_MASK}" if name.startswith("decoder_") else _MASK
        if mask not in names or len({_shape(t, 2) for t in tensors}) > 1:
            return None
        if not all(b[mask].ndim == 2 and b[name].ndim > 1 and b[name].shape[1] == b[mask].shape[1] for b in batches):
            return None
        fill = _fill(name, mask, batches)
        if fill is None:
            return None
        masks[name], fills[name] = mask, fill
    if not all(_padded_right(b[mask]) for b in batches for mask in set(masks.values())):
        return None
    joined = {n: _stack([b[n] for b in batches], fills.get(n)) for n in names}
    return Padded(joined, masks, joined[_MASK].sum(1).long())


def _shape(tensor: torch.Tensor, first: int) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape[first:], tensor.dtype


def _padded_right(mask: torch.Tensor) -> bool:
    """Whether every row is ones and then zeros."""
    return bool(((mask == 0) | (mask == 1)).all()) and bool((mask[:, 1:] <= mask[:, :-1]).all())


def _fill(name: str, mask: str, batches: Sequence[Mapping[str, torch.Tensor]]) -> float | None:
    """What stands in the padding of this tensor; None where that is not one value, or not known."""
    if name in (_MASK, f"decoder_{_MASK}"):
        return 0
    if name == "labels":
        return -100
    found = {v for b in batches for v in b[name][b[mask] == 0].flatten().unique().tolist()}
    return found.pop() if len(found) == 1 else None


def _stack(tensors: Sequence[torch.Tensor], fill: float | None) -> torch.Tensor:
    if fill is None:
        return torch.cat(list(tensors))
    width = max(t.shape[1] for t in tensors)
    out = tensors[0].new_full((sum(len(t) for t in tensors), width, *tensors[0].shape[2:]), fill)
    row = 0
    for t in tensors:
        out[row : row + len(t), : t.shape[1]] = t
        row += len(t)
    return out
