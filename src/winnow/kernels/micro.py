"""How long one layer's contenders take when its weights come from memory, as they do in a real forward pass."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from winnow.machine.cache import last_level_cache

Calls = Mapping[str, Callable[[torch.Tensor], object]]

LEAST_FLUSH = 64 << 20  # bytes; caches that nobody reports exist (a hypervisor's view, a shared victim cache)
# Rounds: to drop the hopeless, the clearly slower, to be sure, to break a near tie.
TWO, FEW, ENOUGH, MOST = 2, 3, 7, 21
HOPELESS, CLEAR = 4.0, 1.5  # times the best: dropped after TWO rounds, after FEW rounds
TRIES = 3  # of one timed call, until nothing else took the processor meanwhile
NEAR = 1.1  # medians closer than this are measured up to MOST rounds: the decision is at 1.05


@dataclass(frozen=True)
class Case:
    """What is timed: one layer's shape and content, and one number of rows of x."""

    kind: str  # "linear" | "conv1d" | "conv"
    shape: tuple[int, ...]  # of the matrix [rows, cols]; of a convolution its geometry and the input's shape too
    dtype: str  # of x and y
    values: str  # as the given layer holds them: "float32", "bfloat16", "int8" ...
    density: float  # kept share, rounded to 1/20
    live: tuple[float, float]  # shares of rows and of columns that hold anything, rounded to 1/20
    block: int  # columns that one mask bit stands for
    group: int | None  # columns that share a scale, None: the whole row
    bias: bool
    activations: str  # "keep" | "int8"
    cold: bool  # weights come from memory: more is read between two calls of the layer than the caches hold
    rows: int  # of x
    between: int = 0  # bytes that are read between two calls of the layer, where they are fewer

    @property
    def key(self) -> str:
        """A name for this case that is the same in every process."""
        shape = "x".join(map(str, self.shape))
        state = "cold" if self.cold else f"between={self.between}"
        return (
            f"{self.kind} {shape} {self.dtype} values={self.values} density={self.density:.2f} "
            f"live={self.live[0]:.2f},{self.live[1]:.2f} block={self.block} group={self.group or 'row'} "
            f"bias={int(self.bias)} activations={self.activations} {state} rows={self.rows}"
        )


# (case, {contender: call}, x) -> {contender: median microseconds of call(x)}
Timer = Callable[[Case, Calls, torch.Tensor], dict[str, float]]


class MicroTimer:
    """Times contenders one after the other in rounds and returns the median microseconds of each.

    For a cold case a buffer of twice the last-level cache (at least 64 MB) is streamed through before every call, by all
    of torch's threads, so that private caches are emptied too; for others the call is made once untimed, and as many
    bytes are streamed through as the model reads until it comes to this layer again. A contender that is clearly slower than the best is not
    called again; close ones get up to 21 rounds. On a busy machine a call during which the system gave the processor to
    someone else is timed again: such a pause is often longer than the call. Every contender has at least two rounds, the
    winner at least three; a case takes little more than ``seconds``, however slow its contenders are.
    """

    def __init__(
        self,
        seconds: float = 1.0,
        clock: Callable[[], int] = time.perf_counter_ns,
        interruptions: Callable[[], int] | None = None,
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._interruptions = interruptions or _interruptions()
        self._buffer: torch.Tensor | None = None

    def __call__(self, case: Case, calls: Calls, x: torch.Tensor) -> dict[str, float]:
        size = flush_bytes() if case.cold else case.between
        if self._buffer is None or self._buffer.numel() < size:
            self._buffer = torch.zeros(size, dtype=torch.uint8)
        streamed = self._buffer[:size]

        def prepare(call: Callable[[torch.Tensor], object], x: torch.Tensor) -> None:
            if not case.cold:
                call(x)
            streamed.add_(1)
            if hasattr(os, "sched_yield"):  # who waits for the processor had better take it now than in the timed call
                os.sched_yield()
            x.mul_(1)  # in a model, the layer before has just written x

        found = time_contenders(calls, x, prepare, int(self._seconds * 1e9), self._clock, self._interruptions)
        return {name: ns / 1000 for name, ns in found.items()}


def _interruptions() -> Callable[[], int]:
    """Counts how often the system took a processor away from this process; always 0 where it does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return lambda: 0
    return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class _Times:
    """What was timed of one contender."""

    def __init__(self) -> None:
        self.calm: list[int] = []
        self.interrupted: list[int] = []

    @property
    def least(self) -> int:
        return min([*self.calm, *self.interrupted])

    @property
    def typical(self) -> float:
        """The median; with too few undisturbed times the smallest, which is the nearest to one."""
        return statistics.median(self.calm) if len(self.calm) >= FEW else self.least


def time_contenders(
    calls: Calls,
    x: torch.Tensor,
    prepare: Callable[[Callable[[torch.Tensor], object], torch.Tensor], object],
    limit: int,
    clock: Callable[[], int],
    interruptions: Callable[[], int] = lambda: 0,
) -> dict[str, float]:
    """Median time of ``call(x)`` for each contender, in units of ``clock``; ``prepare(call, x)`` comes before each timed
    call, and about ``limit`` is spent on the whole race. A call during which ``interruptions()`` changed is repeated."""
    begin = clock()
    for call in calls.values():  # first calls allocate, page in and choose code
        call(x)
    times = {name: _Times() for name in calls}
    racing = list(calls)
    for done in range(1, MOST + 1):
        for name in racing if done % 2 else reversed(racing):  # whoever follows a slow one is not always the same
            call = calls[name]
            for _ in range(TRIES):
                prepare(call, x)
                before = interruptions()
                start = clock()
                call(x)
                took = clock() - start
                calm = interruptions() == before
                (times[name].calm if calm else times[name].interrupted).append(took)
                if calm:
                    break
        best = min(times[name].typical for name in racing)
        if done >= TWO:
            factor = CLEAR if done >= FEW else HOPELESS
            racing = [name for name in racing if times[name].least <= factor * best]
        if done >= FEW and (len(racing) == 1 or clock() - begin > limit):
            break
        if done >= ENOUGH:
            close = sorted(times[name].typical for name in racing)
            if close[1] > NEAR * close[0]:
                break
    return {name: t.typical for name, t in times.items()}


def flush_bytes() -> int:
    """Bytes to stream through so that nothing of a layer stays in a cache; at most a quarter of the free memory."""
    import psutil

    return max(LEAST_FLUSH, min(2 * last_level_cache(), int(psutil.virtual_memory().available) // 4))
