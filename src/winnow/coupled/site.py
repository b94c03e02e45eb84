"""Where the features of a layer or a normalization lie, and masks over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from winnow.masks.blocks import is_transposed_linear


@dataclass(frozen=True)
class Site:
    """A linear or convolution layer and where its features lie."""

    module: nn.Module
    axis: int  # of features, in its input and in its output
    inputs: int
    outputs: int
    through: bool = False  # a grouped convolution: not cut, what enters a group leaves it


def site_of(module: nn.Module) -> Site | None:
    """How a module mixes features, None if it is neither linear nor a convolution (or a transposed one of several groups)."""
    if isinstance(module, nn.Linear):
        return Site(module, -1, module.in_features, module.out_features)
    if is_transposed_linear(module):
        weight = module.get_parameter("weight")
        return Site(module, -1, weight.shape[0], weight.shape[1])
    if isinstance(module, _ConvNd) and not (isinstance(module, _ConvTransposeNd) and module.groups > 1):
        axis = -1 - len(module.kernel_size)
        return Site(module, axis, module.in_channels, module.out_channels, module.groups > 1)
    return None


def norm_features(module: nn.Module) -> int | None:
    """Features of a norm-like module: the length its one-dimensional parameters share, None without any."""
    sizes = {p.numel() for p in module._parameters.values() if p is not None and p.dim() == 1}
    return sizes.pop() if len(sizes) == 1 else None


def norm_axis(module: nn.Module) -> Callable[[torch.Tensor], int | None]:
    """Finds the feature axis of a norm's output, None where no axis has its number of features."""
    features = norm_features(module)
    first = isinstance(module, (_NormBase, nn.GroupNorm, nn.PReLU))

    def axis(out: torch.Tensor) -> int | None:
        order = (1, -1) if first else (-1, 1)
        return next((a for a in order if out.dim() > abs(a) - (a < 0) and out.shape[a] == features), None)

    return axis


def reached(hit: torch.Tensor, axis: int) -> torch.Tensor:
    """Per feature: is any element of it True?"""
    return hit.movedim(axis, -1).reshape(-1, hit.shape[axis]).any(0).cpu()


def same(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Per feature (last axis): are two tensors equal throughout?"""
    if a.shape != b.shape:
        return torch.zeros(a.shape[-1], dtype=torch.bool)
    return (a == b).reshape(-1, a.shape[-1]).all(0).cpu()


def spread(mask: torch.Tensor, like: torch.Tensor, axis: int) -> torch.Tensor:
    """A mask over features, shaped to broadcast against a tensor with its features along ``axis``."""
    shape = [1] * like.dim()
    shape[axis] = -1
    return mask.to(like.device).view(shape)
