"""Bytes of the weights file, headers included: of one that was made, of one that is planned, and of the dense model's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from winnow.compression.counts import narrowed, per_tensor, unheld
from winnow.compression.hosts import Host, dense_tensors, written_names
from winnow.compression.recipe import Recipe
from winnow.formats.packed import UNPRUNED, PackedTensor, outline
from winnow.formats.packed_file import describe, split_keys, stored_key, stored_parts
from winnow.formats.shards import SHARD_BYTES, Layout, weights_bytes
from winnow.formats.tensorfile import TensorFile
from winnow.masks.prunable import Prunable, Scope
from winnow.masks.structure import Structure, Unstructured, within_tensor
from winnow.masks.ties import tensors_of

STREAMED_SHARD = 64 << 20  # bytes: what waits for its shard waits in memory
Rest = tuple[str, Mapping[str, Prunable]]
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


def stored_bytes(
    host: Host, scope: Scope, dense: Layout, files: Mapping[str, TensorFile], rest: Mapping[str, Prunable]
) -> int:
    """The size of the weights file of a candidate whose packed tensors lie in ``files`` (by name); none is read."""
    opened = {file.path: file for file in files.values()}
    described = {name: about for file in opened.values() for name, about in split_keys(file)[0].items()}
    packed = [
        (_renamed(stored_parts(files[name], name), name, written), {written: described[name]})
        for name in (*scope.prunables, *rest)
        for written in written_names(host, name)
    ]
    return weights_bytes(_without(host, dense, rest), packed, shard_bytes(host))


def packed_bytes(
    host: Host,
    scope: Scope,
    dense: Layout,
    zeros: Mapping[str, int],
    structure: Structure,
    values: str,
    group_size: int,
    rest: Rest = ("keep", {}),
) -> int:
    """The size of the weights file with ``zeros`` pruned weights in each tensor: exact, but that int4 rows of an
    unstructured pattern are padded to a byte where they keep an odd number, which only the masks themselves tell.

    ``rest``: the type of unpruned tensors that are stored in fewer bits, and these.
    """
    packed: list[tuple[Layout, dict[str, Any]]] = []
    own = unheld(host, scope, values, group_size)
    for name, prunable in scope.prunables.items():
        dtype = host.stored_dtype[name]
        kept = "keep" if name in own else values
        stored = {"keep": str(dtype).removeprefix("torch."), "bf16": "bfloat16"}.get(kept, kept)
        group = group_size if kept == "int4" else None
        made = outline(prunable.rows, prunable.cols, zeros.get(name, 0), within_tensor(structure), stored, dtype, group)
        packed += _parts(host, prunable, made)
    for name, view in rest[1].items():
        stored, group = {"bf16": "bfloat16"}.get(rest[0], rest[0]), group_size if rest[0] == "int4" else None
        made = outline(view.rows, view.cols, 0, Unstructured(), stored, host.stored_dtype[name], group)
        packed += _parts(host, view, replace(made, structure=UNPRUNED))
    return weights_bytes(_without(host, dense, rest[1]), packed, shard_bytes(host))


def _parts(host: Host, view: Prunable, made: PackedTensor) -> Iterator[tuple[Layout, dict[str, Any]]]:
    """A packed tensor as it is written, under each of its names."""
    for written in written_names(host, view.name):
        tensors = {stored_key(written, suffix): tensor for suffix, tensor in made.tensors().items()}
        yield tensors, {written: describe(replace(view, name=written), made)}


def _without(host: Host, dense: Layout, rest: Mapping[str, Prunable]) -> Layout:
    """What is stored as it is where ``rest`` is not."""
    packed = {host.first[name] for name in rest}
    return {name: tensor for name, tensor in dense.items() if host.first[name] not in packed}


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
    rest = recipe.rest, narrowed(host, scope, recipe.rest, recipe.group_size)
    return packed_bytes(host, scope, dense, zeros, recipe.pattern, recipe.values, recipe.group_size, rest)


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
