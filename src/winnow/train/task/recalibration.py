"""Batch norms' statistics of a mixture of models, taken anew from training batches as the owner's loss feeds them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from winnow.seeding import generator
from winnow.solve.batchnorm import recalibrate
from winnow.train.task.train_mode import tracking_norms
from winnow.train.task.training import Loss, Training


def training_batches(training: Training, count: int) -> list[Any]:
    """So many mini-batches of one epoch, fewer where it has fewer."""
    order = training.examples.order(generator(training.seed, "recalibrate"))
    return [training.examples.take(index) for index in order[:count]]


def recalibrate_mixture(model: nn.Module, loss: Loss, batches: list[Any]) -> None:
    """:func:`winnow.solve.batchnorm.recalibrate` in place, on training batches; norms that training froze stay."""
    moving = tracking_norms(model)
    held = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    held = [m for m in held if m not in moving]
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
