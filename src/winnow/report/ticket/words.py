"""A search for tickets in words: FLOPs, figures with their intervals."""

from __future__ import annotations

import math

from winnow import words
from winnow.records.compression import TaskInfo
from winnow.records.ticket import Figure
from winnow.report.allocation.words import points
from winnow.report.compression import phrases


def power(value: float) -> tuple[float, str]:
    """The unit that a count of operations is best told in: (1e12, "TFLOP")."""
    powers = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    return next(((unit, f"{letter}FLOP") for unit, letter in powers if value >= 0.9995 * unit), (1.0, "FLOP"))


def flops(value: float | None) -> str:
    """Three significant digits: 1.234e15 -> "1.23 PFLOP"."""
    if value is None or not math.isfinite(value):
        return ""
    unit, name = power(value)
    scaled = value / unit
    digits = 0 if scaled >= 99.95 or unit == 1 else 1 if scaled >= 9.995 else 2
    return f"{scaled:.{digits}f} {name}"


def passes(value: float | None) -> str:
    """Steps as a multiple of T: "1.29 T"."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:.{2 if value < 9.995 else 1}f}".rstrip("0").rstrip(".") + " T"


def steps(value: float) -> str:
    """A count of steps, which is a mean over seeds that may have taken different numbers."""
    return words.count(round(value))


def span(figure: Figure | None, task: TaskInfo) -> str:
    """The interval of a figure, without its unit."""
    if figure is None or figure.low is None or figure.high is None:
        return ""
    return f"{phrases.plain(figure.low, task)} to {phrases.plain(figure.high, task)}"


def measured(figure: Figure, task: TaskInfo) -> str:
    """A metric's value and its interval: "91.25% (90.10 to 92.40)"."""
    return phrases.with_interval(phrases.quality(figure.value, task), span(figure, task))


def signed(value: float) -> str:
    """Two decimals with a sign; a zero has none."""
    return points(value / 100) or words.number(value)


def change(drop: Figure | None, task: TaskInfo) -> str:
    """A drop as people read it: minus is worse; where lower is better, plus is."""
    return "" if drop is None else signed(-drop.value if task.higher_is_better else drop.value)


def change_span(drop: Figure | None, task: TaskInfo) -> str:
    if drop is None or drop.low is None or drop.high is None:
        return ""
    low, high = (-drop.high, -drop.low) if task.higher_is_better else (drop.low, drop.high)
    return f"{signed(low)} to {signed(high)}"


def unit(task: TaskInfo) -> str:
    """Of a difference from the dense model."""
    return "points" if task.higher_is_better else "%"
