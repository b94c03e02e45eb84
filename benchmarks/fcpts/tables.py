"""What the study prints from its results file, as markdown."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping

from benchmarks.cells import Row, unpack
from benchmarks.fcpts.data import SUBJECTS
from benchmarks.fcpts.methods import LABELS, METHODS
from benchmarks.paired import Interval, check, interval, over_examples, over_seeds

Key = tuple[str, float]  # method, rate
Group = dict[Key, list[Row]]


def groups(rows: Iterable[Row], phase: str, model: str) -> Group:
    """Cells of one phase and model by method and rate, in the order of the seeds."""
    found: Group = {}
    for row in rows:
        cell = row["cell"]
        if (cell["phase"], cell["model"]) == (phase, model) and cell["method"] in METHODS:
            found.setdefault((cell["method"], cell["rate"]), []).append(row)
    order = list(METHODS)
    keys = sorted(found, key=lambda k: (k[1], order.index(k[0])))
    return {key: sorted(found[key], key=lambda r: r["cell"]["seed"]) for key in keys}


COLLAPSE = 20.0  # points of hold-out accuracy below the best trial of the method


def tried(rows: Mapping[str, Row], model: str, method: str, steps: int | None) -> dict[str, list[Row]]:
    """Trials of a method with so many steps (None: as many as winnow's default), best first; a trial's cells by settings.

    The figure is the mean hold-out accuracy over the rates tried; a trial that diverged at one of them comes last. So do
    trials at or above a learning rate that collapsed: one that did well above it did so by luck, and collapses at another rate of zeros.
    """
    found: dict[str, list[Row]] = {}
    for row in rows.values():
        cell = row["cell"]
        if (cell["phase"], cell["model"], cell["method"]) == ("tune", model, method) and cell["settings"].get(
            "steps"
        ) == steps:
            found.setdefault(json.dumps(cell["settings"], sort_keys=True), []).append(row)
    mean = {key: statistics.mean(r.get("hold_out", -math.inf) for r in cells) for key, cells in found.items()}
    best = max(mean.values(), default=0.0)
    ill = min((_lr(found[k]) for k in found if mean[k] < best - COLLAPSE), default=math.inf)
    return {key: found[key] for key in sorted(found, key=lambda k: (_lr(found[k]) >= ill, -mean[k]))}


def _lr(cells: list[Row]) -> float:
    return float(cells[0]["cell"]["settings"].get("lr", 0.0))


def trials(rows: Mapping[str, Row], model: str) -> list[str]:
    """Every trial with its hold-out accuracy, the best one of each method (and number of steps) first and in bold."""
    lines = ["| method | settings | hold-out accuracy by rate |", "|---|---|---|"]
    lengths = {r["cell"]["settings"].get("steps") for r in rows.values() if r["cell"]["phase"] == "tune"}
    for method in METHODS:
        for steps in sorted(lengths, key=lambda n: n or 0):
            for i, cells in enumerate(tried(rows, model, method, steps).values()):
                words = ", ".join(
                    f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}"
                    for k, v in cells[0]["cell"]["settings"].items()
                )
                parts = sorted(
                    (r["cell"]["rate"], f"{r['hold_out']:.2f}" if "hold_out" in r else "diverged") for r in cells
                )
                figures = ", ".join(f"{rate:.0%}: {figure}" for rate, figure in parts)
                mark = "" if i else "**"
                lines.append(f"| {LABELS[method]} | {words} | {mark}{figures}{mark} |")
    return [f"### {SUBJECTS[model].about}: trials", "", *lines, ""] if len(lines) > 2 else []


def accuracies(group: Group, model: str) -> list[str]:
    """Method x rate: accuracy with its interval over seeds, seconds, raw and exact rate, zeros in the model itself."""
    dense = next((rows[0] for (method, _), rows in group.items() if method == "dense"), None)
    lines = [f"### {SUBJECTS[model].about}", ""]
    if dense is not None:
        lines += [
            f"Dense: {dense['test']:.2f}% on {dense['n']:,} test examples, {dense['hold_out']:.2f}% on the hold-out.",
            "",
        ]
    lines += [
        "| rate | method | test accuracy, % [95%] | hold-out, % | seconds | raw sparsity | exact sparsity | zeros off |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (method, rate), rows in group.items():
        if method == "dense":
            continue
        raw = [r["raw_rate"] for r in rows if r.get("raw_rate") is not None]
        off = max((r["zeros"] - r["zeros_asked"] for r in rows), key=abs)
        columns = [
            f"{rate:.0%}", LABELS[method], interval([r["test"] for r in rows]).text(), f"{statistics.mean(r['hold_out'] for r in rows):.2f}",
            f"{statistics.median(r['seconds'] for r in rows):.0f}", f"{statistics.mean(raw):.4f}" if raw else "-",
            f"{statistics.mean(r['zeros'] / r['numel'] for r in rows):.6f}", f"{off:+d}" if off else "0",
        ]  # fmt: skip
        lines.append("| " + " | ".join(columns) + " |")
    seeds = sorted({len(rows) for (method, _), rows in group.items() if method != "dense"})
    return [
        *lines,
        "",
        f"Seeds: {' or '.join(map(str, seeds))}. Raw rate: by the thresholds, before the exact selection.",
        "",
    ]


def best(group: Group, rate: float, family: str, figure: str) -> str | None:
    """The method of a family with the highest mean ``figure`` ("hold_out" or "test") at this rate."""
    names = [name for name, r in group if r == rate and METHODS[name].family == family]
    return max(names, key=lambda n: statistics.mean(r[figure] for r in group[n, rate]), default=None)


def difference(group: Group, rate: float, first: str, second: str) -> tuple[Interval, Interval] | None:
    """first - second in points over the seeds both have: over seeds, and over test examples."""
    sides = [{r["cell"]["seed"]: r for r in group.get((name, rate), [])} for name in (first, second)]
    shared = sorted(set(sides[0]) & set(sides[1]))
    if not shared:
        return None
    seeds = over_seeds(*([side[s]["test"] for s in shared] for side in sides))
    return seeds, over_examples(*([unpack(side[s]) for s in shared] for side in sides))


def differences(group: Group) -> list[str]:
    """What the study is about: learned allocation against the best fixed one, against its start, and the controls."""
    lines = [
        "| rate | difference, points | over seeds [95%] | over test examples [95%] | target | |",
        "|---|---|---|---|---|---|",
    ]
    for rate in sorted({rate for method, rate in group if method != "dense"}):
        fixed = best(group, rate, "distil", "hold_out")
        asked = [
            *((start, fixed, "best fixed on the hold-out", "margin") for start in ("fcpts-uniform", "fcpts-erk")),
            *((start, best(group, rate, "distil", "test"), "best fixed on the test", "") for start in ("fcpts-uniform", "fcpts-erk")),
            ("fcpts-uniform", "fcpts-erk", "the other start", "near"),
            ("fcpts-paper", fixed, "best fixed on the hold-out", ""),
            ("fcpts-blind", fixed, "best fixed on the hold-out", ""),
            ("fcpts-uniform", "distil-uniform", "its start, not learned", ""),
            ("fcpts-erk", "distil-erk", "its start, not learned", ""),
            ("fcpts-uniform", "fcpts-blind", "control, same start", ""),
            ("fcpts-erk", "fcpts-paper", "what the ramp adds", ""),
            ("fcpts-paper", "fcpts-released", "what the loss tells the thresholds", ""),
            ("fcpts-uniform", best(group, rate, "masks", "hold_out"), "best masks only", ""),
            ("fcpts-uniform", best(group, rate, "reconstruct", "hold_out"), "best layer- or block-wise", ""),
        ]  # fmt: skip
        for first, second, why, aim in asked:
            if second is None or (found := difference(group, rate, first, second)) is None:
                continue
            wanted, verdict = _judged(aim, rate, *found)
            names = f"{LABELS[first]} - {LABELS[second]} ({why})"
            lines.append(
                f"| {rate:.0%} | {names} | {found[0].text(sign=True)} | {found[1].text(sign=True)} | {wanted} | {verdict} |"
            )
    return [*lines, ""] if len(lines) > 2 else []


def _judged(aim: str, rate: float, seeds: Interval, examples: Interval) -> tuple[str, str]:
    """What is wanted, in words, and whether it came out: a bound counts where both intervals keep it."""
    if not aim or seeds.low != seeds.low:
        return "", ""
    low = min(seeds.low, examples.low)
    if aim == "near":
        return "within 1 point", "met" if abs(seeds.mean) <= 1 else "missed"
    if rate >= 0.95:
        return "+2 or more, lower bounds above 0", "met" if seeds.mean >= 2 and low > 0 else "missed"
    return "lower bounds -0.5 or more", "met" if low >= -0.5 else "missed"


def allocations(group: Group) -> list[str]:
    """How alike the learned rates of a layer are from seed to seed."""
    lines = [
        "| rate | method | largest deviation of a layer's rate over seeds | lowest and highest rate of a layer |",
        "|---|---|---|---|",
    ]
    for (method, rate), rows in group.items():
        if METHODS[method].family != "fcpts" or len(rows) < 2:
            continue
        layers = {name: [r["rates"][name] for r in rows] for name in rows[0]["rates"]}
        spread = {name: statistics.stdev(found) for name, found in layers.items()}
        mean = {name: statistics.mean(found) for name, found in layers.items()}
        worst, least, most = (
            max(spread, key=spread.__getitem__),
            min(mean, key=mean.__getitem__),
            max(mean, key=mean.__getitem__),
        )
        lines.append(
            f"| {rate:.0%} | {LABELS[method]} | {spread[worst]:.4f} ({worst}) | {mean[least]:.1%} ({least}), {mean[most]:.1%} ({most}) |"
        )
    return [*lines, ""] if len(lines) > 2 else []


def bridge(rows: Iterable[Row], model: str) -> list[str]:
    """Milliseconds of a step by part, medians over the runs, and the bridge's share of it."""
    parts = ("teacher", "forward", "backward", "bridge", "update")
    lines = [
        f"| {SUBJECTS[model].about} | {' | '.join(parts)} | step, ms | bridge's share | over a fixed mask |",
        "|---" * 9 + "|",
    ]
    runs: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        cell = row["cell"]
        if (cell["phase"], cell["model"]) == ("bridge", model) and row.get("step_time"):
            runs.setdefault((cell["method"], cell["settings"].get("bridge", ""), cell["threads"]), []).append(row)
    fixed: dict[int, float] = {}
    for (method, name, threads), found in sorted(runs.items()):
        times = {p: 1e3 * statistics.median(r["step_time"][p] for r in found) for p in parts}
        step = statistics.median(1e3 * sum(r["step_time"][p] for p in parts) for r in found)
        share = statistics.median(r["step_time"]["bridge"] / sum(r["step_time"][p] for p in parts) for r in found)
        if METHODS[method].family == "distil":
            fixed[threads] = step
        beside = f"{step / fixed[threads]:.2f}×" if threads in fixed else "-"
        label = f"{LABELS[method]}{', ' + name if name else ''}, {threads} thread{'s' * (threads > 1)}, n={len(found)}"
        lines.append(
            f"| {label} | " + " | ".join(f"{times[p]:.2f}" for p in parts) + f" | {step:.1f} | {share:.1%} | {beside} |"
        )
    return [*lines, ""] if len(lines) > 2 else []


def limits(rows: Iterable[Row], model: str) -> list[str]:
    """Hold-out accuracy by time limit."""
    runs: dict[tuple[float, str, float], list[Row]] = {}
    for row in rows:
        cell = row["cell"]
        if (cell["phase"], cell["model"]) == ("time", model):
            runs.setdefault((cell["rate"], cell["method"], cell["time"]), []).append(row)
    lines = [
        f"| {SUBJECTS[model].about}: rate | method | limit, s | hold-out accuracy, % [95%] | steps | training, s | whole call, s |",
        "|---" * 7 + "|",
    ]
    for (rate, method, limit), found in sorted(runs.items()):
        means = [
            f"{statistics.mean(r.get(name) or 0 for r in found):.0f}" for name in ("steps", "fit_seconds", "seconds")
        ]
        accuracy = interval([r["hold_out"] for r in found]).text()
        lines.append(f"| {rate:.0%} | {LABELS[method]} | {limit:g} | {accuracy} | {' | '.join(means)} |")
    return [*lines, ""] if len(lines) > 2 else []


def everything(rows: Mapping[str, Row], names: Iterable[str]) -> str:
    """All tables of these models; a note where figures come from different states of the code or other settings."""
    check()
    lines: list[str] = []
    for model in names:
        group = groups(rows.values(), "test", model)
        if group:
            lines += [
                *accuracies(group, model),
                *differences(group),
                *allocations(group),
                *_mixed(rows.values(), model, group),
            ]
        lines += [*trials(rows, model), *bridge(rows.values(), model), *limits(rows.values(), model)]
    return "\n".join(lines)


def _mixed(rows: Iterable[Row], model: str, group: Group) -> list[str]:
    """A table should come from one state of the code and one choice of settings; says where it does not."""
    states = {
        r["source"]
        for r in rows
        if r["cell"]["model"] == model and r["cell"]["phase"] in ("tune", "test") and "source" in r
    }
    notes = []
    if len(states) > 1:
        notes.append(
            f"NOTE: these cells come from {len(states)} states of winnow's source ({', '.join(sorted(states))})."
        )
    for (method, rate), found in group.items():
        kinds = {str(sorted((r.get("settings") or {}).items())) for r in found}
        seeds = [r["cell"]["seed"] for r in found]
        if len(kinds) > 1 or len(set(seeds)) < len(seeds):
            notes.append(f"NOTE: {LABELS[method]} at {rate:.0%} mixes settings: take a new results file.")
    return [*notes, ""] if notes else []
