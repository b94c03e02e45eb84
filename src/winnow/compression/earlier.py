"""The allocation of an earlier run, and what moved since."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from winnow.errors import InputError
from winnow.records.allocation import AllocationRecord, Comparison


def earlier_record(folder: Path) -> AllocationRecord:
    """The allocation that an earlier run left in its folder.

    Raises:
        InputError: there is no report.json, or no allocation in it.
        FormatError: the report is damaged, or of an unknown version.
    """
    from winnow.report.compression.page import read

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
        _, rates, earlier_rates = zip(*both)
        if len(set(rates)) > 1 and len(set(earlier_rates)) > 1:
            from scipy.stats import spearmanr

            result.correlation = float(spearmanr(rates, earlier_rates).statistic)
    return result
