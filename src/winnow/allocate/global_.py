"""One ranking over all layers."""

from __future__ import annotations

from collections.abc import Sequence

from winnow.allocate.exact import ranked
from winnow.allocate.layer import LayerInfo


def global_(layers: Sequence[LayerInfo], zeros: int, caps: Sequence[int]) -> list[int]:
    """Each layer loses what it holds among the ``zeros`` lowest scores of the whole model.

    Needs ``scores``; they are compared as float32, ties go to the earlier layer.
    """
    return ranked(layers, LayerInfo.score_matrix, zeros, caps)
