"""2:4 layers on NVIDIA GPUs, through torch's semi-structured tensors (Mishra et al. 2021, arXiv:2104.08378)."""

from __future__ import annotations

import torch
from torch import nn

from winnow.errors import InputError


def to_semi_structured(model: nn.Module) -> dict[str, str]:
    """Put the weights of every linear layer that has at least two zeros in each four inputs into torch's 2:4 spec.

    ``model`` lies on a CUDA device and is changed. Returns what stayed dense: layer -> reason. Raises InputError where
    there is no such device: the form exists on NVIDIA GPUs of compute capability 8.0 and later only.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type != "cuda":
        raise InputError(f"2:4 kernels exist on NVIDIA GPUs only and the model is on {device}: move it to cuda first")
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise InputError(
            f"{torch.cuda.get_device_name(device)} has no 2:4 units: they begin with compute capability 8.0"
        )
    dense = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            reason = why_dense(module.weight)
            if reason is None:
                packed = torch.sparse.to_sparse_semi_structured(module.weight.detach())
                module.weight = nn.Parameter(packed, requires_grad=False)
            else:
                dense[name] = reason
    return dense


def why_dense(weight: torch.Tensor) -> str | None:
    """Why a weight [out, in] has no 2:4 spec, None where it has one."""
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return f"its type is {weight.dtype}, and the kernels take float16 and bfloat16"
    rows, cols = weight.shape
    if rows % 32 or cols % 64:
        return f"{rows} x {cols} is no multiple of 32 x 64"
    if bool(((weight.reshape(rows, -1, 4) != 0).sum(-1) > 2).any()):
        return "it is not 2:4"
    return None
