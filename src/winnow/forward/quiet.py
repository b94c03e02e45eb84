"""The state a model must be in while it is calibrated, put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# Settings of transformers configurations: no key/value cache, because every block runs twice on the same call;
# experts one by one, because the fused kernels gather copies of the weights.
CONFIG = {"use_cache": False, "_experts_implementation_internal": "eager"}


def _configs(model: nn.Module) -> list[Any]:
    found: dict[int, Any] = {}

    def add(config: Any) -> None:
        if config is None or id(config) in found or not hasattr(config, "__dict__"):
            return
        found[id(config)] = config
        for value in list(vars(config).values()):
            if hasattr(value, "to_dict") and hasattr(value, "__dict__"):
                add(value)

    for module in model.modules():
        config = module.__dict__.get("config")
        if hasattr(config, "to_dict"):
            add(config)
    return list(found.values())


@contextmanager
def calibrating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, no caches, no fused paths that hide weights; everything restored at the end."""
    with quiet(model), torch.no_grad():
        yield


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """As :func:`calibrating`, with gradients."""
    modes = {module: module.training for module in model.modules()}
    fastpath = torch.backends.mha.get_fastpath_enabled()
    kept = [(c, key, vars(c)[key]) for c in _configs(model) for key in CONFIG if key in vars(c)]
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        for config, key, _ in kept:
            vars(config)[key] = CONFIG[key]
        yield
    finally:
        for config, key, value in kept:
            vars(config)[key] = value
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, training in modes.items():
            module.training = training
