"""Whether a mask shows a sparsity pattern, said anew for the tests."""

import torch

from winnow.masks.structure import NM, BlockShape, Structure


def realized(structure: Structure, keep: torch.Tensor) -> bool:
    """Whether a keep mask [R, C] shows the pattern everywhere."""
    rows, cols = keep.shape
    if isinstance(structure, NM):
        if cols % structure.m:
            return False
        return bool((keep.reshape(-1, structure.m).count_nonzero(dim=1) == structure.n).all())
    if isinstance(structure, BlockShape):
        if rows % structure.r or cols % structure.c:
            return False
        blocks = keep.reshape(rows // structure.r, structure.r, cols // structure.c, structure.c)
        return bool((blocks == blocks[:, :1, :, :1]).all())
    return True
