"""The report of a search for tickets: its figures against slow counts, its page, its file."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ticket_samples as samples
from html_page import Page
from winnow.errors import FormatError, InputError
from winnow.masks.mask import MaskSet
from winnow.measure.evaluation import Evaluation, Reference
from winnow.measure.intervals import paired_proportions
from winnow.records import ticket
from winnow.records.ticket import Figure, TicketReport
from winnow.report.draw.plot import picture
from winnow.report.ticket import chart as ticket_chart
from winnow.report.ticket import cost_chart as ticket_cost_chart
from winnow.report.ticket import heat as ticket_heat
from winnow.report.ticket import page
from winnow.report.ticket import words as said
from winnow.tickets import audit, reporting
from winnow.train.task.run import Cost

BAD = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)> & {{ 7 * 7 }} \u202e\x00"


@pytest.fixture(scope="module")
def several() -> TicketReport:
    """Four methods, two sparsities, three seeds."""
    tickets, dense, owner = samples.search(("isp", "magnitude", "imp", "random"), (0.5, 0.8), 3)
    return reporting.build(tickets, dense, owner, title="Several", model="vit", data="pets")


@pytest.fixture(scope="module")
def single() -> TicketReport:
    tickets, dense, owner = samples.search(("isp",), (0.9,), 1, 16)
    return reporting.build(tickets, Reference(dense[0], np.zeros(0, np.int64), torch.zeros(0, 0)), owner)


# Figures


def slow_answers(truth: np.ndarray, predictions: np.ndarray) -> Evaluation:
    right = (truth == predictions).astype(np.float64)
    names = [f"class {i}" for i in range(4)]
    return Evaluation(
        "accuracy", float(right.mean()), 0.0, 1.0, right, predictions, len(truth), truth, {"classes": names}
    )


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(-1, 3)), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_changes_and_classes_counted_one_by_one(rows: list[tuple[int, int, int]]) -> None:
    truth, before, after = (np.array(c) for c in zip(*rows))
    dense, other = slow_answers(truth, before), slow_answers(truth, after)
    found = audit.changes(dense, other)
    assert found is not None
    assert found.right_to_wrong == sum(t == b != a for t, b, a in rows)
    assert found.wrong_to_right == sum(t != b and t == a for t, b, a in rows)
    assert found.wrong_to_wrong == sum(t != b and t != a and b != a for t, b, a in rows)
    assert found.agreement == pytest.approx(sum(b == a for _, b, a in rows) / len(rows))
    assert found.changed == sum(b != a for _, b, a in rows)
    classes = {c.name: c for c in audit.classes(dense, other)}
    for i in range(4):
        own = [r for r in rows if r[0] == i]
        if not own:
            assert f"class {i}" not in classes
            continue
        c = classes[f"class {i}"]
        assert c.n == len(own)
        assert c.dense == pytest.approx(100 * sum(b == i for _, b, _ in own) / len(own))
        assert c.ticket == pytest.approx(100 * sum(a == i for _, _, a in own) / len(own))
        assert c.right_to_wrong == sum(b == i != a for _, b, a in own)
        assert c.wrong_to_right == sum(b != i and a == i for _, b, a in own)
    order = [c.ticket - c.dense for c in audit.classes(dense, other)]
    assert order == sorted(order)


def test_answers_that_are_not_classes_have_no_flips() -> None:
    values = np.random.default_rng(0).random(6)
    e = Evaluation("perplexity", 3.0, 2.0, 4.0, values, np.zeros((6, 3), np.int32), 6)
    assert audit.changes(e, e) is None and audit.classes(e, e) == []


def test_other_examples_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="one task"):
        audit.changes(samples.evaluation(0.9, 1), slow_answers(np.zeros(3, int), np.zeros(3, int)))


def test_drop_is_tangos_interval() -> None:
    dense, other = samples.evaluation(0.91, 1), samples.evaluation(0.88, 2)
    lost = int(((dense.per_example == 1) & (other.per_example == 0)).sum())
    gained = int(((dense.per_example == 0) & (other.per_example == 1)).sum())
    low, high = paired_proportions(lost, gained, samples.TEST)
    found = audit.drop(dense, other, True)
    assert found.value == pytest.approx(100 * (lost - gained) / samples.TEST)
    assert (found.low, found.high) == (pytest.approx(100 * low), pytest.approx(100 * high))


def test_pooled_by_hand() -> None:
    a, b, c = (Figure(value=v, low=v - 1, high=v + 2) for v in (10.0, 11.0, 15.0))
    two = audit.pooled([a, b])
    assert two is not None and (two.value, two.low, two.high, two.seeds) == (10.5, 9.5, 12.5, 2)
    three = audit.pooled([a, b, c])
    # mean 12, standard deviation sqrt(7), t of two degrees of freedom 4.303
    half = 4.302653 * math.sqrt(7 / 3)
    assert three is not None and three.spread == pytest.approx(math.sqrt(7))
    assert (three.low, three.high) == (pytest.approx(12 - half, abs=1e-5), pytest.approx(12 + half, abs=1e-5))
    alike = audit.pooled([a, a, a])
    assert alike is not None and (alike.low, alike.high) == (9.0, 12.0)  # seeds that agree do not make it certain
    edge = audit.pooled([Figure(value=v) for v in (1.0, 50.0, 99.0)], (0.0, 100.0))
    assert edge is not None and (edge.low, edge.high) == (0.0, 100.0)
    assert audit.pooled([]) is None


@given(st.integers(0, 2**30), st.floats(0.02, 0.98))
@settings(max_examples=30, deadline=None)
def test_overlap_counted_one_by_one(seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    keeps = [
        {n: torch.rand(s, generator=generator) < share for n, s in (("a", (4, 7)), ("b", (3, 11)))} for _ in range(2)
    ]
    flat = [torch.cat([k.flatten() for k in masks.values()]) for masks in keeps]
    found = audit.overlap(MaskSet(keeps[0]), MaskSet(keeps[1]), "imp")
    both, either = int((flat[0] & flat[1]).sum()), int((flat[0] | flat[1]).sum())
    sizes = [int(f.sum()) for f in flat]
    assert found.iou == pytest.approx(both / either if either else 1.0)
    if all(sizes):
        assert found.cosine == pytest.approx(both / math.sqrt(sizes[0] * sizes[1]))
        chance = sum(float(keeps[0][n].float().mean() * keeps[1][n].float().mean()) * keeps[0][n].numel() for n in "ab")
        assert found.chance_cosine == pytest.approx(chance / math.sqrt(sizes[0] * sizes[1]), rel=1e-5)
        assert found.chance_iou == pytest.approx(chance / (sum(sizes) - chance), rel=1e-5)


def test_random_masks_are_as_alike_as_chance_says() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = [
        MaskSet(
            {"a": torch.rand(400, 500, generator=generator) < 0.1, "b": torch.rand(300, 500, generator=generator) < 0.6}
        )
        for _ in range(2)
    ]
    found = audit.overlap(masks[0], masks[1], "imp")
    assert found.cosine == pytest.approx(found.chance_cosine, abs=0.005)
    assert found.iou == pytest.approx(found.chance_iou, abs=0.005)


def test_collapse_is_below_one_per_cent() -> None:
    keep = torch.zeros(100, 10, dtype=torch.bool)
    keep.view(-1)[:10] = True
    less = keep.clone()
    less.view(-1)[9] = False
    lines = audit.tensors(MaskSet({"enough": keep, "empty": less}), {"enough": 5.0})
    assert [t.name for t in ticket.collapsed(lines)] == ["empty"]
    assert (lines[0].kept, lines[0].numel, lines[0].flops) == (10, 1000, 5.0)


# Building


def test_rows_by_sparsity_and_method(several: TicketReport) -> None:
    assert [(r.method, r.sparsity, r.seeds) for r in several.rows] == [
        (m, s, 3) for s in (0.5, 0.8) for m in ("isp", "magnitude", "imp", "random")
    ]
    assert several.chosen == "isp" and several.reference == "imp" and several.steps == samples.STEPS
    assert several.task.metric == "accuracy" and several.task.n == samples.TEST


def test_row_is_the_mean_of_its_seeds(several: TicketReport) -> None:
    row, lines = several.row("isp", 0.8), several.lines("isp", 0.8)
    assert row is not None and row.figure is not None and row.drop is not None and row.against is not None
    assert [line.seed for line in lines] == [0, 1, 2]
    assert row.figure.value == pytest.approx(np.mean([line.figure.value for line in lines if line.figure]))
    assert row.drop.value == pytest.approx(np.mean([line.drop.value for line in lines if line.drop]))
    assert row.steps == lines[0].cost.steps == samples.STEPS + 10 * 25
    assert row.passes == pytest.approx(1 + 250 / 600) and row.imp_steps == 8 * samples.STEPS
    imp = several.lines("imp", 0.8)
    gaps = [b.figure.value - a.figure.value for a, b in zip(lines, imp) if a.figure and b.figure]
    assert row.against.value == pytest.approx(np.mean(gaps))


def test_one_dense_figure_a_seed_is_paired_with_it() -> None:
    tickets, dense, owner = samples.search(("magnitude",), (0.5,), 3)
    own = reporting.build(tickets, dense, owner)
    one = reporting.build(tickets, dense[1], owner)
    for i, line in enumerate(own.tickets):
        assert line.drop is not None and line.figure is not None
        assert line.drop.value == pytest.approx(100 * dense[i].value - line.figure.value)
    assert one.dense is not None and one.dense.value == pytest.approx(100 * dense[1].value)
    assert own.dense is not None and own.dense.seeds == 3


def test_seeds_given_pair_methods() -> None:
    tickets, dense, owner = samples.search(("magnitude", "imp"), (0.5,), 2)
    report = reporting.build(tickets, dense, owner, seeds=[4, 7, 7, 9])
    row = report.row("magnitude", 0.5)
    a, b = tickets[1].evaluation, tickets[2].evaluation  # the two of seed 7
    assert row is not None and row.against is not None and row.against.seeds == 1 and a is not None and b is not None
    assert row.against.value == pytest.approx(100 * (b.value - a.value))


def test_dense_tickets_serve_when_nothing_is_given() -> None:
    tickets, dense, owner = samples.search(("magnitude",), (0.5,), 1)
    own = samples.ticket("dense", 0.0, 0, owner, dense[0])
    report = reporting.build([own, *tickets], None, owner)
    assert report.chosen == "magnitude" and report.dense is not None
    assert report.dense.value == pytest.approx(100 * dense[0].value)
    assert report.row("dense", 0.0).drop is None  # not compared with itself
    text = Page(page.render(report)).text
    assert re.search(r"Dense +dense", text)


def test_nothing_measured_is_told() -> None:
    tickets, _, owner = samples.search(("magnitude",), (0.5,), 1)
    tickets[0].evaluation = None
    report = reporting.build(tickets, None, owner)
    assert "quality was not measured" in report.verdict.sentence and report.verdict.tone == "mixed"
    text = Page(page.render(report)).text
    assert "Quality not measured" in text and "Trade-off" not in text
    assert "Differences are paired" not in text and "1 T" in text


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"seeds": [1]}, "one for each ticket"),
        ({"tickets": []}, "no ticket"),
        ({"chosen": "isp"}, "name one of magnitude, imp"),
        ({"reference": "isp"}, "name one of magnitude, imp"),
        ({"dense": [samples.evaluation(0.9, i) for i in range(4)]}, "one for each seed"),
    ],
)
def test_what_cannot_be_built(changes: dict, match: str) -> None:
    tickets, dense, owner = samples.search(("magnitude", "imp"), (0.5,), 1)
    given = {"tickets": tickets, "dense": dense, "training": owner}
    with pytest.raises(InputError, match=match):
        reporting.build(**{**given, **changes})


def test_tickets_of_another_model_or_data() -> None:
    tickets, dense, owner = samples.search(("magnitude", "imp"), (0.5,), 1)
    with pytest.raises(InputError, match="another model"):
        reporting.build(tickets, dense, samples.training(blocks=7))
    tickets[0].evaluation = slow_answers(np.zeros(5, int), np.zeros(5, int))
    with pytest.raises(InputError, match="different data"):
        reporting.build(tickets, dense, owner)


# The verdict, and what to keep in mind


def verdict(value: float, high: float | None = None) -> tuple[str, str]:
    from winnow.records.compression import TaskInfo
    from winnow.records.ticket import Row
    from winnow.report.ticket.verdict import judge

    row = Row(
        method="isp", sparsity=0.8, zeros=8, seeds=1, figure=Figure(value=90.0), steps=700, passes=1.4, imp_steps=4000,
        drop=Figure(value=value, low=value - 1, high=value + 1 if high is None else high), dense_flops=1, sparse_flops=1,
        forward_share=0.3, seconds=1,
    )  # fmt: skip
    task = TaskInfo(metric="accuracy", unit="%")
    described = {"isp": ticket.MethodLine(title="ISP")}
    report = TicketReport.model_construct(rows=[row], chosen="isp", steps=500, task=task, described=described)
    found, sparsity = judge(report)
    assert sparsity == 0.8
    return found.tone, found.sentence.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("value", "high", "tone"),
    [(0.4, 0.9, "good"), (-0.3, 2.0, "good"), (0.9, 2.0, "mixed"), (4.9, 6.0, "mixed"), (5.1, 6.0, "bad"), (math.nan, math.nan, "bad")],
)  # fmt: skip
def test_tone(value: float, high: float, tone: str) -> None:
    assert verdict(value, high)[0] == tone


def test_sentence() -> None:
    assert verdict(0.4, 0.9)[1] == (
        "ISP at 80% sparsity: accuracy 90.00%, −0.40 points against dense (−0.90 to +0.60), in 1.4 T (700 steps); "
        "full IMP takes 8 T."
    )


def test_a_trade_off_says_on_what_it_depends() -> None:
    assert verdict(4.9, 6.0)[1].endswith("It depends on whether that sparsity is worth 4.90 points of accuracy.")
    assert verdict(0.9, 2.0)[1].endswith(
        "It depends on whether more than 1 point is lost, which these runs leave open."
    )
    assert "depends" not in verdict(0.4, 0.9)[1] + verdict(5.1, 6.0)[1]


def test_verdict_is_about_the_highest_sparsity_that_costs_little(several: TicketReport) -> None:
    """50% costs 0.5 points in the samples, 80% more than three."""
    assert several.sparsity == 0.5
    assert "IMP reaches" in several.verdict.sentence and "\u00a0T" in several.verdict.sentence


def test_collapse_and_late_masks_are_warned_about(single: TicketReport) -> None:
    assert any("less than 1% of the weights" in w and "of 512" in w for w in single.warnings)
    tickets, dense, owner = samples.search(("isp",), (0.5,), 1)
    tickets[0].history[-1].step = 400
    report = reporting.build(tickets, dense, owner)
    assert any("66.7% of T had gone before the last mask" in w for w in report.warnings)
    rule = report.tickets[0].cost.isp
    assert rule is not None and not rule.kept and (rule.rounds, rule.look_ahead) == (5, 125)


def test_few_seeds_are_warned_about(several: TicketReport) -> None:
    assert not any("seed" in w for w in several.warnings)
    tickets, dense, owner = samples.search(("isp", "imp"), (0.5,), 1)
    assert any("one seed" in w for w in reporting.build(tickets, dense, owner).warnings)


# The file


@pytest.mark.parametrize("name", ["several", "single"])
def test_survives_json(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    report = request.getfixturevalue(name)
    path = page.write(report, tmp_path / "new" / "folder")
    assert path.read_text() == page.render(report)
    assert page.read(path.parent) == report
    assert page.render(page.read(path.parent)) == page.render(report)
    assert sorted(p.name for p in path.parent.iterdir()) == [page.DATA, page.PAGE]


def test_damaged_or_unknown_files(several: TicketReport, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=page.DATA):
        page.read(tmp_path)
    page.write(several, tmp_path)
    data = tmp_path / page.DATA
    whole = json.loads(data.read_text())
    data.write_text(data.read_text()[:-40])
    with pytest.raises(FormatError, match="not JSON"):
        page.read(tmp_path)
    older = {k: v for k, v in whole.items() if k != "described"}  # written before there were descriptions
    data.write_text(json.dumps(older))
    assert page.read(tmp_path).named("isp") == "isp" and several.named("isp") == "ISP"
    data.write_text(json.dumps(whole | {"format": 2}))
    with pytest.raises(FormatError, match="format 2"):
        page.read(tmp_path)
    data.write_text(json.dumps(whole | {"steps": -1}))
    with pytest.raises(FormatError, match=r"damaged \(steps\)"):
        page.read(tmp_path)


def test_a_folder_that_cannot_be_written(several: TicketReport, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="may write to"):
        page.write(several, tmp_path / "file")


# The page


@pytest.mark.parametrize("name", ["several", "single"])
def test_page_is_one_file(name: str, request: pytest.FixtureRequest) -> None:
    words = Page(page.render(request.getfixturevalue(name)))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in words.tags}
    for _, attributes in words.tags:
        assert not {"src", "href"} & set(attributes)
    ids = [a["id"] for _, a in words.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert "nan" not in words.text.lower().split() and "None" not in words.text


def test_page_says_what_it_must(several: TicketReport) -> None:
    text = Page(page.render(several)).text
    row = several.row("isp", 0.5)
    assert row is not None and row.figure is not None
    for wanted in (
        f"{row.figure.value:.2f}%", "full IMP: 4 T, 2,400 steps", "Vs dense, points", "Vs IMP", "1.21 T",
        "Right to wrong", "Wrong to right", "Agreement", "Mask similarity to IMP", "by chance",
        "Candidates differ", "One training, T", "600 steps of 8 examples", "cat", "Means over 3 seeds",
        "125 steps of discarded candidates", "5, in 150 main steps: 25% of T",
    ):  # fmt: skip
        assert wanted in text, wanted


def test_names_are_escaped(several: TicketReport) -> None:
    evil = several.model_copy(deep=True)
    evil.title = evil.command = BAD
    evil.notes = [BAD]
    evil.tickets[0].tensors[0].name = BAD
    evil.tickets[0].classes[0].name = BAD
    evil.task.evaluation_data = BAD
    text = page.render(TicketReport.model_validate_json(evil.to_json()))
    assert "<script" not in text and "<img" not in text and "\u202e" not in text and "\x00" not in text
    assert "{{ 7 * 7 }}" in Page(text).text
    Page(text)


def test_long_tables_are_folded() -> None:
    tickets, dense, owner = samples.search(tuple(samples.LOSSES), (0.5, 0.8), 1)
    report = reporting.build(tickets, dense, owner)
    words = Page(page.render(report))
    assert len(report.rows) == 30
    assert words.text.count("Other sparsities") == 3
    summaries = sum(tag == "summary" for tag, _ in words.tags)
    assert summaries >= 3


# The pictures


def attributes(svg: str, tag: str, css: str) -> list[dict[str, str]]:
    found = re.findall(rf'<{tag} class="{css}"([^>]*)>', svg)
    return [dict(re.findall(r'([\w-]+)="([^"]*)"', text)) for text in found]


@pytest.mark.parametrize("width", [900.0, 358.0])
def test_points_stand_where_their_figures_are(several: TicketReport, width: float) -> None:
    """More accuracy is higher, more zeros farther right; no mark is outside of the picture."""
    svg = str(picture(partial(ticket_chart.by_sparsity, several), "k", width, 11.0))
    titles = re.findall(r'<circle class="hit" cx="([\d.]+)" cy="([\d.]+)"[^>]*><title>([^<]*)', svg)
    assert len(titles) == len(several.rows)
    spots = {t.split(":")[0]: (float(x), float(y)) for x, y, t in titles}
    assert spots["ISP at 50%"][0] < spots["ISP at 80%"][0] and spots["ISP at 50%"][1] < spots["ISP at 80%"][1]
    assert spots["IMP at 80%"][1] < spots["ISP at 80%"][1] < spots["one-shot magnitude at 80%"][1]
    assert all(0 <= x <= width and 0 <= y <= 380 for x, y in spots.values())
    names = re.findall(r'<text class="name[^"]*" x="([\d.]+)" y="([\d.]+)"', svg)
    ys = sorted(float(y) for _, y in names)
    assert len(ys) == 4 and min(b - a for a, b in pairwise(ys)) > 11


def test_values_beyond_the_scale_have_arrows() -> None:
    tickets, dense, owner = samples.search(("isp", "magnitude", "imp", "random"), (0.5, 0.9), 1)
    report = reporting.build(tickets, dense, owner)
    svg = str(picture(partial(ticket_cost_chart.by_steps, report), "k", 900, 12.0))
    assert 'class="arrow' in svg and "random (2" in svg


@pytest.mark.parametrize("width", [900.0, 358.0])
def test_flops_have_two_ends(several: TicketReport, width: float) -> None:
    svg = str(picture(partial(ticket_cost_chart.by_flops, several), "k", width, 11.0))
    assert len(re.findall('class="ticket [^"]*hollow"', svg)) == len(several.rows)
    assert svg.count("training MFLOP") + svg.count("training GFLOP") == 2  # an axis a panel
    left = [float(a["x1"]) for a in attributes(svg, "line", "whisker pruned")]
    assert left and min(left) > 0


def test_one_sparsity_has_no_line_over_sparsities(single: TicketReport) -> None:
    assert picture(partial(ticket_chart.by_sparsity, single), "k", 900, 12.0) is None
    assert picture(partial(ticket_cost_chart.by_steps, single), "k", 900, 12.0) is None  # one point tells nothing


def test_every_method_is_told_apart() -> None:
    tickets, dense, owner = samples.search(tuple(samples.LOSSES), (0.5,), 1)
    own = samples.ticket("dense", 0.0, 0, owner, dense[0])
    looks = ticket_chart.styles(reporting.build([own, *tickets], dense, owner))
    assert len({(s.css, s.shape) for s in looks.values()}) == len(looks) == 16


def test_labels_keep_their_order_and_distance() -> None:
    found = ticket_chart.apart([50.0, 51.0, 49.0, 200.0, 199.5], 12.0, 0.0, 210.0)
    order = sorted(range(5), key=lambda i: found[i])
    assert order == [2, 0, 1, 4, 3]
    assert min(found[b] - found[a] for a, b in pairwise(order)) >= 12.0 - 1e-9
    assert min(found) >= 0 and max(found) <= 210


def test_lines_end_where_the_axis_does() -> None:
    line = [(0.0, 15.0), (10.0, 5.0), (20.0, 0.0), (30.0, 30.0)]
    found = ticket_chart._visible(line, (10.0, 20.0))
    assert found[0] == [(0.0, 15.0), (5.0, 10.0)]
    assert [(pytest.approx(x), pytest.approx(v)) for x, v in found[1]] == [(20 + 10 / 3, 10.0), (20 + 20 / 3, 20.0)]
    assert len(found) == 2


def test_heat_tells_rounds_and_methods(several: TicketReport, single: TicketReport) -> None:
    line = several.lines("isp", 0.8)[0]
    svg = str(picture(partial(ticket_heat.by_round, several, line), "k", 900, 12.0))
    assert len(re.findall(r'<rect class="heat', svg)) == len(line.rounds) * len(line.tensors)
    first = line.rounds[0].densities[line.tensors[0].name]
    assert f"{100 * first:.0f}</text>" in svg
    methods = str(picture(partial(ticket_heat.by_method, several), "k", 900, 12.0))
    assert len(re.findall(r'<rect class="heat', methods)) == 4 * len(line.tensors)
    # more than forty tensors are told by block, and a block with an empty tensor is marked
    blocks = str(picture(partial(ticket_heat.by_round, single, single.tickets[0]), "k", 900, 12.0))
    assert len(re.findall(r'<rect class="heat', blocks)) == len(single.tickets[0].rounds) * 16
    assert 'class="heat error' in blocks and "nearly empty" in blocks
    assert picture(partial(ticket_heat.by_round, several, several.lines("magnitude", 0.8)[0]), "k", 900, 12.0) is None
    assert picture(partial(ticket_heat.by_method, single), "k", 900, 12.0) is None


# Words


def test_words() -> None:
    flops = {
        1.234e15: "1.23 PFLOP",
        12.34e9: "12.3 GFLOP",
        999.96e6: "1.00 GFLOP",
        523.0: "523 FLOP",
        0.0: "0 FLOP",
        None: "",
    }
    assert {value: said.flops(value) for value in flops} == flops
    passes = {1.0: "1 T", 1.286: "1.29 T", 10.0: "10 T", 20.04: "20 T"}
    assert {value: said.passes(value) for value in passes} == passes
    assert (said.signed(-0.004), said.signed(-1.5)) == ("0.00", "−1.50")


def test_perplexity_falls() -> None:
    """Lower is better: a rise is a loss in per cent, told with a plus."""
    tickets, _, owner = samples.search(("magnitude", "imp"), (0.5,), 1)

    def language(nll: float) -> Evaluation:
        values = nll + 0.1 * np.random.default_rng(0).standard_normal(80)
        value = math.exp(values.mean())
        return Evaluation("perplexity", value, 0.99 * value, 1.01 * value, values, np.zeros((80, 4), np.int32), 80)

    for t, nll in zip(tickets, (3.1, 3.05)):
        t.evaluation = language(nll)
    report = reporting.build(tickets, language(3.0), owner, chosen="magnitude")
    assert report.task.metric == "perplexity" and not report.task.higher_is_better
    assert report.picked.drop is not None and report.picked.drop.value == pytest.approx(100 * math.expm1(0.1))
    text = Page(page.render(report)).text
    assert "+10.52% against dense" in text.replace("\u00a0", " ") and "Right to wrong" not in text
    svg = str(picture(partial(ticket_cost_chart.by_steps, report), "k", 900, 12.0))
    spots = dict(re.findall(r'cy="([\d.]+)" r="7.2"><title>(\S+)', svg))
    high = {name: float(y) for y, name in spots.items()}
    assert high["IMP"] > high["one-shot"]  # the lower perplexity is lower


def test_costs_without_any_step() -> None:
    tickets, dense, owner = samples.search(("magnitude", "imp"), (0.5,), 1)
    tickets[0].cost = Cost()
    report = reporting.build(tickets, dense, owner)
    Page(page.render(report))
    assert picture(partial(ticket_cost_chart.by_steps, report), "k", 900, 12.0) is None


def test_a_heat_map_without_figures_names_no_unit(single: TicketReport) -> None:
    """Of few tensors the cells have figures, of many only colours."""
    few, many = single.model_copy(deep=True), single.model_copy(deep=True)
    for report, kept in ((few, 6), (many, 30)):
        for line in report.tickets:
            line.tensors = line.tensors[:kept]
    for report in (few, many):
        told = page.render(report)
        assert ("kept of each tensor, in per cent" in told) == ('class="cell"' in told)
    assert 'class="cell"' in page.render(few) and 'class="cell"' not in page.render(many)


@pytest.mark.parametrize(("batch", "words"), [(16.0, "of 16 examples"), (15.8, "of about 16 examples")])
def test_examples_of_a_step_are_whole(single: TicketReport, batch: float, words: str) -> None:
    report = single.model_copy(update={"batch": batch})
    assert words in page.render(report)
