"""What is not pruned, stored in fewer bits (``--rest``), and what the weights file consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from winnow.compression.counts import grid_of, held, narrowed, saved_bytes, wider
from winnow.compression.hosts import Host, written_names
from winnow.compression.outcome import Outcome, Pruned
from winnow.compression.prune import unit_file
from winnow.compression.recipe import Recipe
from winnow.compression.sizes import stored_sizes
from winnow.formats.packed import UNPRUNED, PackedTensor, pack
from winnow.formats.packed_file import save_packed, stored_keys
from winnow.formats.tensorfile import TensorFile
from winnow.masks.prunable import Prunable, Scope
from winnow.masks.structure import Unstructured
from winnow.masks.ties import tensors_of
from winnow.quantize import round_to_nearest
from winnow.run.store import Store, stage_key
from winnow.words import listed, size

NAMED = 8  # tensors in a note
LARGE = 0.1  # of the dense file: from here on, whether embeddings are quantized decides which file is the smallest
EMBEDDINGS, OUTPUT, CONVOLUTIONS, MATRICES = "embeddings", "output layer", "convolutions", "other unpruned matrices"
SMALL, MASKS, SCALES, HEADER = "norms and biases", "index", "scales", "header"


def store_rest(
    host: Host, scope: Scope, recipe: Recipe, store: Store, identity: Mapping[str, str]
) -> tuple[dict[str, Prunable], Callable[[str], Path], list[str]]:
    """Stores the unpruned matrices in the type that ``recipe.rest`` names, or finds them stored.

    Each is rounded to nearest from the dense model, alone: with one scale per row (of an embedding table: per entry) for
    int8, one per ``group_size`` columns for int4. One that the type makes no smaller, or does not hold, stays as it is.

    Returns the tensors that became narrower, the file that each lies in, and notes on those that did not.
    """
    if recipe.rest == "keep":
        return {}, Path, []
    wanted = narrowed(host, scope, recipe.rest, recipe.group_size)
    by = dict(rest=recipe.rest, group=recipe.group_size if recipe.rest == "int4" else None, names=list(wanted))
    key = stage_key("rest", **by, **identity)
    folder, done = store.folder(key), store.read(key)
    if done is None:
        left = []
        for name, view in wanted.items():
            packed = narrow(view.matrix(host.original(name)), recipe.rest, recipe.group_size)
            if packed is None:
                left.append(name)
            else:
                save_packed(unit_file(folder, name), {name: (view, packed)})
        done = {"left": left}
        store.write(key, done, files=folder.glob("*.safetensors"))
    kept = {name: view for name, view in wanted.items() if name not in done["left"]}
    notes, all_ = [], wider(host, scope, recipe.rest, recipe.group_size)
    if left := [name for name in all_ if name not in kept]:
        notes.append(
            f"{len(left)} of {len(all_)} unpruned matrices keep their type: {recipe.rest} does not hold some of their weights "
            f"({listed(left, NAMED)})."
        )
    elif not all_:
        notes.append(f"--rest {recipe.rest} changes nothing: it would make no unpruned matrix of this model smaller.")
    return kept, lambda name: unit_file(folder, name), notes


def narrow(matrix: torch.Tensor, values: str, group_size: int) -> PackedTensor | None:
    """A matrix [rows, cols] stored in ``values``; None where that type does not hold its weights."""
    grid = grid_of(values, group_size)
    if not held(matrix, grid):
        return None
    if grid is None:
        packed = pack(matrix.to(torch.bfloat16), None, Unstructured(), dtype=matrix.dtype)
    else:
        packed = pack(matrix, None, Unstructured(), quantized=round_to_nearest(matrix, grid))
    return replace(packed, structure=UNPRUNED)


def rest_saves(host: Host, scope: Scope, values: str, group_size: int) -> int:
    """How many bytes storing the rest in ``values`` saves, headers aside."""
    found = narrowed(host, scope, values, group_size).values()
    return sum(len(written_names(host, p.name)) * saved_bytes(host, p, values, group_size) for p in found)


def embedding_bytes(host: Host, scope: Scope) -> int:
    """Bytes of the dense model's embeddings that stay unpruned."""
    kinds = kinds_of(host, scope)
    return sum(p.numel * host.stored_dtype[n].itemsize for n, p in scope.rest.items() if kinds[n] == EMBEDDINGS)


def contents(
    host: Host, scope: Scope, made: Pruned, files: Mapping[str, TensorFile], whole: int
) -> list[tuple[str, str | None, int]]:
    """What a weights file of ``whole`` bytes consists of: (kind of tensor, data type, bytes), the most first."""
    found: dict[tuple[str, str | None], int] = {}

    def add(what: str, dtype: str | None, count: int) -> None:
        found[what, dtype] = found.get((what, dtype), 0) + count

    kinds, values = kinds_of(host, scope), {layer.name: layer.values for layer in made.layers}
    pruned = "pruned layers" if made.zeros else "layers"
    written: set[str] = set()
    for name in (*scope.prunables, *made.rest):
        names, file = written_names(host, name), files[name]
        written.update(names)
        for suffix, key in stored_keys(file, name).items():
            count = len(names) * file.nbytes(key)
            if suffix == "values":
                dtype = values[name] if name in values else _stored_type(file, key)
                add(pruned if name in scope.prunables else kinds[host.first[name]], dtype, count)
            else:
                add(MASKS if suffix == "mask" else SCALES, None, count)
    for name, count in stored_sizes(host).items():
        if name not in written:
            kind = kinds[host.first[name]]
            add(kind, None if kind == SMALL else str(host.stored_dtype[name]).removeprefix("torch."), count)
    add(HEADER, None, whole - sum(found.values()))
    return sorted(((*of, count) for of, count in found.items() if count), key=lambda part: -part[2])


def rest_note(host: Host, scope: Scope, main: Outcome) -> list[str]:
    """What to do where most of the file is matrices that could hold fewer bits and were not to be pruned."""
    assert main.pruned is not None
    whole = sum(count for *_, count in main.contents)
    kinds = kinds_of(host, scope)
    wide = {n: p for n, p in wider(host, scope, "int8", 128).items() if n not in main.pruned.rest}
    sizes = stored_sizes(host)
    left = sum(sizes[written] for n in wide for written in written_names(host, n))
    if left <= whole / 2:
        return []
    what = listed(sorted({kinds[n] for n in wide}), NAMED)
    after = whole - sum(len(written_names(host, n)) * saved_bytes(host, p, "int8", 128) for n, p in wide.items())
    return [
        f"{100 * left / whole:.0f}% of the file is not pruned and stored as it was ({what}): with --rest int8 the file takes about "
        f"{size(after)} in place of {size(whole)}, and the report measures what that costs."
    ]


def _stored_type(file: TensorFile, key: str) -> str:
    return {"uint8": "int4"}.get(dtype := str(file.dtype(key)).removeprefix("torch."), dtype)


def kinds_of(host: Host, scope: Scope) -> dict[str, str]:
    """First name of every tensor -> what a person calls it; a tied one is what its embedding is."""
    reasons = {s.name: s.reason for s in scope.skipped}
    tensors, kinds = tensors_of(host.model), dict[str, str]()
    for name, first in host.first.items():
        owner = host.model.get_submodule(name.rpartition(".")[0])
        reason = reasons.get(first, "")
        if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) or (reason == "embedding" and first in scope.rest):
            kinds[first] = EMBEDDINGS
        elif first in kinds:
            continue
        elif first not in scope.rest and (tensors[name].ndim < 2 or reason in ("bias", "norm", "vector", "")):
            kinds[first] = SMALL
        elif isinstance(owner, _ConvNd):
            kinds[first] = CONVOLUTIONS
        else:
            kinds[first] = OUTPUT if reason == "output head" else MATRICES
    return kinds
