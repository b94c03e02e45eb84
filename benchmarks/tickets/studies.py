"""The other tables of the study, as markdown: trials, sensitivity, variants, overhead; and all of them together."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.cells import Row
from benchmarks.paired import check, interval
from benchmarks.tickets import tables
from benchmarks.tickets.methods import CONTROLS, HARD, METHODS, RATES, TUNE, TUNE_RATES
from benchmarks.tickets.subjects import SUBJECTS
from benchmarks.tickets.tables import tickets


def trials(rows: Iterable[Row], model: str, settings: Mapping[str, Any]) -> dict[float, dict[tuple[str, float], float]]:
    """Selection accuracy by learning rate, then by (method, sparsity); -1 where the loss was no longer finite."""
    found: dict[float, dict[tuple[str, float], float]] = {}
    for row in rows:
        cell = row["cell"]
        same = all(cell["settings"].get(k) == settings[k] for k in ("steps", "batch"))
        if (cell["phase"], cell["model"]) != ("tune", model) or not same:
            continue
        figure = row["tickets"][0]["hold_out"] if "tickets" in row else -1.0
        found.setdefault(cell["settings"]["lr"], {})[cell["method"], cell["sparsities"][0]] = figure
    return dict(sorted(found.items()))


def chosen(rows: Mapping[str, Row], model: str, settings: Mapping[str, Any]) -> float | None:
    """The rate with the highest mean over the trials of :data:`TUNE`; None until all of them are there."""
    found = trials(rows.values(), model, settings)
    whole = {lr: figures for lr, figures in found.items() if len(figures) == sum(map(len, TUNE.values()))}
    if len(whole) < len(TUNE_RATES):
        return None
    return max(whole, key=lambda lr: statistics.mean(whole[lr].values()))


def rate_trials(
    rows: Iterable[Row], model: str, settings: Mapping[str, Any]
) -> dict[str, dict[float, dict[float, float]]]:
    """Selection accuracy of the rated methods by method, rate and sparsity, of trainings like ``settings``."""
    found: dict[str, dict[float, dict[float, float]]] = {}
    for row in _of(rows, "rates", model):
        cell = row["cell"]
        if all(cell["settings"].get(k) == v for k, v in settings.items()) and cell["method"] in METHODS:
            by = found.setdefault(cell["method"], {}).setdefault(cell["options"]["rate"], {})
            by[cell["sparsities"][0]] = row["tickets"][0]["hold_out"]
    return found


def chosen_rate(rows: Mapping[str, Row], model: str, method: str, settings: Mapping[str, Any]) -> float | None:
    """The rate with the highest mean over :data:`HARD`; None until all trials of it are there."""
    found = rate_trials(rows.values(), model, settings).get(method, {})
    whole = {rate: by for rate, by in found.items() if set(by) == set(HARD)}
    if len(whole) < len(RATES):
        return None
    return max(whole, key=lambda rate: statistics.mean(whole[rate].values()))


def rates(rows: Mapping[str, Row], model: str) -> list[str]:
    """Every trial of a rate; the one that was chosen in bold."""
    lines = ["| iterative pruning in ISP's steps | rate a round: selection accuracy at 80 / 90% |", "|---|---|"]
    kinds = {tuple(sorted(r["cell"]["settings"].items())) for r in _of(rows.values(), "rates", model)}
    for kind in sorted(kinds):
        settings = dict(kind)
        for method, by in rate_trials(rows.values(), model, settings).items():
            best = chosen_rate(rows, model, method, settings)
            told = []
            for rate, figures in sorted(by.items()):
                mark = "**" if rate == best else ""
                told.append(f"{mark}{rate:g}{mark}: " + " / ".join(f"{figures[s]:.1f}" for s in sorted(figures)))
            lines.append(f"| {METHODS[method].label}, T = {settings['steps']} | {'; '.join(told)} |")
    return [f"### {SUBJECTS[model].about}: rates of the iterative rivals", "", *lines, ""] if len(lines) > 2 else []


def tuning(rows: Mapping[str, Row], model: str) -> list[str]:
    """Every trial; the rate that was chosen in bold."""
    lines = []
    kinds = {
        (r["cell"]["settings"]["steps"], r["cell"]["settings"]["batch"]) for r in _of(rows.values(), "tune", model)
    }
    for steps, batch in sorted(kinds):
        settings = {"steps": steps, "batch": batch}
        best = chosen(rows, model, settings)
        names = [(method, s) for method, sparsities in TUNE.items() for s in sparsities]
        lines += [
            f"| T = {steps}, batch {batch}: learning rate | " + " | ".join(f"{METHODS[m].label}, {s:.0%}" for m, s in names) + " | mean |",
            "|---" * (len(names) + 2) + "|",
        ]  # fmt: skip
        for lr, figures in trials(rows.values(), model, settings).items():
            shown = ["-" if n not in figures else "diverged" if figures[n] < 0 else f"{figures[n]:.2f}" for n in names]
            mark = "**" if lr == best else ""
            lines.append(
                f"| {mark}{lr:g}{mark} | {' | '.join(shown)} | {mark}{statistics.mean(figures.values()):.2f}{mark} |"
            )
        lines.append("")
    return [f"### {SUBJECTS[model].about}: learning rates, selection accuracy, %", "", *lines] if lines else []


def settings_tried(rows: Iterable[Row], phase: str, model: str) -> list[str]:
    """ISP under other settings beside ISP and its controls: accuracy, and the paired difference from the matched control."""
    found = tickets(rows, phase, model)
    return [line for kind in trainings(found) for line in _settings_tried(kind, phase, model)]


def _settings_tried(same: list[Row], phase: str, model: str) -> list[str]:
    by: dict[tuple[float, str, str], list[Row]] = {}
    for t in same:
        by.setdefault((t["sparsity"], t["variant"], t["method"]), []).append(t)
    split = "selection" if phase == "select" else "test"
    lines = [
        f"| sparsity | setting | seeds | {split} accuracy, % [95%] | steps, T | disagreement | - ISP without candidates, same steps: over seeds | over examples |",
        "|---" * 8 + "|",
    ]
    for (sparsity, variant, method), found in sorted(by.items(), key=lambda item: _place(item[0])):
        total = found[0]["settings"]["steps"]
        apart = [r["disagreement"] for t in found for r in t["rounds"] if r.get("disagreement") is not None]
        columns = [
            f"{sparsity:.0%}", variant or METHODS[method].label, str(len(found)), interval([t["accuracy"] for t in found]).text(),
            f"{statistics.mean(t['cost']['steps'] for t in found) / total:.2f}", f"{statistics.mean(apart):.1%}" if apart else "-",
        ]  # fmt: skip
        paired = tables.difference(found, by.get((sparsity, "", "isp-matched"), []))
        itself = method == "isp-matched" and not variant
        columns += ["-", "-"] if paired is None or itself else [p.text(sign=True) for p in paired[:2]]
        lines.append("| " + " | ".join(columns) + " |")
    name = "settings, on selection data" if phase == "select" else "confirmed on test data, new seeds"
    name += f" (T = {same[0]['settings']['steps']}, learning rate {same[0]['settings']['lr']:g})"
    return [f"### {SUBJECTS[model].about}: {name}", "", *lines, ""] if len(lines) > 2 else []


def _place(key: tuple[float, str, str]) -> tuple[float, bool, int, str]:
    sparsity, variant, method = key
    return sparsity, bool(variant), CONTROLS.index(method) if method in CONTROLS else len(CONTROLS), variant


def overhead(rows: Iterable[Row], model: str) -> list[str]:
    """Milliseconds of a step and the paired ratios to a step without the hook; memory of a look-ahead."""
    lines = ["| step | processor time, ms | over a step without masks [quartiles] | at most 1.05 |", "|---" * 4 + "|"]
    notes = []
    for row in _of(rows, "overhead", model):
        for name, time in row["milliseconds"].items():
            if name == "plain":
                lines.append(f"| without masks | {time:.1f} | - | - |")
                continue
            low, middle, high = row["ratios"][name]
            label = "attached, no zeros" if name == "attached" else f"{name} zeros"
            verdict = "met" if middle <= 1.05 else "missed"
            lines.append(f"| {label} | {time:.1f} | {middle:.3f} [{low:.3f}, {high:.3f}] | {verdict} |")
        if memory := row["memory"]:
            step, ahead, aim = (memory[k] / 1e6 for k in ("step", "look_ahead", "aim"))
            notes.append(
                f"Peak memory over what was resident: a step {step:.1f} MB, a look-ahead {ahead:.1f} MB; the difference is to be at most {aim:.1f} MB."
            )
    return [f"### {SUBJECTS[model].about}: overhead", "", *lines, "", *notes, ""] if len(lines) > 2 else []


def _of(rows: Iterable[Row], phase: str, model: str) -> list[Row]:
    return [r for r in rows if (r["cell"]["phase"], r["cell"]["model"]) == (phase, model)]


def tested(rows: Mapping[str, Row], model: str) -> list[str]:
    """All tables of the test phase, one set for every training (T, batch, learning rate) that was run."""
    found = tickets(rows.values(), "test", model)
    lines = []
    for same in trainings(found):
        group = tables.groups(same)
        lines += [*tables.accuracies(group, model), *tables.budget(group), *tables.differences(group)]
        lines += [*tables.against_dense(group), *tables.rounds(group), *_mixed(same, group)]
    return lines


def trainings(found: list[Row]) -> list[list[Row]]:
    """The tickets of every training (T, batch, learning rate) by themselves."""
    by: dict[tuple[Any, ...], list[Row]] = {}
    for t in found:
        by.setdefault(tuple(sorted(t["settings"].items())), []).append(t)
    return [by[kind] for kind in sorted(by)]


def _mixed(found: list[Row], group: tables.Group) -> list[str]:
    """A table should come from one state of the code and one choice of settings; says where it does not."""
    states = sorted({t["source"] for t in found})
    notes = []
    if len(states) > 1:
        notes.append(f"NOTE: these cells come from {len(states)} states of winnow's source ({', '.join(states)}).")
    for (method, sparsity), same in group.items():
        if len({str(t["options"]) for t in same}) > 1 or len({t["seed"] for t in same}) < len(same):
            notes.append(f"NOTE: {METHODS[method].label} at {sparsity:.0%} mixes settings: take a new results file.")
    return [*notes, ""] if notes else []


def shown(phase: str, rows: Mapping[str, Row], models: Iterable[str]) -> str:
    """The tables of a phase; of "table", all."""
    if phase == "table":
        return everything(rows, models)
    lines: list[str] = []
    for model in models:
        lines += {
            "tune": lambda m=model: tuning(rows, m),
            "rates": lambda m=model: rates(rows, m),
            "test": lambda m=model: tested(rows, m),
            "masks": lambda m=model: tables.overlaps(rows.values(), m),
            "sensitivity": lambda m=model: settings_tried(rows.values(), "select", m),
            "variants": lambda m=model: settings_tried(rows.values(), "select", m),
            "confirm": lambda m=model: settings_tried(rows.values(), "confirm", m),
            "overhead": lambda m=model: overhead(rows.values(), m),
        }[phase]()
    return "\n".join(lines)


def everything(rows: Mapping[str, Row], models: Iterable[str]) -> str:
    """All tables of these models."""
    check()
    lines: list[str] = []
    for model in models:
        lines += [*tested(rows, model), *tables.overlaps(rows.values(), model)]
        for phase in ("select", "confirm"):
            lines += settings_tried(rows.values(), phase, model)
        lines += [*tuning(rows, model), *rates(rows, model), *overhead(rows.values(), model)]
    return "\n".join(lines)
