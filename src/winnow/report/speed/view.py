"""What bench.html, the speed chapter of a report and a terminal show of a bench."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from markupsafe import Markup

from winnow import words
from winnow.records.compression import Speed
from winnow.records.speed import Bench, Case, Measure
from winnow.report.draw.figures import square, swatch
from winnow.report.draw.page import ANSWERS, Block, Bullets, Facts, Figure, Fold, Page, Section, Text, plain_rows
from winnow.report.draw.plot import renditions
from winnow.report.draw.summary import Line, Summary
from winnow.report.draw.table import Table
from winnow.report.speed import tables
from winnow.report.speed.chart import BEYOND, ROWS, distinct, draw_cases, draw_layers, milli, times
from winnow.report.speed.doubt import busy, doubt

OWN = ("packed", "accelerated")  # the first word of contenders that run the packed weights
FAR = 0.05  # of the largest output: what is farther away from the float32 model is said with the name
LAYERS = 12  # distinct ones at most on a terminal: the page has them all
STOPPED = "The run was stopped before its end: this is what was measured by then."


def view(bench: Bench, data: str) -> Page:
    """The page of a bench, whose figures are in the file ``data``."""
    said, tone = headline(bench)
    n = bench.machine.get("threads")
    threads = "" if n is None else f"{n} thread{'s' if n != 1 else ''}"
    name = Path(bench.model).name if Path(bench.model).is_dir() else bench.model
    machine = {**bench.machine, "ram": words.size(bench.machine.get("ram"))}
    return Page(
        tool="bench",
        title=words.clip_middle(name, 80),
        subtitle=[bench.architecture or "", bench.machine.get("cpu") or "", threads],
        created=words.when(bench.created),
        tone=tone,
        sentence=said,
        notes=[STOPPED] if bench.interrupted else [],
        chapters=[
            Section("On this machine", *chapter(bench, None)),
            Section("Machine", Facts(plain_rows(machine), "plain fine")),
        ],
        footer=f"Sizes are decimal: 1 MB is 1,000,000 bytes. Every figure on this page, unrounded, is in {data}.",
        answers=ANSWERS | {"good": "Faster here", "bad": "Not faster here"},
    )


def summary(bench: Bench) -> Summary:
    """What ``winnow bench`` ends with on a terminal."""
    said, tone = headline(bench)
    parts: list[Table | str | list[Line]] = []
    for case in bench.cases:
        parts += [f"{words.capital(case.name)} ({case.rounds} rounds)", tables.case(bench, case)]
    parts.append(tables.contenders(bench))
    alike = [layer.name for layer, _ in distinct(bench.layers)]
    if alike:
        more = f"{len(alike) - LAYERS} more in the page" if len(alike) > LAYERS else ""
        shown = tables.layers(bench).where(lambda row: row.name in alike).only(0, LAYERS)
        parts += [LAYER_BY_LAYER, replace(shown, more=more)]
    machine = f"{bench.machine.get('cpu')}, {bench.machine.get('instruction set')}, load average {bench.machine.get('load average', 'not known')}"
    known = dict(tables.facts(bench))
    parts.append([
        *((f"{c.name} changes values", c.changes or "") for c in bench.contenders),
        *((f"{c.name} runs on", tables.kernels(c.kernels)) for c in bench.contenders),
        *((a.name, a.reason) for a in bench.absent),
        *((name, known[name]) for name in ("Memory bandwidth", "Energy")),
        ("Machine", machine),
        *(("Note", note) for note in bench.notes),
    ])  # fmt: skip
    return Summary(tone, said, parts)


LAYER_BY_LAYER = "Layer by layer, weights coming from memory"


def _legend(bench: Bench, limits: bool) -> list[tuple[Markup, str]]:
    kinds = {c.kind for c in bench.contenders}
    bound = swatch(lambda canvas: canvas.line(7, 0, 7, 14, "limit"))
    known = [
        (True, square("dense"), "dense"),
        ("quantized" in kinds, square("quantized"), "dense, int8"),
        (bool(kinds & {"pruned", "pruned+quantized"}), square("pruned"), "packed"),
        (limits, bound, "bandwidth bound: its weights read once from memory"),
    ]
    return [(mark, name) for there, mark, name in known if there]


def chapter(bench: Bench | None, quick: Speed | None) -> list[Block | Table | None]:
    """What is known of the speed: the quick measurement of a compression, and a bench."""
    line = words.capital(tables.line(quick))
    kernels = tables.kernels(quick.kernels) if quick is not None else ""
    left = [f"{name} ({why})" for name, why in quick.left_out.items()] if quick is not None else []
    found: list[Block | Table | None] = [
        Text(f"{line}." if line else "", "lead"),
        tables.quick(quick),
        Text(f"Dense, but left out of this: {'; '.join(left)}." if left else ""),
        Text(f"Its layers run on: {kernels}." if kernels else ""),
    ]
    if bench is None:
        return found
    first = {m.case: m.times.median for m in reversed(bench.measures)}  # of dense
    far = any(m.times.median > BEYOND * first[m.case] for m in bench.measures)
    caption = "Bars and figures are medians of all calls, the fastest first; below a bar the line is the interquartile range, the dot the 95th percentile."
    caption += " Bars with two cuts go on beyond three times dense." if far else ""
    bound = any(m.limit is not None for m in bench.measures)
    how = "Backends were interleaved in one run; the speedup is the median over rounds of dense’s time over theirs in the same round."
    if any(m.difference is not None for m in bench.measures):
        how += " The output difference is the largest difference from the float32 model of the same weights, over its largest output."
    many = len(distinct(bench.layers))
    drawn = f" The slowest {ROWS} of {many} distinct ones are drawn." if many > ROWS else ""
    layers = tables.layers(bench)
    return [
        *found,
        Text(headline(bench)[0] if line else "", "lead"),
        Figure(renditions(partial(draw_cases, bench), "speed", (12.5, 11.5)), caption + _cached(bench), _legend(bench, bound)),
        *(
            Fold(f"{words.capital(case.name)}, {case.rounds} rounds", tables.case(bench, case), unfolded=i == 0)
            for i, case in enumerate(bench.cases)
        ),
        Text(how),
        Section("Backends", tables.contenders(bench)),
        Section("Not measured", Facts([(a.name, a.reason) for a in bench.absent])),
        Section(
            LAYER_BY_LAYER,
            Figure(
                renditions(partial(draw_layers, bench), "kernels"),
                f"Each layer alone, its caches emptied before every call: dense float32 and its fastest packed kernel.{drawn}",
                _legend(bench, True),
            ),
            Fold(f"All {len(layers.rows)} layers", layers),
        ),
        Bullets(bench.notes),
        Facts(tables.facts(bench)),
    ]  # fmt: skip


def _cached(bench: Bench) -> str:
    """Why some bars have no bound."""
    b = bench.bandwidth
    if b is None or not any(c.weight_bytes is not None and c.weight_bytes <= b.cache for c in bench.contenders):
        return ""
    return f" Weights up to {words.size(b.cache)} fit in cache, so no bandwidth bound is drawn for them."


def headline(bench: Bench) -> tuple[str, str]:
    """The answer in a sentence, and its tone: the fastest of all, and the packed model against dense.

    Speaks of decoding where there is some, else of the first case. No speedup is stated where the machine was busy or the
    interval is wide.
    """
    case = next((c for c in bench.cases if c.what == "decode"), bench.cases[0])
    dense, rows = bench.measures[0], bench.ranked(case.name)
    dense = next((m for m in rows if m.contender == dense.contender), rows[0])
    own = [m for m in rows if m.contender.split()[0] in OWN and m.ratio is not None]
    winner, place = rows[0], words.capital(case.name)
    cores, threads = bench.machine.get("cores"), bench.machine.get("threads")
    if not own:
        said = f"{place}: {_named(winner)} is the fastest of {len(rows)} measured, {_took(winner, case)}"
        hurry = busy(bench.others, cores, threads)
        return f"{said}; {hurry}, so times are too long." if hurry else f"{said}.", "mixed"
    best = own[0]
    assert best.ratio is not None
    if reason := doubt(best.ratio_low, best.ratio_high, bench.others, cores, threads):
        both = f"{best.contender} takes {_took(best, case)}, {dense.contender} {milli(dense.times.median)}"
        both += f", {_named(winner)}, the fastest, {milli(winner.times.median)}" if winner not in (best, dense) else ""
        return f"{place}: {both}; no speedup is stated, because {reason}.", "mixed"
    assert best.ratio_low is not None and best.ratio_high is not None
    wins, loses = best.ratio_low > 1, best.ratio_high < 1
    against = f"{times(best.ratio)} speedup" if wins or loses else "no significant difference"
    against = f"{against} against {dense.contender} ({milli(dense.times.median)})"
    if winner is best:
        return f"{place}: {_named(best)} is fastest here, {_took(best, case)}, {against}.", "good" if wins else "bad"
    said = (
        f"{place}: {_named(winner)} is fastest here, {_took(winner, case)}; {best.contender} takes {_took(best, case)}"
    )
    if winner is dense:
        return f"{said}, {times(best.ratio)} speedup." if loses else f"{said}, no significant difference.", "bad"
    return f"{said}, {against}.", "mixed" if wins else "bad"


def _named(m: Measure) -> str:
    """A backend by its name, with a remark where it is fast at the price of other outputs."""
    far = m.difference is not None and m.difference > FAR
    return f"{m.contender} (outputs up to {tables.off(m.difference)} away)" if far else m.contender


def _took(m: Measure, case: Case) -> str:
    """Its time, and of tokens how many a second."""
    rate = f" ({words.number(m.per_second)} tokens per second)" if case.unit == "tokens" else ""
    return f"{milli(m.times.median)}{rate}"
