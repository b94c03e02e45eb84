"""Smaller dense shapes where whole neurons, heads or channels are zero: ``winnow.shrink(model)``."""

from __future__ import annotations

from winnow.shrinking.rebuild import apply, kept_rows_cols, nonzero_rows_cols, shrink_matrix
from winnow.shrinking.verb import Removed, ShrinkResult, Skipped, plan, shrink

__all__ = [
    "Removed",
    "ShrinkResult",
    "Skipped",
    "apply",
    "kept_rows_cols",
    "nonzero_rows_cols",
    "plan",
    "shrink",
    "shrink_matrix",
]
