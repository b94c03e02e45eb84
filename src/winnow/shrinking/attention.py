"""torch's MultiheadAttention with fewer heads than its embedding has room for."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


class NarrowAttention(nn.MultiheadAttention):
    """MultiheadAttention whose heads are a part of those it was trained with.

    torch's own forward ties ``num_heads * head_dim`` to ``embed_dim``, so a module that lost heads becomes one of
    this class (:meth:`narrow`). Parameters keep their names: ``in_proj_weight`` [3 * h * d, E] with h heads of d
    features, ``out_proj.weight`` [E, h * d]. Takes what MultiheadAttention takes; a mask for every head is one for
    every head there was. Averaged attention weights are the average over the heads that stayed.
    """

    full_heads: int
    kept_heads: tuple[int, ...]

    @staticmethod
    def narrow(module: nn.MultiheadAttention, full_heads: int, kept: tuple[int, ...]) -> None:
        """Turns a module whose parameters have been cut into one of this class, in place."""
        module.__class__ = NarrowAttention
        assert isinstance(module, NarrowAttention)
        module.full_heads, module.kept_heads, module.num_heads = full_heads, kept, len(kept)
        module._qkv_same_embed_dim = False  # keeps the encoder layer's fused kernel, which needs h * d = E, away

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As :meth:`torch.nn.MultiheadAttention.forward`; raises RuntimeError for ``is_causal`` without a mask."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask: give the mask too")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases)
        )  # [N, h, L or S, d]
        mask = self._mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        seen: torch.Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)
            seen = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            mixed = seen @ v
            seen = seen.mean(1) if average_attn_weights else seen
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            return out.squeeze(0), None if seen is None else seen.squeeze(0)
        return (out if self.batch_first else out.transpose(0, 1)), seen

    def _mask(self, mask: torch.Tensor | None, padding: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
        """Both masks as one that is added to the scores, broadcastable to [N, h, L, S]."""
        if mask is not None:
            mask = _additive(mask, like)
            if mask.dim() == 3:  # one for every head there was
                mask = mask.unflatten(0, (-1, self.full_heads))[:, list(self.kept_heads)]
        if padding is not None:
            padding = _additive(padding, like)
            padding = padding.view(-1, 1, 1, padding.shape[-1])
            mask = padding if mask is None else mask + padding
        return mask


def _additive(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(mask, -math.inf)
