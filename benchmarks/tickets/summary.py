"""The tables that set models side by side: what was wanted, masks, single examples, learning rates."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.cells import Row
from benchmarks.tickets import tables
from benchmarks.tickets.methods import HARD, METHODS, SPARSITIES
from benchmarks.tickets.studies import chosen, trainings, trials

PLAIN = (0.5, 0.7, 0.8)  # where ISP is to be near IMP
WIDE = (0.5, 0.8, 0.9)


def summary(rows: Mapping[str, Row], models: Sequence[str]) -> str:
    """All four tables. Of a model the training that most of its tickets had; single seeds of a method run with several are left out."""
    groups = {m: _group(rows.values(), m) for m in models}
    groups = {m: g for m, g in groups.items() if g}
    parts = [_wanted(groups), _cosines(rows.values(), list(groups)), _disagreement(groups), _changes(groups)]
    return "\n\n".join([*parts, _rates(rows, list(groups))])


def _group(rows: Iterable[Row], model: str) -> tables.Group:
    found = tables.tickets(rows, "test", model)
    if not found:
        return {}
    group = tables.groups(max(trainings(found), key=len))
    most = {method: max(len(t) for (m, _), t in group.items() if m == method) for method, _ in group}
    return {key: found for key, found in group.items() if len(found) > 1 or most[key[0]] == 1}


def _table(first: str, columns: Iterable[str], lines: Iterable[tuple[str, Sequence[str]]]) -> str:
    heads = [first, *columns]
    rows = [f"| {name} | {' | '.join(fields)} |" for name, fields in lines if any(fields)]
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *rows])


def _wanted(groups: Mapping[str, tables.Group]) -> str:
    def told(one: str, two: str, rates: Iterable[float]) -> list[str]:
        fields = []
        for group in groups.values():
            parts = []
            for s in rates:
                found = tables.difference(group.get((one, s), []), group.get((two, s), []))
                if found is not None:
                    mean = round(found[0].mean, 1) + 0.0  # no -0.0
                    parts.append(f"{mean:+.1f} {tables.judged(one, two, s, found[0], found[1])}".rstrip())
            fields.append(" / ".join(parts))
        return fields

    lines = [("at most 1.5 T, look-ahead included, at 90%", [_took(g) for g in groups.values()])]
    lines.append(("within 0.5 points of IMP, 50 / 70 / 80%", told("isp", "imp", PLAIN)))
    lines += [(f"above {METHODS[two].label}, 80 / 90%", told("isp", two, HARD)) for two in tables.RIVALS]
    lines.append(("candidates pay against none, 80 / 90%", told("isp", "isp-plain", HARD)))
    lines.append(("candidates pay against training in their steps, 50 / 80 / 90%", told("isp", "isp-matched", WIDE)))
    lines.append(("(winnow's default, that training, minus IMP, 50 / 80 / 90%)", told("isp-matched", "imp", WIDE)))
    for two in ("imp-equal", "lrr-equal", "magnitude-equal", "snip-equal", "earlybird-equal"):
        lines.append((f"(the same, minus {METHODS[two].label}, 80 / 90%)", told("isp-matched", two, HARD)))
    return _table("wanted of ISP", groups, lines)


def _took(group: tables.Group) -> str:
    most = {
        name: max((t["cost"]["steps"] / t["settings"]["steps"] for k, v in group.items() if k[0] == name for t in v), default=0)
        for name in ("isp", "imp")
    }  # fmt: skip
    return f"{most['isp']:.2f} T {'met' if most['isp'] <= tables.LIMIT else 'missed'}; IMP {most['imp']:.0f} T"


def _cosines(rows: Iterable[Row], models: Sequence[str]) -> str:
    by: dict[tuple[str, str, float], list[float]] = {}
    for row in rows:
        cell = row["cell"]
        for overlap in row["overlaps"] if cell["phase"] == "masks" else ():
            by.setdefault((cell["method"], cell["model"], overlap["sparsity"]), []).append(overlap["cosine"])
    places = [(m, s) for m in models for s in HARD]

    def line(method: str) -> list[str]:
        found = [by.get((method, m, s)) for m, s in places]
        return [f"{statistics.mean(f):.2f}" if f else "" for f in found]

    lines = [("IMP, another seed" if m == "imp" else METHODS[m].label, line(m)) for m in METHODS]
    return _table("mask of", [f"{m}, {s:.0%}" for m, s in places], lines)


def _disagreement(groups: Mapping[str, tables.Group]) -> str:
    found = []
    for model, group in groups.items():
        rounds = [r["disagreement"] for t in group.get(("isp", SPARSITIES[-1]), []) for r in t["rounds"]]
        if rounds:
            found.append(f"{statistics.mean(rounds):.0%} ({model})")
    return "Disagreement of ISP's candidates, share of the active weights, 90%: " + ", ".join(found)


def _changes(groups: Mapping[str, tables.Group]) -> str:
    """Lost / gained shares of the test examples, and the loss of the class that loses most, from :func:`tables.against_dense`."""
    by: dict[tuple[str, str], str] = {}
    for model, group in groups.items():
        for line in tables.against_dense(group)[2:]:
            fields = [f.strip() for f in line.strip("|").split("|")]
            if fields[0] == "90%":
                lost, gained = (float(f.rstrip("%")) for f in fields[3:5])
                by[fields[1], model] = f"{lost:.1f} / {gained:.1f}; {fields[5].split()[0]}"
    lines = [(method.label, [by.get((method.label, m), "") for m in groups]) for method in METHODS.values()]
    return _table("90% sparsity", groups, lines)


def _rates(rows: Mapping[str, Row], models: Sequence[str]) -> str:
    lines = []
    for model in models:
        kinds = {(c["settings"]["steps"], c["settings"]["batch"]) for r in rows.values() if (c := r["cell"])["phase"] == "tune" and c["model"] == model}  # fmt: skip
        for steps, batch in sorted(kinds):
            settings = {"steps": steps, "batch": batch}
            best = chosen(rows, model, settings)
            parts = []
            for lr, figures in trials(rows.values(), model, settings).items():
                mark = "**" if lr == best else ""
                ordered = [figures[k] for k in sorted(figures, key=lambda key: key[1])]
                told = " / ".join("diverged" if v < 0 else f"{v:.1f}" for v in ordered)
                parts.append(f"{mark}{lr:g}{mark}: {told}")
            lines.append((model, [f"{steps}, {batch}", "; ".join(parts)]))
    return _table("model", ["T, batch", "trials"], lines)
