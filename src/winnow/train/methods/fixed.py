"""Masks that stay as they are."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.masks.mask import Mask, MaskSet
from winnow.train.attached import Attached


class Fixed:
    """Masks that never change, as when a lottery ticket is trained again (Frankle and Carbin 2019, arXiv 1803.03635).

    Args:
        masks: a :class:`MaskSet` or bool matrices [rows, cols] by name, True where the weight stays; a folder that winnow wrote
            (packed, or a ticket's) for the masks in it, whatever weights the model has; None keeps the model's zeros: every
            weight that is exactly zero is pruned, also one that was only initialised so.

    Raises:
        InputError: a folder without masks.
        FormatError: one that is damaged.
    """

    def __init__(self, masks: MaskSet | Mapping[str, torch.Tensor] | str | os.PathLike[str] | None = None) -> None:
        self.named = isinstance(masks, (str, os.PathLike))
        self.masks = masks_in(Path(masks)) if isinstance(masks, (str, os.PathLike)) else masks

    def pruned(self, model: nn.Module) -> Collection[str]:
        """The tensors that are known to be pruned, by name: a head that was, say, which is prunable by name only."""
        if self.masks is None:
            return getattr(model, "winnow_zeros", ())
        return list(self.masks) if self.named else ()

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


def masks_in(folder: Path) -> MaskSet:
    """The masks of a folder that winnow wrote: of its packed tensors, or its ``masks.safetensors``."""
    from winnow.formats import is_artifact
    from winnow.formats.reader import read_artifact

    if folder.is_dir() and is_artifact(folder):
        artifact = read_artifact(folder)
        return MaskSet({name: Mask.pack(artifact.packed(name).keep()) for name in artifact.pruned_names})
    file = folder / "masks.safetensors" if folder.is_dir() else folder
    if not file.is_file():
        raise InputError(
            f"{folder} holds no masks: give a folder that winnow compress, run or find_ticket wrote, or a file of MaskSet.save."
        )
    return MaskSet.load(file)
