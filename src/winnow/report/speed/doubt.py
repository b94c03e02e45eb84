"""Whether a measured speedup may be stated: where the machine was busy or the interval is wide, the reason why not."""

from __future__ import annotations

WIDEST = 1.5  # the upper end of an interval over its lower end: beyond, a speedup is not stated
TAKEN = 0.25  # of the threads that were timed: as much may other programs take from them


def busy(others: float | None, cores: int | None, threads: int | None) -> str:
    """Words for a machine that had not enough cores free for what was timed on it; "" where it had.

    Args:
        others: cores that other programs kept busy meanwhile; None: not known.
        cores: that could be used.
        threads: of what was timed.
    """
    if others is None or cores is None or others <= cores - (1 - TAKEN) * min(threads or cores, cores):
        return ""
    of = f"of {cores} cores" if cores > 1 else "of the one core"
    return f"the machine was busy (other programs kept {others:.1f} {of} at work)"


def unsteady(low: float | None, high: float | None) -> str:
    """Words for an interval of a ratio that says too little; "" where it says enough."""
    if low is None or high is None:
        return "fewer than six rounds give no interval"
    if low > 0 and high / low <= WIDEST:
        return ""
    return f"the 95% interval of the ratio is too wide ({low:.2f} to {high:.2f})"


def doubt(low: float | None, high: float | None, others: float | None, cores: int | None, threads: int | None) -> str:
    """Why no speedup is stated; "" where it may be."""
    return busy(others, cores, threads) or unsteady(low, high)
