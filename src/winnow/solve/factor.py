"""Factorizations of an input's damped Gram matrix, computed once for all the layers that read the input."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from winnow.errors import InputError
from winnow.inputs import InputStats

_MAX_DAMP = 10.0


@dataclass(frozen=True)
class Factor:
    """H = G + ridge * I = R R^T with R upper triangular, stored as R = V diag(pivot), V unit upper triangular.

    R^-1 is the upper Cholesky factor U of H^-1 = U^T U that SparseGPT and GPTQ work with, so pivot_j = 1 / U_jj.
    """

    upper: torch.Tensor  # V, [C, C]
    pivot: torch.Tensor  # [C]
    ridge: float
    dead: torch.Tensor  # [C] bool: inputs that were zero on every calibration token


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues and eigenvectors of N^-1 H N^-1, H = G + ridge * I damped, N = diag(norm) of H's own norms."""

    values: torch.Tensor  # [C]
    vectors: torch.Tensor  # [C, C], one eigenvector a column
    norm: torch.Tensor  # [C]


def gram_of(
    stats: InputStats, device: torch.device, where: str = "", dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The Gram matrix on ``device``, [C, C] of ``dtype``, known to be finite.

    Raises:
        InputError: it was not accumulated, or holds NaN or infinity.
    """
    name = where or "the layer"
    if stats.gram is None:
        raise InputError(f"no Gram matrix was accumulated for the inputs of {name}: calibrate with one, or use 'none'")
    key = ("gram", device, dtype)
    if key not in stats.cache:
        gram = stats.gram.to(device, dtype)
        if not torch.isfinite(gram).all():
            raise InputError(
                f"the inputs of {name} contain NaN or infinity on the calibration data: "
                "calibrate in float32 or bfloat16, or exclude the layer"
            )
        stats.cache[key] = gram
    return stats.cache[key]  # type: ignore[return-value]


def ridge_of(gram: torch.Tensor, damp: float) -> float:
    """``damp`` times the mean diagonal over the inputs that are not dead."""
    diagonal = gram.diagonal().double()
    live = diagonal > 0
    return damp * float(diagonal[live].mean()) if bool(live.any()) else damp


def damped(gram: torch.Tensor, ridge: float, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A copy of the Gram matrix with ``ridge`` on its diagonal, 1 where an input was never active: it ties nothing down."""
    matrix = gram.to(dtype or gram.dtype, copy=True)
    matrix.diagonal().add_(ridge).masked_fill_(gram.diagonal() <= 0, 1.0)
    return matrix


def factor(
    stats: InputStats,
    damp: float,
    device: torch.device,
    where: str = "",
    dtype: torch.dtype = torch.float32,
    columns: torch.Tensor | None = None,
) -> Factor:
    """The damped Cholesky factor of the Gram matrix in ``dtype``, from ``stats.cache`` if it is there.

    With ``columns`` [C] that of the matrix with its inputs in this order, made anew.

    One Cholesky factorization in float64, of the matrix with its inputs in reverse order: with P the reversal,
    P H P = L L^T gives H = (P L P)(P L P)^T, and P L P is upper triangular. Neither H^-1 nor a second
    factorization is needed. Where rounding has left the matrix indefinite, the damping grows tenfold.

    Raises:
        InputError: no damping makes the matrix positive definite.
    """
    key = ("factor", damp, device, dtype)
    if columns is not None:
        return _factorize(gram_of(stats, device, where, dtype), damp, where, columns)
    if key not in stats.cache:
        stats.cache[key] = _factorize(gram_of(stats, device, where, dtype), damp, where)
    return stats.cache[key]  # type: ignore[return-value]


def _factorize(gram: torch.Tensor, damp: float, where: str, columns: torch.Tensor | None = None) -> Factor:
    if columns is None:
        columns = torch.arange(len(gram), device=gram.device)
    dead = (gram.diagonal() <= 0)[columns]
    last = columns.flip(0)
    while damp <= _MAX_DAMP:
        ridge = ridge_of(gram, damp)
        matrix = gram[last[:, None], last].to(torch.float64)
        matrix.diagonal().add_(ridge).masked_fill_(dead.flip(0), 1.0)
        root, failed = torch.linalg.cholesky_ex(matrix)
        del matrix
        if not failed:
            root = root.flip((0, 1))
            pivot = root.diagonal().clone()
            return Factor(root.div_(pivot).to(gram.dtype), pivot.to(gram.dtype), ridge, dead)
        damp = max(10 * damp, 1e-6)
    raise InputError(f"the Gram matrix of the inputs of {where or 'the layer'} is indefinite: accumulate it in float32")


def spectrum(
    stats: InputStats, damp: float, device: torch.device, where: str = "", dtype: torch.dtype = torch.float32
) -> Spectrum:
    """The eigendecomposition ALPS iterates with, made in float64, from ``stats.cache`` if it is there."""
    key = ("spectrum", damp, device, dtype)
    if key not in stats.cache:
        gram = gram_of(stats, device, where, dtype)
        matrix = damped(gram, ridge_of(gram, damp), torch.float64)
        norm = matrix.diagonal().sqrt()
        values, vectors = torch.linalg.eigh(matrix / norm / norm[:, None])
        # Rounding can leave an eigenvalue of a semidefinite matrix slightly negative.
        stats.cache[key] = Spectrum(values.clamp_min(0).to(dtype), vectors.to(dtype), norm.to(dtype))
    return stats.cache[key]  # type: ignore[return-value]
