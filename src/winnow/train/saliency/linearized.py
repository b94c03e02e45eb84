"""Any network as a linear one with non-negative weights, so that the flow along its paths can be summed.

SynFlow is defined for networks of matrices and ReLUs: on |w| and an input of ones they are linear. For everything else one
rule is kept here: activations become the identity, divisors are constants, added terms are zero.

- Activations are identities; biases and batch norms' means are zero.
- LayerNorm, RMSNorm and their kin divide by the root mean square they find, which has no gradient; nothing is subtracted.
- Embeddings are ones, so that a text is an input of ones, and rotary positions turn nothing.
- Attention is (q k^T) v with the weights of a row divided by their sum as a constant. Plain softmax would see equal tokens and
  give query and key a gradient of exactly zero, hence prune them first. Each of the three factors takes a third of the
  gradient: together they carry the flow of the projection behind them, as layers in series do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

_ACTIVATION = re.compile(
    r"(ReLU|GELU|SiLU|ELU|Swish|Mish|Tanh|Sigmoid|Softplus|Softsign|Activation)\w*$", re.IGNORECASE
)
_ACTIVATIONS = {
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "tanh", "hardtanh",
    "hardswish", "softplus", "softsign",
}  # fmt: skip
_DIVISORS = {"rsqrt", "norm", "vector_norm", "linalg_norm", "linalg_vector_norm"}
_NEVER = -1e4  # an additive attention mask this low forbids; position biases are far above it


def linearize(model: nn.Module) -> nn.Module:
    """Changes ``model`` in place: float64, |w|, no biases, no activation modules, eval mode. Run it in :class:`Linearized`."""
    model.double().eval()
    use = getattr(model, "set_attn_implementation", None)
    if callable(use):
        with suppress(ValueError, ImportError, NotImplementedError):  # eager attention then: its softmax is known
            use("sdpa")  # the one function that Linearized knows whole
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.is_floating_point():
                p.zero_() if "bias" in name.rpartition(".")[2] else p.abs_()
        for module in model.modules():
            if isinstance(module, _NormBase) and module.running_mean is not None:
                module.running_mean.zero_()
            if isinstance(module, nn.MultiheadAttention):
                module.forward = partial(_multihead, module)  # type: ignore[method-assign]
            elif _ACTIVATION.search(type(module).__name__) and not any(True for _ in module.children()):
                module.forward = _first  # type: ignore[method-assign]
        for buffer in model.buffers():
            if buffer.is_floating_point() and bool(buffer.isfinite().all()):
                buffer.abs_()
    return model


class Linearized(TorchFunctionMode):
    """While active, the functions that a forward calls are the linear ones of this module."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").rstrip("_")
        if name in _ACTIVATIONS:
            return args[0] if args else kwargs["input"]
        if name in _DIVISORS:
            return func(*args, **kwargs).detach()
        if name in ("embedding", "embedding_bag", "cos"):
            found = func(*args, **kwargs)
            return torch.ones_like(found)
        if name == "sin":
            return torch.zeros_like(func(*args, **kwargs))
        special = _SPECIAL.get(name)
        return func(*args, **kwargs) if special is None else special(*args, **kwargs)


def _first(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return x


def _third(x: torch.Tensor) -> torch.Tensor:
    """The same values, a third of the gradient."""
    return x / 3 + x.detach() * (2 / 3)


def _normalized_rows(scores: torch.Tensor) -> torch.Tensor:
    """Rows that sum to one, their sums taken as constants; forbidden places are below zero and get nothing."""
    kept = scores.clamp(min=0)
    return kept / kept.sum(-1, keepdim=True).detach().clamp(min=torch.finfo(kept.dtype).tiny)


def _softmax(input: torch.Tensor, dim: int = -1, *_: Any, **__: Any) -> torch.Tensor:
    return _normalized_rows(input.transpose(dim, -1)).transpose(dim, -1)


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scores = _third(query) @ _third(key).transpose(-1, -2)
    if is_causal:
        scores = scores.tril()
    if attn_mask is not None:
        scores = scores * (attn_mask if attn_mask.dtype == torch.bool else attn_mask > _NEVER)
    return _normalized_rows(scores) @ _third(value)


def _multihead(
    module: nn.MultiheadAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    key_padding_mask: torch.Tensor | None = None, need_weights: bool = True, attn_mask: torch.Tensor | None = None,
    average_attn_weights: bool = True, is_causal: bool = False,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """nn.MultiheadAttention with :func:`_attention` in it; [B, L, E] or, time first, [L, B, E], or one example [L, E]."""
    single, turned = query.ndim == 2, query.ndim == 3 and not module.batch_first
    q, k, v = (t[None] if single else t.transpose(0, 1) if turned else t for t in (query, key, value))
    weights = (
        module.in_proj_weight.chunk(3)
        if module.in_proj_weight is not None
        else (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    )
    q, k, v = (F.linear(t, w).unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for t, w in zip((q, k, v), weights))
    allowed = torch.ones(q.shape[0], 1, q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
    for mask in (attn_mask, None if key_padding_mask is None else key_padding_mask.reshape(q.shape[0], 1, 1, -1)):
        if mask is not None:  # here True forbids, unlike in F.scaled_dot_product_attention
            keep = ~mask if mask.dtype == torch.bool else mask > _NEVER
            allowed = allowed & (keep.unflatten(0, (-1, module.num_heads)) if keep.ndim == 3 else keep)
    found = _attention(q, k, v, allowed).transpose(1, 2).flatten(2)
    found = F.linear(found, module.out_proj.weight)
    return (found[0] if single else found.transpose(0, 1) if turned else found), None


def _scaled(x: torch.Tensor, dims: tuple[int, ...], weight: torch.Tensor | None, eps: float | None) -> torch.Tensor:
    size = (x.pow(2).mean(dims, keepdim=True) + (eps or 0.0)).sqrt().clamp(min=torch.finfo(x.dtype).tiny)
    found = x / size.detach()
    return found if weight is None else found * weight


def _layer_norm(
    input: torch.Tensor, normalized_shape: Any, weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None, eps: float = 1e-5,
) -> torch.Tensor:  # fmt: skip
    return _scaled(input, tuple(range(-len(normalized_shape), 0)), weight, eps)


def _rms_norm(
    input: torch.Tensor, normalized_shape: Any, weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    return _scaled(input, tuple(range(-len(normalized_shape), 0)), weight, eps)


def _group_norm(
    input: torch.Tensor, num_groups: int, weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None, eps: float = 1e-5,
) -> torch.Tensor:  # fmt: skip
    grouped = input.unflatten(1, (num_groups, -1))
    found = _scaled(grouped, tuple(range(2, grouped.ndim)), None, eps).flatten(1, 2)
    return found if weight is None else found * weight.reshape(-1, *[1] * (input.ndim - 2))


def _instance_norm(
    input: torch.Tensor, running_mean: Any = None, running_var: Any = None, weight: torch.Tensor | None = None,
    *_: Any, eps: float = 1e-5, **__: Any,
) -> torch.Tensor:  # fmt: skip
    return _group_norm(input, input.shape[1], weight, None, eps)


def _normalize(input: torch.Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> torch.Tensor:
    return input / input.norm(p, dim, keepdim=True).clamp(min=eps).detach()


_SPECIAL: dict[str, Callable[..., torch.Tensor]] = {
    "softmax": _softmax,
    "scaled_dot_product_attention": _attention,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "normalize": _normalize,
}
