"""Fewer bits a value: a grid with an exact zero, and rounding to it (inside the solvers' loop, see winnow.solve)."""

from winnow.quantize.grid import Grid, Quantized, round_to_nearest

__all__ = ["Grid", "Quantized", "round_to_nearest"]
