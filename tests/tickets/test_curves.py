"""The picture of the ticket benchmark, from results that nobody measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from winnow.report.draw.labels import Box, text_width

pytest.importorskip("fcntl")  # the results file of the benchmarks is locked the POSIX way
from benchmarks.cells import Results
from benchmarks.tickets import curves
from benchmarks.tickets.cells import Cell, _steps
from benchmarks.tickets.methods import HARD, METHODS, RATES
from benchmarks.tickets.studies import chosen_rate, rates

T = 600
SVG = "{http://www.w3.org/2000/svg}"


def cell(method: str, seed: int, figures: Mapping[float, float], passes: float) -> dict[str, Any]:
    """A line of the results file: accuracy by sparsity."""
    settings = {"steps": T, "batch": 16, "lr": 1e-3}
    about = {"phase": "test", "model": "vit", "method": method, "variant": "", "seed": seed}
    tickets = [
        {"sparsity": s, "zeros_asked": round(1000 * s), "accuracy": a, "cost": {"steps": round(passes * T)}}
        for s, a in figures.items()
    ]
    row = {"key": f"{method}-{seed}-{min(figures)}", "numel": 1000, "source": "", "tickets": tickets}
    return row | {"cell": {**about, "settings": settings, "options": {}}}


def titles(picture: str) -> str:
    return "\n".join(e.text or "" for e in ElementTree.fromstring(picture).iter(f"{SVG}title"))


def test_three_cells_of_a_results_file(tmp_path: Path) -> None:
    """88 and 90: a mean of 89, and t(0.975, 1) = 12.706 times s / sqrt(2) = 1 either side."""
    rows = [cell("dense", 0, {0.0: 91.0}, 1.0)]
    rows += [cell("imp", seed, {0.5: 90.5, 0.9: 88.0 + 2 * seed}, 12.0) for seed in (0, 1)]
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert curves.write(Results(results).rows(), ["vit", "resnet"], tmp_path / "svg") == [
        tmp_path / "svg" / "tickets-vit.svg"
    ]
    picture = (tmp_path / "svg" / "tickets-vit.svg").read_text()
    assert "IMP at 90%: 89.00% (76.29 to 101.71), mean of 2 seeds, 12.00 T" in titles(picture)
    assert "dense 91.00" in picture and 'fill="#fff"' in picture and "var(--" not in picture


def test_one_sparsity_is_no_curve() -> None:
    assert curves.draw([cell("imp", 0, {0.9: 88.0}, 12.0)], "vit") is None
    assert curves.draw([], "vit") is None


def test_the_training_with_most_tickets_is_drawn() -> None:
    rows = [cell("isp", seed, {0.5: 90.0, 0.9: 85.0}, 1.4) for seed in range(3)]
    other = cell("isp", 9, {0.5: 20.0, 0.9: 10.0}, 1.4)
    other["cell"]["settings"]["lr"] = 1.0
    assert "ISP (vote) at 90%: 85.00%" in titles(curves.draw([*rows, other], "vit"))


@pytest.mark.parametrize("apart", [3.0, 0.1, 0.0])
def test_names_do_not_overlap(apart: float) -> None:
    """Every method at once, near to each other and not: each is named in both panels."""
    rows = [cell("dense", 0, {0.0: 91.0}, 1.0)]
    for i, (method, entry) in enumerate(METHODS.items()):
        passes = 12.0 if entry.whole else 1.4 if "isp" in method and method != "isp-plain" else 1.0
        if method != "dense":
            rows += [cell(method, seed, {0.5: 90.0, 0.9: 89.0 - apart * i}, passes) for seed in range(3)]
    panels = {e.get("class"): e for e in ElementTree.fromstring(curves.draw(rows, "vit")).iter(f"{SVG}svg")}
    for key in ("figure sparsity", "figure steps"):
        boxes = {}
        for text in panels[key].iter(f"{SVG}text"):
            if (text.get("class") or "").startswith("name"):
                said = list(text.itertext())[-1]  # what is seen, not its title
                x, y, wide = float(text.get("x", 0)), float(text.get("y", 0)), text_width(said, curves.FONT)
                left = x - wide if text.get("text-anchor") == "end" else x
                boxes[said] = Box(left, y - 0.75 * curves.FONT, left + wide, y)
        assert len(boxes) == len(METHODS) - 1
        assert min(box.left for box in boxes.values()) >= 0
        for (one, first), (two, second) in combinations(boxes.items(), 2):
            assert not first.hits(second), (one, two)


def trial(method: str, rate: float, figures: Mapping[float, float]) -> list[dict[str, Any]]:
    """Lines of the results file, one for each sparsity: what ``--phase rates`` leaves, the test accuracy beside it."""
    rows = []
    for sparsity, figure in figures.items():
        row = cell(method, 1000, {sparsity: 100 - figure}, 1.4)
        row["key"] += f"-{rate}"
        row["cell"] |= {"phase": "rates", "options": {"rate": rate, "budget": 1.4}, "sparsities": [sparsity]}
        row["tickets"][0]["hold_out"] = figure
        rows.append(row)
    return rows


def test_the_rate_of_a_rival_is_chosen_on_selection_data() -> None:
    settings = {"steps": T, "batch": 16, "lr": 1e-3}
    means = dict(zip(RATES, (60.0, 80.0, 70.0, 65.0), strict=True))
    rows = [
        row
        for rate, mean in means.items()
        for row in trial("imp-equal", rate, {s: mean - 50 * (s - 0.85) for s in HARD})
    ]
    known = {row["key"]: row for row in rows}
    assert chosen_rate(known, "vit", "imp-equal", settings) == RATES[1]
    assert f"**{RATES[1]:g}**: 82.5 / 77.5" in "\n".join(rates(known, "vit"))
    few = {row["key"]: row for row in rows[:-1]}
    assert chosen_rate(few, "vit", "imp-equal", settings) is None  # not before all are there
    assert chosen_rate(known, "vit", "lrr-equal", settings) is None
    assert chosen_rate(known, "vit", "imp-equal", {**settings, "lr": 2e-3}) is None


@pytest.mark.parametrize("sparsity", [0.8, 0.9])
@pytest.mark.parametrize("steps", [240, 600, 2400])
def test_rivals_in_its_steps_take_what_isp_takes(steps: int, sparsity: float) -> None:
    from types import SimpleNamespace

    from winnow.tickets.methods.registry import METHODS as FINDERS

    owner: Any = SimpleNamespace(steps=steps)

    def taken(name: str, **more: Any) -> int:
        method = METHODS[name]
        kind = FINDERS[method.finder].settings_class(**method.options(steps, (sparsity,)), **more)
        asked: Any = SimpleNamespace(steps=_steps(Cell("test", "vit", name, (sparsity,), 0, {"steps": steps})))
        return FINDERS[method.finder].planned_steps(kind, asked, sparsity)

    kind = FINDERS["isp"].settings_class(**METHODS["isp"].options(steps, ()))
    isp = FINDERS["isp"].planned_steps(kind, owner, sparsity)
    assert steps < isp == taken("isp-matched") <= 1.5 * steps
    for rate in (0.2, 0.5, 0.7, 0.9):
        for name in ("imp-equal", "lrr-equal"):
            assert isp - 13 <= taken(name, rate=rate) <= isp
    for name in ("magnitude-equal", "earlybird-equal"):
        assert isp - 1 <= taken(name) <= isp
