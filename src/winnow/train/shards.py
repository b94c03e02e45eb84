"""Parameters that ``torch.distributed.fsdp.fully_shard`` has cut up over processes: the part that lies here, and the whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from winnow.errors import InputError


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether this is a DTensor, asked without importing them."""
    return hasattr(tensor, "placements")


@torch.no_grad()
def local(tensor: Any) -> torch.Tensor:
    """The part that lies in this process, the same memory; a plain tensor is its own."""
    return tensor.to_local() if is_sharded(tensor) else tensor


@torch.no_grad()
def whole(tensor: Any) -> torch.Tensor:
    """All of it, gathered where it is sharded: every process must ask for it, in the same order."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def part(tensor: torch.Tensor, like: Any, lead: int = 0) -> torch.Tensor:
    """This process's part of a whole tensor, cut as ``like`` is behind ``lead`` more dimensions; no communication."""
    for axis, placement in enumerate(like.placements if is_sharded(like) else ()):
        if placement.is_shard():
            dim = placement.dim + lead
            parts = tensor.chunk(like.device_mesh.size(axis), dim)
            rank = like.device_mesh.get_local_rank(axis)
            tensor = parts[rank] if rank < len(parts) else tensor.narrow(dim, 0, 0)
    return tensor


def stacked_as(tensor: torch.Tensor, like: Any) -> torch.Tensor:
    """Parts [k, *part of like] as one tensor [k, *like], cut as ``like`` is."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import DTensor, Shard

    shape = torch.Size((len(tensor), *like.shape))
    stride = torch.empty(shape, device="meta").stride()
    placements = [Shard(p.dim + 1) if p.is_shard() else p for p in like.placements]
    return DTensor.from_local(
        tensor.contiguous(), like.device_mesh, placements, run_check=False, shape=shape, stride=stride
    )


def is_cut_up(model: nn.Module) -> bool:
    """Whether parameters of a model are sharded. What lies whole in a module after a forward is put back in its place.

    Raises:
        InputError: they were cut up by something else than ``fully_shard``.
    """
    kinds = [(m, {c.__name__ for c in type(m).__mro__}) for m in model.modules()]
    if any("FullyShardedDataParallel" in names for _, names in kinds):
        raise InputError(
            "the model is in a FullyShardedDataParallel, whose parameters are flat: use torch.distributed.fsdp.fully_shard."
        )
    cut = [m for m, names in kinds if "FSDPModule" in names]
    for module in cut:
        module.reshard()  # type: ignore[operator]
    found = {n: p for n, p in model.named_parameters() if is_sharded(p)}
    for name, p in found.items():
        ways = [type(placement).__name__ for placement in p.placements]  # type: ignore[attr-defined]
        if not cut or ways.count("Shard") != 1 or not set(ways) <= {"Shard", "Replicate"}:
            raise InputError(
                f"{name} is cut up over processes as {', '.join(ways)}: shard the model with fully_shard alone, "
                "or make the masks before it is cut up, in one process, and load its result."
            )
    return bool(found)


def group_of(given: nn.Module, model: nn.Module) -> Any:
    """The processes that train a model together, where it shows, as handed over or bare, that they do; else None."""
    group = getattr(given, "process_group", None)  # DistributedDataParallel
    mesh = next((p.device_mesh for p in model.parameters() if is_sharded(p)), None)  # type: ignore[attr-defined]
    if group is None and mesh is not None:
        group = mesh.get_group() if mesh.ndim == 1 else torch.distributed.group.WORLD
    return group
