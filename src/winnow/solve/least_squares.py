"""Exact least squares on a fixed mask: the best values for the remaining weights."""

from __future__ import annotations

import torch

from winnow.solve.conjugate import masked_cg
from winnow.solve.error import row_errors

_DIRECT = 128  # up to this many inputs one Cholesky factorization a row is as cheap as iterating
_BYTES = 1 << 26  # memory for the systems of the rows solved together
_STEPS = 200
_ROUNDING = 5e-7  # a few units in the last place of float32
_TOLERANCE = 1e-5


def least_squares(
    reference: torch.Tensor,
    current: torch.Tensor,
    keep: torch.Tensor,
    gram: torch.Tensor,
    ridge: float,
    direct: bool | None = None,
) -> torch.Tensor:
    """Weights [R, C] on ``keep`` that lower the output error of ``current`` [R, C] as far as that mask allows.

    For each row with support K: w_K = (H_KK)^-1 (H w0)_K with H = G + ridge * I and w0 the row of ``reference``.
    ``direct`` (default: C <= 128) factorizes each row's system, in float64; otherwise conjugate gradients from
    ``current`` in float32. No row gets worse: one whose error on G does not fall keeps its ``current`` values.
    """
    direct = gram.shape[0] <= _DIRECT if direct is None else direct
    hessian = gram.clone()
    diagonal = hessian.diagonal()
    # Inputs that were never active tie nothing down: their weights stay as they are.
    diagonal.add_(ridge).masked_fill_(gram.diagonal() <= 0, 1.0)
    if direct:
        found = _factorized(reference, keep, hessian.double()).to(reference.dtype)
    else:
        found = masked_cg(reference, current, keep, hessian, _STEPS, _TOLERANCE)
    change = found - reference
    # |d|^T |G| |d| bounds what rounding may hide: without damping, values can run off along inputs nobody used.
    rounding = _ROUNDING * (change.abs().double() @ gram.diagonal().clamp_min(0).double().sqrt()).square()
    better = row_errors(change, gram) + rounding < row_errors(current - reference, gram)
    return torch.where(better[:, None], found, current)


def _factorized(reference: torch.Tensor, keep: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """One padded batch of Cholesky solves for rows of like support size at a time, float64 [R, C]."""
    result = torch.zeros_like(reference, dtype=torch.float64)
    sizes = keep.sum(1)
    order = sizes.argsort()
    # The equations of the change caused by pruning: small numbers, so that little is lost to rounding.
    target = (reference * ~keep).double() @ hessian
    start = 0
    while start < len(order):
        # Sizes ascend, so the last row of a batch sets its padding.
        widest = max(int(sizes[order[-1]]), 1)
        rows = order[start : start + max(1, _BYTES // (8 * widest**2))]
        widest = int(sizes[rows[-1]])
        start += len(rows)
        if not widest:
            continue
        # Kept columns first, in order; padding points at pruned columns and is cut out of the system.
        index = (~keep[rows]).to(torch.int8).argsort(dim=1, stable=True)[:, :widest]
        real = keep[rows].gather(1, index)
        system = hessian[index[:, :, None], index[:, None, :]]
        system.masked_fill_(~(real[:, :, None] & real[:, None, :]), 0.0)
        system.diagonal(dim1=1, dim2=2).masked_fill_(~real, 1.0)
        right = target[rows].gather(1, index) * real
        root, failed = torch.linalg.cholesky_ex(system)
        change = torch.cholesky_solve(right[:, :, None], root).squeeze(2)
        # A singular system (no damping) has no such solution: that row stays as it is.
        change = torch.where((failed == 0)[:, None] & real, change, 0.0)
        values = reference[rows].double().gather(1, index) * real + change
        result[rows] = torch.zeros_like(result[rows]).scatter_(1, index, values)
    return result
