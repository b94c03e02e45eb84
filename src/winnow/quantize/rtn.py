"""Round to nearest: each kept weight goes to its closest grid point, and no other weight learns of it."""

from __future__ import annotations

import torch

from winnow.quantize.grid import Grid
from winnow.quantize.quantized import Quantized


def round_to_nearest(
    weight: torch.Tensor, grid: Grid, keep: torch.Tensor | None = None, importance: torch.Tensor | None = None
) -> Quantized:
    """Quantize ``weight`` [R, C]; weights that ``keep`` (bool [R, C]) removes get code 0 and shape no scale.

    ``importance`` [C] weighs the columns in the choice of the scales (see :meth:`Grid.fit`).
    """
    scales = grid.fit(weight, keep, importance)
    return Quantized(grid.round(weight, scales, keep), scales, grid.bits, grid.group)
