"""What results look like at a prompt and in a notebook: short, complete, and safe to show."""

import dataclasses
import html.parser
import math
import sys

import pytest
import torch
from torch import nn

import winnow
from winnow.errors import InputError
from winnow.notebook import OPEN, ROWS, Card, figures
from winnow.records.allocation import AllocationRecord
from winnow.records.compression import Candidate, ModelInfo, Report, TaskInfo, Verdict
from winnow.report.compression.plot import plot

LONG = 1200  # characters, of about ten lines


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 3)).eval()


@pytest.fixture(scope="module")
def data():
    x = torch.randn(120, 16, generator=torch.Generator().manual_seed(1))
    return x, x[:, :3].argmax(1)


@pytest.fixture(scope="module")
def result(data):
    return winnow.compress(net(), data, sparsity=0.5, values="int8", progress=False, speed=False)


class Tags(html.parser.HTMLParser):
    """Whether every tag is closed, and the text between them."""

    def __init__(self, page):
        super().__init__()
        self.open, self.names, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.names.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def everything(result, data, tmp_path):
    """One of each kind that a public function returns."""
    model, quiet = result.model, dict(progress=False)
    found = winnow.find_ticket(net(), data, sparsity=[0.5, 0.7], method="magnitude", steps=2, **quiet)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attached = winnow.train.attach(model, optimizer, winnow.train.Fixed(found.masks))
    attached.detach()
    yield from (
        result,
        result.report,
        result.layers,
        result.chosen,
        result.outcomes,
        result.chosen.pruned,
        result.chosen.evaluation,
    )
    yield winnow.compress(net(), data, sparsity=0.5, dry_run=True)
    yield from (
        found,
        found.ticket,
        found.report,
        found.masks,
        next(iter(found.masks.values())),
        found.training,
        attached,
    )
    yield winnow.evaluate(model, data, reference=net(), **quiet)
    yield winnow.inspect(model)
    yield winnow.find_scope(model)
    yield winnow.shrink(model, data[0][:2])
    yield winnow.accelerate(
        model, cache=False, timer=lambda case, calls, x: dict.fromkeys(calls, 1.0), **quiet
    ).winnow_dispatch
    yield winnow.bench(model, data=data[0], batch=1, rounds=1, contenders="dense", out=tmp_path / "b.json", **quiet)
    yield AllocationRecord(method="fcpts", losses=[0.1] * 200)


def test_every_result_is_short(result, data, tmp_path):
    seen = []
    for one in everything(result, data, tmp_path):
        assert len(repr(one)) < LONG and len(str(one)) < LONG, type(one)
        assert type(one).__name__ in repr(one) or isinstance(one, list), repr(one)
        seen.append(type(one).__name__)
        if hasattr(one, "_repr_html_"):
            assert not Tags(one._repr_html_()).open
    assert len(set(seen)) >= 20


def test_the_card_has_verdict_and_figures_open_and_layers_folded(result):
    page = result._repr_html_()
    tags = Tags(page)
    assert result.report.verdict.sentence in tags.text and "50% sparsity" in tags.text
    assert page.index("<details open><summary>") < page.index("<details><summary>2 layers</summary>")
    assert {"script", "style", "link", "img"}.isdisjoint(tags.names)


def test_names_of_other_peoples_making_are_text():
    page = Card("Result", "<script>alert(1)</script>", [("a<b", "<i>")], [("t<", [{"c<": "<b>", "d": None}])]).html()
    assert "<script>" not in page and "<i>" not in page and "<b>" not in page and "&lt;i&gt;" in page
    many = Card("R", "s", tables=[("t", [{"a": i} for i in range(ROWS + 5)]), ("u", [{"a": 1}])]).html()
    assert "5 more" in many and "<details open>" not in many  # a long table is folded
    assert "<details open>" in Card("R", "s", tables=[("t", [{"a": 1}] * OPEN)]).html()


def test_frames_are_the_report(result):
    pandas = pytest.importorskip("pandas")
    frame = result.to_frame()
    report = result.report
    assert isinstance(frame, pandas.DataFrame) and set(frame.index) == {c.name for c in report.candidates}
    assert frame.loc["dense", "quality"] == report.dense.quality
    assert frame.file_bytes.to_dict() == {c.name: c.file_bytes for c in report.candidates}
    assert list(frame[frame.chosen].index) == [result.chosen.name]
    layers = result.layers.to_frame()
    assert layers.zeros.sum() == report.requested.zeros_reached and list(layers.index) == [
        x.name for x in result.layers
    ]


def test_metrics_are_flat_finite_floats_of_the_chosen_one(result):
    found, chosen = result.metrics, result.report.picked
    assert all(type(v) is float and math.isfinite(v) for v in found.values())
    assert found["accuracy"] == chosen.quality and found["dense_accuracy"] == result.report.dense.quality
    assert found["file_bytes"] == chosen.file_bytes and found["drop"] == chosen.drop and found["sparsity"] == 0.5
    assert "speedup" not in found  # it was not measured
    assert figures({"a": 1, "b": math.nan, "c": None, "d": True, "e": "x", "f": math.inf}) == {"a": 1.0}


def measured(**task):
    """A report of three candidates whose places in the picture are known."""
    rows = [("dense", "dense", 4_000_000, 0.0, None, None), ("int8", "quantized", 1_000_000, 0.5, -0.25, 1.25), ("s50", "pruned", 2_000_000, 1.0, 0.5, 1.5)]  # fmt: skip
    candidates = [
        Candidate(name=n, kind=k, file_bytes=b, quality=90 - d, drop=d, drop_low=low, drop_high=high, chosen=n == "s50")
        for n, k, b, d, low, high in rows
    ]
    return Report(title="t", verdict=Verdict(sentence="s"), model=ModelInfo(name="A net"), task=TaskInfo(**task), candidates=candidates)  # fmt: skip


def test_the_picture_is_change_against_size():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    for better, sign in ((True, -1), (False, 1)):
        report = measured(metric="accuracy" if better else "perplexity", higher_is_better=better)
        given = pyplot.figure().subplots()
        ax = plot(report, given)
        assert ax is given and ax.get_title() == "A net" and ax.get_xlabel() == "file size (MB)"
        points = {round(float(x), 3): float(y) for line in ax.lines for x, y in zip(*line.get_data()) if line.get_marker() in "s^o"}  # fmt: skip
        assert points == {4.0: 0.0, 1.0: sign * 0.5, 2.0: sign * 1.0}
        ends = sorted(tuple(sorted(float(y) for y in s[:, 1])) for c in ax.collections for s in c.get_segments())
        assert ends == sorted(tuple(sorted((sign * a, sign * b))) for a, b in ((-0.25, 1.25), (0.5, 1.5)))
        assert ax.yaxis_inverted() != better  # up is better
        pyplot.close(ax.figure)
    with pytest.raises(InputError, match="nothing was measured"):
        plot(Report(title="t", verdict=Verdict(sentence="s"), model=ModelInfo(name="m")))


def test_names_that_keep_and_save_take_are_on_the_card(result):
    tags = Tags(result._repr_html_())
    assert all(c.name in tags.text for c in result.report.candidates)
    assert f"({result.chosen.name})" in repr(result)


def test_tickets_have_frame_figures_and_picture(data):
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib").use("agg")
    from matplotlib import pyplot

    given = dict(method="magnitude", steps=2, progress=False)
    x = torch.randn(90, 16, generator=torch.Generator().manual_seed(2))
    other = x, x[:, :3].argmax(1)
    found = winnow.find_ticket(net(), data, sparsity=[0.5, 0.7, 0.8], eval=other, **given)
    assert list(found.to_frame().sparsity) == pytest.approx([0.5, 0.7, 0.8], abs=1e-4)
    right = [100 * float((t.model(other[0]).argmax(1) == other[1]).float().mean()) for t in found.tickets]
    assert found.metrics["accuracy"] == pytest.approx(right[-1]) and found.metrics["zeros"] == found.ticket.zeros
    given_axes = pyplot.figure().subplots()
    ax = found.plot(given_axes)
    (line,) = [line for line in ax.lines if line.get_marker() == "o"]
    assert ax is given_axes and ax.get_xlabel() == "sparsity (%)"
    assert list(line.get_xdata()) == pytest.approx([50, 70, 80], abs=0.01)
    assert list(line.get_ydata()) == pytest.approx(right)
    pyplot.close(ax.figure)
    unmeasured = winnow.find_ticket(net(), data, sparsity=0.5, task="none", **given)
    with pytest.raises(InputError, match="give evaluation data"):
        unmeasured.plot()
    many = dataclasses.replace(found, tickets=found.tickets * 10)
    assert len(repr(many)) < LONG and "24 more" in repr(many)


def test_a_missing_package_is_one_sentence(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for call in (result.to_frame, result.layers.to_frame, result.plot):
        with pytest.raises(InputError, match=r"pip install 'winnow-nn\[plot\]'") as caught:
            call()
        assert str(caught.value).count(".") == 1
