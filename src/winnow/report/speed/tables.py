"""The tables of a bench, as finished words; a column nobody has a value for is left out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from winnow import words
from winnow.records.compression import Speed
from winnow.records.speed import Bench, Contender, LayerSpeed, Measure
from winnow.report.draw.figures import swatch
from winnow.report.speed.chart import CSS, distinct, fastest, milli, times


def cases(bench: Bench) -> list[dict[str, Any]]:
    """One table a case: what each contender takes, and how it compares with dense."""
    about = {c.name: c for c in bench.contenders}
    found = []
    for case in bench.cases:
        measures = [m for m in bench.measures if m.case == case.name]
        columns: list[tuple[str, str, Callable[[Measure], str]]] = [
            ("", "Median", lambda m: milli(m.times.median)),
            ("", "p95", lambda m: milli(m.times.p95)),
            ("extra", "Middle half", lambda m: milli(m.times.q3 - m.times.q1)),
            ("extra", words.capital(f"{case.unit} per second"), lambda m: words.number(m.per_second)),
            ("", "Against dense", lambda m: times(m.ratio)),
            ("extra", "95 % interval", interval),
            ("extra", "Limit", lambda m: milli(m.limit)),
            ("roomy", "Output differs by", lambda m: off(m.difference)),
        ]
        columns = [c for c in columns if any(c[2](m) for m in measures)]
        rows = [
            {
                "name": m.contender,
                "mark": swatch(CSS[about[m.contender].kind]),
                "cells": [(css, show(m)) for css, _, show in columns],
                "under": [],
            }
            for m in measures
        ]
        found.append(
            {
                "name": words.capital(case.name),
                "rounds": case.rounds,
                "columns": [(css, title) for css, title, _ in columns],
                "rows": rows,
            }
        )
    return found


def contenders(bench: Bench) -> dict[str, Any]:
    """What each contender is, and what it costs to load and hold."""
    columns: list[tuple[str, str, Callable[[Contender], str]]] = [
        ("extra", "Weights", lambda c: c.weights),
        ("", "File", lambda c: words.size(c.file_bytes)),
        ("", "Loads in", lambda c: words.duration(c.load_seconds)),
        ("", "Memory to load", lambda c: words.size(c.load_bytes)),
        ("extra", "Memory to run", lambda c: words.size(c.run_bytes)),
        ("extra", "Energy", joules),
    ]
    columns = [c for c in columns if any(c[2](x) for x in bench.contenders)]
    rows = [
        {
            "name": c.name,
            "mark": swatch(CSS[c.kind]),
            "under": [t for t in (c.changes, c.note, kernels(c.kernels)) if t],
            "cells": [(css, show(c)) for css, _, show in columns],
        }
        for c in bench.contenders
    ]
    return {"columns": [(css, title) for css, title, _ in columns], "rows": rows}


def layers(bench: Bench) -> dict[str, Any]:
    """Every packed layer: dense, the fastest packed kernel, and the limit."""
    counts = {layer.name: n for layer, n in distinct(bench.layers)}

    def best(x: LayerSpeed) -> str:
        return fastest(x) or ""

    columns: list[tuple[str, str, Callable[[LayerSpeed], str]]] = [
        ("extra", "Shape", lambda x: f"{x.rows} × {x.cols}"),
        ("extra", "Zeros", lambda x: words.percent(x.sparsity)),
        ("extra", "Rows of x", lambda x: words.count(x.inputs)),
        ("", "Dense", lambda x: milli(x.times.get("dense float32"))),
        ("", "Packed", lambda x: milli(x.times.get(best(x)))),
        ("", "Faster", lambda x: times(x.times["dense float32"] / x.times[best(x)]) if best(x) else ""),
        ("", "Limit", lambda x: milli(x.limit)),
        ("roomy", "Kernel", best),
        ("roomy", "Chosen", lambda x: x.runs_on or ""),
    ]
    columns = [c for c in columns if any(c[2](x) for x in bench.layers)]
    rows = [
        {
            "name": x.name,
            "same": counts.get(x.name, 1) - 1,
            "like": x.like,
            "cells": [(css, show(x)) for css, _, show in columns],
        }
        for x in bench.layers
    ]
    return {"columns": [(css, title) for css, title, _ in columns], "rows": rows}


def facts(bench: Bench) -> list[tuple[str, str]]:
    """How it was measured."""
    b = bench.bandwidth
    rows = [
        ("Dense model", bench.reference),
        ("Inputs", bench.inputs),
        ("Threads", words.count(bench.machine.get("threads"))),
        (
            "Memory bandwidth",
            f"{b.bytes_per_second / 1e9:.1f} GB/s read by {b.threads} thread{'s' if b.threads > 1 else ''} from {words.size(b.buffer)} "
            f"(largest cache {words.size(b.cache)})"
            if b
            else "",
        ),
        ("Energy", bench.energy or ""),
        ("Measured", words.when(bench.created)),
        ("Command", bench.command or ""),
    ]
    return [(k, v) for k, v in rows if v]


def interval(m: Measure) -> str:
    return f"{m.ratio_low:.2f} to {m.ratio_high:.2f}" if m.ratio_low is not None and m.ratio_high is not None else ""


def off(difference: float | None) -> str:
    """0.0123 -> "1.2 %"; rounding alone is "< 0.01 %"."""
    if difference is None:
        return ""
    if math.isnan(difference):
        return "not a number"
    return "0" if difference == 0 else "< 0.01 %" if difference < 1e-4 else f"{100 * difference:.2g} %"


def joules(c: Contender) -> str:
    if c.energy is None:
        return ""
    text = f"{c.energy:.3g} J" if c.energy >= 0.1 else f"{1e3 * c.energy:.3g} mJ"
    return text if c.energy_kind == "measured" else f"{text}, estimated"


def kernels(found: dict[str, int]) -> str:
    """{"packed int4 avx512": 24, "dense float32": 1} -> "packed int4 avx512 × 24, dense float32"."""
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} × {n}" if n > 1 else name for name, n in ordered)


def line(speed: Speed | None) -> str:
    """The speed line that ends a compression: "one image: dense 12.1 ms, accelerated 7.9 ms: 1.53× faster (1.49 to 1.58)"."""
    if speed is None:
        return ""
    if speed.missing is not None or speed.dense is None or speed.fast is None or speed.ratio is None:
        return f"not measured: {speed.missing}" if speed.missing else ""
    dense = f"dense {speed.arithmetic}" if speed.arithmetic else "dense"
    both = f"{speed.what}: {dense} {milli(speed.dense.median)}, {speed.runs_on} {milli(speed.fast.median)}"
    span = ""
    if speed.ratio_low is not None and speed.ratio_high is not None:
        span = f" ({speed.ratio_low:.2f} to {speed.ratio_high:.2f})"
    return f"{both}: {outcome(speed)}{span}; a quick measurement, `winnow bench` is the whole one"


def outcome(speed: Speed) -> str:
    """Faster or slower only where the interval says so."""
    assert speed.ratio is not None
    low = speed.ratio_low if speed.ratio_low is not None else speed.ratio
    high = speed.ratio_high if speed.ratio_high is not None else speed.ratio
    if low > 1.0 and speed.ratio >= 1.02:
        return f"{times(speed.ratio)} as fast"
    if high < 1.0 and speed.ratio <= 0.98:
        return f"slower here, {times(speed.ratio)}"
    return "no gain here"
