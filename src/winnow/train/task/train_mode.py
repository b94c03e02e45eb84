"""Batch norms in training: those that their owner has frozen, and statistics taken anew from training batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from winnow.seeding import generator
from winnow.solve.batchnorm import recalibrate
from winnow.train.norms import frozen
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
