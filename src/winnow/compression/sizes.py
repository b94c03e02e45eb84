"""Bytes of the weights file, headers included: of one that was made, of one that is planned, and of the dense model's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from winnow.compression.counts import per_tensor, unheld
from winnow.compression.hosts import Host, dense_tensors, written_names
from winnow.compression.recipe import Recipe
from winnow.formats.packed import outline
from winnow.formats.packed_file import describe, split_keys, stored_key, stored_parts
from winnow.formats.shards import SHARD_BYTES, Layout, weights_bytes
from winnow.formats.tensorfile import TensorFile
from winnow.masks.prunable import Scope
from winnow.masks.structure import Structure, within_tensor
from winnow.masks.ties import tensors_of

if TYPE_CHECKING:
    pass

STREAMED_SHARD = 64 << 20  # bytes: what waits for its shard waits in memory
_QUICK = 20_000_000  # weights whose allocation is worked out for the plan; of more, every tensor is taken to lose alike


def shard_bytes(host: Host) -> int:
    """The size of shard that a host's model is written in."""
    return STREAMED_SHARD if host.streamed else SHARD_BYTES


def stored_sizes(host: Host) -> dict[str, int]:
    """Bytes of every tensor of the dense model, in its own type, by the name it is stored under; tied tensors count once."""
    tensors = tensors_of(host.model)
    names = dict.fromkeys(host.stored.values())
    return {name: tensors[name].numel() * host.stored_dtype[name].itemsize for name in names}


def dense_layout(host: Host, scope: Scope) -> Layout:
    """What :func:`winnow.compression.hosts.dense_tensors` gives, without the values."""
    return {name: torch.empty_like(tensor, device="meta") for name, tensor in dense_tensors(host, scope)}


def stored_bytes(host: Host, scope: Scope, dense: Layout, files: Mapping[str, TensorFile]) -> int:
    """The size of the weights file of a candidate whose packed tensors lie in ``files`` (by name); none is read."""
    opened = {file.path: file for file in files.values()}
    described = {name: about for file in opened.values() for name, about in split_keys(file)[0].items()}
    packed = [
        (_renamed(stored_parts(files[name], name), name, written), {written: described[name]})
        for name in scope.prunables
        for written in written_names(host, name)
    ]
    return weights_bytes(dense, packed, shard_bytes(host))


def packed_bytes(
    host: Host,
    scope: Scope,
    dense: Layout,
    zeros: Mapping[str, int],
    structure: Structure,
    values: str,
    group_size: int,
) -> int:
    """The size of the weights file with ``zeros`` pruned weights in each tensor: exact, but that int4 rows of an
    unstructured pattern are padded to a byte where they keep an odd number, which only the masks themselves tell."""
    packed, own = [], unheld(host, scope, values, group_size)
    for name, prunable in scope.prunables.items():
        dtype = host.stored_dtype[name]
        kept = "keep" if name in own else values
        stored = {"keep": str(dtype).removeprefix("torch."), "bf16": "bfloat16"}.get(kept, kept)
        group = group_size if kept == "int4" else None
        made = outline(prunable.rows, prunable.cols, zeros.get(name, 0), within_tensor(structure), stored, dtype, group)
        for written in written_names(host, name):
            tensors = {stored_key(written, suffix): tensor for suffix, tensor in made.tensors().items()}
            packed.append((tensors, {written: describe(replace(prunable, name=written), made)}))
    return weights_bytes(dense, packed, shard_bytes(host))


def expected_bytes(recipe: Recipe, host: Host, scope: Scope, dense: Layout) -> int:
    """The size of the weights file that a recipe will leave: its own zeros in each tensor where they are known before
    the work, else an equal share of them (the total is the same)."""
    known = not recipe.fitting.trains and recipe.allocation != "owl" and scope.numel <= _QUICK
    if not recipe.zeros:
        zeros = {}
    elif known and not (recipe.allocation == "global" and recipe.needs_data):
        zeros = per_tensor(recipe, host, scope)
    else:
        zeros = _equal_shares(scope, recipe.zeros)
    return packed_bytes(host, scope, dense, zeros, recipe.pattern, recipe.values, recipe.group_size)


def dense_bytes(host: Host, scope: Scope, dense: Layout) -> int:
    """The size of a plain safetensors file of the dense model."""
    weights = {n: torch.empty(p.shape, dtype=host.stored_dtype[n], device="meta") for n, p in scope.prunables.items()}
    return weights_bytes({**dense, **weights}, (), shard_bytes(host), described=False)


def _renamed(parts: Layout, name: str, written: str) -> Layout:
    """The keys of a packed tensor's parts under the name that it is written under."""
    return {f"{written}{key.removeprefix(name)}": tensor for key, tensor in parts.items()}


def _equal_shares(scope: Scope, zeros: int) -> dict[str, int]:
    shares, assigned, seen = {}, 0, 0
    for name, prunable in scope.prunables.items():
        seen += prunable.numel
        shares[name] = zeros * seen // scope.numel - assigned
        assigned += shares[name]
    return shares
