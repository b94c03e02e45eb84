"""Which rows of an activation are tokens, and which are padding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

KEEP_MASKS = {"attention_mask": "main", "decoder_attention_mask": "decoder"}  # 1 = token
DROP_MASKS = {  # True = padding (torch.nn.Transformer*)
    "src_key_padding_mask": "main",
    "key_padding_mask": "main",
    "memory_key_padding_mask": "main",
    "tgt_key_padding_mask": "decoder",
}


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    return [v for v in values if isinstance(v, torch.Tensor)]


def _storage(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()


class Padding:
    """The padding of one batch, and of the call of one unit with it.

    Masks come from the batch ([B, T], by name). A unit reads the stream of its first floating input: the
    decoder's where a second sequence of hidden states (the encoder's) comes with it, the main one otherwise.
    Inputs that share memory with the encoder's states, or have their shape only, follow the encoder's mask
    (keys and values of cross attention). Streams of another length, such as image patches, have no padding.
    """

    def __init__(self, batch: Any) -> None:
        self._masks: dict[str, torch.Tensor] = {}
        self._images = False
        self._two = False
        if isinstance(batch, Mapping):
            for names, padded in ((KEEP_MASKS, False), (DROP_MASKS, True)):
                for name, role in names.items():
                    mask = batch.get(name)
                    if isinstance(mask, torch.Tensor) and mask.dim() == 2 and role not in self._masks:
                        self._masks[role] = (mask == 0) if padded else (mask != 0)
            tensors = _tensors(batch.values())
            self._images = any(t.is_floating_point() and t.dim() > 2 for t in tensors) and "input_ids" in batch
            self._two = any(name.startswith("decoder_") or name == "tgt" for name in batch)
        # A mask without padding is kept only where it tells two streams apart.
        if all(bool(mask.all()) for mask in self._masks.values()):
            self._masks = {}
        self._time_first = False
        self._own: torch.Tensor | None = None
        self._memory: torch.Tensor | None = None
        self._memory_storage = 0
        self._memory_shape: tuple[int, ...] = ()
        self._hidden_shape: tuple[int, ...] = ()

    @property
    def active(self) -> bool:
        return self._own is not None or self._memory is not None

    def enter(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, whole: bool = False, time_first: bool = False
    ) -> None:
        """Decide which masks hold inside a unit that is called like this.

        ``whole``: the unit is the model itself; ``time_first``: its activations are [T, B, C].
        """
        self._own = self._memory = None
        self._time_first = time_first
        self._memory_storage, self._memory_shape = 0, ()
        if not self._masks:
            return
        main, decoder = self._masks.get("main"), self._masks.get("decoder")
        if whole:
            self._own, self._memory = main, decoder
            return
        tensors = _tensors([*args, *kwargs.values()])
        states = [t for t in tensors if t.is_floating_point() and 2 <= t.dim() <= 3]
        if not states:
            return
        hidden = states[0]
        self._hidden_shape = tuple(hidden.shape)
        memory = next((t for t in states[1:] if self._is_memory(t, hidden, main)), None)
        self._own = main if memory is None else decoder
        if memory is not None and main is not None:
            self._memory, self._memory_storage, self._memory_shape = main, _storage(memory), tuple(memory.shape)
        elif memory is None and self._images and not _carries_mask(tensors, hidden, kwargs):
            self._own = None  # patches that happen to be as many as the text's tokens

    def _is_memory(self, t: torch.Tensor, hidden: torch.Tensor, main: torch.Tensor | None) -> bool:
        if t.dim() != 3 or hidden.dim() != 3 or _storage(t) == _storage(hidden):
            return False
        if main is not None:
            return tuple(t.shape[:2]) in (tuple(main.shape), tuple(main.shape)[::-1])
        return self._two and t.shape[-1] == hidden.shape[-1] and hidden.shape[0] in t.shape[:2]

    def rows(self, x: torch.Tensor, module: str = "") -> torch.Tensor | None:
        """The tokens among the rows of ``x`` [..., cols], flat, or None where all of them count."""
        if not self.active:
            return None
        if self._memory_storage:
            shape = tuple(x.shape[:2])
            foreign = shape == self._memory_shape[:2] != self._hidden_shape[:2]
            if _storage(x) == self._memory_storage or foreign:
                return self._flat(self._memory, x)
            return self._flat(self._own, x)
        own, other = self._own, self._memory
        if other is not None and "decoder" in module.split(".")[:-1]:
            own, other = other, own  # one unit for a whole encoder-decoder: the path says which half
        flat = self._flat(own, x)
        return flat if flat is not None else self._flat(other, x)

    def time_major(self, rows: int, *, memory: bool) -> torch.Tensor | None:
        """The same for MultiheadAttention, whose multiplications see rows [T * B], time first."""
        mask = self._memory if memory and self._memory is not None else self._own
        return mask.t().reshape(-1) if mask is not None and mask.numel() == rows else None

    def step(self, rows: int, step: int, backwards: bool) -> torch.Tensor | None:
        """The same for the ``step``-th product [B, cols] of a recurrent layer, one position of every sequence at a time."""
        if self._own is None or self._own.shape[0] != rows:
            return None
        at = step % self._own.shape[1]
        return self._own[:, self._own.shape[1] - 1 - at if backwards else at]

    def _flat(self, mask: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
        if mask is None:
            return None
        mask = mask.to(x.device)
        lead, shape = tuple(x.shape[:-1]), tuple(mask.shape)
        if lead == shape[::-1] and (self._time_first or lead != shape):
            return mask.t().reshape(-1)
        if lead[:2] == shape:
            return mask.reshape(*shape, *[1] * (len(lead) - 2)).expand(lead).reshape(-1)
        return mask.reshape(-1) if lead == (mask.numel(),) else None


def _carries_mask(tensors: list[torch.Tensor], hidden: torch.Tensor, kwargs: Mapping[str, Any]) -> bool:
    if any("mask" in name and value is not None for name, value in kwargs.items()):
        return True
    return any(t.dim() == 4 and t.shape[-1] == hidden.shape[1] and t is not hidden for t in tensors)
