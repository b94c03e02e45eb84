"""A model that runs with other tensors in the place of its own for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class TensorSlots:
    """Where a model holds its parameters and buffers: every place of a shared one, whatever name it goes by.

    torch.func.functional_call leaves a module that is there under two names with one of the tensors for good.
    """

    def __init__(self, model: nn.Module) -> None:
        by_id: dict[int, list[tuple[Any, Any]]] = {}  # where each tensor is held: (container, key)
        for module in model.modules():
            held: list[Any] = [(d, k, t) for d in (module._parameters, module._buffers) for k, t in d.items()]
            if isinstance(module, nn.RNNBase):  # runs on a list of its own
                held += [(module._flat_weights, i, t) for i, t in enumerate(module._flat_weights)]
            for container, key, tensor in held:
                if tensor is not None:
                    by_id.setdefault(id(tensor), []).append((container, key))
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self._places = {name: by_id.get(id(tensor), []) for name, tensor in named}

    @contextmanager
    def replaced(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """The model with these tensors wherever it holds the ones of these names; gradients reach them."""
        before: dict[tuple[int, Any], tuple[Any, Any]] = {}
        try:
            for name, tensor in tensors.items():
                for held, key in self._places[name]:
                    before.setdefault((id(held), key), (held, held[key]))
                    held[key] = tensor
            yield
        finally:
            for (_, key), (held, tensor) in before.items():
                held[key] = tensor
