"""The tables of the test phase, as markdown: accuracy and cost, paired differences, masks."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.cells import Row, unpack
from benchmarks.paired import Interval, interval, over_examples, over_seeds
from benchmarks.tickets.methods import HARD, METHODS
from benchmarks.tickets.subjects import SUBJECTS

Group = dict[tuple[str, float], list[Row]]  # (method, sparsity): tickets in the order of the seeds
LIMIT = 1.5  # T: what ISP may take, look-ahead included
NEAR = 0.5  # points below IMP that still count as near
RIVALS = (
    "imp-equal", "lrr-equal", "magnitude", "magnitude-equal", "snip", "snip-equal", "grasp", "earlybird", "earlybird-equal",
)  # fmt: skip
OTHERS = ("random", "synflow", "progressive", "gradual", "imp-rewind", "lrr", "lottery-pool")


def tickets(rows: Iterable[Row], phase: str, model: str) -> list[Row]:
    """Every ticket of a phase and model as a flat dict, with what its cell says."""
    found = []
    for row in rows:
        cell = row["cell"]
        if (cell["phase"], cell["model"]) == (phase, model) and cell["method"] in METHODS:
            about = {name: cell[name] for name in ("method", "variant", "seed", "settings", "options")}
            for ticket in row.get("tickets", ()):
                more = {"key": row["key"], "numel": row["numel"], "source": row["source"]}
                found.append({**ticket, **about, **more})
    return sorted(found, key=lambda t: t["seed"])


def groups(found: Iterable[Row]) -> Group:
    """By method and sparsity, in the order of the table."""
    by: Group = {}
    for ticket in found:
        by.setdefault((ticket["method"], ticket["sparsity"]), []).append(ticket)
    order = list(METHODS)
    return {key: by[key] for key in sorted(by, key=lambda k: (k[1], order.index(k[0])))}


def imp_passes(sparsity: float) -> int:
    """(K + 1): trainings of T steps that full IMP takes, 20% a round."""
    from winnow.tickets.cost import imp_rounds

    return imp_rounds(sparsity) + 1


def accuracies(group: Group, model: str) -> list[str]:
    """Method x sparsity: accuracy with its interval over seeds; steps in T; zeros as counted in the models themselves."""
    first = next(iter(group.values()))[0]
    settings = first["settings"]
    sparsities = sorted({s for _, s in group} - {0.0})
    lines = [
        f"### {SUBJECTS[model].about}: T = {settings['steps']} steps of {settings['batch']}, learning rate {settings['lr']:g}",
        "",
        f"| test accuracy, % [95%] | seeds | {' | '.join(f'{s:.0%}' for s in sparsities)} | steps, T | of it look-ahead | dense-equivalent, T |",
        "|---" * (5 + len(sparsities)) + "|",
    ]
    for method in dict.fromkeys(m for m, s in group if s):
        by = {s: group[method, s] for s in sparsities if (method, s) in group}
        figures = [interval([t["accuracy"] for t in by[s]]).text() if s in by else "" for s in sparsities]
        columns = [METHODS[method].label, _range([len(found) for found in by.values()], "g"), *figures]
        columns += [
            _range([_cost(found, kind) for found in by.values()]) for kind in ("steps", "look_ahead", "weighted")
        ]
        lines.append("| " + " | ".join(columns) + " |")
    found = [t for same in group.values() for t in same]
    off = [t for t in found if t["zeros"] != t["zeros_asked"]]
    lines += [
        "",
        f"{first['n']:,} test examples; the last step's figure. Steps: training, look-ahead and scoring passes, from the least to the",
    ]
    lines += ["most sparse; dense-equivalent: each counted by its share of kept weights."]
    if dense := group.get(("dense", 0.0)):
        lines.append(
            f"Dense, the same training: {interval([t['accuracy'] for t in dense]).text()} over {len(dense)} seeds."
        )
    counted = (
        "as asked in all"
        if not off
        else f"off by up to {max(abs(t['zeros'] - t['zeros_asked']) for t in off)} in {len(off)}"
    )
    return [*lines, f"Zeros: {counted} of {len(found)} models.", ""]


def _cost(found: list[Row], kind: str) -> float:
    return statistics.mean(t["cost"][kind] / t["settings"]["steps"] for t in found)


def _range(values: list[float], form: str = ".2f") -> str:
    ends = dict.fromkeys((format(values[0], form), format(values[-1], form)))
    return " to ".join(ends)


def difference(first: list[Row], second: list[Row]) -> tuple[Interval, Interval, int] | None:
    """first - second in points over the seeds both have: over seeds, over examples, and how many seeds."""
    sides = [{t["seed"]: t for t in found} for found in (first, second)]
    shared = sorted(set(sides[0]) & set(sides[1]))
    if not shared:
        return None
    seeds = over_seeds(*([side[s]["accuracy"] for s in shared] for side in sides))
    return seeds, over_examples(*([unpack(side[s]) for s in shared] for side in sides)), len(shared)


def differences(group: Group) -> list[str]:
    """ISP against IMP, against IMP in its own steps and pruning at the start, against its controls; and the control so.

    A field holds the mean, its interval over seeds, the one over test examples, and what becomes of what was wanted.
    """
    sparsities = sorted({s for _, s in group} - {0.0})
    pairs = [("isp", other) for other in ("imp", *RIVALS, "isp-plain", "isp-matched")]
    pairs += [("isp-matched", other) for other in ("imp", *RIVALS, "isp-plain")]
    pairs += [("isp", other) for other in OTHERS]
    pairs += [(name, "isp-matched") for name in METHODS if METHODS[name].finder == "isp" and name != "isp"]
    lines = [
        f"| difference, points | seeds | {' | '.join(f'{s:.0%}' for s in sparsities)} |",
        "|---" * (2 + len(sparsities)) + "|",
    ]
    for one, two in pairs:
        by = {s: found for s in sparsities if (found := difference(group.get((one, s), []), group.get((two, s), [])))}
        if not by:
            continue
        fields = []
        for s in sparsities:
            if s not in by:
                fields.append("")
                continue
            seeds, examples, _ = by[s]
            bounds = examples.text(sign=True).partition(" ")[2]
            fields.append(" ".join(filter(None, (seeds.text(sign=True), bounds, judged(one, two, s, seeds, examples)))))
        counts = _range([found[2] for found in by.values()], "g")
        lines.append(f"| {METHODS[one].label} - {METHODS[two].label} | {counts} | {' | '.join(fields)} |")
    return [
        *lines, "", "Intervals of 95%: over seeds, then over test examples. Wanted of ISP, where it says met or missed: against IMP -0.5 or more",
        "(near: the mean keeps it, an interval does not), against the others both intervals above 0; *pays*, *no gain*: the same of its candidates.", "",
    ] if len(lines) > 2 else []  # fmt: skip


def judged(one: str, two: str, sparsity: float, seeds: Interval, examples: Interval) -> str:
    """Whether what is wanted of a difference came out, in a word: a bound counts where both intervals keep it."""
    if one != "isp" or seeds.low != seeds.low:
        return ""
    low = min(seeds.low, examples.low)
    if two == "imp" and sparsity <= 0.8:
        return "met" if low >= -NEAR else "near" if seeds.mean >= -NEAR else "missed"
    if two in RIVALS and sparsity in HARD:
        return "met" if low > 0 else "missed"
    if two in ("isp-plain", "isp-matched"):
        return "*pays*" if low > 0 else "*no gain*"
    return ""


def budget(group: Group) -> list[str]:
    """Whether ISP stayed within 1.5 T, and at 90% within an eighth of IMP."""
    lines = []
    for (method, sparsity), found in group.items():
        if method != "isp":
            continue
        most = max(t["cost"]["steps"] / t["settings"]["steps"] for t in found)
        words = f"ISP at {sparsity:.0%}: {most:.2f} T of at most {LIMIT} T: {'met' if most <= LIMIT else 'missed'}"
        share = most / imp_passes(sparsity)
        lines.append(f"- {words}; {share:.3f} of IMP's {imp_passes(sparsity)} T.")
    return [*lines, ""] if lines else []


def against_dense(group: Group) -> list[str]:
    """Answers that turned wrong and right against the dense model of the same seed, and the class that lost most."""
    dense = {t["seed"]: t for t in group.get(("dense", 0.0), [])}
    lines = [
        "| sparsity | method | seeds | lost, % | gained, % | class that loses most, points (mean over seeds) |",
        "|---" * 6 + "|",
    ]
    for (method, sparsity), found in group.items():
        pairs = [(t, dense[t["seed"]]) for t in found if t["seed"] in dense]
        if method == "dense" or not pairs:
            continue
        own, other = ([unpack(pair[i]) for pair in pairs] for i in (0, 1))
        lost = statistics.mean(float((~a & b).mean()) for a, b in zip(own, other))
        gained = statistics.mean(float((a & ~b).mean()) for a, b in zip(own, other))
        changes = [
            statistics.mean(t["recall"][c] - d["recall"][c] for t, d in pairs)
            for c in range(len(pairs[0][0]["recall"]))
        ]
        worst = min(range(len(changes)), key=changes.__getitem__)
        lines.append(
            f"| {sparsity:.0%} | {METHODS[method].label} | {len(pairs)} | {lost:.2%} | {gained:.2%} | {changes[worst]:+.2f} (class {worst}) |"
        )
    return [*lines, ""] if len(lines) > 2 else []


def rounds(group: Group) -> list[str]:
    """How far ISP's candidates disagree, round by round, means over seeds."""
    lines = ["| sparsity | method | round: disagreement of the active weights (unanimous share) |", "|---" * 3 + "|"]
    for (method, sparsity), found in group.items():
        told = [t["rounds"] for t in found if t["rounds"] and t["rounds"][0].get("disagreement") is not None]
        if not told:
            continue
        parts = []
        for i in range(min(map(len, told))):
            mean: dict[str, Any] = {k: statistics.mean(r[i][k] for r in told) for k in ("disagreement", "unanimous")}
            parts.append(f"{i + 1}: {mean['disagreement']:.1%} ({mean['unanimous']:.0%})")
        lines.append(f"| {sparsity:.0%} | {METHODS[method].label} | {', '.join(parts)} |")
    return [*lines, ""] if len(lines) > 2 else []


def overlaps(rows: Iterable[Row], model: str) -> list[str]:
    """Cosine similarity of kept weights with IMP's, means over seeds, beside what chance would give."""
    by: dict[tuple[float, str, str], list[Row]] = {}
    for row in rows:
        cell = row["cell"]
        if (cell["phase"], cell["model"]) == ("masks", model) and cell["method"] in METHODS:
            for overlap in row["overlaps"]:
                by.setdefault((overlap["sparsity"], cell["variant"], cell["method"]), []).append(overlap)
    order = list(METHODS)
    lines = [
        "| sparsity | mask of | beside | seeds | cosine | by chance | kept by both of kept by either |",
        "|---" * 7 + "|",
    ]
    for sparsity, variant, method in sorted(by, key=lambda k: (k[0], order.index(k[2]))):
        found = by[sparsity, variant, method]
        cosine, chance, iou = (statistics.mean(o[k] for o in found) for k in ("cosine", "chance", "iou"))
        lines.append(
            f"| {sparsity:.0%} | {METHODS[method].label} | {variant} | {len(found)} | {cosine:.3f} | {chance:.3f} | {iou:.3f} |"
        )
    return [*lines, ""] if len(lines) > 2 else []
