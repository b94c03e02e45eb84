"""The layers that the kernel benchmark times, and what every contender promises; numpy only, so that it runs anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
GROUP = 128  # int4: one scale for 128 weights along the input
# Relative error of a sound contender.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.02, "int8": 0.03, "int8a": 0.06, "int4": 0.20, "int4a": 0.20}


@dataclass(frozen=True)
class Layer:
    """One linear layer ``y = x Wᵀ`` with random weights: zeros uniform at random, in blocks of ``block`` along the input."""

    rows: int
    cols: int
    sparsity: float = 0.0
    block: int = 1
    seed: int = 0

    @lru_cache(maxsize=2)  # noqa: B019 - contenders of one layer are opened one after the other
    def weight(self) -> Array:
        """float32 [rows, cols]; N(0, 0.02²) where it is not zero. Not to be written to."""
        rng = np.random.default_rng(self.seed)
        weight = rng.standard_normal((self.rows, self.cols), dtype=np.float32) * np.float32(0.02)
        if self.sparsity:
            noise = rng.random((self.rows, self.cols // self.block), dtype=np.float32)
            weight *= np.repeat(noise >= self.sparsity, self.block, axis=1)
        return weight

    @lru_cache(maxsize=16)  # noqa: B019
    def product(self, batch: int) -> Array:
        """What every contender must come near: ``inputs(batch)`` times the weights, in float64."""
        return self.inputs(batch).astype(np.float64) @ self.weight().astype(np.float64).T

    def inputs(self, batch: int) -> Array:
        """float32 [batch, cols], N(0, 1)."""
        return np.random.default_rng(self.seed + 1).standard_normal((batch, self.cols), dtype=np.float32)


def int8_rows(weight: Array) -> tuple[Array, Array]:
    """Symmetric int8 by row: int8 [rows, cols] and float32 scales [rows]."""
    scale = np.maximum(np.abs(weight).max(1), 1e-12) / 127
    return np.rint(weight / scale[:, None]).astype(np.int8), scale.astype(np.float32)


def int4_groups(weight: Array) -> tuple[Array, Array]:
    """Symmetric int4 by group of 128 inputs: values -7 to 7 as int8 [rows, groups, 128], float32 scales [rows, groups]."""
    grouped = weight.reshape(len(weight), -1, GROUP)
    scale = np.maximum(np.abs(grouped).max(2), 1e-12) / 7
    return np.rint(grouped / scale[:, :, None]).astype(np.int8), scale.astype(np.float32)


@dataclass
class Copies:
    """One contender's copies of a layer, each in memory of its own.

    ``bytes``: one copy, in the contender's own format; ``use(batch)`` gives the call for that batch, which takes a running
    number and computes ``per_call`` layers, the next copies in turn; ``first(x)`` is the first copy's result, float32.
    """

    bytes: int
    count: int
    use: Callable[[int], Callable[[int], Any]]
    first: Callable[[Array], Array]
    per_call: int = 1


def how_many(size: int, bytes_each: int) -> int:
    """Copies that total at least ``size`` bytes; never fewer than two."""
    return max(2, -(-size // max(1, bytes_each)))


def error_of(copies: Copies, layer: Layer, batch: int = 3) -> float:
    """Relative error of a contender against the float64 product of the same weights."""
    wanted = layer.product(batch)
    return float(np.linalg.norm(copies.first(layer.inputs(batch)).astype(np.float64) - wanted) / np.linalg.norm(wanted))


def timed(call: Callable[[int], Any], per_call: int, start: int, seconds: float, warm: bool = True) -> dict[str, float]:
    """Calls for about ``seconds``, from copy ``start`` on: wall and processor seconds for one layer, and calls made."""
    if warm:
        call(start)  # code and inputs come into the caches; the copy that it read is the last one to come round again
    done, cpu, began = 0, time.process_time(), time.perf_counter()
    while True:
        done += 1
        call(start + done)
        wall = time.perf_counter() - began
        if wall >= seconds:
            break
    cpu = time.process_time() - cpu
    return {"wall": wall / done / per_call, "cpu": cpu / done / per_call, "calls": done + 1}
