"""Train mode for a model whose owner has frozen some of its batch norms."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def train_mode(model: nn.Module) -> None:
    """Train mode everywhere but in frozen batch norms, those whose weight and bias are all without ``requires_grad``.

    Those stay in eval mode: train mode would normalize by the mini-batch instead, and move the running statistics that
    were frozen with them. A batch norm without weight and bias has nothing to freeze and is trained as usual.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            own = list(module.parameters(recurse=False))
            if own and not any(p.requires_grad for p in own):
                module.eval()
