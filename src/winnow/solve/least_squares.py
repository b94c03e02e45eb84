"""Least squares on a fixed mask, the best values for the remaining weights: exact, by conjugate gradients, and its error."""

from __future__ import annotations

import torch

from winnow.solve.factor import damped

_DIRECT = 128  # up to this many inputs one Cholesky factorization a row is as cheap as iterating
_BYTES = 1 << 26  # memory for the systems of the rows solved together
_STEPS = 200
_ROUNDING = 5e-7  # a few units in the last place of float32
_TOLERANCE = 1e-5
_COLS = 512  # columns a product of the error covers at a time: bounds the scratch memory to rows x 512


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
    hessian = damped(gram, ridge)
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


def masked_cg(
    reference: torch.Tensor,
    start: torch.Tensor,
    keep: torch.Tensor,
    hessian: torch.Tensor,
    steps: int,
    tolerance: float,
) -> torch.Tensor:
    """Lower (w - w0)^T H (w - w0) over rows w supported on ``keep``, from ``start``; returns weights [R, C].

    Conjugate gradients on H_KK w_K = (H w0)_K, preconditioned by the diagonal. A row stops when its residual has
    fallen to ``tolerance`` of that of the pruned ``reference``, and all rows after ``steps`` steps.
    """
    weight = start * keep
    scale = 1 / hessian.diagonal()
    kept = keep.to(weight.dtype)
    residual = ((reference - weight) @ hessian) * kept
    goal = (((reference * (1 - kept)) @ hessian * kept).square() * scale).sum(1) * tolerance**2
    direction = residual * scale
    size = (residual * direction).sum(1)
    rows = torch.arange(weight.shape[0], device=weight.device)
    done = weight.clone()
    for _ in range(steps):
        active = size > goal
        # Rows that are done leave the batch once they are enough to repay the copy.
        if active.count_nonzero() < 0.8 * len(rows):
            done[rows] = weight
            rows, weight, kept, residual, direction, size, goal = (
                t[active] for t in (rows, weight, kept, residual, direction, size, goal)
            )
            active = active[active]
        if not len(rows):
            break
        image = (direction @ hessian) * kept
        curvature = (image * direction).sum(1)
        step = torch.where(active & (curvature > 0), size / curvature, 0.0)[:, None]
        weight = weight + step * direction
        residual = residual - step * image
        precondition = residual * scale
        previous, size = size, (residual * precondition).sum(1)
        direction = precondition + (size / previous.clamp_min(torch.finfo(size.dtype).tiny))[:, None] * direction
    done[rows] = weight
    return done


def row_errors(delta: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """d_i^T G d_i = ||X d_i||^2 of each row d_i of ``delta`` [R, C], float64 [R].

    Products in the dtype of ``delta``, their sum in float64; G is read above its diagonal blocks only, so half of it.
    """
    total = torch.zeros(delta.shape[0], dtype=torch.float64, device=delta.device)
    for start in range(0, delta.shape[1], _COLS):
        part = delta[:, start : start + _COLS]
        product = part @ gram[start : start + _COLS, start : start + _COLS]
        if start:
            product.addmm_(delta[:, :start], gram[:start, start : start + _COLS], alpha=2)
        total += (product * part).sum(1, dtype=torch.float64)
    return total.clamp_min_(0)


def relative_error(weight: torch.Tensor, reference: torch.Tensor, gram: torch.Tensor) -> float:
    """||X W^T - X W0^T||_F^2 / ||X W0^T||_F^2 for ``weight`` and ``reference`` [R, C]; 0 where both are 0."""
    lost = float(row_errors(weight - reference, gram).sum())
    whole = float(row_errors(reference, gram).sum())
    return lost / whole if whole > 0 else 0.0
