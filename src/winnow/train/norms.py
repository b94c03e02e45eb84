"""Batch norms as a training has them: which of them move their statistics, and how they normalize while none may move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


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
