"""Numbers as people read them: sizes, times, shares, and the change of a metric."""

from __future__ import annotations

import math

from winnow.records.compression import Candidate, ModelInfo, Report, Sizes, TaskInfo
from winnow.words import amount, count, number, signed


def plain(value: float, task: TaskInfo) -> str:
    """A metric's value without its unit."""
    return f"{value:.2f}" if task.unit == "%" else number(value)


def with_interval(text: str, interval: str) -> str:
    return f"{text} ({interval})" if interval else text


def quality(value: float | None, task: TaskInfo) -> str:
    """A metric's value with its unit: "91.25%", "43.20"."""
    if value is None:
        return ""
    text = f"{value:.2f}" if task.unit == "%" and math.isfinite(value) else number(value)
    return amount(text, task.unit)


def span(low: float | None, high: float | None, task: TaskInfo) -> str:
    """An interval of the metric: "90.10 to 92.40%"."""
    if low is None or high is None:
        return ""
    return f"{plain(low, task)} to {amount(plain(high, task), task.unit)}"


def _digits(magnitude: float, task: TaskInfo) -> int:
    if magnitude < 1 and task.higher_is_better and task.unit != "%":
        return 3
    return 2 if magnitude < 10 else 1 if magnitude < 1000 else 0


def change(candidate: Candidate, task: TaskInfo) -> str:
    """What happened to the metric: a drop of 1.2 points is "−1.20 points", of 6% of perplexity "+6.00%"."""
    if candidate.drop is None or candidate.kind == "dense":
        return ""
    toward = -1 if task.higher_is_better else 1
    unit = "points" if task.higher_is_better else "%"
    return amount(signed(toward * candidate.drop, _digits(abs(candidate.drop), task)), unit)


def change_span(candidate: Candidate, task: TaskInfo) -> str:
    """The interval of :func:`change`, the lower figure first, without its unit."""
    if candidate.drop_low is None or candidate.drop_high is None or candidate.kind == "dense":
        return ""
    toward = -1 if task.higher_is_better else 1
    low, high = sorted((toward * candidate.drop_low, toward * candidate.drop_high))
    digits = _digits(max(abs(low), abs(high)), task)
    return f"{signed(low, digits)} to {signed(high, digits)}"


def recovered(candidate: Candidate, report: Report) -> str:
    """The share of the yardstick's quality that is left, "99.8%": of a figure where lower is better its inverse; nothing where
    the yardstick's figure is not above zero."""
    given, its = report.yardstick, candidate.quality
    if given is None or candidate is given or given.quality is None or its is None or given.quality <= 0:
        return ""
    share = its / given.quality if report.task.higher_is_better else given.quality / its if its > 0 else math.nan
    return f"{100 * share:.1f}%" if math.isfinite(share) else ""


def contents(sizes: Sizes) -> str:
    """What the weights file consists of, in one line: "81% embeddings (float32), 12% pruned layers (int8), 3% index"; what
    is below 1% together is "other"."""
    whole = sum(part.bytes for part in sizes.contents)
    if not whole:
        return ""
    shown = [part for part in sizes.contents if part.bytes >= 0.01 * whole]
    texts = [f"{100 * part.bytes / whole:.0f}% {part.what}{f' ({part.dtype})' if part.dtype else ''}" for part in shown]
    left = whole - sum(part.bytes for part in shown)
    return ", ".join([*texts, *([f"{100 * left / whole:.0f}% other"] if left >= 0.005 * whole else [])])


def vocabulary(model: ModelInfo) -> str:
    """How many rows were cut: "30,522 → 9,120 rows"."""
    if model.vocabulary is None or model.vocabulary_before is None:
        return ""
    return f"{count(model.vocabulary_before)} → {count(model.vocabulary)} rows"


def from_what(report: Report) -> str:
    """What was packed, for the words around it: "dense", or "the ticket"."""
    return "dense" if report.ticket is None else "the ticket"


def against(report: Report) -> str:
    """The yardstick in one word, for the head of a column."""
    return "ticket" if report.dense is None and report.ticket is not None else "dense"
