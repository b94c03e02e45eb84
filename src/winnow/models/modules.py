"""Plain torch models: built by ``package.module:function``, told apart by a hash of their weights."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import nn

from winnow import importing
from winnow.data.records import contents
from winnow.errors import InputError
from winnow.masks.ties import tensors_of
from winnow.masks.unwrap import plain_module
from winnow.seeding import torch_seed

_RESULT = "a torch.nn.Module"


def build(factory: str | None, call: bool = True, seed: int = 0) -> Any:
    """Calls (or only finds) ``package.module:function``, see :mod:`winnow.importing`.

    What it draws at random is drawn under ``seed`` of torch's generator: the same weights at every call.
    """
    if not call:
        return importing.find(factory or "", _RESULT)
    with torch_seed(seed):
        model = importing.call(factory or "", _RESULT)
    if not isinstance(model, nn.Module):
        raise InputError(f"{factory} returned {type(model).__name__}: it must return a torch.nn.Module.")
    return plain_module(model)


def identity_of_weights(model: nn.Module) -> str:
    """SHA-256 of every parameter and persistent buffer of a model, by name, in the types that they have now.

    One pass over the weights (about a second a gigabyte): what is measured under a name can be checked to be it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors_of(model).items()):
        digest.update(name.encode())
        digest.update(contents(tensor))
    return digest.hexdigest()
