"""The report: what the page promises, that it loads nothing, and that hostile text stays text."""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

import report_samples
from html_page import Page
from winnow import words
from winnow.errors import FormatError, InputError, WinnowError
from winnow.naming import title_of
from winnow.records.compression import Candidate, ChangedExample, Layer, ModelInfo, Report, TaskInfo, Verdict
from winnow.report.compression import card, layer_map, phrases
from winnow.report.compression import page as html
from winnow.report.compression.console import summary
from winnow.report.compression.frontier import Point, front
from winnow.report.draw import labels, plot
from winnow.report.draw.plot import Scale

SAMPLES = {
    "language model": report_samples.language_model,
    "301 layers": lambda: report_samples.language_model(301),
    "classifier": report_samples.classifier,
    "minimal": report_samples.minimal,
    "hostile": report_samples.hostile,
}


@pytest.fixture(params=SAMPLES)
def report(request: pytest.FixtureRequest) -> Report:
    return SAMPLES[request.param]()


REACH_OUT = {"script", "link", "iframe", "object", "embed", "form", "base", "image", "use", "foreignobject"}


def test_loads_nothing_from_anywhere(report: Report) -> None:
    page = html.render(report)
    parsed = Page(page)
    assert not re.search(r"https?://|url\(|@import", page)
    for tag, attributes in parsed.tags:
        assert tag not in REACH_OUT
        assert "href" not in attributes and "srcset" not in attributes
        assert attributes.get("src", "data:image/").startswith("data:image/")
        assert not any(name.startswith("on") for name in attributes)
    policies = [a["content"] for t, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies and policies[0].startswith("default-src 'none'")


def test_hostile_text_stays_text() -> None:
    report = report_samples.hostile()
    page = html.render(report)
    parsed = Page(page)
    assert "<script" not in page and "onerror=alert" in parsed.text
    assert "<script>alert('x')</script>" in parsed.text
    assert "{{ 7 * 7 }}" in parsed.text and "& 49 " not in parsed.text
    assert not any(tag == "img" and "onerror" in a for tag, a in parsed.tags)
    assert not any(tag == "b" and a for tag, a in parsed.tags)


def test_code_marks_do_not_open_a_way_in() -> None:
    report = report_samples.minimal().model_copy(update={"next_step": "run `winnow <b>x</b>` & go"})
    assert "run <code>winnow &lt;b&gt;x&lt;/b&gt;</code> &amp; go" in html.render(report)


def test_first_screen_of_the_language_model() -> None:
    page = Page(html.render(report_samples.language_model())).text
    first = page[: page.index("Quality against size")]
    for promised in (
        "Three times smaller, but plain 3-bit GPTQ reaches a lower perplexity in the same bytes.",
        "Trade-off",
        "3.1× smaller",  # 22,036,200 / 7,012,400 = 3.142
        "22.0 MB → 7.0 MB",
        "3.13 bits per prunable weight",
        "+9.53%",  # 46.90 / 42.82 = 1.09528
        "42.82 → 46.90",
        "95% interval +8.7 to +10.3",
        "95% interval 46.20 to 47.60",
        "3 min 12 s",
        "32,768 calibration tokens",
        "612 MB",
        "of 2.0 GB allowed",
        "exactly the target",
        "Undo",
        "it is still at",
        "Next step",
        "Keep this one if you plan to fine-tune",
        "She was born in Vienna",
        "Germany",
    ):
        assert promised in first, promised
    assert first.index("3.1× smaller") < first.index("+9.53%") < first.index("3 min 12 s")
    beside = "the best plain quantization of no more bytes, int3 GPTQ g128: from it to the chosen model perplexity changes by"
    assert f"{beside} +2.63%, 95% interval +2.10 to +3.20" in page


def test_first_screen_of_the_classifier() -> None:
    page = Page(html.render(report_samples.classifier())).text
    first = page[: page.index("Quality against size")]
    assert "−0.70 points" in first and "92.60% → 91.90%" in first and "−1.00 to −0.40" in first
    # dense - now is largest for cat (4.1), dog (2.8), bird and truck (1.9), deer (0.6); frog gained
    table = first[first.index("Classes that lost most") : first.index("All 10 classes")]
    names = [c.name for c in report_samples.classifier().classes]
    assert [w for w in re.findall(r"[a-z]+", table) if w in names] == ["cat", "dog", "bird", "truck", "deer"]
    assert "−4.10 points" in table
    assert "3 more" in first  # seven changed examples, four in sight
    assert html.render(report_samples.classifier()).count("data:image/png;base64,") == 7


def test_every_candidate_and_layer_is_in_a_table() -> None:
    report = report_samples.language_model()
    page = Page(html.render(report)).text
    table = page[page.index("# Model") : page.index("Layer by layer")]
    for c in report.candidates:
        assert c.name in table and f"{c.bits_per_weight:.2f}" in table and words.number(c.quality) in table
    assert table.count("chosen") == 1
    layers = page[page.index("All 42 layers") :]
    for layer in report.layers:
        assert layer.name in layers and f"{layer.zeros:,}" in layers


def test_provenance_is_on_the_page() -> None:
    report = report_samples.language_model()
    page = Page(html.render(report)).text
    for group in (report.versions, report.seeds, report.hashes):
        for key, value in group.items():
            assert key.replace("_", " ") in page and str(value) in page
    assert report.command and report.command in page
    assert "14 tensors, 3,150,336 parameters are unchanged" in page
    assert "tied to model.embed_tokens.weight" in page and "disjoint" in page and "256 tokens" in page


def test_minimal_report_has_no_empty_section() -> None:
    parsed = Page(html.render(report_samples.minimal()))
    assert parsed.headings == []
    assert "None" not in parsed.text and "nan" not in parsed.text
    assert not {"table", "svg", "dl", "figure", "ul", "details"} & {tag for tag, _ in parsed.tags}
    assert "Nothing was measured yet." in parsed.text


@pytest.mark.parametrize("field", [name for name in Report.model_fields if not Report.model_fields[name].is_required()])
def test_any_part_may_be_missing(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "place", lambda *_: [])
    blank = Report(title="t", verdict=Verdict(sentence="s"), model=ModelInfo(name="m"))
    parsed = Page(html.render(report_samples.classifier().model_copy(update={field: getattr(blank, field)})))
    assert "None" not in parsed.text
    Console(file=io.StringIO()).print(
        summary(report_samples.classifier().model_copy(update={field: getattr(blank, field)}))
    )


def test_any_known_figure_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each optional value of each nested part, taken out of every place it occurs."""
    full = report_samples.classifier().model_dump()
    monkeypatch.setattr(plot, "place", lambda *_: [])  # the slow part, and none of this test's business
    taken = 0
    for part, value in full.items():
        rows = value if isinstance(value, list) else [value]
        for key in {k for row in rows if isinstance(row, dict) for k in row}:
            changed = [{**row, key: None} if isinstance(row, dict) else row for row in rows]
            try:
                report = Report.model_validate({**full, part: changed if isinstance(value, list) else changed[0]})
            except ValidationError:
                continue  # required
            taken += 1
            text = Page(html.render(report)).text
            assert "None" not in text, (part, key)
    assert taken > 60


def test_json_round_trip(report: Report, tmp_path: Path) -> None:
    page = html.write(report, tmp_path / "out")
    assert page == tmp_path / "out" / "report.html" and page.read_text(encoding="utf-8") == html.render(report)
    assert sorted(p.name for p in page.parent.iterdir()) == ["report.html", "report.json"]
    assert html.read(page.parent) == report == html.read(page.parent / "report.json")


def test_output_is_deterministic(report: Report, tmp_path: Path) -> None:
    again = Report.model_validate_json(Report.model_validate(report.model_dump()).model_dump_json())
    assert html.render(again) == html.render(report)
    first, second = html.write(report, tmp_path / "a"), html.write(report, tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


def test_infinite_perplexity_is_valid_json_and_has_a_place(tmp_path: Path) -> None:
    report = report_samples.language_model()
    report.candidates.append(
        Candidate(name="collapsed", kind="pruned", file_bytes=4_000_000, quality=math.inf, drop=math.inf)
    )
    page = html.write(report, tmp_path)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert html.read(tmp_path) == report
    text = Page(page.read_text(encoding="utf-8")).text
    assert "collapsed (∞%)" in text and "inf" not in text.replace("infinite", "")


def test_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    html.write(report_samples.classifier(), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WinnowError, match="No space left"):
        html.write(report_samples.language_model(), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="choose a folder"):
        html.write(report_samples.minimal(), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_reading_what_is_not_a_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no report\.json"):
        html.read(tmp_path)
    html.write(report_samples.minimal(), tmp_path)
    path = tmp_path / "report.json"
    good = path.read_text()
    for text, match in (
        (good[:-20], "not JSON"),
        ("\x00\xff", "not JSON"),
        ("[]", "format None"),
        (good.replace('"format": 1', '"format": 2'), "format 2, this winnow reads 1"),
        (good.replace('"tone": "mixed"', '"tone": "great"'), "verdict.tone"),
        (good.replace('"title"', '"tittle"'), "title"),
    ):
        path.write_text(text)
        with pytest.raises(FormatError, match=match):
            html.read(tmp_path)


@pytest.mark.parametrize(
    "uri",
    [
        "https://example.com/x.png",
        "javascript:alert(1)",
        "data:text/html;base64,PGI+",
        "data:image/svg+xml;base64,PHN2Zz4=",
        'data:image/png;base64,AA=="onerror="alert(1)',
        "data:image/png;base64,AAAA\n",
    ],
)
def test_only_plain_pictures_are_taken(uri: str) -> None:
    with pytest.raises(ValidationError):
        ChangedExample(input="x", image=uri)


def test_text_is_cleaned_where_it_enters() -> None:
    example = ChangedExample(input="a\ud800b\x1b[31mc\u202ed\ne", pruned="é😀")
    assert example.input == "a\ufffdb\ufffd[31mc\ufffdd\ne" and example.pruned == "é😀"
    example.model_dump_json().encode("utf-8")


# Words


NEW, DAY = "2026-11-22T18:49:03Z", "22 November 2026"


@pytest.mark.parametrize(
    ("say", "expected"),
    [
        (words.number, {43.2: "43.20", 2572.4: "2,572", -0.25: "−0.2500", math.inf: "∞", None: ""}),
        (words.short, {12.5: "12.5", 100: "100"}),
        (
            words.size,
            {22_036_200: "22.0 MB", 999: "999 bytes", 999_999: "1.0 MB", 148_500: "148 kB", 2 * 10**9: "2.0 GB"},
        ),
        (words.duration, {0.04: "40 ms", 59.7: "1 min", 75: "1 min 15 s", 7500: "2 h 5 min", 3599.8: "1 h"}),
        (words.percent, {0.5: "50%", 0.99999: "> 99.9%", 0.00001: "< 0.1%", 1.0: "100%"}),
        (words.bulk, {11_015_040: "11.0 million", 272_474: "272,474"}),
        (words.when, {NEW: f"{DAY}, 18:49 UTC", "2026-11-22": DAY, "yesterday": "yesterday"}),
    ],
)
def test_numbers_as_people_read_them(say: Callable, expected: dict) -> None:
    assert {value: say(value) for value in expected} == expected


def test_ratios_and_clipped_texts() -> None:
    found = [words.ratio(*pair) for pair in ((22_036_200, 7_012_400), (100, 150), (1000, 1001), (None, 5))]
    assert found == ["3.1× smaller", "1.50× larger", "same size", ""]
    assert (words.clip("abcdef", 4), words.clip_middle("abcdefgh", 5)) == ("abc…", "ab…gh")


def test_the_sign_of_a_change_follows_the_metric() -> None:
    worse = Candidate(name="c", kind="pruned", drop=1.2, drop_low=-0.3, drop_high=2.7)
    accuracy, perplexity = TaskInfo(metric="accuracy", unit="%"), TaskInfo(metric="p", higher_is_better=False)
    spearman = TaskInfo(metric="Spearman")
    assert phrases.change(worse, accuracy) == "−1.20 points"
    assert phrases.change_span(worse, accuracy) == "−2.70 to +0.30"
    assert phrases.change(worse, perplexity) == "+1.20%"
    assert phrases.change_span(worse, perplexity) == "−0.30 to +2.70"
    assert phrases.change(worse.model_copy(update={"drop": 0.0123}), spearman) == "−0.012 points"
    assert phrases.change(worse.model_copy(update={"drop": -0.5}), accuracy) == "+0.50 points"
    assert phrases.change(worse.model_copy(update={"drop": 1e-9}), accuracy) == "0.00 points"


# Figures


@given(st.lists(st.tuples(st.floats(0, 400), st.floats(0, 300), st.integers(1, 40)), min_size=1, max_size=25))
@settings(max_examples=40, deadline=None)
def test_labels_never_overlap_nor_leave_their_area(points: list[tuple[float, float, int]]) -> None:
    area, banned = labels.Box(0, 0, 400, 300), labels.Box(300, 0, 400, 20)
    wanted = [labels.Wanted(i, x, y, ("n" * n, f"#{i}"), area) for i, (x, y, n) in enumerate(points)]
    placed = labels.place(wanted, 12, [[(0, 0), (400, 300)]], [banned])
    assert len({p.key for p in placed}) == len(placed)
    for i, one in enumerate(placed):
        assert one.box.inside(area) and not one.box.hits(banned)
        assert not any(one.box.hits(other.box) for other in placed[i + 1 :])
        for w in wanted:  # nor does one hide a mark
            assert not one.box.hits(labels.Box(w.x - 4, w.y - 4, w.x + 4, w.y + 4))


def test_a_lone_point_gets_its_full_name() -> None:
    area = labels.Box(0, 0, 400, 300)
    (label,) = labels.place([labels.Wanted(0, 200, 150, ("a model", "#1"), area)], 12, [], [])
    assert label.text == "a model" and label.leader is None


@given(
    st.lists(
        st.tuples(st.sampled_from(["dense", "quantized", "pruned"]), st.integers(1, 6), st.integers(-3, 3)),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=100, deadline=None)
def test_front_is_what_nothing_beats(rows: list[tuple[str, int, int]]) -> None:
    points = [Point(i, Candidate(name="c", kind=k), size, float(lost)) for i, (k, size, lost) in enumerate(rows)]
    best = front(points, ("dense", "quantized"))

    def beats(a: Point, b: Point) -> bool:
        return a.size <= b.size and a.lost <= b.lost and (a.size < b.size or a.lost < b.lost)

    family = [p for p in points if p.candidate.kind != "pruned"]
    expected = {(p.size, p.lost) for p in family if not any(beats(q, p) for q in family)}
    assert {(p.size, p.lost) for p in best} == expected and len(best) == len(expected)


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e5), st.booleans())
@settings(max_examples=100, deadline=None)
def test_ticks_lie_on_the_axis_and_apart(low: float, span: float, log: bool) -> None:
    low = abs(low) + 1e-3 if log else low
    scale = Scale(low, low + span, 400, 20, log)
    places = [scale(v) for v in scale.ticks(24)]
    assert all(20 - 1e-6 <= p <= 400 + 1e-6 for p in places)
    assert all(a - b >= 24 - 1e-6 for a, b in pairwise(places))
    assert scale(low) == pytest.approx(400) and scale(low + span) == pytest.approx(20)


def test_the_picture_shows_every_measured_candidate() -> None:
    report = report_samples.language_model()
    page = html.render(report)
    for rendition in re.findall(r'<svg class="figure frontier.*?</svg>', page, re.S):
        assert rendition.count('class="mark') == len(report.candidates) == 16
        assert rendition.count('class="ring"') == 1
        assert rendition.count('class="arrow') == 4  # +40, +47, +837 and +5,907% lie beyond the scale
        for c in report.candidates:
            assert c.name in rendition
    assert page.count('<svg class="figure frontier') == 2


def test_one_candidate_is_no_picture() -> None:
    report = report_samples.language_model()
    report = report.model_copy(update={"candidates": report.candidates[:1]})
    assert 'class="figure frontier' not in html.render(report)


@pytest.mark.parametrize("lost", [0.0, 100.0])
def test_equal_candidates_have_an_axis(lost: float) -> None:
    candidates = [Candidate(name=n, kind="pruned", file_bytes=4000, drop=lost) for n in "ab"]
    for higher in (True, False):
        task = TaskInfo(higher_is_better=higher)
        report = report_samples.minimal().model_copy(update={"candidates": candidates, "task": task})
        assert html.render(report).count('class="figure frontier') == 2


def test_differences_within_the_noise_look_it() -> None:
    """0.2 points lost, give or take 0.8: the axis spans the interval, not the difference."""
    candidates = [
        Candidate(name="dense", kind="dense", file_bytes=32000, quality=97.8),
        Candidate(name="c", kind="pruned", file_bytes=10000, drop=0.2, drop_low=-0.6, drop_high=1.0, chosen=True),
    ]
    task = TaskInfo(metric="accuracy", unit="%")
    report = report_samples.minimal().model_copy(update={"candidates": candidates, "task": task})
    page = html.render(report)
    spans = [float(a) - float(b) for a, b in re.findall(r'class="whisker[^>]*y1="([\d.]+)"[^>]*y2="([\d.]+)"', page)]
    assert len(spans) == 2 and all(abs(s) > 200 for s in spans)  # dense has no interval against itself
    assert 'class="arrow' not in page


def test_the_frontier_has_the_models_name_and_sizes_below() -> None:
    report = report_samples.language_model()
    report.model.name = "package.module:tiny_llama"
    for svg in re.findall(r'<svg class="figure frontier.*?</svg>', html.render(report), re.S):
        text = Page(svg).text
        assert "tiny_llama: perplexity against file size" in text and "package.module" not in text
        assert "change against dense, %; lower is better" in text and "10 MB" in text and "bits" not in text


# Placements that are hard: lying on one another, in a row, at the edges, in a knot, more than there is room for.
HARD = {
    "on one another": [(200.0, 150.0)] * 6,
    "in a row": [(20.0 + 24 * i, 150.0) for i in range(16)],
    "in a column": [(200.0, 10.0 + 18 * i) for i in range(16)],
    "in the corners": [(x, y) for x in (1.0, 399.0) for y in (1.0, 299.0)] * 2,
    "in a knot": [(200 + 9 * math.cos(i), 150 + 9 * math.sin(i)) for i in range(12)],
    "everywhere": [(25.0 + 50 * i, 20.0 + 37 * j) for i in range(8) for j in range(8)],
}


@pytest.mark.parametrize("case", HARD)
def test_hard_placements_have_neither_labels_nor_leaders_that_cross(case: str) -> None:
    area, points = labels.Box(0, 0, 400, 300), HARD[case]
    wanted = [
        labels.Wanted(i, x, y, (f"s{50 + i}-int4-g128", f"#{i}"), area, 10 if i == 0 else 6)
        for i, (x, y) in enumerate(points)
    ]
    posts = [[(x, y - 30), (x, y + 30)] for x, y in points]
    placed = labels.place(wanted, 12, [[(0, 0), (400, 300)]], [], posts)
    assert placed == labels.place(wanted, 12, [[(0, 0), (400, 300)]], [], posts)
    assert placed[0].key == 0 and placed[0].text == "s50-int4-g128", "the first, which matters most, has its full name"
    assert len(placed) >= (4 if case == "in the corners" else 6)
    marks = {w.key: labels.Box(w.x - w.radius, w.y - w.radius, w.x + w.radius, w.y + w.radius) for w in wanted}
    for i, one in enumerate(placed):
        assert one.box.inside(area)
        assert not any(one.box.hits(box) for box in marks.values())
        assert not any(one.box.hits(two.box) for two in placed[i + 1 :])
        if one.leader is not None:
            x0, y0, x1, y1 = one.leader
            dots = [(x0 + (x1 - x0) * t / 50, y0 + (y1 - y0) * t / 50) for t in range(1, 50)]
            others = [two.box for two in placed if two is not one]
            assert not any(b.left < x < b.right and b.top < y < b.bottom for b in others for x, y in dots)


def test_a_label_rather_stands_off_than_across_a_whisker() -> None:
    area = labels.Box(0, 0, 400, 300)
    wanted = [labels.Wanted(0, 200, 150, ("a model",), area)]
    post = [(235.0, 100.0), (235.0, 200.0)]  # right through the best place, which is to the right
    (label,) = labels.place(wanted, 12, [], [], [post])
    assert not label.box.left < 235 < label.box.right


def test_marks_on_one_another_share_a_label() -> None:
    report = report_samples.classifier()
    report.candidates += [
        c.model_copy(update={"name": f"{c.name} again"}) for c in report.candidates if c.name == "int8 RTN"
    ]
    page = html.render(report)
    assert page.count(">int8 RTN, int8 RTN again</text>") == 2


def test_what_is_recovered_is_of_the_dense_figure() -> None:
    accuracy, text = report_samples.classifier(), report_samples.language_model()
    assert phrases.recovered(accuracy.picked, accuracy) == "99.2%"  # 91.9 of 92.6
    assert phrases.recovered(text.picked, text) == "91.3%"  # 42.82 / 46.90: of perplexities the inverse
    assert phrases.recovered(text.dense, text) == ""
    text.dense.quality = 0.0
    assert phrases.recovered(text.picked, text) == ""
    assert "99.2% recovered" in Page(html.render(accuracy)).text
    assert "| accuracy recovered |  | 99.2% |" in card.card(accuracy)


def test_language_models_have_the_tail_of_the_divergence() -> None:
    text, images = report_samples.language_model(), report_samples.classifier()
    page = Page(html.render(text)).text
    away = math.log(46.9 / 42.82)
    assert f"{1.1 * away:.4f} nats per token; 99th percentile {7 * away:.4f}" in page
    assert "KL divergence (nats/token)" in page and "the 99th percentile below the KL divergence" in page
    assert "99th percentile" not in Page(html.render(images)).text
    shown = io.StringIO()
    Console(file=shown, width=180).print(summary(text))
    assert "KL divergence (nats/token)  99th percentile" in shown.getvalue()


def test_layers_are_arranged_by_block() -> None:
    grid, rest = layer_map.arrange(report_samples.language_model(301).layers)
    assert grid is not None and not rest
    assert len(grid.kinds) == 7 and [len(blocks) for _, blocks in grid.stacks] == [43]
    assert all(len(members) == 1 for members in grid.cells.values()) and len(grid.cells) == 301
    grid, rest = layer_map.arrange(report_samples.classifier().layers)
    assert grid is not None and [layer.name for layer in rest] == ["conv1.weight"]
    assert [path for path, _ in grid.stacks] == ["layer1", "layer2", "layer3"]


def test_experts_of_one_block_share_a_cell() -> None:
    layers = [
        Layer(name=f"m.{b}.experts.{e}.up.weight", block=f"m.{b}", sparsity=0.25 * (e % 2), rows=1 + 2 * e, cols=3)
        for b in range(3)
        for e in range(2)
    ]
    grid, _ = layer_map.arrange(layers)
    assert grid is not None and grid.kinds == ["experts.*.up"] and len(grid.cells) == 3
    report = report_samples.minimal().model_copy(update={"layers": layers})
    # weighted by size: (0 * 3 + 0.25 * 9) / 12
    assert "m.0.experts.*.up: sparsity 18.75% (mean of 2)" in html.render(report)


@pytest.mark.parametrize("count", [1, 6, 40, 41, 300])
def test_layers_without_blocks(count: int) -> None:
    layers = [Layer(name=f"conv{i}.weight", sparsity=i / count, error=10.0**-i if i < 300 else 0) for i in range(count)]
    report = report_samples.minimal().model_copy(update={"layers": layers})
    for rendition in re.findall(r'<svg class="figure layers.*?</svg>', html.render(report), re.S):
        assert rendition.count("<rect") == 2 * count
        assert all(f"conv{i}.weight: sparsity" in rendition for i in range(count))


# Terminal


@pytest.mark.parametrize("width", [60, 80, 120])
def test_summary_fits_the_terminal(report: Report, width: int) -> None:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False).print(summary(report))
    text = out.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    assert report.verdict.sentence[:20] in text
    if report.picked is not None:  # names are cut, figures are not
        for figure in (f"{report.picked.bits_per_weight:.2f}", phrases.change(report.picked, report.task)):
            assert figure in text


def test_summary_marks_the_chosen_one() -> None:
    out = io.StringIO()
    Console(file=out, width=120).print(summary(report_samples.language_model()))
    (chosen,) = [line for line in out.getvalue().splitlines() if line.startswith("> ")]
    for figure in ("SparseGPT 50% + int4", "50%", "3.13", "7.0 MB", "46.90", "+9.53%", "+8.7 to +10.3"):
        assert figure in chosen
    assert "dense bf16" in out.getvalue() and "4 more in the report" in out.getvalue()


def test_what_there_is_nothing_to_do_about_is_on_the_page_only() -> None:
    report = report_samples.language_model()
    report.remarks = ["method alps: lowest error for layers of up to 2,048 inputs."]
    shown = io.StringIO()
    Console(file=shown, width=200).print(summary(report))
    assert "lowest error" not in shown.getvalue() and report.notes[0] in shown.getvalue()
    assert report.remarks[0] in html.render(report)


def test_the_baseline_of_the_verdict_is_a_row_of_the_terminals_table() -> None:
    report = report_samples.language_model()
    assert report.baseline is not None
    report.baseline.name = "int8 RTN"  # 8.08 bits, far from the chosen model's 3.13
    shown = io.StringIO()
    Console(file=shown, width=200).print(summary(report))
    assert "int8 RTN" in shown.getvalue() and "4 more in the report" in shown.getvalue()


@pytest.mark.parametrize(
    ("spec", "title"),
    [
        ("winnow.demo_data:digits_vit", "digits_vit"),
        ("models:resnet20", "resnet20"),
        ("org/name", "org/name"),
        ("a b: 50% sparsity", "a b: 50% sparsity"),
        ("Stack", "Stack"),
    ],
)
def test_a_heading_has_the_models_name_and_no_python_path(spec: str, title: str) -> None:
    assert title_of(spec) == title
