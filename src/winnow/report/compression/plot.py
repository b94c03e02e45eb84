"""The picture of quality against size, in matplotlib: for notebooks and papers."""

from __future__ import annotations

from typing import Any

from winnow.errors import InputError
from winnow.notebook import axes
from winnow.records.compression import Report
from winnow.words import size

STYLES = {
    "dense": ("#57606a", "s"), "ticket": ("#57606a", "D"), "quantized": ("#b35900", "^"), "pruned": ("#0969da", "o"),
    "pruned+quantized": ("#8250df", "o"),
}  # fmt: skip


def plot(report: Report, ax: Any = None) -> Any:
    """Every candidate by the size of its file and what it changes against the dense model, with 95% intervals.

    Up is better. Where nothing was compared (no evaluation data, no dense model) quality itself is drawn.

    Args:
        ax: matplotlib axes to draw on; new ones unless given.

    Returns:
        the axes.

    Raises:
        InputError: matplotlib is missing, or no candidate was measured.
    """
    task = report.task
    points = [p for c in report.ranked if (p := _point(report, c)) is not None]
    if not points:
        raise InputError("nothing was measured, so there is nothing to plot: give evaluation data.")
    ax = axes(ax)
    seen: set[str] = set()
    for c, y, low, high in points:
        color, marker = STYLES[c.kind]
        bars = [[max(y - low, 0.0)], [max(high - y, 0.0)]] if low is not None and high is not None else None
        picked = c is report.picked
        kind = None if c.kind in seen else c.kind
        if picked or c.unpacked:
            kind = f"{c.label or c.name}, {size(c.file_bytes)}{' (chosen)' if picked else ''}"
        else:
            seen.add(c.kind)
        ax.errorbar(
            [c.file_bytes / 1e6], [y], yerr=bars, color=color, marker=marker, markersize=10 if picked else 6, capsize=2, elinewidth=1,
            linestyle="none", markeredgecolor="black" if picked else color, label=kind,
        )  # fmt: skip
    compared = _compared(report)
    if compared:
        ax.axhline(0.0, color="#57606a", linewidth=0.8, linestyle="--")
        against = "the ticket" if report.dense is None else "the dense model"
        unit = "points" if task.higher_is_better else "%, up is better"
        ax.set_ylabel(f"{task.metric} against {against} ({unit})")
    else:
        ax.set_ylabel(f"{task.metric}{f' ({task.unit})' if task.unit else ''}")
    if not task.higher_is_better:
        ax.invert_yaxis()
    ax.set_xlabel("file size (MB)")
    ax.set_title(report.model.name)
    ax.margins(x=0.12, y=0.15)
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8)
    return ax


def _compared(report: Report) -> bool:
    return any(c.drop is not None and not c.unpacked for c in report.candidates)


def _point(report: Report, c: Any) -> tuple[Any, float, float | None, float | None] | None:
    """The candidate with its height and the ends of its interval; None for one that was not measured."""
    if c.file_bytes is None:
        return None
    if not _compared(report):
        return None if c.quality is None else (c, c.quality, c.low, c.high)
    if c.drop is None:
        return None
    sign = -1.0 if report.task.higher_is_better else 1.0
    ends = [] if c.drop_low is None or c.drop_high is None else sorted((sign * c.drop_low, sign * c.drop_high))
    return (c, sign * c.drop, *ends) if ends else (c, sign * c.drop, None, None)
