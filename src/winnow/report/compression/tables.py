"""The tables of the page, as finished words; a column or a row nobody has a value for is left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from winnow import words
from winnow.records.compression import Candidate, Report, Sizes
from winnow.report.compression import phrases
from winnow.report.compression.frontier import KINDS
from winnow.report.draw.figures import sample
from winnow.report.template import plain_rows


def candidates(report: Report) -> dict[str, Any]:
    """The table of candidates; a column nobody has a value for is left out."""
    task, picked = report.task, report.picked
    given = " as ticket" if report.ticket is not None else ""

    def moved(c: Candidate) -> str:
        return phrases.change(c, task)

    # title, value, the interval below it, and what a narrow page sets there instead
    columns: list[
        tuple[str, str, Callable[[Candidate], str], Callable[[Candidate], str], Callable[[Candidate], str]]
    ] = [
        ("extra", "Zeros", lambda c: words.percent(c.sparsity), _nothing, _nothing),
        (
            "",
            "Bits per weight",
            lambda c: f"{c.bits_per_weight:.2f}" if c.bits_per_weight is not None else "",
            _nothing,
            _nothing,
        ),
        ("", "Whole file", lambda c: words.size(c.file_bytes), _nothing, _nothing),
        (
            "",
            words.capital(task.metric),
            lambda c: phrases.quality(c.quality, task),
            lambda c: phrases.span(c.low, c.high, task),
            moved,
        ),
        ("extra", "Change", moved, lambda c: phrases.change_span(c, task), _nothing),
        ("extra", f"Same answer{given}", lambda c: words.percent(c.agreement, fixed=True), _nothing, _nothing),
        ("roomy", f"KL{given.replace(' as', ' from')}, nats", _divergence, _nothing, _nothing),
        ("roomy", "Time", lambda c: words.duration(c.seconds), _nothing, _nothing),
    ]
    columns = [column for column in columns if any(column[2](c) for c in report.candidates)]
    rows = [
        {
            "number": i,
            "mark": sample(c.kind),
            "kind": KINDS[c.kind],
            "name": c.name,
            "under": [
                t for t in (c.method if c.method and c.method.lower() not in c.name.lower() else None, c.note) if t
            ],
            "folder": c.folder,
            "chosen": c is picked,
            "cells": [(css, show(c), under(c), brief(c)) for css, _, show, under, brief in columns],
        }
        for i, c in enumerate(report.ranked, 1)
    ]
    return {"columns": [(column[0], column[1]) for column in columns], "rows": rows}


def _divergence(c: Candidate) -> str:
    if c.kl is None:
        return ""
    if abs(c.kl) < 0.00005:  # rounding may leave it below zero
        return "< 0.0001"
    return words.number(c.kl) if c.kl >= 1 else f"{c.kl:.4f}"


def _nothing(_: Candidate) -> str:
    return ""


def layers(report: Report) -> dict[str, Any]:
    usual = report.picked.method if report.picked is not None else None
    differ = any(x.method for x in report.layers)
    columns = [
        ("extra", "Shape", lambda x: f"{x.rows} × {x.cols}" if x.rows is not None and x.cols is not None else ""),
        ("extra", "Zeros", lambda x: words.count(x.zeros)),
        ("", "Sparsity", lambda x: f"{100 * x.sparsity:.2f} %" if x.sparsity is not None else ""),
        ("", "Error", lambda x: f"{words.number(100 * x.error)} %" if x.error is not None else ""),
        ("", "Method", lambda x: (x.method or usual or "") if differ else ""),
        ("extra", "Bits per weight", lambda x: f"{x.bits_per_weight:.2f}" if x.bits_per_weight is not None else ""),
        ("extra", "Time", lambda x: words.duration(x.seconds)),
    ]
    columns = [column for column in columns if any(column[2](x) for x in report.layers)]
    rows = [{"name": x.name, "cells": [(css, show(x)) for css, _, show in columns]} for x in report.layers]
    return {"columns": [(css, title) for css, title, _ in columns], "rows": rows}


def sizes(report: Report) -> dict[str, Any] | None:
    """The two bars and their table: the dense file, and what the new one is made of."""
    s = report.sizes
    if not s.file:
        return None
    parts = [
        ("values", "Packed values", s.packed_values),
        ("masks", "Masks", s.masks),
        ("scales", "Scales", s.scales),
        ("rest", "Dense tensors", s.dense_tensors),
        ("other", "Header", _header(s)),
    ]
    known = [(css, name, n) for css, name, n in parts if n]
    inside = sum(n for _, _, n in known)
    whole = max(s.file, inside, s.dense_file or 0)
    unnamed = s.file - inside
    if known and unnamed > 0.002 * s.file:
        known.append(("other", "Not itemized", unnamed))
    beside = (s.other or 0) - (_header(s) or 0)
    return {
        "dense": words.size(s.dense_file),
        "dense_share": f"{100 * (s.dense_file or 0) / whole:.2f}",
        "file": words.size(s.file),
        "ratio": words.ratio(s.dense_file, s.file),
        "bar": [(css, name, f"{100 * n / whole:.2f}") for css, name, n in known or [("values", "File", s.file)]],
        "beside": words.size(beside) if beside > 0 else "",
        "rows": [(css, name, words.size(n), words.percent(n / max(s.file, inside))) for css, name, n in known],
    }


def _header(sizes: Sizes) -> int | None:
    """Bytes of the weights file that hold no tensor; ``other`` counts the other files of the folder too."""
    if sizes.file is None or sizes.other is None:
        return None
    tensors = (sizes.packed_values, sizes.masks, sizes.scales, sizes.dense_tensors)
    return min(sizes.other, max(0, sizes.file - sum(n or 0 for n in tensors)))


def memory(report: Report) -> list[tuple[str, str]]:
    m = report.memory
    rows = [("Peak while compressing", words.size(m.peak_bytes)), ("Limit given", words.size(m.limit_bytes))]
    if m.peak_bytes and m.limit_bytes:
        kept = "kept" if m.peak_bytes <= m.limit_bytes else f"exceeded by {words.size(m.peak_bytes - m.limit_bytes)}"
        rows.append(("The limit was", kept))
    return [(k, v) for k, v in rows if v]


def timing(report: Report) -> list[tuple[str, str, str]]:
    longest = max((s.seconds for s in report.timing), default=0.0)
    return [
        (s.stage, words.duration(s.seconds), f"{100 * s.seconds / longest if longest > 0 else 0:.1f}")
        for s in report.timing
    ]


def cost(report: Report) -> list[tuple[str, str]]:
    tokens = report.cost.calibration_tokens
    rows = [
        ("Total", words.duration(report.cost.seconds_total)),
        ("Calibration tokens", words.count(tokens)),
        ("Energy", report.cost.energy or ""),
    ]
    return [(k, v) for k, v in rows if v]


def skipped(report: Report) -> dict[str, Any] | None:
    if not report.skipped:
        return None
    groups: dict[str, list[tuple[str, int]]] = {}
    for s in report.skipped:
        groups.setdefault(s.reason, []).append((s.name, s.numel))
    total = sum(s.numel for s in report.skipped)
    rows = [
        {
            "reason": reason,
            "tensors": words.count(len(m)),
            "numel": words.count(sum(n for _, n in m)),
            "names": [(name, words.count(n)) for name, n in m],
        }
        for reason, m in sorted(groups.items(), key=lambda g: -sum(n for _, n in g[1]))
    ]
    return {"rows": rows, "tensors": words.count(len(report.skipped)), "numel": words.count(total)}


def measured(report: Report) -> list[tuple[str, str]]:
    """On which data, how much of it, and whether it was kept apart."""
    t, m = report.task, report.model
    unit = "tokens predicted" if t.segment_length else "examples"
    rows = [
        ("Task", t.name or ""),
        ("Metric", f"{t.metric}, {'higher' if t.higher_is_better else 'lower'} is better" if report.candidates else ""),
        ("Evaluated on", t.evaluation_data or ""),
        ("Size of the test", f"{words.count(t.n)} {unit}" if t.n else ""),
        ("Segment length", f"{words.count(t.segment_length)} tokens, without overlap" if t.segment_length else ""),
        ("Calibrated on", t.calibration_data or ""),
        ("Calibration tokens", words.count(t.calibration_tokens)),
        ("Test and calibration data", {True: "disjoint", False: "overlap", None: ""}[t.disjoint]),
        (
            "Prunable weights",
            words.count(m.prunable)
            + (
                f" ({words.percent(m.prunable_share)} of the model)"
                if m.prunable is not None and m.prunable_share is not None
                else ""
            ),
        ),
    ]
    return [(k, v) for k, v in rows if v]


def facts(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """Machine, versions, seeds and hashes, as far as they were recorded."""
    hashes = dict(report.hashes)
    if report.model.hash and report.model.hash not in hashes.values():
        hashes = {"model": report.model.hash, **hashes}
    groups = [("Machine", report.machine), ("Versions", report.versions), ("Seeds", report.seeds), ("Hashes", hashes)]
    found = []
    for name, group in groups:
        rows = plain_rows(group)
        if rows:
            found.append((name, rows))
    return found
