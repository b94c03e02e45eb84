"""What bench.html and the speed chapter of a report show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from winnow import words
from winnow.records.compression import Report
from winnow.records.speed import Bench, Measure
from winnow.report import template
from winnow.report.speed import chart as speed
from winnow.report.speed import tables as speed_tables

OWN = ("packed", "accelerated")  # the first word of contenders that run the packed weights
TONES = {"good": "Faster here", "mixed": "It depends", "bad": "Not faster here"}


def view(bench: Bench, data: str) -> dict[str, Any]:
    """What bench.html shows."""
    return {
        "title": words.clip_middle(Path(bench.model).name if Path(bench.model).is_dir() else bench.model, 80),
        "subtitle": [t for t in (bench.architecture, bench.machine.get("cpu"), _threads(bench)) if t],
        "created": words.when(bench.created),
        "tone": TONES[headline(bench)[1]],
        "interrupted": bench.interrupted,
        "machine": template.plain_rows({**bench.machine, "ram": words.size(bench.machine.get("ram"))}),
        "data": data,
        "speed": chapter(bench, None),
    }


def chapter(bench: Bench | None, report: Report | None) -> dict[str, Any] | None:
    """What the speed chapter shows, in bench.html and in a report; None where there is nothing."""
    quick = report.speed if report is not None else None
    if bench is None and quick is None:
        return None
    found: dict[str, Any] = {
        "line": words.capital(speed_tables.line(quick)),
        "kernels": speed_tables.kernels(quick.kernels) if quick is not None else "",
        "bench": bench is not None,
    }
    if bench is None:
        return found
    said, tone = headline(bench)
    kinds = {c.kind for c in bench.contenders}
    tops = {case.name: next((m for m in bench.measures if m.case == case.name), None) for case in bench.cases}
    far = any(
        top is not None and m.times.median > speed.BEYOND * top.times.median
        for m in bench.measures
        for top in [tops.get(m.case)]
    )
    alike = speed.distinct(bench.layers)
    hidden = len(alike) - speed.ROWS
    return {
        **found,
        "headline": said,
        "tone": tone,
        "quantized": "quantized" in kinds,
        "pruned": bool(kinds & {"pruned", "pruned+quantized"}),
        "limits": any(m.limit is not None for m in bench.measures),
        "differs": any(m.difference is not None for m in bench.measures),
        "beyond": "Bars with two cuts go on beyond three times dense." if far else "",
        "cached": _cached(bench),
        "cases_figure": template.renditions(
            speed.draw_cases(bench, "speed-wide", 900, 12.5), speed.draw_cases(bench, "speed-narrow", 358, 11.5)
        ),
        "cases": speed_tables.cases(bench),
        "contenders": speed_tables.contenders(bench),
        "absent": [(a.name, a.reason) for a in bench.absent],
        "layers_figure": template.renditions(
            speed.draw_layers(bench, "kernels-wide", 900, 12.0), speed.draw_layers(bench, "kernels-narrow", 358, 11.0)
        ),
        "layers": speed_tables.layers(bench) if bench.layers else None,
        "layers_left": f"The {speed.ROWS} that take longest of {len(alike)} distinct ones are drawn."
        if hidden > 0
        else "",
        "notes": bench.notes,
        "facts": speed_tables.facts(bench),
    }


def _cached(bench: Bench) -> str:
    """Why some bars have no limit."""
    b = bench.bandwidth
    if b is None or not any(c.weight_bytes is not None and c.weight_bytes <= b.cache for c in bench.contenders):
        return ""
    return f"Weights up to {words.size(b.cache)} fit in cache, so no bandwidth bound is drawn for them."


def headline(bench: Bench) -> tuple[str, str]:
    """The answer in a sentence, and its tone: the packed model against dense, and against the best of the others.

    Speaks of decoding where there is some, else of the first case.
    """
    case = next((c for c in bench.cases if c.what == "decode"), bench.cases[0])
    rows = [m for m in bench.measures if m.case == case.name]
    own = [m for m in rows if m.contender.split()[0] in OWN and m.ratio is not None]
    others = [m for m in rows if m not in own]
    best_other = min(others, key=_median, default=None)
    place = words.capital(case.name)
    if not own:
        assert best_other is not None
        return f"{place}: {best_other.contender} is the fastest of {len(rows)} measured, {_milli(best_other)}.", "mixed"
    best = min(own, key=_median)
    dense = rows[0]
    assert best.ratio is not None
    said = f"{place}: {best.contender} takes {_milli(best)}, {dense.contender} {_milli(dense)}, "
    wins = (best.ratio_low if best.ratio_low is not None else best.ratio) > 1
    loses = (best.ratio_high if best.ratio_high is not None else best.ratio) < 1
    said += f"{speed.times(best.ratio)} as fast" if wins or loses else "no difference that could be told from noise"
    if best_other is not None and best_other is not dense and _median(best_other) < _median(best):
        return f"{said}; {best_other.contender} is faster, {_milli(best_other)}.", "mixed" if wins else "bad"
    return f"{said}.", "good" if wins else "bad"


def _median(m: Measure) -> float:
    return m.times.median


def _milli(m: Measure) -> str:
    return speed.milli(m.times.median)


def _threads(bench: Bench) -> str:
    n = bench.machine.get("threads")
    return "" if n is None else f"{n} thread{'s' if n != 1 else ''}"
