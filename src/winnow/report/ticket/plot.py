"""The picture of quality against sparsity, in matplotlib: for notebooks and papers."""

from __future__ import annotations

from typing import Any

from winnow.errors import InputError
from winnow.notebook import axes
from winnow.records.ticket import Figure, TicketReport

COLOURS = ("#0969da", "#b35900", "#8250df", "#1a7f37", "#bf3989", "#57606a")


def plot(report: TicketReport, ax: Any = None) -> Any:
    """Every ticket's quality by its sparsity with 95% intervals, a line for each method; the dense model is a dashed line.

    Up is better. Where there are several seeds, their mean is drawn.

    Args:
        ax: matplotlib axes to draw on; new ones unless given.

    Returns:
        the axes.

    Raises:
        InputError: matplotlib is missing, or no ticket was measured.
    """
    task = report.task
    found: dict[str, list[tuple[float, Figure]]] = {}
    for row in report.rows:
        if row.figure is not None and (row.method != "dense" or report.dense is None):
            found.setdefault(row.method, []).append((100 * row.sparsity, row.figure))
    if not found and report.dense is None:
        raise InputError("nothing was measured, so there is nothing to plot: give evaluation data (eval=).")
    ax = axes(ax)
    for number, (method, points) in enumerate(found.items()):
        figures = [figure for _, figure in points]
        below = [0.0 if f.low is None else max(f.value - f.low, 0.0) for f in figures]
        above = [0.0 if f.high is None else max(f.high - f.value, 0.0) for f in figures]
        ax.errorbar(
            [x for x, _ in points], [f.value for f in figures], yerr=[below, above], color=COLOURS[number % len(COLOURS)], marker="o",
            capsize=2, elinewidth=1, label=report.named(method),
        )  # fmt: skip
    if report.dense is not None:
        ax.axhline(report.dense.value, color="#57606a", linewidth=0.8, linestyle="--", label="dense")
    if not task.higher_is_better:
        ax.invert_yaxis()
    ax.set_xlabel("sparsity (%)")
    ax.set_ylabel(f"{task.metric}{f' ({task.unit})' if task.unit else ''}")
    ax.set_title(report.model.name)
    ax.margins(x=0.12, y=0.15)
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8)
    return ax
