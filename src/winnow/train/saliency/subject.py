"""What masks are found for before training: a run of a search, or a model in the owner's own loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import nn

from winnow.errors import InputError
from winnow.masks.prunable import Scope
from winnow.train.attached import Attached
from winnow.train.examples import Examples, batch_rows
from winnow.train.task_loss import Loss


class Subject(Protocol):
    """What scores read, as :class:`winnow.train.task.run.Run` has it: ``training`` has model, examples, loss and seed, and
    ``cost`` counts what the scores cost."""

    @property
    def training(self) -> Any: ...
    @property
    def model(self) -> nn.Module: ...
    @property
    def attached(self) -> Any: ...
    @property
    def scope(self) -> Scope: ...
    @property
    def keeps(self) -> dict[str, torch.Tensor]: ...
    @property
    def density(self) -> float: ...
    @property
    def cost(self) -> Any: ...


class Beginning:
    """A model that is being attached to, with batches of its owner's and his loss, as a :class:`Subject`.

    Args:
        batches: labelled mini-batches as ``loss`` takes them; all of them are scored on. Those whose tensors agree in all but
            the first dimension are joined and cut anew.

    Raises:
        InputError: no batch, a single one in place of a list, or one that holds no tensor.
    """

    density = 1.0

    def __init__(self, attached: Attached, batches: Iterable[Any], loss: Loss) -> None:
        given = [] if torch.is_tensor(batches) or isinstance(batches, (Mapping, str)) else list(batches)
        kinds = {(t.dtype, t.ndim) if torch.is_tensor(t) else None for t in given}
        if not given or (len(kinds) > 1 and None not in kinds):  # what a loader gives: inputs and labels in a list
            raise InputError(
                "masks are found on a list of batches, and this is none or a single one: give it in a list, such as "
                "[next(iter(loader))]."
            )
        self.attached, self.model, self.scope, self.keeps = attached, attached.model, attached.scope, attached.keeps
        examples = Examples(given, max(batch_rows(b) or 1 for b in given))
        self.training = SimpleNamespace(model=attached.model, examples=examples, loss=loss, seed=0)
        self.cost = SimpleNamespace(extra=0, weighted=0.0, seconds=0.0)
