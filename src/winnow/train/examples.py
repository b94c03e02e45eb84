"""Calibration batches as examples that are drawn anew every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from winnow.errors import InputError
from winnow.train.padded import Padded, join_padded

POOL = 8  # mini-batches whose texts are sorted by length together


class Examples:
    """Draws mini-batches, each epoch in a new order; every example comes once an epoch.

    Batches whose tensors agree in all but the first dimension are joined and cut anew, so that every step sees other
    neighbours. Texts padded on the right to different lengths are joined too (see :func:`join_padded`): drawn with
    others of about their length, and cut to the longest drawn. Batches that can be neither are drawn whole.

    ``joined`` is all examples as one batch, None where batches are drawn whole; ``lengths`` those of padded texts.

    Raises:
        InputError: no batch, or one that holds no tensor or no example.
    """

    def __init__(self, batches: Sequence[Any], size: int) -> None:
        if not len(batches):
            raise InputError("there is no calibration data: give at least one batch (--data).")
        self.size = size
        self.batches = list(batches)
        self.count = sum(len(_leading(b)) for b in self.batches)
        if not self.count:
            raise InputError("the calibration batches hold no examples: give at least one.")
        self.joined = _join(self.batches)
        self._padded: Padded | None = join_padded(self.batches) if self.joined is None else None
        if self._padded is not None:
            self.joined = self._padded.joined

    @property
    def lengths(self) -> torch.Tensor | None:
        """Tokens of every text, int64 [count], where texts of several lengths were joined."""
        return None if self._padded is None else self._padded.lengths

    @property
    def parts(self) -> int:
        """Mini-batches in an epoch."""
        return len(self.batches) if self.joined is None else -(-self.count // self.size)

    def take(self, index: torch.Tensor) -> Any:
        """The batch of these examples (joined) or of this batch number (index of one element)."""
        if self.joined is None:
            return self.batches[int(index)]
        batch = map_tensors(self.joined, lambda t: t[index.to(t.device)])
        return batch if self._padded is None else self._padded.cut(batch)

    def order(self, generator: torch.Generator) -> list[torch.Tensor]:
        """Indices for :meth:`take`, one epoch of them, a function of the generator.

        Mini-batches differ in size by one at most and never exceed ``size``: there is no small one left over.
        """
        if self.joined is None:
            return list(torch.randperm(len(self.batches), generator=generator).split(1))
        drawn = torch.randperm(self.count, generator=generator)
        if self.lengths is None:
            return list(drawn.tensor_split(self.parts))
        pools = drawn.tensor_split(-(-self.parts // POOL))
        drawn = torch.cat([pool[self.lengths[pool].argsort(stable=True)] for pool in pools])
        found = drawn.tensor_split(self.parts)
        return [found[i] for i in torch.randperm(self.parts, generator=generator)]

    def all(self) -> Iterator[tuple[torch.Tensor, Any]]:
        """Every example once, in order, with its index."""
        index = (
            torch.arange(len(self.batches)).split(1)
            if self.joined is None
            else torch.arange(self.count).split(self.size)
        )
        for part in index:
            yield part, self.take(part)


def map_tensors(batch: Any, function: Any) -> Any:
    """The batch with ``function`` applied to its tensors; mappings become dicts."""
    leaves, spec = _leaves(batch)
    return tree_unflatten([function(t) if torch.is_tensor(t) else t for t in leaves], spec)


def _leaves(batch: Any) -> tuple[list[Any], Any]:
    return tree_flatten(dict(batch) if isinstance(batch, Mapping) else batch)


def _leading(batch: Any) -> torch.Tensor:
    found = [t for t in _leaves(batch)[0] if torch.is_tensor(t) and t.ndim]
    if not found:
        raise InputError("a calibration batch holds no tensor: give tensors, tuples or mappings of them.")
    return found[0]


def _join(batches: Sequence[Any]) -> Any | None:
    flat = [_leaves(b) for b in batches]
    layout = flat[0][1]
    shapes = [_shape(t) for t in flat[0][0]]
    if any(spec != layout or [_shape(t) for t in leaves] != shapes for leaves, spec in flat):
        return None
    if any(not (torch.is_tensor(t) and t.ndim) or len(t) != len(leaves[0]) for leaves, _ in flat for t in leaves):
        return None
    return tree_unflatten([torch.cat(tensors) for tensors in zip(*(leaves for leaves, _ in flat))], layout)


def _shape(value: Any) -> Any:
    return (tuple(value.shape[1:]), value.dtype) if torch.is_tensor(value) else type(value)
