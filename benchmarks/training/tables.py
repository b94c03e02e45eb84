"""Markdown of what benchmarks.training.run has measured: figures by arm and budget, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.cells import Row
from benchmarks.paired import Interval, interval, over_seeds
from benchmarks.training.arms import ARMS
from benchmarks.training.run import RATES, chosen
from benchmarks.training.subjects import SUBJECTS

PAIRS = (
    ("sign-in", "static"), ("sign-in", "no-reset"), ("no-reset", "static"), ("rigl", "static"),
    ("rigl-sign-in", "rigl"), ("gradual-sign-in", "gradual"), ("acdc-sign-in", "acdc"),
    ("gradual", "sign-in"), ("acdc", "sign-in"), ("gradual", "rigl-sign-in"),
)  # fmt: skip
Group = dict[tuple[str, str, float], dict[int, Row]]  # arm, variant, epochs -> by seed


def tables(rows: Mapping[str, Row]) -> list[str]:
    """All tables, one subject and sparsity after the other."""
    lines: list[str] = []
    tested = [r for r in rows.values() if r["cell"]["phase"] in ("test", "vary") and "figure" in r]
    for model in SUBJECTS:
        for sparsity in sorted({r["cell"]["sparsity"] for r in tested if r["cell"]["model"] == model} - {0.0}):
            group: Group = {}
            for row in tested:
                cell = row["cell"]
                if cell["model"] == model and cell["sparsity"] in (0.0, sparsity):
                    group.setdefault((cell["arm"], cell["variant"], cell["epochs"]), {})[cell["seed"]] = row
            lines += [f"**{model}, {sparsity:.0%}**", "", *_figures(group, model), *_differences(group, model)]
            lines += [*_variants(group, model), *_rates(rows, model, sparsity)]
    return lines


def _figures(group: Group, model: str) -> list[str]:
    budgets = sorted({epochs for _, _, epochs in group})
    what = "test loss, nats a token" if SUBJECTS[model].falls else "test accuracy, %"
    lines = [
        f"| {what} [95% over seeds] | {' | '.join(f'{e:g} epochs' for e in budgets)} | signs flipped | training loss |",
        "|---" * (3 + len(budgets)) + "|",
    ]
    for arm in ARMS:
        by = {e: group[arm, "", e] for e in budgets if (arm, "", e) in group}
        if not by:
            continue
        fields = [f"{_over(by[e].values(), 'figure', model)} ({len(by[e])})" if e in by else "" for e in budgets]
        last = by[max(by)].values()
        flips = f"{100 * np.mean([r['flips'] for r in last]):.1f}%" if all("flips" in r for r in last) else ""
        loss = f"{np.mean([r['train_loss'] for r in last]):.3f}"
        lines.append(f"| {ARMS[arm].label} | {' | '.join(fields)} | {flips} | {loss} |")
    found = [r for same in group.values() for r in same.values() if "asked" in r]
    off = sum(r["zeros"] != r["asked"] for r in found)
    return [
        *lines, "",
        "In parentheses how many seeds. Signs against the first weights, and the mean loss of the last 5% of the steps, at the largest budget.",
        f"Zeros: {'exactly as asked in all' if not off else f'not as asked in {off}'} of {len(found)} models.", "",
    ]  # fmt: skip


def _over(rows: Sequence[Row], key: str, model: str) -> str:
    return interval([_scale(model) * r[key] for r in rows]).text(3 if SUBJECTS[model].falls else 2)


def _scale(model: str) -> float:
    return 1.0 if SUBJECTS[model].falls else 100.0


def _paired(first: Mapping[int, Row], second: Mapping[int, Row], model: str) -> tuple[Interval, int]:
    seeds = sorted(set(first) & set(second))
    found = over_seeds(*([_scale(model) * side[s]["figure"] for s in seeds] for side in (first, second)))
    return found, len(seeds)


def _differences(group: Group, model: str) -> list[str]:
    budgets = sorted({epochs for _, _, epochs in group})
    lines = [
        f"| difference, paired | {' | '.join(f'{e:g} epochs' for e in budgets)} |",
        "|---" * (1 + len(budgets)) + "|",
    ]
    for one, two in PAIRS:
        fields = []
        for e in budgets:
            sides = group.get((one, "", e), {}), group.get((two, "", e), {})
            found, count = _paired(*sides, model) if set(sides[0]) & set(sides[1]) else (None, 0)
            fields.append(f"{found.text(3 if SUBJECTS[model].falls else 2, sign=True)} ({count})" if found else "")
        if any(fields):
            lines.append(f"| {ARMS[one].label} - {ARMS[two].label} | {' | '.join(fields)} |")
    return [*lines, ""] if len(lines) > 2 else []


def _variants(group: Group, model: str) -> list[str]:
    varied = sorted({(v, a, e) for a, v, e in group if v})
    lines = [
        "| Sign-In otherwise | epochs | seeds | against its defaults | against the plain mask |",
        "|---|---|---|---|---|",
    ]
    for variant, arm, epochs in varied:
        mine, fields, count = group[arm, variant, epochs], [], 0
        for other in (arm, "static"):
            theirs = group.get((other, "", epochs), {})
            found, number = _paired(mine, theirs, model) if set(mine) & set(theirs) else (None, 0)
            count = max(count, number)
            fields.append(found.text(3 if SUBJECTS[model].falls else 2, sign=True) if found else "")
        lines.append(f"| {variant} | {epochs:g} | {count} | {' | '.join(fields)} |")
    return [*lines, ""] if varied else []


def _rates(rows: Mapping[str, Row], model: str, sparsity: float) -> list[str]:
    """What the tuning saw and chose."""
    rates = [SUBJECTS[model].lr * r for r in RATES]
    lines = [f"| tuning, selection data | {' | '.join(f'lr {r:g}' for r in rates)} |", "|---" * (1 + len(rates)) + "|"]
    for arm in ARMS:
        at, seen = 0.0 if arm == "dense" else sparsity, {}
        for row in rows.values():
            cell = row["cell"]
            if (cell["phase"], cell["model"], cell["arm"], cell["sparsity"]) == ("tune", model, arm, at):
                seen.setdefault(cell["lr"], []).append(_scale(model) * row.get("figure", np.nan))
        if seen:
            best = chosen(rows, model, arm, at)
            fields = [
                f"{'**' * (r == best)}{np.mean(seen[r]):.2f}{'**' * (r == best)}" if r in seen else "" for r in rates
            ]
            lines.append(f"| {ARMS[arm].label} | {' | '.join(fields)} |")
    return [*lines, ""] if len(lines) > 2 else []
