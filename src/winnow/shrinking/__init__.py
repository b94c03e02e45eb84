"""Smaller dense shapes where whole neurons, heads or channels are zero: ``winnow.shrink(model)``."""

from __future__ import annotations

from winnow.shrinking.lines import shrink_matrix, zero_lines
from winnow.shrinking.recipe import apply, kept_lines
from winnow.shrinking.verb import Removed, ShrinkResult, Skipped, plan, shrink

__all__ = [
    "Removed",
    "ShrinkResult",
    "Skipped",
    "apply",
    "kept_lines",
    "plan",
    "shrink",
    "shrink_matrix",
    "zero_lines",
]
