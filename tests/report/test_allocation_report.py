"""The allocation's part of the report: the record, the comparison with an earlier run, the picture, page and terminal."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

import allocation_samples as samples
import report_samples
from html_page import Page
from winnow.compression.earlier import compare, earlier_record
from winnow.errors import FormatError, InputError
from winnow.records.allocation import AllocationLayer, AllocationRecord, Stability, StepTime
from winnow.records.compression import Report
from winnow.report.allocation import chart as allocation_chart
from winnow.report.allocation import curve as allocation_curve
from winnow.report.allocation import tables as allocation_tables
from winnow.report.allocation import words as said
from winnow.report.allocation.tables import arrange
from winnow.report.allocation.view import headline
from winnow.report.compression import page as html
from winnow.report.compression.console import summary
from winnow.report.draw.plot import picture
from winnow.train.distil.fit import downsample

BAD = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)> & {{ 7 * 7 }} \u202e\x00"
SAMPLES = {"resnet": samples.resnet, "encoder": samples.encoder, "decoder": samples.decoder}


def report_with(record: AllocationRecord | None) -> Report:
    return report_samples.minimal().model_copy(update={"allocation": record})


def bare(rates: dict[str, float], **more: object) -> AllocationRecord:
    """Names and rates only: all that a record cannot do without."""
    layers = [AllocationLayer(name=name, numel=100, rate=rate) for name, rate in rates.items()]
    return AllocationRecord.model_validate({"method": "fcpts", "layers": layers, **more})


def text_of(record: AllocationRecord | None) -> str:
    return Page(html.render(report_with(record))).text


def printed(record: AllocationRecord, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False).print(summary(report_with(record)))
    return out.getvalue()


# The record


@pytest.mark.parametrize("sample", SAMPLES)
def test_record_survives_json(sample: str, tmp_path: Path) -> None:
    report = report_with(SAMPLES[sample]())
    html.write(report, tmp_path)
    assert html.read(tmp_path) == report
    assert html.render(html.read(tmp_path)) == html.render(report)


def test_reports_of_older_runs_still_load(tmp_path: Path) -> None:
    html.write(report_samples.classifier(), tmp_path)
    path = tmp_path / "report.json"
    old = json.loads(path.read_text())
    del old["allocation"]
    path.write_text(json.dumps(old))
    assert html.read(tmp_path) == report_samples.classifier()
    assert "Sparsity allocation" not in html.render(html.read(tmp_path))


def test_rates_are_shares_but_rounding_is_forgiven() -> None:
    assert AllocationLayer(name="a", numel=1, rate=1.0 + 2e-7, raw_rate=-1e-8).rate == 1.0
    for rate in (1.01, -0.01, math.nan):
        with pytest.raises(ValidationError):
            AllocationLayer(name="a", numel=1, rate=rate)
    with pytest.raises(ValidationError):
        AllocationLayer(name="a", numel=1, rate=0.5, unknown=1)  # type: ignore[call-arg]


@given(st.lists(st.floats(-1e3, 1e3), max_size=700), st.integers(1, 250))
@settings(max_examples=60, deadline=None)
def test_thin_gives_means_of_equal_stretches(losses: list[float], points: int) -> None:
    found = downsample(losses, points)
    if len(losses) <= points:
        assert found == losses
        return
    edges = [math.floor(i * len(losses) / points) for i in range(points + 1)]
    assert len(found) == points
    assert found == pytest.approx([float(np.mean(losses[a:b])) for a, b in pairwise(edges)], abs=1e-9)
    assert {b - a for a, b in pairwise(edges)} <= {len(losses) // points, len(losses) // points + 1}


def test_thin_keeps_200_by_default() -> None:
    found = downsample(list(range(1000)))
    assert len(found) == 200 and found[0] == 2.0 and found[-1] == 997.0
    with pytest.raises(ValueError, match="at least 1"):
        downsample([1.0, 2.0], 0)


# The comparison


def test_compare_by_hand() -> None:
    now = bare({"a": 0.9, "b": 0.5, "c": 0.7, "d": 0.2})
    then = bare({"d": 0.3, "b": 0.8, "a": 0.85, "c": 0.7})
    found = compare(now, then, "last week")
    assert found.against == "last week" and (found.matched, found.only_here, found.only_earlier) == (4, 0, 0)
    assert found.moved == pytest.approx((0.05 + 0.3 + 0 + 0.1) / 4)
    assert found.largest == "b" and found.difference == pytest.approx(-0.3)
    # ranks now a4 b2 c3 d1, then a4 b3 c2 d1: 1 - 6 * 2 / (4 * 15)
    assert found.correlation == pytest.approx(0.8)
    assert [x.earlier_rate for x in now.layers] == [0.85, 0.8, 0.7, 0.3]
    assert all(x.earlier_rate is None for x in then.layers)


def test_renamed_layers_are_counted_and_said() -> None:
    now, then = bare({"a": 0.9, "b": 0.5, "new": 0.7}), bare({"a": 0.8, "b": 0.6, "old": 0.1, "older": 0.2})
    now.comparison = compare(now, then, "before")
    assert (now.comparison.matched, now.comparison.only_here, now.comparison.only_earlier) == (2, 1, 2)
    assert [x.earlier_rate for x in now.layers] == [0.8, 0.6, None]
    for text in (text_of(now), printed(now, 200)):
        assert "1 layer of this run is not in it" in text and "2 layers of it are not in this run" in text
        assert "rates moved by 10.00 points on average, most in a (+10.00)" in text


def test_nothing_in_common() -> None:
    now = bare({"a": 0.9, "b": 0.5})
    now.comparison = compare(now, bare({"c": 0.5}), "before")
    assert now.comparison.moved is None and now.comparison.largest is None and now.comparison.correlation is None
    assert "before: no layer has a name in common with it" in text_of(now)


def test_a_second_comparison_forgets_the_first() -> None:
    now = bare({"a": 0.9, "b": 0.5})
    compare(now, bare({"a": 0.1, "b": 0.1}), "one")
    compare(now, bare({"a": 0.2}), "two")
    assert [x.earlier_rate for x in now.layers] == [0.2, None]


@pytest.mark.parametrize("rates", [{"a": 0.5}, {"a": 0.5, "b": 0.5}])
def test_no_correlation_without_an_order(rates: dict[str, float]) -> None:
    found = compare(bare(rates), bare(rates), "same")
    assert found.correlation is None and found.moved == 0.0


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=2, max_size=20))
@settings(max_examples=60, deadline=None)
def test_correlation_against_ranks_counted_slowly(pairs: list[tuple[int, int]]) -> None:
    now = bare({str(i): a / 20 for i, (a, _) in enumerate(pairs)})
    then = bare({str(i): b / 20 for i, (_, b) in enumerate(pairs)})
    found = compare(now, then, "x")

    def ranks(values: list[int]) -> np.ndarray:
        return np.array([sum(w < v for w in values) + 0.5 * sum(w == v for w in values) for v in values])

    a, b = ranks([p[0] for p in pairs]), ranks([p[1] for p in pairs])
    if a.std() == 0 or b.std() == 0:
        assert found.correlation is None
    else:
        expected = ((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std())
        assert found.correlation == pytest.approx(expected, abs=1e-9)


def test_earlier_record_of_a_folder(tmp_path: Path) -> None:
    record = samples.resnet()
    html.write(report_with(record), tmp_path)
    assert earlier_record(tmp_path) == record
    assert compare(samples.resnet(), earlier_record(tmp_path), "same").moved == 0.0


def test_earlier_record_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no report\.json") as caught:
        earlier_record(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)
    for record in (None, bare({})):
        html.write(report_with(record), tmp_path)
        with pytest.raises(InputError, match=r"holds no allocation .*method fcpts"):
            earlier_record(tmp_path)
    path = tmp_path / "report.json"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(FormatError, match="not JSON"):
        earlier_record(tmp_path)


# Words


@pytest.mark.parametrize(
    ("say", "expected"),
    [
        (said.rate, {0.95: "95.00", 0.999999: "> 99.99", 1e-6: "< 0.01", 0.0: "0.00", None: ""}),
        (said.points, {-0.0123: "−1.23", 0.1: "+10.00", 1e-6: "0.00"}),
        (said.block, {"model.layers.3.mlp.up_proj.weight": "model.layers.3", "layer1.0.conv2.weight": "layer1.0"}),
        (said.block, {"features.4.weight": "", "fc": ""}),
        (said.kind, {"model.layers.3.mlp.experts.7.up.weight": "mlp.experts.*.up"}),
        (said.named, {"erk": "ERK", "mine": "mine", None: ""}),
        (said.milliseconds, {0.2051: "205 ms", 0.0021: "2.10 ms"}),
        (said.small, {0.000123: "0.000123", 1.23e-5: "1.2e−5", -2.5: "−2.50", math.inf: "∞"}),
    ],
)
def test_numbers_as_people_read_them(say: Callable, expected: dict) -> None:
    assert {value: say(value) for value in expected} == expected


def test_a_column_has_one_power_of_ten() -> None:
    unit, show = said.scaled([0.0004, 0.00291, None, -0.00006, math.inf])
    assert unit == ", ×10⁻³"
    assert [show(v) for v in (0.0004, 0.00291, None, -0.00006, -1e-9, math.inf)] == ["0.40", "2.91", "", "−0.06", "0.00", "∞"]  # fmt: skip
    unit, show = said.scaled([1.5, 0.2])
    assert (unit, show(1.5), show(0.2)) == ("", "1.50", "0.20")
    unit, show = said.scaled([None, 0.0])
    assert (unit, show(0.0)) == ("", "0")


def test_deviation_over_seeds() -> None:
    layer = AllocationLayer(name="a", numel=1, rate=0.5, rates=[0.5, 0.6, 0.7])
    assert said.deviation(layer) == pytest.approx(float(np.std([0.5, 0.6, 0.7])))
    assert said.deviation(AllocationLayer(name="a", numel=1, rate=0.5, rates=[0.5])) is None


def test_names_lose_what_they_share() -> None:
    assert said.shortened(["m.layer.0.q.weight", "m.layer.1.q.weight"]) == ["layer.0.q", "layer.1.q"]
    assert said.shortened(["layer1.0.conv1", "fc"]) == ["layer1.0.conv1", "fc"]
    assert said.shortened(["only.one.weight"]) == ["only.one"]
    assert said.shortened(["a", "a"]) == ["a", "a"]


# The page


def test_page_holds_every_figure() -> None:
    record = samples.resnet()
    text = text_of(record)
    chapter = text[text.index("Sparsity allocation") :]
    for promised in (
        "Method FCPTS",
        "Started from ERK",
        "Target 95%",
        f"{record.zeros:,} of 268,336 prunable weights",
        "By thresholds alone 95.13% (+0.13 points from the target)",
        "of all 269,946 parameters",
        "600 steps in 2 min 3 s",
        "3 seeds; a layer's rate varies by 3.20 points at most (standard deviation); mean rank correlation between two seeds 0.91",
        "Compared with runs/resnet20-0.94: rates moved by",
        "Time per step: 205 ms",  # 2.1 + 71 + 118 + 8.2 + 6.1
        "Dense model 2.10 ms 1.0%",
        "Backward 118 ms 57.4%",  # 118 / 205.4
        "Bridge from threshold to rate 8.20 ms 4.0%",
        "Sensitivity, ×10⁻³",
        "The 20 layers in figures",
        "threshold lr 0.01",
    ):
        assert promised in chapter, promised
    first = text[: text.index("Sparsity allocation")]
    assert record.warnings[0] in first and record.warnings[0] not in chapter  # once, where it is seen first


def test_table_row_by_hand() -> None:
    layer = AllocationLayer(
        name="conv.weight", numel=1000, rate=0.9, raw_rate=0.905, start_rate=0.85, sensitivity=0.0123, drift=0.257,
        rates=[0.9, 0.94], earlier_rate=0.88,
    )  # fmt: skip
    record = bare({}).model_copy(update={"layers": [layer]})
    table = allocation_tables.layers(record)
    figures = {c.title: text for c, (text, _, _) in zip(table.columns, table.rows[0].cells, strict=True)}
    assert figures == {
        "Weights": "1,000", "Sparsity, %": "90.00", "By threshold": "90.50", "Start": "85.00", "Change": "+5.00",
        "Sensitivity, ×10⁻³": "12.3", "Drift, %": "25.7", "Seeds": "±2.00", "Earlier": "88.00",
    }  # fmt: skip


def test_missing_figures_leave_no_hole() -> None:
    record = bare({"a.weight": 0.25, "b.weight": 0.75})
    page = html.render(report_with(record))
    text = Page(page).text
    chapter = text[text.index("Sparsity allocation") :]
    for absent in ("None", "nan", "Sensitivity", "start", "range over", "Seeds", "Earlier", "Drift", "Time per step", "Loss", "Settings", "target:", "Stability"):  # fmt: skip
        assert absent not in chapter, absent
    assert "25.00" in chapter and "75.00" in chapter
    assert 'class="start"' not in page and 'class="range"' not in page and 'class="target"' not in page
    assert "None" not in printed(record)


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("field", [n for n in AllocationRecord.model_fields if n != "method"])
def test_any_part_may_be_missing(field: str, sample: str) -> None:
    if sample == "decoder" and field not in ("layers", "target"):
        return  # one large sample twice is enough
    record = SAMPLES[sample]()
    empty = bare({})
    lacking = record.model_copy(update={field: getattr(empty, field)})
    assert "None" not in text_of(lacking) and "None" not in printed(lacking)


@pytest.mark.parametrize("field", [n for n in AllocationLayer.model_fields if n not in ("name", "numel", "rate")])
def test_any_figure_of_a_layer_may_be_missing(field: str) -> None:
    record = samples.resnet()
    for i, x in enumerate(record.layers):
        if i % 2:
            setattr(x, field, [] if field == "rates" else None)
    assert "None" not in text_of(record) and "None" not in printed(record)


def test_no_allocation_no_chapter() -> None:
    assert "Sparsity allocation" not in text_of(None)
    assert "Allocation" not in printed_report(report_with(None))


def printed_report(report: Report) -> str:
    out = io.StringIO()
    Console(file=out, width=100).print(summary(report))
    return out.getvalue()


def test_a_warning_is_said_once() -> None:
    record = bare({"a": 0.5}, warnings=["mind the gap", "and the step"])
    report = report_with(record).model_copy(update={"notes": ["mind the gap", "something else"]})
    text = Page(html.render(report)).text
    terminal = printed_report(report)
    for sentence in ("mind the gap", "and the step", "something else"):
        assert text.count(sentence) == 1 and terminal.count(sentence) == 1
    assert "Warning: mind the gap" in terminal and "Note: something else" in terminal


def test_hostile_text_stays_text() -> None:
    record = samples.resnet()
    values = record.model_dump()
    values.update(method=BAD, start=BAD, structure=BAD, warnings=[BAD], settings={BAD: BAD})
    values["comparison"].update(against=BAD, largest=BAD)
    values["layers"] = [{**x, "name": BAD + x["name"]} for x in values["layers"]]
    hostile = AllocationRecord.model_validate(values)
    page = html.render(report_with(hostile))
    words = Page(page)
    assert "<script" not in page and "script" not in words.tags and "img" not in words.tags
    assert "<script>alert('x')</script>" in words.text and "{{ 7 * 7 }}" in words.text
    assert "\u202e" not in page and "\x00" not in page
    assert "\u202e" not in printed(hostile)
    assert "https://" not in page and "url(" not in page


# The picture


def shapes(figure: str, tag: str, css: str) -> list[dict[str, float]]:
    found = re.findall(rf'<{tag} class="{css}"([^>]*)>', figure)
    return [{k: float(v) for k, v in re.findall(r'([a-z0-9]+)="(-?[\d.]+)"', attributes)} for attributes in found]


def test_coordinates_by_hand() -> None:
    """Rates 40 and 80% on an axis of 38 to 82%: positions follow from two grid lines, whatever the margins are."""
    layers = [
        AllocationLayer(name="a", numel=100, rate=0.4, start_rate=0.5, sensitivity=0.1, rates=[0.4, 0.45]),
        AllocationLayer(name="b", numel=300, rate=0.8, earlier_rate=0.7, sensitivity=0.4),
    ]
    record = AllocationRecord(method="fcpts", layers=layers, target=0.7)
    assert allocation_chart.extent(record) == pytest.approx((38.0, 82.0))
    figure = str(picture(partial(allocation_chart.draw, record), "k", 900, 12.0))
    grid = [line["x1"] for line in shapes(figure, "line", "grid")]
    ticks = [float(t) for t in re.findall(r'text-anchor="middle">([\d.]+)</text>', figure)]
    assert len(grid) == len(ticks) >= 2
    per_point = (grid[-1] - grid[0]) / (ticks[-1] - ticks[0])

    def at(percent: float) -> float:
        return grid[0] + (percent - ticks[0]) * per_point

    dots, stems = shapes(figure, "circle", "rate"), shapes(figure, "line", "stem")
    assert [d["cx"] for d in dots] == pytest.approx([at(40), at(80)], abs=0.15)
    assert dots[1]["cy"] - dots[0]["cy"] == pytest.approx(20)
    assert [(s["x1"], s["x2"]) for s in stems] == [pytest.approx((at(70), at(p)), abs=0.15) for p in (40, 80)]
    (start,), (target,) = shapes(figure, "line", "start"), shapes(figure, "line", "target")
    assert start["x1"] == start["x2"] == pytest.approx(at(50), abs=0.15)
    assert (start["y1"] + start["y2"]) / 2 == pytest.approx(dots[0]["cy"])
    assert target["x1"] == target["x2"] == pytest.approx(at(70), abs=0.15)
    (span,) = shapes(figure, "rect", "range")
    assert (span["x"], span["x"] + span["width"]) == pytest.approx((at(40), at(45)), abs=0.2)
    (corners,) = re.findall(r'<polygon class="earlier" points="([^"]*)"', figure)
    xs, ys = zip(*(map(float, c.split(",")) for c in corners.split()))
    assert (min(xs) + max(xs)) / 2 == pytest.approx(at(70), abs=0.15) and sum(ys) / 4 == pytest.approx(dots[1]["cy"])
    bars = shapes(figure, "rect", "sense")
    assert bars[0]["width"] / bars[1]["width"] == pytest.approx(0.25, abs=0.01)
    assert bars[1]["x"] + bars[1]["width"] < 900


def test_columns_by_hand() -> None:
    """224 layers: every line of the picture has the same axis, upright."""
    record = samples.decoder()
    figure = str(picture(partial(allocation_chart.draw, record), "k", 900, 12.0))
    low, high = allocation_chart.extent(record)
    dots, stems, targets = (shapes(figure, t, c) for t, c in (("circle", "rate"), ("line", "stem"), ("line", "target")))
    assert len(dots) == len(stems) == 224 and len(targets) == 2  # 16 blocks in each of two lines
    per_point = 110 / (high - low)
    for i, (dot, stem, x) in enumerate(zip(dots, stems, record.layers)):
        target = targets[i // 112]["y1"]
        assert stem["y1"] == target and stem["x1"] == stem["x2"] == dot["cx"] and stem["y2"] == dot["cy"]
        assert dot["cy"] == pytest.approx(target - (100 * x.rate - 50) * per_point, abs=0.15)
    assert [d["cx"] for d in dots[:112]] == [d["cx"] for d in dots[112:]]
    assert all(b["cx"] - a["cx"] == pytest.approx(dots[1]["cx"] - dots[0]["cx"], abs=0.11) for a, b in pairwise(dots[:112]))  # fmt: skip
    bars = shapes(figure, "rect", "sense")
    strongest = max(x.sensitivity or 0 for x in record.layers)
    for bar, x in zip(bars, record.layers):
        assert bar["height"] == pytest.approx(max(0.5, 42 * (x.sensitivity or 0) / strongest), abs=0.06)


def inside(figure: str) -> bool:
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', figure).groups())  # type: ignore[union-attr]
    xs = [float(v) for v in re.findall(r' (?:x|x1|x2|cx)="(-?[\d.]+)"', figure)]
    ys = [float(v) for v in re.findall(r' (?:y|y1|y2|cy)="(-?[\d.]+)"', figure)]
    ends = [s["x"] + s["width"] for css in ("range", "sense", "band") for s in shapes(figure, "rect", css)]
    feet = [s["y"] + s["height"] for css in ("range", "sense", "band") for s in shapes(figure, "rect", css)]
    return (
        min(xs) >= -0.6 and max([*xs, *ends]) <= width + 0.6 and min(ys) >= -0.6 and max([*ys, *feet]) <= height + 0.6
    )


@pytest.mark.parametrize("width", [900, 358])
@pytest.mark.parametrize("count", [1, 2, 20, 40, 41, 200, 1000])
def test_any_number_of_layers_stays_inside(count: int, width: int) -> None:
    layers = [samples.layer(f"net.{i // 7}.part{i % 7}.weight", 1000, (i + 0.5) / count, i, 3) for i in range(count)]
    record = samples.record(layers, 0.5)
    figure = str(picture(partial(allocation_chart.draw, record), "k", width, 12.0))
    assert inside(figure)
    assert len(shapes(figure, "circle", "rate")) == count == len(shapes(figure, "rect", "range"))


@pytest.mark.parametrize("rates", [[0.0, 0.0], [1.0, 1.0], [0.5], [0.0, 1.0], [0.999, 0.9991]])
def test_every_axis_holds_its_values(rates: list[float]) -> None:
    record = bare({str(i): r for i, r in enumerate(rates)})
    low, high = allocation_chart.extent(record)
    assert 0 <= low <= 100 * min(rates) and 100 * max(rates) <= high <= 100 and high - low >= 1
    for width in (900, 358):
        assert inside(str(picture(partial(allocation_chart.draw, record), "k", width, 12.0)))


def test_odd_sensitivities_have_a_place() -> None:
    values = [math.inf, -0.1, 0.0, 0.2, None, math.nan]
    layers = [AllocationLayer(name=str(i), numel=9, rate=0.5, sensitivity=v) for i, v in enumerate(values)]
    figure = str(
        picture(partial(allocation_chart.draw, AllocationRecord(method="fcpts", layers=layers)), "k", 900, 12.0)
    )
    widths = [bar["width"] for bar in shapes(figure, "rect", "sense")]
    assert len(widths) == 5  # the unknown one has none
    assert widths[0] == widths[3] > 50 and widths[1] == widths[2] == widths[4] == 0.5
    assert "∞" in figure and inside(figure)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(100, 900), st.floats(2, 9))
@settings(max_examples=150, deadline=None)
def test_lines_hold_every_layer_once_and_in_order(lengths: list[int], room: int, pitch: float) -> None:
    found = allocation_chart.lines(lengths, room, pitch, 8)
    assert [(g, i) for line in found for g, a, b in line for i in range(a, b)] == [
        (g, i) for g, n in enumerate(lengths) for i in range(n)
    ]
    assert all(line for line in found) and len(found) <= max(1, min(8, math.ceil(sum(lengths) * pitch / room)))


def test_blocks_are_not_torn_apart() -> None:
    lines_found = allocation_chart.lines([7] * 32, 860, 7.0, 8)
    assert [len(line) for line in lines_found] == [16, 16]
    assert all((a, b) == (0, 7) for line in lines_found for _, a, b in line)


def test_loss_curve_by_hand() -> None:
    record = bare({"a": 0.5}, losses=[4.0, 2.0, 3.0], steps=300)
    figure = str(picture(partial(allocation_curve.draw, record), "k", 430, 12.0))
    (points,) = re.findall(r'<polyline class="curve" points="([^"]*)"', figure)
    (x0, y0), (x1, y1), (x2, y2) = (map(float, p.split(",")) for p in points.split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)  # steps 50.5, 150.5 and 250.5
    assert y0 < y2 < y1 and y1 - y2 == pytest.approx(y2 - y0, abs=0.11)
    marks = [line["x1"] for line in shapes(figure, "line", "axis")[1:]]
    steps = [float(t.replace(",", "")) for t in re.findall(r'text-anchor="middle">([\d,]+)</text>', figure)]
    per_step = (marks[-1] - marks[0]) / (steps[-1] - steps[0])
    assert x0 == pytest.approx(marks[0] + (50.5 - steps[0]) * per_step, abs=0.2)
    assert "from 4.00 to 3.00 in 300 steps" in figure


@pytest.mark.parametrize("losses", [[0.0, 0.0], [1.0, math.nan, 1e-3], [1e-12, 1e6], [-1.0, 2.0], [5.0] * 200])
def test_any_losses_can_be_drawn(losses: list[float]) -> None:
    figure = picture(partial(allocation_curve.draw, bare({"a": 0.5}, losses=losses)), "k", 430, 12.0)
    assert figure is not None and "nan" not in figure and inside(str(figure))


def test_blocks_become_headings_where_names_have_no_room() -> None:
    wide, narrow = (
        str(picture(partial(allocation_chart.draw, samples.encoder()), "k", width, 11.0)) for width in (900, 358)
    )
    labels = [re.findall(r'<text class="label"[^>]*>([^<]*)</text>', figure) for figure in (wide, narrow)]
    assert labels == [[], [f"layer.{i}" for i in range(6)]]
    assert ">layer.0.attention.self.query</text>" in wide.replace("<title>bert.encoder.layer.0.attention.self.query.weight</title>", "")  # fmt: skip
    names = re.findall(r"<title>bert[^<]*</title>([^<]+)</text>", narrow)
    assert names[0] == "attention.self.query" and names[4] == "intermediate.dense" and len(names) == 36
    assert inside(narrow)


def test_numbered_layers_without_blocks_are_labelled() -> None:
    figure = str(
        picture(partial(allocation_chart.draw, bare({f"features.{i}": i / 60 for i in range(60)})), "k", 900, 12.0)
    )
    labels = {int(t) for t in re.findall(r"<title>features\.\d+</title>(\d+)</text>", figure)}
    assert {0, 1, 2, 3} <= labels and len(labels) > 25 and max(labels) >= 55


def test_too_few_losses_are_no_curve() -> None:
    for losses in ([], [1.0], [1.0, math.nan]):
        assert picture(partial(allocation_curve.draw, bare({"a": 0.5}, losses=losses)), "k", 430, 12.0) is None


def test_marks_are_explained_where_they_occur() -> None:
    names = [name for _, name in allocation_chart.legend(samples.resnet())]
    assert names == ["this run", "start", "range over 3 seeds", "earlier run", "target: 95%"]
    assert [name for _, name in allocation_chart.legend(bare({"a": 0.5}))] == ["this run"]


def test_many_layers_are_summed_up_by_kind() -> None:
    table = allocation_tables.kinds(samples.decoder())
    assert table is not None and len(table.rows) == 7
    record = samples.decoder()
    q = [x for x in record.layers if x.name.endswith("q_proj.weight")]
    rates = [100 * x.rate for x in q]
    assert [c.title for c in table.columns[:4]] == ["Layers", "Sparsity, %", "Lowest", "Highest"]
    expected = ["32", *(f"{v:.2f}" for v in (np.mean(rates), min(rates), max(rates)))]
    assert [text for text, _, _ in table.rows[0].cells[:4]] == expected
    assert allocation_tables.kinds(samples.encoder()) is None


# The terminal


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("width", [50, 80, 120])
def test_terminal_table_fits(sample: str, width: int) -> None:
    record = SAMPLES[sample]()
    text = printed(record, width)
    assert all(len(line) <= width for line in text.splitlines())
    rows, _ = arrange(record)
    for _, group in rows:
        zeros = sum(x.rate * x.numel for x in group) / sum(x.numel for x in group)
        assert f"{100 * zeros:.2f}" in text
    for warning in record.warnings:
        assert warning[:30] in text


def test_terminal_rows_are_layers_or_blocks() -> None:
    assert [arrange(r())[1] for r in SAMPLES.values()] == ["layer", "block", "block"]
    assert [len(arrange(r())[0]) for r in SAMPLES.values()] == [20, 6, 32]
    assert [name for name, _ in arrange(samples.encoder())[0]] == [f"bert.encoder.layer.{i}" for i in range(6)]


def test_terminal_leaves_out_what_is_near_the_target() -> None:
    record = bare({f"conv{i}": 0.5 + 0.004 * i for i in range(60)}, target=0.5)
    rows, unit = arrange(record)
    assert unit == "layer" and [name for name, _ in rows] == [f"conv{i}" for i in range(20, 60)]
    assert "20 more in the report" in printed(record)


def test_terminal_columns_align() -> None:
    body = [
        line
        for line in printed(samples.resnet(), 80).splitlines()
        if re.match(r"(conv1|layer\d\S+|fc) ", line + " ") and "." in line
    ]
    assert len(body) == 20
    points = [[m.start() for m in re.finditer(r"\.\d\d ", line + " ")] for line in body]
    assert all(p == points[0] for p in points) and len(points[0]) == 5


def test_headline_by_hand() -> None:
    record = bare(
        {"a": 0.5}, start="lamp", exact_rate=0.5, raw_rate=0.497, steps=1200, seconds=61.0,
        step_time=StepTime(forward=0.03, backward=0.06, bridge=0.01),
    )  # fmt: skip
    assert headline(record) == (
        "Allocation by FCPTS from LAMP: 50% sparsity (49.7% by thresholds alone), 1,200 steps in 1 min 1 s, "
        "100 ms a step, bridge 10%"
    )
    assert headline(bare({})) == "Allocation by FCPTS"


def test_stability_in_words() -> None:
    record = bare({"a": 0.5}, stability=Stability(seeds=4, spread=0.071, correlation=-0.25))
    assert record.stability is not None
    listed = bare({"a": 0.5}, stability=record.stability.model_copy(update={"seeds": [7, 8, 9, 10]}))
    assert (
        said.stability(listed)
        == said.stability(record)
        == (
            "4 seeds; a layer's rate varies by 7.10 points at most (standard deviation); "
            "mean rank correlation between two seeds −0.25"
        )
    )
