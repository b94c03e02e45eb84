"""Batch-norm recalibration: after pruning, the running statistics of the dense model are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from winnow.forward.batch import call


def has_batchnorm(model: nn.Module) -> bool:
    return any(_tracks(m) for m in model.modules())


def recalibrate(model: nn.Module, batches: Sequence[Any]) -> dict[str, torch.Tensor]:
    """Re-estimates every batch norm's running mean and variance on the calibration batches, in place.

    The statistics become the plain average over batches (momentum None), each taken with the pruned weights
    (the usual repair after pruning a CNN without training). Weights, biases and
    everything that is not a batch norm stay in eval mode.

    Returns:
        the new buffers by state-dict name (running_mean, running_var [channels], num_batches_tracked []).
    """
    norms = {name: m for name, m in model.named_modules() if _tracks(m)}
    if not norms or not batches:
        return {}
    before = {name: (m.training, m.momentum) for name, m in norms.items()}
    for module in norms.values():
        module.reset_running_stats()
        module.momentum = None
        module.train()
    try:
        with torch.no_grad():
            for batch in batches:
                call(model, batch)
    finally:
        for name, module in norms.items():
            module.train(before[name][0])
            module.momentum = before[name][1]
    return {
        f"{name}.{buffer}": value.detach().clone()
        for name, module in norms.items()
        for buffer, value in module.named_buffers(recurse=False)
    }


def _tracks(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
