"""Batch norms in training: those that their owner has frozen, and statistics taken anew from training batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from winnow.seeding import generator
from winnow.solve.batchnorm import recalibrate
from winnow.train.task.training import Loss, Training


def train_mode(model: nn.Module) -> None:
    """Train mode everywhere but in frozen batch norms, those whose weight and bias are all without ``requires_grad``.

    Those stay in eval mode: train mode would normalize by the mini-batch instead, and move the running statistics that
    were frozen with them. A batch norm without weight and bias has nothing to freeze and is trained as usual.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and frozen(module):
            module.eval()


def frozen(norm: nn.Module) -> bool:
    """Whether a batch norm has weight or bias and none of them is trained."""
    own = list(norm.parameters(recurse=False))
    return bool(own) and not any(p.requires_grad for p in own)


def tracking_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms whose running statistics move in training: those that have some and are not :func:`frozen`."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and not frozen(m)]


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms normalize by the batch they see, as in training, and their running statistics stay as they are.

    Frozen ones (:func:`frozen`) go on as in eval mode, and so does everything that is no batch norm.
    """
    norms = tracking_norms(model)  # those that track nothing normalize by the batch in any mode
    modes = [m.training for m in norms]
    for norm in norms:
        norm.train()
        norm.track_running_stats = False  # torch then neither reads nor moves the buffers
    try:
        yield
    finally:
        for norm, mode in zip(norms, modes):
            norm.train(mode)
            norm.track_running_stats = True


def training_batches(training: Training, count: int) -> list[Any]:
    """So many mini-batches of one epoch, fewer where it has fewer."""
    order = training.examples.order(generator(training.seed, "recalibrate"))
    return [training.examples.take(index) for index in order[:count]]


def recalibrate_mixture(model: nn.Module, loss: Loss, batches: list[Any]) -> None:
    """:func:`winnow.solve.batchnorm.recalibrate` in place, on training batches; norms that training froze stay."""
    held = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and frozen(m)]
    for norm in held:
        norm.track_running_stats = False  # in eval mode it still reads its buffers
    try:
        recalibrate(_LossModule(model, loss), [(batch,) for batch in batches])
    finally:
        for norm in held:
            norm.track_running_stats = True


class _LossModule(nn.Module):
    """Hands a training batch, whatever it is, to the owner's loss: batch norms see what they see in training."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> torch.Tensor:
        return self.loss(self.model, batch)
