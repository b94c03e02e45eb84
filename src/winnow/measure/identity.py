"""Which model is measured: a fingerprint of all that a model holds, looked at again before every figure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from winnow.errors import WinnowError


def tensors_of(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer by name, those too that no state dict holds; tied ones under each of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


class Identity:
    """What a model held when it was given: one digest a tensor.

    Tensors on the meta device hold nothing and are left out; those of a streamed model count from when they are first read.
    """

    def __init__(self, model: nn.Module) -> None:
        self._digests = {name: digest(t) for name, t in tensors_of(model) if not t.is_meta}

    def changed(self, model: nn.Module, apart: Iterable[str] = ()) -> list[str]:
        """Names of tensors that are not what they were; those named ``apart`` may be, under their other names too."""
        tensors = {name: t for name, t in tensors_of(model) if not t.is_meta}
        spared = {tensors[name].data_ptr() for name in apart if name in tensors}
        return [
            name
            for name, tensor in tensors.items()
            if not (tensor.numel() and tensor.data_ptr() in spared)
            and self._digests.setdefault(name, found := digest(tensor)) != found
        ]

    def check(self, model: nn.Module, what: str, apart: Iterable[str] = ()) -> None:
        """Raises WinnowError where ``what`` is about to be measured on another model than it says."""
        if changed := self.changed(model, apart):
            raise WinnowError(
                f"{what} would be measured on other weights than its own ({changed[0]} differs, {len(changed)} in all): "
                "this is a fault of winnow; nothing was measured - please report it."
            )


def digest(tensor: torch.Tensor) -> bytes:
    """16 bytes that depend on type, shape and every bit of a tensor."""
    whole = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=16)
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        whole.update(flat.view(torch.uint8).numpy().data)
    return whole.digest()
