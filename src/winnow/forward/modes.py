"""The modes a model is in while it is evaluated or calibrated, restored afterwards."""

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
    """The configurations of a model's modules, with those that they hold."""
    found: dict[int, Any] = {}
    waiting = [module.__dict__.get("config") for module in model.modules()]
    while waiting:
        config = waiting.pop()
        if hasattr(config, "to_dict") and hasattr(config, "__dict__") and id(config) not in found:
            found[id(config)] = config
            waiting += vars(config).values()
    return list(found.values())


@contextmanager
def eval_mode(model: nn.Module, *, fastpath: bool = True) -> Iterator[None]:
    """Evaluation mode. Without ``fastpath``, torch's fused transformer layers, which skip their submodules, are off."""
    modes = [(module, module.training) for module in model.modules()]
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(before and fastpath)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        for module, training in modes:
            module.training = training


@contextmanager
def plain_eval(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no caches, no fused paths that hide weights; gradients as they are set."""
    before = [(c, key, vars(c)[key]) for c in _configs(model) for key in CONFIG if key in vars(c)]
    with eval_mode(model, fastpath=False):
        try:
            for config, key, _ in before:
                vars(config)[key] = CONFIG[key]
            yield
        finally:
            for config, key, value in before:
                vars(config)[key] = value


@contextmanager
def calibrating(model: nn.Module) -> Iterator[None]:
    """As :func:`plain_eval`, without gradients."""
    with plain_eval(model), torch.no_grad():
        yield
