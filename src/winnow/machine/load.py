"""How much of this machine other programs use while something is timed on it."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Any

MEASURED = 0.05  # seconds: a shorter time says nothing, for counters tick a hundred times a second


class OtherPrograms:
    """Counts, in a ``with`` block, the cores that other programs kept busy meanwhile, of those that this one may use.

    Not the load average, which remembers this program's own work of the last minutes. Time that a hypervisor gave to other
    machines counts as busy.

    Attributes:
        cores: that this process may use.
        busy: cores that others kept busy, an average from 0 to ``cores``; None before the end, and where it cannot be told.
    """

    def __init__(self) -> None:
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.busy: float | None = None

    def __enter__(self) -> OtherPrograms:
        self._before, self._own, self._start = _busy(), _own_time(), time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds, after = time.perf_counter() - self._start, _busy()
        if self._before is None or after is None or seconds < MEASURED:
            return
        others = (after - self._before) - (_own_time() - self._own)
        self.busy = min(max(others / seconds, 0.0), float(self.cores))


def _own_time() -> float:
    """Processor seconds of this process, threads and finished children included."""
    return sum(os.times()[:4])


def _busy() -> float | None:
    """Seconds that the cores this process may use have not been idle."""
    import psutil

    try:
        cores: list[Any] = psutil.cpu_times(percpu=True)
    except (OSError, RuntimeError, NotImplementedError):
        return None
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
        cores = [core for number, core in enumerate(cores) if number in allowed]
    # A guest's time is in that of its user too.
    idle = ("idle", "iowait", "guest", "guest_nice")
    return sum(sum(value for name, value in core._asdict().items() if name not in idle) for core in cores)
