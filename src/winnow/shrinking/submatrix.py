"""Lines of zeros in one matrix, and the smaller matrix without them."""

from __future__ import annotations

import torch


def nonzero_rows_cols(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of a matrix [R, C] that hold any non-zero: (rows kept, columns kept), int64, ascending.

    ``y = x Wᵀ`` needs no other: with ``small = shrink_matrix(weight, rows, cols)``,
    ``y[..., rows] = x[..., cols] @ small.T`` and every other entry of ``y`` is zero.
    """
    used = weight != 0  # NaN counts as used
    return used.any(1).nonzero().flatten(), used.any(0).nonzero().flatten()


def shrink_matrix(
    weight: torch.Tensor, rows: torch.Tensor | None = None, cols: torch.Tensor | None = None
) -> torch.Tensor:
    """The submatrix [len(rows), len(cols)] of the given rows and columns (None: all), contiguous, in new memory."""
    if rows is not None:
        weight = weight.index_select(0, rows.to(weight.device))
    if cols is not None:
        weight = weight.index_select(1, cols.to(weight.device))
    return weight.contiguous() if rows is not None or cols is not None else weight.clone().contiguous()
