"""A second tree of modules over the same tensors, and modules whose sizes follow tensors that were cut."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from winnow.errors import InputError
from winnow.masks.blocks import is_transposed_linear
from winnow.masks.unwrap import working_copy


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the module tree, its config and its hooks, with the same parameters and buffers.

    Running statistics of normalizations are copied too: they would change in both when one is trained.
    """
    own = {id(b) for m in model.modules() if isinstance(m, _NormBase) for b in m._buffers.values()}
    tensors: list[torch.Tensor] = [*model.parameters(), *model.buffers()]
    return working_copy(model, [t for t in tensors if id(t) not in own])


def find_tensor(model: nn.Module, name: str) -> tuple[nn.Module, str, torch.Tensor]:
    """The module that owns a parameter or buffer, its key there, and the tensor. Raises InputError where there is none."""
    path, _, key = name.rpartition(".")
    try:
        owner = model.get_submodule(path)
    except AttributeError:
        owner = None
    if owner is not None:
        for table in (owner._parameters, owner._buffers):
            tensor = table.get(key)
            if tensor is not None:
                return owner, key, tensor
    raise InputError(f"the model has no tensor {name!r}: give the model that the plan was made for")


def replace_tensor(owner: nn.Module, key: str, tensor: torch.Tensor) -> None:
    """Puts a tensor in the place of a parameter or buffer of another shape."""
    old = owner._parameters.get(key)
    if old is not None:
        owner._parameters[key] = nn.Parameter(tensor.detach(), requires_grad=old.requires_grad)
    else:
        owner._buffers[key] = tensor.detach()


def refit(module: nn.Module) -> None:
    """Sets the sizes a standard module remembers to those of its tensors."""
    weight = module._parameters.get("weight")
    if weight is None:
        return
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, _ConvNd):
        if isinstance(module, _ConvTransposeNd):  # never cut where it has groups
            module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
            return
        per_group = module.out_channels // module.groups  # groups only go whole
        module.groups = weight.shape[0] // per_group if module.groups > 1 else 1
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, _NormBase):
        module.num_features = weight.shape[0]
    elif isinstance(module, nn.GroupNorm):
        per_group = module.num_channels // module.num_groups
        module.num_channels, module.num_groups = weight.shape[0], weight.shape[0] // per_group
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = weight.shape[1]
    elif is_transposed_linear(module):
        module.nx, module.nf = weight.shape  # type: ignore[assignment]
