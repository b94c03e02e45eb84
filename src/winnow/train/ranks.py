"""Processes that train one model together: that they mean the same by it."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from winnow.errors import InputError
from winnow.masks.mask import MaskSet

_CURES = {
    "the prunable tensors": "give every process the same model, include and exclude",
    "the method": "give every process the same method with the same options",
    "the checkpoint": "load the same one in every process, or none",
    "the masks": "draw them from one seed, or send them from one process with torch.distributed.broadcast",
}


def asked_for(names: Iterable[str], method: Any, state: Mapping[str, Any] | None) -> dict[str, str]:
    """What every process of a training should be asked for alike, as hashes: for :func:`require_same`."""
    step = None if state is None else state.get("step")
    return dict(zip(_CURES, map(_digest, ([*names], settings(method), step))))


def masked_by(masks: MaskSet) -> dict[str, str]:
    """The hash of the masks, for :func:`require_same`."""
    digest = hashlib.blake2b()
    for mask in masks.values():
        digest.update(mask.bits.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return {"the masks": digest.hexdigest()}


def require_same(facts: Mapping[str, str], group: Any) -> None:
    """Compares a few hashes over the processes of a group (None: all).

    Raises:
        InputError: in every process, where they disagree.
    """
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, dict(facts), group=group)
    for what in facts:
        other = next((rank for rank, theirs in enumerate(found) if theirs.get(what) != found[0].get(what)), None)
        if other is not None:
            raise InputError(f"processes 0 and {other} disagree about {what}: {_CURES[what]}.")


def settings(method: Any) -> list[Any]:
    """Class and plain options of a method, and those of the method within it."""
    plain = (int, float, str, bool, dict, list, tuple, type(None))
    values = {n: getattr(method, n, None) for n in inspect.signature(type(method)).parameters}
    own = [type(method).__name__, {n: v for n, v in values.items() if isinstance(v, plain)}]
    inner = getattr(method, "inner", None)
    return [*own, settings(inner)] if hasattr(inner, "stepped") else own


def _digest(value: Any) -> str:
    text = json.dumps(value, skipkeys=True, default=lambda v: type(v).__name__)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
