"""Which layers of a model the dispatcher may touch, why not the others, and what x they are called with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from winnow.errors import InputError
from winnow.forward.batch import call
from winnow.forward.model import evaluating
from winnow.kernels.dense import Substitute
from winnow.kernels.modules import PackedLayer
from winnow.kernels.swap import why_dense
from winnow.masks.blocks import is_transposed_linear

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TRAINING = "in training: call model.eval() first"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_DENSE = (nn.Linear, _ConvNd)


def weighted_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str | None]]:
    """Every linear layer and convolution with its path ("" for the model itself), and why it must stay as it is (None:
    it may be replaced)."""
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and not is_lazy(parameter):
                owners.setdefault(_place(parameter), set()).add(id(module))
    for path, module in model.named_modules():
        if isinstance(module, (*_DENSE, PackedLayer, Substitute)) or is_transposed_linear(module):
            yield path, module, _reason(model, path, module, paths, owners)


def _place(parameter: torch.Tensor) -> int:
    """One number for parameters that begin at the same place: tied ones, transposed or not. (Tensors mapped from one
    file share a storage, so that says nothing.)"""
    try:
        return parameter.data_ptr() or id(parameter)
    except (RuntimeError, NotImplementedError):  # tensor subclasses without memory of their own
        return id(parameter)


def _reason(
    model: nn.Module, path: str, module: nn.Module, paths: dict[int, list[str]], owners: dict[int, set[int]]
) -> str | None:
    if isinstance(module, Substitute):
        return "accelerated already: accelerate the model it came from"
    if len(paths[id(module)]) > 1:
        return f"the same layer as {next(other for other in paths[id(module)] if other != path)}"
    if any(getattr(module, hooks, None) for hooks in _HOOKS):
        return "hooks are registered on it"
    if "forward" in vars(module):
        return "its forward is replaced"
    if isinstance(module, PackedLayer):
        return None
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is not a parameter"
    if is_lazy(weight):
        return "not initialised"
    if type(weight) is not nn.Parameter:
        return f"its weight is a {type(weight).__name__}"
    if weight.device.type != "cpu":
        return f"its weight is on {weight.device.type}"
    if weight.dtype not in DTYPES:
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}"
    if len(owners[_place(weight)]) > 1:
        return "its weight is tied to another layer's"
    if module.training and weight.requires_grad:
        return TRAINING
    return why_dense(model, path)


def record_shapes(model: nn.Module, layers: dict[str, nn.Module], example: Any) -> dict[str, list[torch.Size]]:
    """Shapes of x that each of ``layers`` is called with when ``model`` runs on ``example``, in evaluation mode.

    ``example`` is a tensor, a tuple of positional or a mapping of keyword arguments. Raises InputError where the model
    cannot be run on it.
    """
    seen: dict[str, list[torch.Size]] = {path: [] for path in layers}
    handles = []

    def note(path: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if arguments and isinstance(arguments[0], torch.Tensor) and arguments[0].shape not in seen[path]:
                seen[path].append(arguments[0].shape)

        return hook

    try:
        handles = [layer.register_forward_pre_hook(note(path)) for path, layer in layers.items()]
        with evaluating(model):  # or batch statistics, which the given model shares, would change
            call(model, example)
    except InputError:
        raise
    except Exception as error:
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(
            f"the model does not run on the example ({first}): give a tensor, a tuple of arguments or a dict of named ones"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return seen
