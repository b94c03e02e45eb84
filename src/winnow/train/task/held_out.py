"""A part of a training's own examples, held back to choose by."""

from __future__ import annotations

from typing import Any

import torch

from winnow.errors import InputError
from winnow.seeding import generator
from winnow.train.examples import Examples


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
