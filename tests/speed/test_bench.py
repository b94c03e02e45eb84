"""winnow bench: whole runs on tiny models with tiny rounds, what is written, and what the pages show. No timed assertion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import winnow
from command import refused
from command import winnow as command
from html_page import Page
from places import SUPPORT
from small import Float32Only, classifier, points, trained
from winnow.errors import FormatError, InputError
from winnow.models.source import open_model
from winnow.records.compression import Speed, Times
from winnow.records.speed import Absent, Bandwidth, Bench, Case, Contender, LayerSpeed, Measure
from winnow.report.compression import page as html
from winnow.report.draw.plot import picture
from winnow.report.speed import chart as speed
from winnow.report.speed import page as pages
from winnow.report.speed import view
from winnow.report.speed.tables import line, off, outcome
from winnow.speed import fresh_process
from winnow.speed.contender import difference
from winnow.speed.race import race
from winnow.speed.verb import bench
from winnow.speed.workload import Work, make_work, random_batch

QUICK = dict(rounds=2, batch=1, threads=1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A compressed plain torch model, and data for it."""
    folder = tmp_path_factory.mktemp("bench")
    x, y = points()
    np.savez(folder / "x.npz", x=x.numpy(), y=y)
    winnow.compress(
        trained(classifier(), x, y), str(folder / "x.npz"), sparsity=0.6, values="int8", method="magnitude", task="none",
        out=folder / "out",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    pytest.importorskip("transformers")
    from small import save_llama

    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder / "dense")
    winnow.compress(folder / "dense", sparsity=0.5, method="magnitude", task="none", out=folder / "out", speed=False)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(plain: Path, **more: object) -> Bench:
    options = {**QUICK, "factory": "small:classifier", "data": str(plain / "x.npz"), **more}
    return bench(plain / "out", **options)


def test_a_plain_model_from_end_to_end(plain, tmp_path):
    out = tmp_path / "b.json"
    stages = []

    def progress(name):
        stages.append(name)
        return lambda done, total, what="": None

    found = run(
        plain, contenders=["bf16", "packed", "accelerated"], batch=[1, 8], per_layer=True, out=out, progress=progress
    )
    assert [c.name for c in found.cases] == ["batch 1", "batch 8"] and all(c.rounds == 2 for c in found.cases)
    names = [c.name for c in found.contenders]
    assert names == [
        "dense float32", "dense bfloat16", "packed float32", "packed bfloat16", "accelerated float32", "accelerated bfloat16",
    ]  # fmt: skip
    assert len(found.measures) == 2 * len(names)
    for m in found.measures:
        t = m.times
        assert 0 < t.q1 <= t.median <= t.q3 and t.median <= t.p95 and t.n >= 2
        per_call = 8 if m.case == "batch 8" else 1
        assert m.per_second == pytest.approx(1e3 * per_call / t.median)
        assert (m.ratio is None) == (m.contender == "dense float32")
        exact = m.contender.endswith("float32")
        assert m.difference is not None and m.difference < (1e-5 if exact else 0.05)
        assert m.ratio_low is None  # two rounds give no interval
    packed = next(c for c in found.contenders if c.name == "packed float32")
    assert packed.weights == "int8, 60% sparsity" and packed.kind == "pruned+quantized"
    assert packed.file_bytes == sum(f.stat().st_size for f in (plain / "out").glob("*.safetensors"))
    assert packed.load_seconds > 0 and packed.load_bytes is not None and sum(packed.kernels.values()) >= 6
    assert next(c for c in found.contenders if c.name == "dense bfloat16").changes
    assert found.bandwidth.bytes_per_second > 0 and found.machine["threads"] == 1 and found.machine["load average"]
    assert {"measuring", "building contenders", "layer by layer"} <= set(stages)

    layers = {x.name: x for x in found.layers}
    assert len(layers) == 6
    up = layers["blocks.0.up.weight"]
    assert (up.rows, up.cols, up.inputs) == (48, 24, 1) and up.sparsity == pytest.approx(0.6, abs=0.15)
    assert up.limit == pytest.approx(1e3 * up.packed_bytes / found.bandwidth.bytes_per_second)
    assert up.dense_bytes == 4 * 48 * 24 and "dense float32" in up.times and all(t > 0 for t in up.times.values())

    again = pages.read(out)
    assert again is not None and again.to_json() == out.read_text() and again.measures == found.measures
    assert (
        found.model == str(plain / "out") and again.model == "out" and str(plain) not in out.read_text()
    )  # given away
    page = Page(out.with_suffix(".html").read_text())
    for name in (*names, "Layer by layer", "GB/s", "blocks.0.up.weight"):
        assert name in page.text
    assert not (plain / "out" / "bench.json").exists()


@pytest.mark.hf
def test_a_decoder_by_prompt_and_token(llama):
    found = bench(llama / "out", tokens=3, length=8, contenders="packed", reference=llama / "dense", **QUICK)
    assert [(c.what, c.unit, c.per_call) for c in found.cases] == [("prefill", "tokens", 8), ("decode", "tokens", 1)]
    assert found.measure("packed float32", "decoding after 8").times.n == 3 * 2  # every token of every round
    for m in found.measures:
        assert m.difference < 1e-5  # dense against the reference, packed against the artifact
    dense = found.contenders[0]
    assert dense.file_bytes == (llama / "dense" / "model.safetensors").stat().st_size and dense.note is None
    assert str(llama / "dense") == found.reference

    # the folder keeps it, and the report shows it
    assert pages.read(llama / "out" / "bench.json").model == "out"
    html.write(html.read(llama / "out"), llama / "out")
    assert "packed float32" in Page((llama / "out" / "report.html").read_text()).text


def test_ctrl_c_keeps_whole_rounds(plain, tmp_path, monkeypatch):
    from winnow.speed import race as module

    def interrupted(*args, **options):
        for number, one in enumerate(alternate(*args, **options)):
            if number == 3:
                raise KeyboardInterrupt
            yield one

    alternate = module.interleave
    monkeypatch.setattr(module, "interleave", interrupted)
    out = tmp_path / "b.json"
    found = run(plain, rounds=9, contenders="dense,packed", batch=[1, 8], out=out)
    assert found.interrupted and [(c.name, c.rounds) for c in found.cases] == [("batch 1", 3)]
    assert {m.contender for m in found.measures} == {"dense float32", "packed float32"}
    assert "stopped before its end" in Page(out.with_suffix(".html").read_text()).text
    assert pages.read(out).interrupted

    def at_once(*args, **options):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(module, "interleave", at_once)
    with pytest.raises(KeyboardInterrupt):
        run(plain, contenders="dense", out=tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


def test_what_fails_is_left_out_with_its_reason(plain, tmp_path, monkeypatch):
    from winnow.speed import families

    def broken(*_):
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(families, "_compiled", broken)
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in ("onnxruntime", "openvino") else find(name, *a)
    )
    found = run(plain, contenders="compile,onnx,openvino", out=tmp_path / "b.json")
    why = {a.name: a.reason for a in found.absent}
    assert why["compiled float32"] == "failed: RuntimeError: no compiler"
    assert why["ONNX Runtime int8 static"].startswith("not installed: pip install onnxruntime")
    assert why["OpenVINO float32"].startswith("not installed: pip install openvino")
    assert [c.name for c in found.contenders] == ["dense float32"]
    assert "pip install" in Page((tmp_path / "b.html").read_text()).text


def test_torch_int8_is_marked_as_changing_values(plain, tmp_path):
    found = run(plain, contenders="int8", out=tmp_path / "b.json")
    rounded = next(c for c in found.contenders if c.name == "torch int8")
    assert rounded.kind == "quantized" and "activations" in rounded.changes
    assert 0 < found.measure("torch int8", "batch 1").difference < 0.2


@pytest.mark.hf
def test_a_dense_folder_has_no_packed_contender(llama, tmp_path, monkeypatch):
    from winnow.speed import run

    monkeypatch.setattr(run, "measure_fresh", lambda *_: {})
    out = tmp_path / "b.json"
    found = bench(llama / "dense", tokens=2, length=4, contenders="packed", out=out, **QUICK)
    assert [c.name for c in found.contenders] == ["dense float32"]
    assert "winnow compress" in found.absent[0].reason
    assert not (llama / "dense" / "bench.json").exists()


def test_a_wrong_answer_is_seen(plain):
    """A contender that computes something else shows it in its difference, however fast it is."""
    from winnow.records import speed as speed_schema
    from winnow.speed.contender import TorchContender

    model = classifier().eval()
    wrong = classifier().eval()
    with torch.no_grad():
        wrong.head.bias += 10.0
    made = [
        TorchContender(speed_schema.Contender(name=n, kind="dense", weights="float32"), m)
        for n, m in (("right", model), ("wrong", wrong))
    ]
    x = points(4)[0]
    work = Work(Case(name="case", what="forward", batch=4, unit="samples", per_call=4), [(x,)])
    with torch.inference_mode():
        reference = {"artifact": {"case": made[0].output(work)}}
    found = race(made, [work], reference, 2)
    right, off_by = (m.difference for m in found.measures)
    assert right == 0 and off_by > 0.5
    assert difference(torch.ones(2, 3), torch.ones(3, 2)) != difference(torch.ones(2, 3), torch.ones(3, 2))  # NaN
    assert difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])) == pytest.approx(0.5)


@pytest.mark.hf
def test_random_inputs_fit_the_model(llama):
    source = open_model(llama / "dense")
    work, said = make_work(source, batches=[2], lengths=[8], tokens=4)
    assert "random" in said and [w.case.name for w in work] == ["batch 2, prompt of 8", "batch 2, decoding after 8"]
    assert work[1].tokens.shape == (2, 4) and work[0].inputs[0]["input_ids"].shape == (2, 8)
    batch = random_batch(source, "causal-lm", 3, 5, seed=1)["input_ids"]
    assert batch.shape == (3, 5) and int(batch.max()) < source.config.vocab_size
    assert torch.equal(batch, random_batch(source, "causal-lm", 3, 5, seed=1)["input_ids"])
    with pytest.raises(InputError, match="beyond the model's context of 64"):
        make_work(source, lengths=[64], tokens=4)
    from transformers import BertConfig, CLIPConfig, ResNetConfig, ViTConfig

    from winnow.models.source import ModelSource

    def given(config, kind, length=6):
        return random_batch(ModelSource(spec="m", _config=config), kind, 2, length, 0)

    assert given(BertConfig(), "encoder")["attention_mask"].shape == (2, 6)
    assert given(ViTConfig(image_size=32), "vision")["pixel_values"].shape == (2, 3, 32, 32)
    assert given(ResNetConfig(num_channels=1), "vision")["pixel_values"].shape == (2, 1, 224, 224)
    assert set(given(CLIPConfig(), "clip")) == {"input_ids", "attention_mask", "pixel_values"}


def test_the_command(plain, tmp_path):
    data = ["--factory", "small:classifier", "--data", plain / "x.npz"]
    args = ["bench", plain / "out", *data, "--rounds", 2, "--batch", "1", "--threads", 1]
    done = command(*args, "--with", "dense,packed", "--out", tmp_path / "b.json")
    assert done.returncode == 0, done.stderr
    assert "packed float32" in done.stdout and "Speedup" in done.stdout and str(tmp_path / "b.html") in done.stdout
    as_json = command(*args, "--with", "dense", "--out", tmp_path / "c.json", "--json")
    assert json.loads(as_json.stdout)["contenders"][0]["name"] == "dense float32"
    stored = json.loads((tmp_path / "b.json").read_text())
    assert stored["command"].startswith("winnow bench") and stored["format"] == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--with", "dense,fast"], "fast"),
        (["--batch", "1,x"], "1,x"),
        (["--batch", "0"], "0"),
        (["--rounds", "0"], "rounds must be"),
        (["--tokens", "0"], "tokens must be"),
        (["--threads", "0"], "threads must be"),
        (["--length", "8"], "length counts"),
        (["--batch", "1000"], "too few"),
        (["--out", "b.txt"], "b.txt"),
        (["--out", "nowhere/b.json"], "nowhere"),
    ],
)  # fmt: skip
def test_wrong_flags_are_one_sentence(plain, args, words):
    options = {a.removeprefix("--"): b for a, b in zip(args[::2], args[1::2], strict=True)}
    options["contenders"] = options.pop("with", "dense")
    for name in ("rounds", "tokens", "threads"):
        options[name] = int(options[name]) if name in options else {"rounds": 1, "tokens": 2, "threads": 1}[name]
    with pytest.raises(InputError) as error:
        bench(plain / "out", **{"factory": "small:classifier", "data": str(plain / "x.npz"), **options})
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_plain_model_needs_its_code_and_its_inputs(plain):
    assert "--data" in refused(command("bench", plain / "out", "--factory", "small:classifier"))
    with pytest.raises(InputError, match="plain torch model"):
        bench(plain / "out")


def made_up(ratio: float = 1.5, low: float | None = 1.4, high: float | None = 1.6) -> Bench:
    """A bench of made-up figures."""

    def times(ms: float) -> Times:
        return Times(median=ms, p95=1.3 * ms, q1=0.9 * ms, q3=1.1 * ms, n=30)

    cases = [
        Case(name="batch 1 × 32 tokens", what="forward", batch=1, length=32, unit="requests", rounds=15),
        Case(name="decoding after 32", what="decode", batch=1, length=32, unit="tokens", rounds=15),
    ]
    contenders = [
        Contender(name="dense float32", kind="dense", weights="float32", file_bytes=100_000_000, energy=0.5, energy_kind="estimated"),
        Contender(name="torch int8", kind="quantized", weights="int8", changes="rounds weights and activations to int8"),
        Contender(name="packed float32", kind="pruned", weights="float32, 70% sparsity", kernels={"packed float32 avx512": 24}),
    ]  # fmt: skip
    measures = []
    for case in cases:
        measures += [
            Measure(contender="dense float32", case=case.name, times=times(12.0), per_second=83.3, difference=0.0, limit=6.0),
            Measure(contender="torch int8", case=case.name, times=times(60.0), per_second=16.7, ratio=0.2, difference=0.031),
            Measure(
                contender="packed float32", case=case.name, times=times(12.0 / ratio), per_second=125.0, ratio=ratio, ratio_low=low,
                ratio_high=high, difference=1e-6, limit=3.0,
            ),
        ]  # fmt: skip
    layers = [
        LayerSpeed(
            name=f"model.layers.{i}.mlp.up_proj.weight", kind="linear", rows=1024, cols=384, sparsity=0.7, values="float32", inputs=1,
            packed_bytes=600_000, dense_bytes=1_572_864, limit=0.03, dense_limit=0.08,
            times={"dense float32": 0.1, "packed float32 avx512": 0.05, "expanded float32 avx512": 0.2},
            like="model.layers.0.mlp.up_proj.weight" if i else None,
        )
        for i in range(3)
    ]  # fmt: skip
    return Bench(
        model="org/<b>model</b>", reference="the artifact, expanded", inputs="random", cases=cases, contenders=contenders, measures=measures,
        layers=layers, absent=[Absent(name="OpenVINO float32", reason="not installed: pip install openvino")],
        bandwidth=Bandwidth(bytes_per_second=2e10, buffer=1 << 28, threads=2, cache=1 << 25, way="sum"), energy="estimated (codecarbon)",
        machine={"cpu": "made up", "threads": 2},
    )  # fmt: skip


def test_the_page_loads_nothing_and_hostile_names_stay_text():
    page = view.view(made_up(), "bench.json").html()
    parsed = Page(page)
    assert "://" not in page and "<script" not in page and "<b>model" not in page and "<b>model</b>" in parsed.text
    figures = ("12 ms", "8 ms", "1.50×", "1.40 to 1.60", "0.5 J, estimated", "20.0 GB/s", "3.1%", "100 MB")
    for words in (*figures, "pip install openvino"):
        assert words in parsed.text, words
    limits = [a for t, a in parsed.tags if t == "line" and a.get("class") == "limit"]
    assert len(limits) > 4
    figures = [a for t, a in parsed.tags if t == "svg" and "figure" in a.get("class", "")]
    assert len(figures) == 4  # both figures, wide and narrow
    cut = [a for t, a in parsed.tags if a.get("class") == "cut"]
    assert cut and "three times dense" in parsed.text  # int8 is five times slower than dense here


def test_the_bars_stay_in_the_picture():
    for draw in (speed.draw_cases, speed.draw_layers):
        for width in (900, 358):
            parsed = Page(str(picture(partial(draw, made_up()), "key", width, 12.0)))
            view = next(a for t, a in parsed.tags if t == "svg")["viewbox"]
            _, _, right, bottom = map(float, view.split())
            assert right == width
            for tag, a in parsed.tags:
                if tag == "rect":
                    assert float(a["x"]) >= 0 and float(a["x"]) + float(a["width"]) <= width
                if tag == "text":
                    assert 0 <= float(a["x"]) <= width and 0 < float(a["y"]) <= bottom


@pytest.mark.parametrize(
    ("ratio", "low", "high", "tone", "words"),
    [
        (1.5, 1.4, 1.6, "good", "1.50× speedup"),
        (1.02, 0.9, 1.1, "bad", "no significant difference"),
        (0.6, 0.5, 0.7, "bad", "dense float32 is fastest here, 12 ms (83.30 tokens per second)"),
        (
            3.0,
            0.44,
            17.23,
            "mixed",
            "no speedup is stated, because the 95% interval of the ratio is too wide (0.44 to 17.23)",
        ),
        (1.5, None, None, "mixed", "no speedup is stated, because fewer than six rounds"),
    ],
)
def test_the_headline_says_what_the_interval_allows(ratio, low, high, tone, words):
    said, found = view.headline(made_up(ratio, low, high))
    assert found == tone and words in said and said.startswith("Decoding after 32: ")


def test_the_headline_names_a_faster_rival():
    found = made_up()
    for m in found.measures:
        if m.contender == "torch int8":
            m.times = m.times.model_copy(update={"median": 2.0})
    said, tone = view.headline(found)
    assert (
        tone == "mixed" and "torch int8 is fastest here, 2 ms" in said and "1.50× speedup against dense float32" in said
    )


def test_the_console_shows_every_contender():
    import io

    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=160).print(view.summary(made_up()))
    layer = "model.layers.0.mlp.up_proj.weight"
    for words in ("packed float32", "1.40 to 1.60", "output difference", layer, "pip install openvino"):
        assert words in text.getvalue()


def test_damaged_and_unknown_files(tmp_path):
    path = tmp_path / "bench.json"
    assert pages.read(path) is None
    path.write_text("{")
    with pytest.raises(FormatError, match="damaged"):
        pages.read(path)
    path.write_text('{"format": 2}')
    with pytest.raises(FormatError, match="format 2"):
        pages.read(path)
    raw = json.loads(made_up().to_json())
    raw["measures"][0]["surprise"] = 1
    path.write_text(json.dumps(raw))
    with pytest.raises(FormatError, match="surprise"):
        pages.read(path)
    with pytest.raises(ValidationError):
        Contender(name="x", kind="fast", weights="float32")


def test_milliseconds_in_words():
    said = {0.0213: "21.3 µs", 0.5: "500 µs", 12.345: "12.3 ms", 999.4: "999 ms", 2345.0: "2.35 s", 2e6: "2,000 s"}
    assert {value: speed.milli(value) for value in said} == said


def test_differences_in_words():
    assert [off(v) for v in (None, 0.0, 1e-6, 0.0123, float("nan"))] == ["", "0", "< 0.01%", "1.2%", "not a number"]


def quick(ratio: float, low: float | None, high: float | None) -> Speed:
    def times(ms: float) -> Times:
        return Times(median=ms, p95=ms, q1=ms, q3=ms, n=9)

    return Speed(
        what="one image", dense=times(12.1), fast=times(12.1 / ratio), runs_on="packed", ratio=ratio, ratio_low=low, ratio_high=high,
        arithmetic="float32",
    )  # fmt: skip


def test_the_speed_line_claims_only_what_was_seen():
    assert line(quick(0.976, 0.95, 1.01)).startswith("one image: dense float32 12.1 ms, packed 12.4 ms: no gain here")
    assert outcome(quick(1.53, 1.49, 1.58)) == "1.53× speedup"
    assert outcome(quick(3.0, 0.44, 17.23)) == "not stated"
    wide = line(quick(3.0, 0.44, 17.23))
    assert "3.00×" not in wide and "no speedup is stated, because the 95% interval of the ratio is too wide" in wide
    assert outcome(quick(0.5, 0.41, 0.6)) == "slower here, 0.50×"
    assert outcome(quick(1.01, 1.001, 1.02)) == "no gain here"  # told apart from 1, and still nothing to speak of
    assert line(Speed(what="one call", missing="no data")) == "not measured: no data"
    assert line(None) == ""


def test_compress_ends_with_its_speed(plain):
    report = html.read(plain / "out")
    assert report.speed is not None and report.speed.missing is not None
    assert "packed kernels help" in report.speed.missing  # 24 x 48: calling takes longer than multiplying
    assert "not measured" in Page((plain / "out" / "report.html").read_text()).text.lower()


def test_compress_measures_a_model_with_layers_worth_it(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 64), torch.nn.Linear(64, 3)
    )
    x = torch.randn(32, 64)
    options = dict(sparsity=0.7, method="magnitude", task="none", include=["0.weight", "2.weight"])
    result = winnow.compress(model, x, out=tmp_path / "out", **options)
    found = result.report.speed
    assert found is not None and found.missing is None, found
    assert found.dense.median > 0 and found.fast.median > 0 and found.ratio > 0 and found.difference < 1e-4
    assert found.runs_on == "accelerated" and sum(found.kernels.values()) >= 3 and found.arithmetic == "float32"
    assert [c.what for c in found.cases] == ["one input", "8 inputs at once"] and found.what == "one input"
    for case in found.cases:
        assert {"float32", "bfloat16"} == set(case.dense) | (set(found.left_out) & {"bfloat16"})
        assert case.rival == min(case.dense, key=lambda name: case.dense[name].median) and case.rounds >= 8
    assert found.dense == found.cases[0].dense[found.rival] and found.ratio == found.cases[0].ratio
    assert 0 <= found.others <= found.cores
    assert "Speed here" in Page((tmp_path / "out" / "report.html").read_text()).text
    assert html.read(tmp_path / "out").speed == found


@pytest.mark.hf
def test_compress_without_speed_or_within_a_limit(plain, llama, tmp_path):
    x, y = points()
    result = winnow.compress(trained(classifier(), x, y), sparsity=0.5, method="magnitude", task="none", speed=False)
    assert result.report.speed is None
    limited = winnow.compress(
        llama / "dense", sparsity=0.5, method="magnitude", task="none", ram="4GB", out=tmp_path / "o"
    )
    assert "--ram" in limited.report.speed.missing


def test_the_result_still_holds_the_compressed_model(tmp_path):
    """Timing swaps layers in a copy: the model that comes out is dense, its zeros in place, its mode as it was."""
    x, y = points()
    model = trained(classifier(), x, y)
    timed = winnow.compress(model, x, sparsity=0.5, method="magnitude", task="none")
    plain = winnow.compress(model, x, sparsity=0.5, method="magnitude", task="none", speed=False)
    for (name, a), (_, b) in zip(timed.model.state_dict().items(), plain.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_fresh_process_reads_no_more_than_it_needs(plain):
    """The other process finds a factory by the path of this one, and gives seconds and bytes."""
    env = {**os.environ, "PYTHONPATH": str(SUPPORT)}
    x = points(2)[0]
    from safetensors.torch import save_file

    save_file({"0": x}, plain / "in.safetensors")
    asked = dict(folder=str(plain / "out"), factory="small:classifier", weights=None, inputs=str(plain / "in.safetensors"), positional=True, way="packed", dtype="float32", threads=1)  # fmt: skip
    command = [sys.executable, "-c", fresh_process._CHILD, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["seconds"] > 0 and 0 <= seen["load"] <= seen["run"]


def test_what_cannot_run_is_left_out_with_its_reason(tmp_path):
    torch.manual_seed(0)
    x = torch.rand(8, 1)
    folder = tmp_path / "out"
    options = dict(sparsity=0.5, task="none", baselines="none", speed=False, include=["a.weight", "b.weight"])
    winnow.compress(Float32Only().eval(), x, **options).save(folder)
    given = dict(factory="small:Float32Only", data=x, batch=(1,), rounds=2)
    found = winnow.bench(folder, contenders="dense,bf16,packed,accelerated", **given)
    absent = {a.name: a.reason for a in found.absent}
    assert {"dense bfloat16", "packed bfloat16", "accelerated bfloat16"} <= absent.keys()
    assert all("dtype" in reason or "BFloat16" in reason for reason in absent.values())
    assert {"dense float32", "packed float32", "accelerated float32"} <= {c.name for c in found.contenders}


def test_inputs_that_the_model_does_not_take_are_refused_in_one_sentence(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "out"
    winnow.compress(
        Float32Only().eval(), torch.rand(8, 1), sparsity=0.5, task="none", baselines="none", speed=False
    ).save(folder)
    with pytest.raises(InputError, match="does not run on its inputs"):
        winnow.bench(folder, factory="small:Float32Only", data=torch.rand(8), batch=(1,), rounds=2, contenders="dense")
