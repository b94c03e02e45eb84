"""How fast this machine reads memory: the limit of every kernel that has to read its weights once a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from winnow.machine.cache import last_level_cache
from winnow.machine.memory import available_memory

LEAST = 256 << 20  # bytes read in one pass
ROUNDS = 7


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second of one pass over ``buffer`` bytes by ``threads`` threads: the fastest way and pass that was seen.

    The fastest and not the median: a limit that a kernel could beat would be none.
    """

    bytes_per_second: float
    buffer: int
    threads: int
    cache: int  # the last level's bytes
    way: str

    def seconds(self, nbytes: int) -> float:
        """The least time it takes to read so many bytes once."""
        return nbytes / self.bytes_per_second


def read_bandwidth(
    rounds: int = ROUNDS, *, least: int = LEAST, clock: Callable[[], float] = time.perf_counter
) -> Bandwidth:
    """Reads a buffer of at least twice the last-level cache (and ``least`` bytes) by reductions of torch, with the
    threads torch has now. A quarter of the memory that is free is never exceeded."""
    cache = last_level_cache()
    size = min(max(2 * cache, least), max(available_memory() // 4, 1 << 20)) // 16_384 * 16_384
    buffer = torch.ones(size // 4)
    matrix, vector = buffer.view(-1, 4_096), torch.ones(4_096)
    ways: dict[str, Callable[[], object]] = {
        "sum": buffer.sum,
        "dot": lambda: torch.dot(buffer, buffer),
        "matrix times vector": lambda: torch.mv(matrix, vector),
    }
    best, how = 0.0, ""
    for way, read in ways.items():
        read()
        for _ in range(rounds):
            start = clock()
            read()
            speed = size / max(clock() - start, 1e-9)
            if speed > best:
                best, how = speed, way
    return Bandwidth(best, size, torch.get_num_threads(), cache, how)
