"""Reconstruction error of a layer's output, from the Gram matrix of its inputs."""

from __future__ import annotations

import torch

_COLS = 512  # columns a product covers at a time: bounds the scratch memory to rows x 512


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
