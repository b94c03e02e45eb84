"""signs.html: a record written by hand, and what the page makes of it."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

from html_page import Page
from winnow.records.compression import ModelInfo, TaskInfo, Verdict
from winnow.records.signs import SignArm, SignContrast, SignCounts, SignLayer, SignPoint, SignReport, SignRun
from winnow.records.ticket import Figure, MethodLine
from winnow.report.signs.verdict import judge, told
from winnow.report.signs.view import summary, view


def counts(flipped: int, step: int | None = None, health: float | None = None, n: int = 200):
    given = dict(kept=n, compared=n, flipped=flipped, since=n, changed=2, shared=n // 2, aligned=n // 4, health=health)
    return SignCounts(**given) if step is None else SignPoint(step=step, **given)


def run(name: str = "training", layers: int = 3, sparsity: float | None = None) -> SignRun:
    points = [counts(0, 0), counts(10, 50, 0.5), counts(30, 100, 0.75)]
    made = [
        SignLayer(
            name=f"blocks.{i // 2}.fc{i % 2}.weight",
            numel=400,
            last=counts(10 * i, health=0.5),
            flips=[0.0, 0.01 * i, 0.02 * i],
        )
        for i in range(layers)
    ]
    return SignRun(name=name, sparsity=sparsity, points=points, layers=made)


def ablation(gain: Figure, metric: str = "accuracy") -> SignReport:
    unit = "%" if metric == "accuracy" else ""
    names = {
        "teacher": "pruned",
        "signs": "learned signs",
        "magnitudes": "learned magnitudes",
        "random": "<b>random</b>",
        "sign-in": "Sign-In",
        "initial": "initial",
    }

    def arm(name: str, level: float, value: float) -> SignArm:
        return SignArm(
            name=name,
            sparsity=level,
            zeros=90,
            figure=Figure(value=value, low=value - 1, high=value + 1),
            loss=Figure(value=0.5),
            values=[value - 0.5, value, value + 0.5],
            losses=[0.4, 0.5, 0.6],
        )

    levels = (0.9, 0.98)
    return SignReport(
        title="Signs of a net", created="2026-12-01T10:00:00+00:00", command="winnow signs", verdict=Verdict(sentence=""),
        model=ModelInfo(name="net", prunable=100), task=TaskInfo(metric=metric, unit=unit, higher_is_better=bool(unit), n=500),
        runs=[run(n, sparsity=s) for s in levels for n in names],
        arms=[arm(n, s, 90 + i) for s in levels for i, n in enumerate(names)],
        contrasts=[SignContrast(first=a, second=b, sparsity=s, gain=gain, loss=Figure(value=0.1)) for s in levels for a, b in (("signs", "magnitudes"), ("sign-in", "random"))],
        described={n: MethodLine(title=t) for n, t in names.items()}, seeds=[0, 1, 2], steps=100, reference="the pruned network",
        notes=["a note & more"],
    )  # fmt: skip


SURE, UNSURE, OTHER = (
    Figure(value=4.0, low=1.0, high=7.0),
    Figure(value=4.0, low=-1.0, high=9.0),
    Figure(value=-4.0, low=-5.0, high=-3.0),
)


@pytest.mark.parametrize(
    "gain, answer", [(SURE, "Signs matter more"), (UNSURE, "Not told apart"), (OTHER, "Magnitudes matter more"), (Figure(value=4.0), "Not told apart")]
)  # fmt: skip
def test_the_verdict_goes_by_the_paired_interval(gain, answer):
    found = judge(ablation(gain))
    assert found.answer == answer and found.tone == ("mixed" if answer == "Not told apart" else "good")
    assert "At 98% sparsity" in found.sentence and "91.00%" in found.sentence and "92.00%" in found.sentence
    assert ("+1.00 to +7.00" in found.sentence) == (gain is SURE)


@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
def test_the_page_of_an_ablation(metric):
    report = ablation(SURE, metric)
    report.verdict = judge(report)
    html = view(report).html()
    page = Page(html)
    assert page.headings == ["Signs against magnitudes", "Signs over training at 98% sparsity", "Flips by tensor: Sign-In, 98% sparsity", "Setup"]  # fmt: skip
    assert "Signs over training at 90% sparsity" in page.text  # folded
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids)) and not re.search(r"(src|href)=", html)
    assert "<b>random" not in html and "a note & more" in page.text and "Signs as in the pruned network" in page.text
    assert "50% at 90% sparsity and 50% at 98% sparsity" in page.text  # of the learned signs, before any training
    assert SignReport.model_validate_json(report.to_json()) == report
    console = Console(width=80)
    with console.capture() as said:
        console.print(summary(report))
    lines = said.get().splitlines()
    assert max(map(len, lines)) <= 80 and [line for line in lines if line.endswith("sparsity")] == [
        "90% sparsity",
        "98% sparsity",
    ]


def test_a_record_alone_says_what_became_of_the_signs():
    report = told(run(), "One training")
    assert report.verdict.sentence == (
        "After 100 steps 15% of the kept weights have another sign than at initialisation; 50% have the reference’s sign (50% at the "
        "start); beta fell to 50% of its target at its lowest."
    )
    html = view(report).html()
    assert Page(html).headings == ["Signs over training", "Flips by tensor"]
    cells = [float(v) for v in re.findall(r'class="heat sparsity"[^>]*fill-opacity="([\d.]+)"', html)]
    shares = [0.01 * i * k for i in range(3) for k in (1, 2)]  # three tensors, two records after the start
    assert cells[:6] == [pytest.approx(0.05 + 0.9 * s / 0.04, abs=0.006) for s in shares]


def test_many_tensors_are_summed_up_by_block_and_few_records_draw_nothing():
    many = view(told(run(layers=60), "Many")).html()
    assert "blocks.29" in Page(many).text and len(re.findall('class="heat', many)) == 2 * 2 * 30
    short = run()
    short.points = short.points[:1]
    short.layers = [layer.model_copy(update={"flips": [0.0]}) for layer in short.layers]
    html = view(told(short, "None")).html()
    assert "<svg" not in html and "All tensors in figures" in Page(html).text and "not a number" not in html
