"""Types of numbers: data follows the arithmetic of the model that it is put into."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

HALF_DTYPES = (torch.float16, torch.bfloat16)


def float_dtype(model: nn.Module) -> torch.dtype | None:
    """The floating-point type of a model's parameters (without any, of its buffers); None where there are several."""
    for tensors in (model.parameters(), model.buffers()):
        found = {t.dtype for t in tensors if t.is_floating_point()}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def match_dtype(model: nn.Module, batch: Any) -> Any:
    """A batch whose floating-point tensors have the model's type; a model of several types gets it as it is.

    Integers, booleans and complex numbers stay. Containers are kept: mappings become dicts, named tuples stay.
    """
    dtype = float_dtype(model)
    return batch if dtype is None else _cast(batch, dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() and value.dtype != dtype else value
    if type(value) in (list, tuple):
        return type(value)(_cast(v, dtype) for v in value)
    if isinstance(value, Mapping):
        return {k: _cast(v, dtype) for k, v in value.items()}
    return value


def has_half_weights(model: nn.Module) -> bool:
    """Whether a parameter is stored in 16 bits, in which a CPU is slow or coarse."""
    return any(p.dtype in HALF_DTYPES for p in model.parameters())


def to_float32(model: nn.Module) -> nn.Module:
    """Every 16-bit tensor of the model in float32, in place; float64 stays."""
    return model._apply(lambda t: t.float() if t.dtype in HALF_DTYPES else t)


@torch.no_grad()
def round_to_dtypes(model: nn.Module, types: Mapping[str, torch.dtype]) -> None:
    """Rounds the named tensors, in place, to values that their types hold; what is not zero does not become so."""
    for name, tensor in model.state_dict().items():
        if name in types:
            cast_tensors = tensor.to(types[name])
            least = torch.finfo(types[name]).smallest_normal
            lost = (cast_tensors == 0) & (tensor != 0)
            tensor.copy_(torch.where(lost, tensor.sign() * least, cast_tensors.to(tensor.dtype)))


def cast_tensors(model: nn.Module, types: Mapping[str, torch.dtype]) -> nn.Module:
    """The named tensors in their types, in place."""
    for path, module in model.named_modules():
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                dtype = types.get(f"{path}.{key}" if path else key)
                if tensor is not None and dtype is not None and tensor.dtype != dtype:
                    tensor.data = tensor.data.to(dtype)
    return model
