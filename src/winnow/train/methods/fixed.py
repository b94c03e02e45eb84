"""Masks that stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from winnow.masks.mask import MaskSet
from winnow.train.attach import Attached


class Fixed:
    """Masks that never change, as when a lottery ticket is trained again (Frankle and Carbin 2019, arXiv 1803.03635).

    Args:
        masks: a :class:`MaskSet` or bool matrices [rows, cols] by name, True where the weight stays; None keeps the model's
            zeros: every weight that is exactly zero is pruned, also one that was only initialised so.
    """

    def __init__(self, masks: MaskSet | Mapping[str, torch.Tensor] | None = None) -> None:
        self.masks = masks

    def start(self, attached: Attached) -> None:
        attached.set(self.masks if self.masks is not None else nonzero(attached))

    def stepped(self, attached: Attached) -> None:
        """Nothing moves."""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing was stored."""


def nonzero(attached: Attached) -> dict[str, torch.Tensor]:
    """The masks of the weights that are not zero, bool matrices [rows, cols] by name."""
    return {n: m != 0 for n, m in attached.matrices().items()}
