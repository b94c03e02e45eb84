"""What training loops share: the order of an epoch by its seed, the precision of a step, and checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.errors import FormatError
from winnow.formats.tensorfile import TensorFile

log = logging.getLogger(__name__)


class EpochOrder:
    """The mini-batches of an epoch in an order that depends on its seed only; the last one is kept.

    Args:
        examples: anything with :meth:`winnow.train.examples.Examples.order`.
    """

    def __init__(self, examples: Any) -> None:
        self._examples = examples
        self._last: tuple[int, list[torch.Tensor]] | None = None

    def of(self, seed: int) -> list[torch.Tensor]:
        """Indices for ``examples.take``, one epoch of them."""
        if self._last is None or self._last[0] != seed:
            self._last = (seed, self._examples.order(torch.Generator().manual_seed(seed)))
        return self._last[1]


def precision(model: nn.Module, name: str) -> AbstractContextManager[Any]:
    """What products inside are computed in, "float32" or "bfloat16"; weights and gradients stay as they are."""
    if name == "float32":
        return nullcontext()
    return torch.autocast(next(model.parameters()).device.type, torch.bfloat16)


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """What a checkpoint says, and its tensors by name; None, with a warning, where it was truncated or altered."""
    try:
        file = TensorFile(path)
        return file.about, {n: file.read(n) for n in file.keys}
    except FormatError as error:
        log.warning("a checkpoint is left out, and its training starts again from its beginning: %s", error)
        return None


def read_under(prefix: str, file: TensorFile) -> dict[str, torch.Tensor]:
    """The tensors of a file whose names begin with ``prefix``, by the rest of their names; the others are not read."""
    return {n.removeprefix(prefix): file.read(n) for n in file.keys if n.startswith(prefix)}


def under(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values whose names begin with ``prefix``, by the rest of their names."""
    return {n[len(prefix) :]: v for n, v in values.items() if n.startswith(prefix)}
