"""What becomes of an allocation record: thinned losses, and the comparison with an earlier run's allocation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from winnow.errors import InputError
from winnow.report.allocation_schema import AllocationRecord, Comparison


def thin(losses: Sequence[float], points: int = 200) -> list[float]:
    """At most ``points`` values: the means of that many equal stretches, in order.

    A mean, not every n-th value: the loss of single batches scatters. Stretches differ in length by one at most.
    """
    if points < 1:
        raise ValueError(f"points is {points}: at least 1 is needed")
    n = len(losses)
    if n <= points:
        return [float(v) for v in losses]
    cuts = [i * n // points for i in range(points + 1)]
    return [fmean(losses[a:b]) for a, b in pairwise(cuts)]


def earlier_record(folder: Path) -> AllocationRecord:
    """The allocation that an earlier run left in its folder.

    Raises:
        InputError: there is no report.json, or no allocation in it.
        FormatError: the report is damaged, or of an unknown version.
    """
    from winnow.report.html import read

    record = read(folder).allocation
    if record is None or not record.layers:
        raise InputError(
            f"the run in {folder} holds no allocation to compare with: name the folder of a run of a method that trains, "
            "such as --method fcpts."
        )
    return record


def compare(record: AllocationRecord, earlier: AllocationRecord, name: str) -> Comparison:
    """Sets this allocation beside the one of an earlier run, and fills ``earlier_rate`` of the layers it knows.

    Layers are matched by name. ``moved`` is the mean of |rate - earlier rate| over the layers in both, each layer
    counted once; the correlation is Spearman's, and None below two layers or where all rates of a run are alike.
    """
    before = {layer.name: layer.rate for layer in earlier.layers}
    for layer in record.layers:
        layer.earlier_rate = before.get(layer.name)
    both = [(layer.name, layer.rate, layer.earlier_rate) for layer in record.layers if layer.earlier_rate is not None]
    here = {layer.name for layer in record.layers}
    result = Comparison(
        against=name,
        matched=len(both),
        only_here=len(record.layers) - len(both),
        only_earlier=sum(layer not in here for layer in before),
    )
    if both:
        result.moved = fmean(abs(now - then) for _, now, then in both)
        result.largest, now, then = max(both, key=lambda row: abs(row[1] - row[2]))
        result.difference = now - then
        result.correlation = _spearman([now for _, now, _ in both], [then for _, _, then in both])
    return result


def _spearman(a: list[float], b: list[float]) -> float | None:
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)
