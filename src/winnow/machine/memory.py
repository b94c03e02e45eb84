"""Memory of this process and this machine, in bytes."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path


def peak_rss() -> int:
    """The largest resident set this process has had, since it began or since :func:`reset_peak`.

    VmHWM on Linux; elsewhere the operating system's own peak, which cannot be reset.
    """
    if (peak := _status("VmHWM:")) is not None:
        return peak
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(usage if sys.platform == "darwin" else usage * 1024)


def resident() -> int:
    """The resident set of this process now."""
    if (now := _status("VmRSS:")) is not None:
        return now
    import psutil

    return int(psutil.Process().memory_info().rss)


def reset_peak() -> bool:
    """Starts :func:`peak_rss` anew from what is resident now; False where the system cannot (then it stays as it was)."""
    try:
        # proc(5): writing 5 resets the peak resident set size to its current value.
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


_CGROUP = Path("/sys/fs/cgroup")


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def trim_heap() -> None:
    """Returns freed memory to the system where the allocator would keep it (glibc); nothing elsewhere.

    glibc keeps what a thread freed for that thread, and raises the size from which memory is mapped, and so
    returned, with every large block that is freed: a loop over blocks of a model would grow without this.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def available_memory() -> int:
    """What can still be taken without swapping: the system's figure, or a container's limit where that is lower."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        # "max" (no limit) is no number.
        with suppress(OSError, ValueError):
            free = min(free, int((_CGROUP / limit).read_text()) - int((_CGROUP / used).read_text()))
    return max(0, free)


def _status(key: str) -> int | None:
    if not os.path.exists("/proc/self/status"):
        return None
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return None
