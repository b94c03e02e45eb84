"""How a convolution walks over an image."""

from __future__ import annotations

from typing import NamedTuple


class Geometry(NamedTuple):
    """How a 2-D convolution of one group walks over an image, (height, width) each; zeros pad it."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        sides = zip((height, width), *self, strict=True)
        high, wide = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)
        return high, wide
