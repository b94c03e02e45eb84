"""Artifacts of small models, and what they put out."""

from __future__ import annotations

import torch

from winnow.formats import ArtifactWriter, pack
from winnow.forward.batch import call
from winnow.masks.scope import find_scope
from winnow.masks.structure import NM, BlockShape, Unstructured
from winnow.quantize import Grid, round_to_nearest


@torch.no_grad()
def artifact_of(folder, model, values="keep", structure=None, dtype=None):
    """Half of every prunable weight gone; what does not fit the structure goes unstructured."""
    if dtype:
        model.to(dtype)
    packed = {}
    for prunable in find_scope(model).prunables.values():
        parameter = model.get_parameter(prunable.name)
        matrix = prunable.matrix(parameter).float()
        shape = structure or Unstructured()
        if isinstance(shape, NM):
            unit = (1, shape.m)
        else:
            unit = (shape.r, shape.c) if isinstance(shape, BlockShape) else (1, 1)
        if matrix.shape[0] % unit[0] or matrix.shape[1] % unit[1]:
            shape, unit = Unstructured(), (1, 1)
        blocks = matrix.reshape(matrix.shape[0] // unit[0], unit[0], -1, unit[1]).abs()
        if isinstance(shape, NM):
            keep = torch.zeros(matrix.shape, dtype=torch.bool).reshape(-1, shape.m)
            keep.scatter_(1, matrix.reshape(-1, shape.m).abs().topk(shape.n).indices, True)
        else:
            score = blocks.sum((1, 3))
            keep = (score > score.median())[:, None, :, None].expand(blocks.shape)
        keep = keep.reshape(matrix.shape).contiguous()
        quantized = None
        if values in ("int8", "int4"):
            quantized = round_to_nearest(matrix, Grid(int(values[3:]), 16 if values == "int4" else None), keep)
            matrix = quantized.dequantize()
        matrix = (matrix * keep).to(parameter.dtype)
        parameter.copy_(prunable.restore(matrix))
        packed[prunable.name] = (prunable, pack(matrix, keep, shape, quantized))
    config = getattr(model, "config", None)
    described = {**config.to_diff_dict(), "architectures": [type(model).__name__]} if config is not None else None
    with ArtifactWriter(folder, 40_000) as writer:
        writer.add_model(model, packed)
        return writer.finish(described)


def outputs(model, batch):
    with torch.no_grad():
        found = call(model, batch)
    if isinstance(found, torch.Tensor):
        return [found]
    found = found.to_tuple() if hasattr(found, "to_tuple") else found
    return [t for t in found if isinstance(t, torch.Tensor) and t.is_floating_point()]
