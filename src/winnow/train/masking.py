"""Zeros where a mask says so: in place, exact, and cheap enough for every training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.train.shards import is_sharded, local

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes an element
# Elements: torch widens the mask into a temporary first, and a small one stays in the cache and needs no new pages. From
# 32,768 on it splits the work over its threads, where it has several, and waking them costs more than the work.
_CHUNK, _CHUNK_OF_ONE_THREAD = (1 << 15) - 1, 1 << 18


def on_gradient(parameter: nn.Parameter, hook: Any) -> Any:
    """The hook is there also if the parameter is frozen now and thawed later; torch takes it only while it is not."""
    trained = parameter.requires_grad
    try:
        return parameter.requires_grad_(True).register_post_accumulate_grad_hook(hook)
    finally:
        parameter.requires_grad_(trained)


def zero(tensor: torch.Tensor, mask: torch.Tensor, name: str) -> None:
    """tensor * mask in place, on the bits: 0 * inf is zero then, and a bool mask costs no more than one of floats.

    (masked_fill_ and products of floats with bools are 10 to 100 times slower on CPU.) Of a sharded tensor, the part here.
    """
    zero_all({name: tensor}, {name: mask})


def zero_all(tensors: Mapping[str, torch.Tensor], masks: Mapping[str, torch.Tensor]) -> None:
    """:func:`zero` of many tensors by name, in one call of torch: of small ones the calls cost more than the work."""
    chunk = _CHUNK if torch.get_num_threads() > 1 else _CHUNK_OF_ONE_THREAD
    parts: list[torch.Tensor] = []
    kept: list[torch.Tensor] = []
    for name, mask in masks.items():
        tensor = local(tensors[name])
        if tensor.device != mask.device:
            raise InputError(
                f"{name} moved from {mask.device} to {tensor.device} after attach: move the model first, "
                "then make the optimizer and attach."
            )
        bits, ones = tensor.view(_BITS[tensor.element_size()]), mask.view(torch.int8)
        if bits.is_cpu and bits.numel() > chunk:
            rows = max(1, chunk * len(bits) // bits.numel())
            parts.extend(bits.split(rows))
            kept.extend(ones.split(rows))
        else:
            parts.append(bits)
            kept.append(ones)
    if parts:
        torch._foreach_mul_(parts, kept)


def masked(grad: torch.Tensor, mask: torch.Tensor, name: str) -> torch.Tensor:
    """The masked gradient: the same tensor, unless it is sparse or has a graph of its own (``create_graph``)."""
    if grad.layout is not torch.strided:
        return grad * mask
    if grad.requires_grad:
        return torch.where(mask, grad, torch.zeros_like(grad))
    with torch.no_grad():
        zero(grad, mask, name)
    return grad


def moments(optimizers: Sequence[torch.optim.Optimizer], weight: nn.Parameter) -> list[torch.Tensor]:
    """The optimizers' state of every entry of a weight."""
    return [
        t
        for optimizer in optimizers
        for t in optimizer.state.get(weight, {}).values()
        # Subclasses and integers are codes of a quantized moment: zero bits are no zero.
        if (type(t) in (torch.Tensor, nn.Parameter) or is_sharded(t))
        and t.is_floating_point()
        and t.shape == weight.shape
    ]
