"""Calibration batches as examples that are drawn anew every epoch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from winnow.errors import InputError
from winnow.seeding import generator
from winnow.train.padded import Padded, join_padded

POOL = 8  # mini-batches whose texts are sorted by length together


class Examples:
    """Draws mini-batches, each epoch in a new order; every example comes once an epoch.

    Batches whose tensors agree in all but the first dimension are joined and cut anew, so that every step sees other
    neighbours. Texts padded on the right to different lengths are joined too (see :func:`join_padded`): drawn with
    others of about their length, and cut to the longest drawn. Batches that can be neither are drawn whole.

    Attributes:
        size: examples in a mini-batch at most; of batches that are drawn whole, what was asked for.
        count: examples in all.
        joined: all examples as one batch; None where batches are drawn whole, and of examples that are made when drawn.

    Raises:
        InputError: no batch, or one that holds no tensor or no example.
    """

    batches: Sequence[Any] = ()
    joined: Any = None
    _padded: Padded | None = None

    def __init__(self, batches: Sequence[Any], size: int) -> None:
        if not len(batches):
            raise InputError("there is no calibration data: give at least one batch (--data).")
        self.size = size
        self.batches = list(batches)
        self.count = sum(self._rows(i) for i in range(len(self.batches)))
        if not self.count:
            raise InputError("the calibration batches hold no examples: give at least one.")
        self.joined = _join(self.batches)
        if self.joined is None and (padded := join_padded(self.batches)) is not None:
            self._padded, self.joined = padded, padded.joined

    @property
    def drawn_whole(self) -> bool:
        """Whether batches stay together: the numbers in :attr:`numbers` are then those of batches, not of examples."""
        return self.joined is None

    @property
    def numbers(self) -> torch.Tensor:
        """Everything that :meth:`take` can be asked for, int64, rising."""
        return torch.arange(len(self.batches) if self.drawn_whole else self.count)

    @property
    def lengths(self) -> torch.Tensor | None:
        """Tokens of every text, int64 [count], where texts of several lengths were joined."""
        return None if self._padded is None else self._padded.lengths

    @property
    def parts(self) -> int:
        """Mini-batches in an epoch."""
        return len(self.numbers) if self.drawn_whole else -(-self.count // self.size)

    def take(self, index: torch.Tensor) -> Any:
        """The batch of these examples, or of this batch number (index of one element) where batches are drawn whole."""
        if self.joined is None:
            return self.batches[int(index)]
        batch = map_tensors(self.joined, lambda t: t[index.to(t.device)])
        return batch if self._padded is None else self._padded.cut(batch)

    def order(self, generator: torch.Generator) -> list[torch.Tensor]:
        """Indices for :meth:`take`, one epoch of them, a function of the generator.

        Mini-batches differ in size by one at most and never exceed ``size``: there is no small one left over.
        """
        if self.drawn_whole:
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
        for index in self.numbers.split(1 if self.drawn_whole else self.size):
            yield index, self.take(index)

    def subset(self, numbers: torch.Tensor) -> Examples:
        """Some of the examples, or of the batches where they are drawn whole, as examples of their own.

        They are drawn as these are: with the same size of mini-batches, batches that stayed together stay so, padded
        texts are cut. Joined examples are copied, so that the rest can be let go.

        Args:
            numbers: int64 [n], n >= 1, each of :attr:`numbers` once at most.

        Raises:
            InputError: no number.
        """
        if not len(numbers):
            raise InputError("a part of no examples cannot be trained on: give at least one.")
        found = copy.copy(self)
        found.count = self.rows(numbers)
        if self.drawn_whole:
            found.batches = [self.batches[int(i)] for i in numbers]
            return found
        found.joined = map_tensors(self.joined, lambda t: t[numbers.to(t.device)])
        found.batches = [found.joined]
        if self._padded is not None:
            found._padded = replace(self._padded, joined=found.joined, lengths=self._padded.lengths[numbers])
        return found

    def rows(self, numbers: torch.Tensor) -> int:
        """How many examples these numbers stand for."""
        return sum(self._rows(int(i)) for i in numbers) if self.drawn_whole else len(numbers)

    def _rows(self, batch: int) -> int:
        rows = batch_rows(self.batches[batch])
        if rows is None:
            raise InputError("a calibration batch holds no tensor: give tensors, tuples or mappings of them.")
        return rows


def map_tensors(batch: Any, function: Any) -> Any:
    """The batch with ``function`` applied to its tensors; mappings become dicts."""
    leaves, spec = _leaves(batch)
    return tree_unflatten([function(t) if torch.is_tensor(t) else t for t in leaves], spec)


def _leaves(batch: Any) -> tuple[list[Any], Any]:
    return tree_flatten(dict(batch) if isinstance(batch, Mapping) else batch)


def batch_rows(batch: Any) -> int | None:
    """Rows of the first tensor in a batch; None without one."""
    return next((len(t) for t in _leaves(batch)[0] if torch.is_tensor(t) and t.ndim), None)


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


class Part(Examples):
    """Some of the examples; of those that are drawn in whole batches, some of the batches. A view: nothing is copied.

    ``numbers`` are what the whole's ``take`` is asked for, int64. Orders follow the whole's, with the others left out;
    mini-batches have the whole's nominal ``size`` at most.

    Raises:
        InputError: no number.
    """

    def __init__(self, whole: Examples, numbers: torch.Tensor) -> None:
        if not len(numbers):
            raise InputError("a part of no examples cannot be trained on: give at least one.")
        self.whole, self._numbers = whole, numbers.sort().values
        self.size, self.count = whole.size, whole.rows(numbers)
        self._own = torch.zeros(int(whole.numbers[-1]) + 1, dtype=torch.bool)
        self._own[self._numbers] = True

    @property
    def drawn_whole(self) -> bool:
        return self.whole.drawn_whole

    @property
    def numbers(self) -> torch.Tensor:
        return self._numbers

    def take(self, index: torch.Tensor) -> Any:
        return self.whole.take(index)

    def order(self, generator: torch.Generator) -> list[torch.Tensor]:
        drawn = torch.cat(self.whole.order(generator))
        return list(drawn[self._own[drawn]].tensor_split(self.parts))

    def subset(self, numbers: torch.Tensor) -> Examples:
        return self.whole.subset(numbers)

    def rows(self, numbers: torch.Tensor) -> int:
        return self.whole.rows(numbers)


def divided(examples: Examples, share: float, seed: int) -> tuple[Part, Part]:
    """The examples without a share of them drawn at random, and that share.

    Raises:
        InputError: there is nothing to divide.
    """
    numbers = examples.numbers
    if (count := len(numbers)) < 2:
        raise InputError("a part of the training examples is held back and there is only one: give more examples.")
    held = min(max(round(share * count), 1), count - 1)
    drawn = torch.randperm(count, generator=generator(seed, "held out"))
    return Part(examples, numbers[drawn[held:]]), Part(examples, numbers[drawn[:held]])
