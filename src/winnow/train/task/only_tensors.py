"""Models that a checkpoint can hold."""

from __future__ import annotations

import torch
from torch import nn

from winnow.errors import InputError


def require_tensors(model: nn.Module) -> None:
    """Refuses a model whose ``get_extra_state`` puts something other than a tensor into its state dict.

    Positions, checkpoints and saved tickets are tensors by name, without pickle: the rest would be lost on the way.

    Raises:
        InputError: there is such an entry.
    """
    for name, value in model.state_dict().items():
        if not torch.is_tensor(value):
            raise InputError(
                f"{name} in the model's state dict is a {type(value).__name__}: let get_extra_state return a tensor."
            )
