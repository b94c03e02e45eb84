"""Artifacts of small models, and what they put out."""

from __future__ import annotations

import torch

from winnow.formats import ArtifactWriter, pack
from winnow.forward.batch import call
from winnow.masks.scope import find_scope
from winnow.masks.structure import NM, BlockShape, Unstructured
from winnow.quantize import Grid, round_to_nearest


@torch.no_grad()
def pack_half(prunable, parameter, values="keep", structure=None, group=16):
    """Half of a weight gone, in place, and what is left packed; what does not fit the structure goes unstructured."""
    matrix = prunable.matrix(parameter).float()
    shape = structure or Unstructured()
    r, c = (1, shape.m) if isinstance(shape, NM) else (shape.r, shape.c) if isinstance(shape, BlockShape) else (1, 1)
    if matrix.shape[0] % r or matrix.shape[1] % c:
        shape, r, c = Unstructured(), 1, 1
    if isinstance(shape, NM):
        keep = torch.zeros(matrix.numel() // c, c, dtype=torch.bool)
        keep.scatter_(1, matrix.reshape(-1, c).abs().topk(shape.n).indices, True)
    else:
        blocks = matrix.reshape(matrix.shape[0] // r, r, -1, c).abs()
        score = blocks.sum((1, 3))
        keep = (score > score.median())[:, None, :, None].expand(blocks.shape)
    keep = keep.reshape(matrix.shape).contiguous()
    quantized = None
    if values in ("int8", "int4"):
        quantized = round_to_nearest(matrix, Grid(int(values[3:]), group if values == "int4" else None), keep)
        matrix = quantized.dequantize()
    matrix = matrix.where(keep, 0.0).to(parameter.dtype)  # +0, as what is pruned comes back
    parameter.copy_(prunable.restore(matrix))
    return pack(matrix, keep, shape, quantized)


def halved(model, values="keep", structure=None):
    """Half of every prunable weight gone, in place: name -> (prunable, packed)."""
    scope = find_scope(model).prunables
    return {n: (p, pack_half(p, model.get_parameter(n), values, structure)) for n, p in scope.items()}


def write_artifact(folder, model, packed, shard_bytes=40_000, **finish):
    """The folder of a model whose ``packed`` tensors are given, with the configuration that a transformers model has."""
    config = getattr(model, "config", None)
    described = {**config.to_diff_dict(), "architectures": [type(model).__name__]} if config is not None else None
    with ArtifactWriter(folder, shard_bytes) as writer:
        writer.add_model(model, packed)
        return writer.finish(described, **finish)


def artifact_of(folder, model, values="keep", structure=None, dtype=None, **options):
    """The folder of a model with half of every prunable weight gone, in place."""
    if dtype:
        model.to(dtype)
    return write_artifact(folder, model, halved(model, values, structure), **options)


def outputs(model, batch):
    with torch.no_grad():
        found = call(model, batch)
    if isinstance(found, torch.Tensor):
        return [found]
    found = found.to_tuple() if hasattr(found, "to_tuple") else found
    return [t for t in found if isinstance(t, torch.Tensor) and t.is_floating_point()]
