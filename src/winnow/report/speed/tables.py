"""The tables of a bench, for its page and the terminal."""

from __future__ import annotations

import math

from winnow import words
from winnow.records.compression import Speed, SpeedCase
from winnow.records.speed import Bench, Case, Contender, LayerSpeed, Measure
from winnow.report.draw import table
from winnow.report.draw.figures import square
from winnow.report.draw.table import Column, Table
from winnow.report.speed.chart import CSS, distinct, fastest, milli, times
from winnow.report.speed.doubt import busy, doubt


def case(bench: Bench, which: Case) -> Table:
    """What each contender takes, the fastest first, and how it compares with dense."""
    kinds = {c.name: c.kind for c in bench.contenders}
    columns: list[Column[Measure]] = [
        Column("Median", lambda m: milli(m.times.median)),
        Column("p95", lambda m: milli(m.times.p95)),
        Column("IQR", lambda m: milli(m.times.q3 - m.times.q1), "extra"),
        Column(f"{words.capital(which.unit)} per second", lambda m: words.number(m.per_second), "extra"),
        Column("Speedup", lambda m: times(m.ratio), below=interval),
        Column("Bandwidth bound", lambda m: milli(m.limit), "extra"),
        Column("Max. relative output difference", lambda m: off(m.difference), "roomy"),
    ]
    found = bench.ranked(which.name)
    first = found[0].contender if len(found) > 1 else None  # the fastest

    def row(m: Measure) -> table.Row:
        return table.Row(m.contender, square(CSS[kinds[m.contender]]), chosen=m.contender == first)

    return Table.of("Backend", found, columns, row)


def contenders(bench: Bench) -> Table:
    """What each contender is, and what it costs to load and hold."""
    columns: list[Column[Contender]] = [
        Column("Weights", lambda c: c.weights, "extra", left=True),
        Column("File size", lambda c: words.size(c.file_bytes)),
        Column("Load time", lambda c: words.duration(c.load_seconds)),
        Column("Memory to load", lambda c: words.size(c.load_bytes)),
        Column("Memory to run", lambda c: words.size(c.run_bytes), "extra"),
        Column("Energy", joules, "extra"),
    ]

    def row(c: Contender) -> table.Row:
        return table.Row(c.name, square(CSS[c.kind]), [t for t in (c.changes, c.note, kernels(c.kernels)) if t])

    return Table.of("Backend", bench.contenders, columns, row)


def layers(bench: Bench) -> Table:
    """Every packed layer: dense, the fastest packed kernel, and the bound that memory bandwidth sets."""

    def best(x: LayerSpeed) -> str:
        return fastest(x) or ""

    counts = {layer.name: n for layer, n in distinct(bench.layers)}
    columns: list[Column[LayerSpeed]] = [
        Column("Shape", lambda x: f"{x.rows} × {x.cols}", "extra"),
        Column("Sparsity", lambda x: words.percent(x.sparsity), "extra"),
        Column("Batch rows", lambda x: words.count(x.inputs), "extra"),
        Column("Dense", lambda x: milli(x.times.get("dense float32"))),
        Column("Packed", lambda x: milli(x.times.get(best(x)))),
        Column("Speedup", lambda x: times(x.times["dense float32"] / x.times[best(x)]) if best(x) else ""),
        Column("Bandwidth bound", lambda x: milli(x.limit)),
        Column("Kernel", best, "roomy", left=True),
        Column("Chosen", lambda x: x.runs_on or "", "roomy", left=True),
        Column("Alike", lambda x: str(counts[x.name]) if counts.get(x.name, 1) > 1 else "", "roomy"),
    ]

    def row(x: LayerSpeed) -> table.Row:
        return table.Row(x.name, same=f"times of {x.like}, a layer of the same shape and content" if x.like else "")

    return Table.of("Layer", bench.layers, columns, row, "paths")


def facts(bench: Bench) -> list[tuple[str, str]]:
    """How it was measured."""
    b, cores = bench.bandwidth, bench.machine.get("cores")
    read = f"{b.bytes_per_second / 1e9:.1f} GB/s read by {b.threads} thread{'s' if b.threads > 1 else ''}" if b else ""
    return [
        ("Dense model", bench.reference),
        ("Inputs", bench.inputs),
        ("Threads", words.count(bench.machine.get("threads"))),
        ("Other programs", f"{bench.others:.1f} of {cores} cores busy" if bench.others is not None and cores else ""),
        ("Memory bandwidth", f"{read} from {words.size(b.buffer)} (largest cache {words.size(b.cache)})" if b else ""),
        ("Energy", bench.energy or ""),
        ("Measured", words.when(bench.created)),
        ("Command", bench.command or ""),
    ]


def interval(m: Measure | Speed | SpeedCase) -> str:
    return f"{m.ratio_low:.2f} to {m.ratio_high:.2f}" if m.ratio_low is not None and m.ratio_high is not None else ""


def off(difference: float | None) -> str:
    """0.0123 -> "1.2%"; rounding alone is "< 0.01%"."""
    if difference is None:
        return ""
    if math.isnan(difference):
        return "not a number"
    return "0" if difference == 0 else "< 0.01%" if difference < 1e-4 else f"{100 * difference:.2g}%"


def joules(c: Contender) -> str:
    if c.energy is None:
        return ""
    text = f"{c.energy:.3g} J" if c.energy >= 0.1 else f"{1e3 * c.energy:.3g} mJ"
    return text if c.energy_kind == "measured" else f"{text}, estimated"


def kernels(found: dict[str, int]) -> str:
    """{"packed int4 avx512": 24, "dense float32": 1} -> "packed int4 avx512 × 24, dense float32"."""
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} × {n}" if n > 1 else name for name, n in ordered)


def quick(speed: Speed | None) -> Table:
    """The cases of the quick measurement that ends a compression; a ratio only where the headline would state one, too."""

    def stated(c: SpeedCase) -> str:
        return "" if speed is None or unsure(speed, c) else times(c.ratio)

    def below(c: SpeedCase) -> str:  # an interval that is too wide tells why; on a busy machine it tells nothing
        return "" if speed is None or busy(speed.others, speed.cores, speed.threads) else interval(c)

    columns: list[Column[SpeedCase]] = [
        Column("Fastest dense", lambda c: c.rival, left=True),
        Column("Dense", lambda c: milli(c.dense[c.rival].median)),
        Column(words.capital(speed.runs_on) if speed and speed.runs_on else "Packed", lambda c: milli(c.fast.median)),
        Column("Per second", lambda c: rate(c), "extra"),
        Column("Speedup", stated, below=below),
        Column("Max. relative output difference", lambda c: off(c.difference), "roomy"),
    ]

    def row(c: SpeedCase) -> table.Row:
        others = [f"{name} {milli(t.median)}" for name, t in sorted(c.dense.items(), key=lambda x: x[1].median)]
        return table.Row(words.capital(c.what), under=[f"dense: {', '.join(others)}"] if len(others) > 1 else [])

    return Table.of("Input", speed.cases if speed is not None else [], columns, row)


def rate(case: SpeedCase) -> str:
    """How much the packed model does in a second: "141 tokens"."""
    return f"{words.number(1e3 * case.per_call / case.fast.median)} {case.unit}" if case.fast.median > 0 else ""


def line(speed: Speed | None) -> str:
    """The speed line that ends a compression: "one image: dense float32 12.1 ms, accelerated 7.9 ms: 1.53× speedup (1.49 to
    1.58)"; without the speedup, and with the reason, where the measurement does not bear one."""
    if speed is None:
        return ""
    if speed.missing is not None or speed.dense is None or speed.fast is None or speed.ratio is None:
        return f"not measured: {speed.missing}" if speed.missing else ""
    name = speed.rival or speed.arithmetic
    both = f"{speed.what}: {fastest_of(speed)}dense {name or ''}".rstrip()
    both += f" {milli(speed.dense.median)}, {speed.runs_on} {milli(speed.fast.median)}"
    if speed.cases and speed.cases[0].unit == "tokens":
        both += f" ({rate(speed.cases[0])} per second)"
    if reason := unsure(speed):
        return f"{both}; no speedup is stated, because {reason}; run `winnow bench` when the machine is idle"
    span = f" ({interval(speed)})" if interval(speed) else ""
    return f"{both}: {outcome(speed)}{span}; quick measurement; run `winnow bench` for the full benchmark"


def fastest_of(speed: Speed) -> str:
    return "fastest " if speed.cases and len(speed.cases[0].dense) > 1 else ""


def unsure(speed: Speed, case: SpeedCase | None = None) -> str:
    """Why the quick measurement (of one case, else of the first) bears no headline; "" where it does. Older reports did not
    know how busy the machine was."""
    found = speed if case is None else case
    return doubt(found.ratio_low, found.ratio_high, speed.others, speed.cores, speed.threads)


def outcome(speed: Speed, case: SpeedCase | None = None) -> str:
    """Faster or slower only where the interval says so, and nothing where the measurement bears no headline."""
    found = speed if case is None else case
    assert found.ratio is not None
    if unsure(speed, case):
        return "not stated"
    low = found.ratio_low if found.ratio_low is not None else found.ratio
    high = found.ratio_high if found.ratio_high is not None else found.ratio
    if low > 1.0 and found.ratio >= 1.02:
        return f"{times(found.ratio)} speedup"
    if high < 1.0 and found.ratio <= 0.98:
        return f"slower here, {times(found.ratio)}"
    return "no gain here"
