"""A report as a card, as rows of a frame, and as flat figures: mixed into :class:`winnow.records.compression.Report`."""

from __future__ import annotations

from typing import Any

from winnow.notebook import Card, Shown, figures, frame
from winnow.words import change, number, percent, size

_PER_CANDIDATE = (
    "name", "label", "kind", "sparsity", "values", "method", "bits_per_weight", "file_bytes", "quality", "low", "high",
    "drop", "drop_low", "drop_high", "agreement", "kl", "seconds", "chosen",
)  # fmt: skip


class Tabular(Shown):
    """What a report says outside of its page."""

    def to_frame(self) -> Any:
        """A pandas DataFrame of the candidates by name: sizes in bytes, quality in ``task.unit``, ``drop`` positive when worse.

        Raises:
            InputError: pandas is not installed.
        """
        report: Any = self
        return frame([{k: getattr(c, k) for k in _PER_CANDIDATE} for c in report.ranked], "name")

    @property
    def metrics(self) -> dict[str, float]:
        """Flat figures of the chosen candidate and the dense model, for an experiment tracker: only finite floats.

        Quality is named by the metric ("accuracy", "dense_accuracy"), sizes are bytes, shares between 0 and 1, times seconds;
        ``drop`` is positive when worse.
        """
        report: Any = self
        metric = "_".join(report.task.metric.lower().split())
        chosen, dense, speed = report.picked, report.dense, report.speed
        found: dict[str, Any] = {}
        if chosen is not None:
            found = {metric: chosen.quality, f"{metric}_low": chosen.low, f"{metric}_high": chosen.high}
            same = ("drop", "drop_low", "drop_high", "agreement", "kl", "sparsity", "bits_per_weight", "file_bytes")
            found |= {name: getattr(chosen, name) for name in same}
        if dense is not None:
            found[f"dense_{metric}"] = dense.quality
        found |= {"zeros": report.requested.zeros_reached, "dense_file_bytes": report.sizes.dense_file}
        found |= {"seconds": report.cost.seconds_total, "peak_memory_bytes": report.memory.peak_bytes}
        if speed is not None:
            found |= {"speedup": speed.ratio, "speedup_low": speed.ratio_low, "speedup_high": speed.ratio_high}
        return figures(found)

    def _card(self) -> Card:
        report: Any = self
        chosen, dense, unit = report.picked, report.dense, report.task.unit
        facts = [("model", report.model.name)]
        if chosen is not None:
            facts.append(("chosen", _named(chosen)))
            facts.append(("file", _against(size(chosen.file_bytes), size(report.sizes.dense_file))))
            facts.append(
                (report.task.metric, _against(_of(chosen.quality, unit), _of(dense.quality, unit) if dense else ""))
            )
            facts.append(("change", _change(chosen, report.task)))
            facts.append(("sparsity", percent(chosen.sparsity)))
        rows = [
            {
                "": "→" if c is chosen else "", "name": c.name, "model": c.label or c.name, "file": size(c.file_bytes),
                report.task.metric: _of(c.quality, unit), "change": _change(c, report.task),
                "bits per weight": number(c.bits_per_weight), "sparsity": percent(c.sparsity),
            }
            for c in report.ranked
        ]  # fmt: skip
        layers = [
            {"layer": x.name, "sparsity": percent(x.sparsity), "error": number(x.error), "bits per weight": number(x.bits_per_weight)}
            for x in report.layers
        ]  # fmt: skip
        notes = [{"note": note} for note in dict.fromkeys([*report.notes, *report.remarks])]
        tables = [(f"{len(rows)} candidates", rows), (f"{len(layers)} layers", layers), (f"{len(notes)} notes", notes)]
        return Card(type(self).__name__, report.verdict.sentence, facts, tables, report.verdict.tone)


def _named(c: Any) -> str:
    """What a person reads, and the name that ``winnow keep`` and ``result.save(candidate=)`` take."""
    return c.name if c.label in (None, c.name) else f"{c.label} ({c.name})"


def _of(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{number(value)}{'' if unit == '%' else ' ' * bool(unit)}{unit}"


def _against(here: str, dense: str) -> str:
    return f"{here} (dense: {dense})" if here and dense else here


def _change(c: Any, task: Any) -> str:
    """The paired change against the dense model, better is up; for a metric where lower is better its relative rise."""
    if c.drop is None or c.unpacked:
        return ""
    return change(c.drop, c.drop_low, c.drop_high, not task.higher_is_better)
