"""Scales of a figure: data to pixels, and the values worth a tick."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [start, end] pixels, evenly in the value or in its logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def clamp(self, value: float) -> float:
        """Pixels of a value, kept on the axis; infinities land on its ends."""
        return self(min(max(value, self.low), self.high))

    def ticks(self, spacing: float) -> list[float]:
        """Round values, at least ``spacing`` pixels apart."""
        candidates = _log_steps(self.low, self.high) if self.log else _linear_steps(self.low, self.high)
        for values in candidates:
            places = [self(v) for v in values]
            if len(values) >= 2 and all(abs(b - a) >= spacing for a, b in pairwise(places)):
                return values
        return []


def bit_ticks(scale: Scale, spacing: float) -> list[float]:
    """Ticks for bits per weight: powers of two first, then the values between while there is room."""
    kept: list[float] = []
    for value in (16, 4, 2, 8, 1, 32, 3, 6, 0.5, 12, 1.5, 5, 24, 7, 10, 0.75, 2.5, 64, 0.25):
        inside = scale.low <= value <= scale.high
        if inside and all(abs(scale(value) - scale(k)) >= spacing for k in kept):
            kept.append(value)
    return sorted(kept)


def _linear_steps(low: float, high: float) -> list[list[float]]:
    base = 10.0 ** math.floor(math.log10(high - low))
    found = []
    for step in (base / 10, base / 5, base / 4, base / 2, base, 2 * base, 2.5 * base, 5 * base):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        found.append([round(i * step, 12) for i in range(first, last + 1)])
    return found


def _log_steps(low: float, high: float) -> list[list[float]]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = []
    if high / low < 4:
        found += _linear_steps(low, high)
    for marks in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        values = [m * 10.0**d for d in decades for m in marks]
        found.append([float(f"{v:.6g}") for v in values if low <= v <= high])
    return found
