"""Linear layers on an NVIDIA GPU: packed weights through Triton kernels, 2:4 weights through torch's semi-structured tensors
(Mishra et al. 2021, arXiv:2104.08378)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from winnow.errors import InputError
from winnow.kernels.matrix import PackedMatrix
from winnow.kernels.modules import PackedConv2d, PackedLinear
from winnow.kernels.swap import packed_layers, swap

_DECODING = 4  # rows of x up to which the weights are read packed, once for each row


class GpuLinear(nn.Module):
    """y = x Wᵀ + b with W packed, on the device of its buffers: up to four rows of x by a kernel that reads the packed
    weights, more by expanding the layer for the call. Inference only. Needs triton.

    Args:
        matrix: W [out_features, in_features].
        bias: [out_features] or None.
    """

    bias: torch.Tensor | None

    def __init__(self, matrix: PackedMatrix, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        _triton()
        self.about = {name: getattr(matrix, name) for name in ("rows", "cols", "values", "block")}
        self.about["group"] = matrix.group_size
        self.in_features, self.out_features = matrix.cols, matrix.rows
        for name, tensor in matrix.tensors().items():
            self.register_buffer(f"winnow_{name}", tensor)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Follows ``.to(device)``; of ``.to(dtype)`` only the bias does, as the values keep their type."""
        super()._apply(lambda t: t.to(fn(torch.empty(0, device=t.device)).device), recurse)
        if self.bias is not None:
            self.bias = fn(self.bias)
        return self

    @torch.inference_mode()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernels = _triton()
        parts = {name.removeprefix("winnow_"): t for name, t in self.named_buffers() if name.startswith("winnow_")}
        flat = x.reshape(-1, self.in_features)
        if flat.shape[0] <= _DECODING:
            y = kernels.linear(parts, self.about, flat, self.bias)
        else:
            y = F.linear(flat, kernels.expand(parts, self.about, x.dtype), self.bias)
        return y.reshape(*x.shape[:-1], self.out_features)


def to_gpu(model: nn.Module, device: str | torch.device = "cuda") -> nn.Module:
    """Move a model of ``winnow.load(DIR, packed=True)`` to a GPU, its linear layers still packed; changes ``model``.

    Raises InputError where triton is missing or a convolution is packed (load those dense).
    """
    _triton()
    layers = packed_layers(model)
    for name, layer in layers.items():
        if isinstance(layer, PackedConv2d):
            raise InputError(f"{name} is a packed convolution, which has no GPU kernel: load it without packed=True")
    for name, layer in layers.items():
        assert isinstance(layer, PackedLinear)
        swap(model, name, GpuLinear(layer.matrix, layer.bias))
    return model.to(device)


def _triton() -> Any:
    try:
        from winnow.kernels.gpu import bitmask
    except ImportError as error:
        raise InputError(f"packed weights on a GPU need triton ({error}): pip install triton") from None
    return bitmask


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
