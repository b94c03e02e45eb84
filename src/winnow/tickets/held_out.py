"""A part of a training's own examples, held back to choose by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from winnow.errors import InputError
from winnow.tickets.run import seed_of
from winnow.train.examples import Examples


class Part(Examples):
    """Some of the examples; of those that are drawn in whole batches, some of the batches.

    ``numbers`` are what the whole's ``take`` is asked for. Orders follow the whole's, with the others left out.
    """

    def __init__(self, whole: Examples, numbers: torch.Tensor) -> None:
        self.whole, self.numbers = whole, numbers.sort().values
        self.batches, self.joined, self._padded = [], None, None
        drawn = whole.order(torch.Generator().manual_seed(0))
        self.size = max(len(index) for index in drawn)  # 1 where batches are drawn whole: numbers are batches then
        self.count = len(self.numbers)
        self._own = torch.zeros(sum(len(index) for index in drawn), dtype=torch.bool)
        self._own[self.numbers] = True

    @property
    def parts(self) -> int:
        return -(-self.count // self.size)

    def take(self, index: torch.Tensor) -> Any:
        return self.whole.take(index)

    def order(self, generator: torch.Generator) -> list[torch.Tensor]:
        drawn = torch.cat(self.whole.order(generator))
        return list(drawn[self._own[drawn]].tensor_split(self.parts))

    def all(self) -> Iterator[tuple[torch.Tensor, Any]]:
        for index in self.numbers.split(self.size):
            yield index, self.take(index)


def divided(examples: Examples, share: float, seed: int) -> tuple[Part, Part]:
    """The examples without a share of them drawn at random, and that share.

    Raises:
        InputError: there is nothing to divide.
    """
    count = sum(len(index) for index in examples.order(torch.Generator().manual_seed(0)))
    if count < 2:
        raise InputError("a part of the training examples is held back and there is only one: give more examples.")
    held = min(max(round(share * count), 1), count - 1)
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(seed, "held out")))
    return Part(examples, drawn[held:]), Part(examples, drawn[:held])
