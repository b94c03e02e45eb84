"""Whether a speed is worth a headline, against which dense model, and what it is measured on: by constructed timings."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

import report_samples
from html_page import Page
from winnow.compression.speed import speed_case
from winnow.compression.speed_inputs import median_row, stretched
from winnow.machine.load import OtherPrograms
from winnow.measure.latency import spread
from winnow.records.compression import Speed, SpeedCase
from winnow.records.speed import Bench, Case, Contender, Measure
from winnow.report.compression import view as compression_view
from winnow.report.draw.plot import picture
from winnow.report.speed import chart, view
from winnow.report.speed.doubt import busy, doubt, unsteady
from winnow.report.speed.tables import line, outcome, quick
from winnow.speed.race import RaceResult, milliseconds


@pytest.mark.parametrize(
    ("others", "cores", "threads", "there"),
    [
        (0.2, 2, 2, False),  # the usual noise of a machine
        (0.6, 2, 2, True),  # 1.4 cores are left for 2 threads
        (1.7, 2, 1, True),
        (1.0, 2, 1, False),  # the other core is free
        (32.0, 64, 2, False),  # half of a server is at work, and that is no matter to two threads
        (63.5, 64, 2, True),
        (0.2, 2, 16, False),  # more threads than cores are no one else's fault
        (0.9, 1, 1, True),
        (None, 2, 2, False),
    ],
)
def test_a_busy_machine(others, cores, threads, there):
    said = busy(others, cores, threads)
    assert bool(said) == there
    assert not there or f"{others:.1f}" in said


@pytest.mark.parametrize(
    ("low", "high", "reason"),
    [
        (1.2, 1.8, ""),  # exactly 1.5 times
        (1.2, 1.81, "too wide (1.20 to 1.81)"),
        (0.44, 17.23, "too wide (0.44 to 17.23)"),
        (0.0, 1.0, "too wide"),
        (None, None, "fewer than six rounds"),
    ],
)
def test_a_wide_interval(low, high, reason):
    said = unsteady(low, high)
    assert reason in said and bool(said) == bool(reason)
    assert doubt(low, high, 0.0, 2, 2) == said and "busy" in doubt(low, high, 1.9, 2, 2)  # the cause before the symptom


def test_other_programs_are_counted_and_this_one_is_not():
    def spin(seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    with OtherPrograms() as own:
        spin(0.5)
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        used = time.process_time()
        with OtherPrograms() as both:
            time.sleep(0.5)
        assert time.process_time() - used < 0.2
    finally:
        child.kill()
        child.wait()
    # On a machine at rest 0 and 1; on a busy one others count in both, and no more than there is.
    assert own.busy is not None and both.busy is not None
    assert 0 <= own.busy <= own.cores and 0.1 < both.busy <= both.cores
    with OtherPrograms() as short:
        pass
    assert short.busy is None


def raced(times: dict[str, list[float]], differences: dict[str, float | None]) -> RaceResult:
    """A race of one case with one call a round, in seconds."""
    found = RaceResult(cases=[Case(name="one text", what="forward", batch=1, unit="texts", per_call=1)])
    found.taken["one text"] = [
        {name: [seconds[i]] for name, seconds in times.items()} for i in range(len(next(iter(times.values()))))
    ]
    for name, seconds in times.items():
        own = milliseconds(spread(seconds))
        found.measures.append(
            Measure(contender=name, case="one text", times=own, per_second=1.0, difference=differences[name])
        )
    return found


def test_the_rival_is_the_fastest_dense_model_of_comparable_outputs():
    slow = [1.0, 2.0, 1.0, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0]  # a busy second hits all of a round
    times = {
        "float32": [0.040 * s for s in slow], "bfloat16": [0.010 * s for s in slow],
        "ONNX Runtime float32": [0.030 * s for s in slow], "accelerated": [0.020 * s for s in slow],
    }  # fmt: skip
    exact = dict.fromkeys(times, 1e-6)
    left: dict[str, str] = {}
    found = speed_case(raced(times, exact), "accelerated", left)
    assert found.rival == "bfloat16" and found.ratio == pytest.approx(0.5) and not left
    assert (found.ratio_low, found.ratio_high) == (pytest.approx(0.5), pytest.approx(0.5))  # paired by round
    assert found.fast.median == pytest.approx(20.0) and set(found.dense) == times.keys() - {"accelerated"}

    found = speed_case(raced(times, exact | {"bfloat16": 0.3}), "accelerated", left)
    assert found.rival == "ONNX Runtime float32" and found.ratio == pytest.approx(1.5)
    assert "30% away" in left["bfloat16"] and "bfloat16" not in found.dense
    found = speed_case(raced(times, dict.fromkeys(times, None)), "accelerated", left)
    assert found.rival == "float32"  # the model as it was given always stands for itself


def case(what: str, dense: dict[str, float], fast: float, low: float, high: float, unit: str = "texts") -> SpeedCase:
    rival = min(dense, key=lambda name: dense[name])

    def times(ms: float):
        return milliseconds(spread([ms / 1e3]))

    return SpeedCase(
        what=what, unit=unit, dense={n: times(ms) for n, ms in dense.items()}, fast=times(fast), rival=rival,
        ratio=dense[rival] / fast, ratio_low=low, ratio_high=high,
    )  # fmt: skip


def speed(first: SpeedCase, *more: SpeedCase, others: float = 0.0) -> Speed:
    return Speed(
        what=first.what, dense=first.dense[first.rival], rival=first.rival, fast=first.fast, runs_on="accelerated", arithmetic="float32",
        ratio=first.ratio, ratio_low=first.ratio_low, ratio_high=first.ratio_high, cases=[first, *more], others=others, cores=2, threads=2,
    )  # fmt: skip


def test_the_speed_line_names_the_rival_and_tokens_per_second():
    token = case("one token after 128", {"bfloat16": 20.0, "float32": 16.0}, 10.0, 1.5, 1.7, "tokens")
    said = line(speed(token))
    assert said.startswith(
        "one token after 128: fastest dense float32 16 ms, accelerated 10 ms (100.0 tokens per second): 1.60× speedup"
    )
    assert "16 ms" in line(speed(token, others=1.8)) and "speedup (" not in line(speed(token, others=1.8))
    assert "busy (other programs kept 1.8 of 2 cores at work)" in line(speed(token, others=1.8))
    assert outcome(speed(token)) == "1.60× speedup" and outcome(speed(token, others=1.8)) == "not stated"


def test_the_table_of_cases_states_no_ratio_that_says_nothing():
    short = case("one text of 31 tokens", {"float32": 12.0, "bfloat16": 30.0}, 8.0, 1.4, 1.6)
    wide = case("one text of 128 tokens", {"float32": 48.0}, 16.0, 0.4, 17.0)
    table = quick(speed(short, wide))
    titles = [c.title for c in table.columns]
    shown = [dict(zip(titles, (text for text, _, _ in row.cells), strict=True)) for row in table.rows]
    assert [x["Speedup"] for x in shown] == ["1.50×", ""] and [x["Fastest dense"] for x in shown] == ["float32"] * 2
    assert table.rows[0].under == ["dense: float32 12 ms, bfloat16 30 ms"] and table.rows[1].under == []
    text = Page(str(view.Page(tool="x", title="t", subtitle=[], created="", tone="good", sentence="s", chapters=[
        view.Section("Speed", *view.chapter(None, speed(short, wide)))], footer="").html())).text  # fmt: skip
    assert "One text of 128 tokens" in text and "1.50×" in text and "3.00×" not in text


@pytest.mark.parametrize("others", [0.0, 1.8])
def test_the_tile_claims_what_the_table_does(others):
    """Not of the first input, whose interval is wide, and of nothing on a busy machine; the tile says why."""
    wide = case("one text of 31 tokens", {"float32": 48.0}, 16.0, 0.4, 17.0)
    clear = case("one text of 128 tokens", {"float32": 12.0}, 8.0, 1.4, 1.6)
    report = report_samples.language_model()
    report.speed = speed(wide, clear, others=others)
    (tile,) = [t for t in compression_view.view(report).tiles if t[0] == "Speed here"]
    table = quick(report.speed)
    column = (
        [c.title for c in table.columns].index("Speedup") if any(c.title == "Speedup" for c in table.columns) else None
    )
    shown = ["" if column is None else row.cells[column][0] for row in table.rows]
    small = " ".join(tile[2])
    assert tile[1] == "Not stated" and shown == (["", ""] if others else ["", "1.50×"])
    assert (
        "the machine was busy" if others else "one text of 31 tokens: the 95% interval of the ratio is too wide"
    ) in small
    assert ("one text of 128 tokens: 1.50× speedup" in small) == (not others) and ("1.50" in small) == (not others)


def bench(own: float, onnx: float, others: float = 0.0) -> Bench:
    """One case in milliseconds; dense takes 12."""
    name = "batch 1 × 128 tokens"
    made = {"dense float32": 12.0, "ONNX Runtime int8 dynamic": onnx, "packed float32": own}
    kinds = ("dense", "quantized", "pruned")
    measures = [
        Measure(
            contender=n, case=name, times=milliseconds(spread([ms / 1e3 * s for s in (0.8, 1.0, 2.5)])), per_second=1e3 / ms,
            ratio=None if n == "dense float32" else 12 / ms, ratio_low=None if n == "dense float32" else 11 / ms,
            ratio_high=None if n == "dense float32" else 13 / ms,
        )
        for n, ms in made.items()
    ]  # fmt: skip
    return Bench(
        model="m", reference="r", inputs="random", measures=measures, others=others, machine={"cores": 2, "threads": 2},
        cases=[Case(name=name, what="forward", batch=1, length=128, unit="requests", rounds=15)],
        contenders=[Contender(name=n, kind=k, weights="") for n, k in zip(made, kinds, strict=True)],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("own", "onnx", "others", "tone", "words"),
    [
        (8.0, 5.0, 0.0, "mixed", "ONNX Runtime int8 dynamic is fastest here, 5 ms; packed float32 takes 8 ms, 1.50× speedup against dense"),
        (8.0, 20.0, 0.0, "good", "packed float32 is fastest here, 8 ms, 1.50× speedup against dense float32 (12 ms)"),
        (24.0, 20.0, 0.0, "bad", "dense float32 is fastest here, 12 ms; packed float32 takes 24 ms, 0.50× speedup"),
        (8.0, 5.0, 1.5, "mixed", "dense float32 12 ms, ONNX Runtime int8 dynamic, the fastest, 5 ms; no speedup is stated, because the machine was busy (other"),
    ],
)  # fmt: skip
def test_the_bench_names_whoever_is_fastest(own, onnx, others, tone, words):
    said, found = view.headline(bench(own, onnx, others))
    assert words in said and found == tone


def test_a_fast_backend_with_other_outputs_is_named_as_such():
    found = bench(8.0, 5.0)
    found.measures[1].difference = 0.25
    assert "ONNX Runtime int8 dynamic (outputs up to 25% away) is fastest here" in view.headline(found)[0]


def test_rows_are_sorted_and_the_fastest_is_marked():
    found = bench(8.0, 5.0)
    table = view.tables.case(found, found.cases[0])
    assert [(row.name, row.chosen) for row in table.rows] == [
        ("ONNX Runtime int8 dynamic", True), ("packed float32", False), ("dense float32", False),
    ]  # fmt: skip
    parsed = Page(str(picture(partial(chart.draw_cases, found), "key", 900, 12.0)))
    names = [a["y"] for t, a in parsed.tags if t == "text" and a.get("class", "").startswith("label")]
    chosen = [a["y"] for t, a in parsed.tags if t == "text" and a.get("class") == "label chosen"]
    assert chosen == [min(names, key=float)]
    # The figure stands at the end of its bar, the median, and not beyond the 95th percentile.
    bars = [a for t, a in parsed.tags if t == "rect" and a.get("class", "").startswith("bar")]
    values = [a for t, a in parsed.tags if t == "text" and a.get("class") == "value"]
    dots = [a for t, a in parsed.tags if t == "circle" and a.get("class", "").startswith("p95")]
    assert len(bars) == len(values) == 3 and dots
    for bar, value in zip(bars, values, strict=True):
        assert 0 < float(value["x"]) - float(bar["x"]) - float(bar["width"]) < 10
    lowest = {round(float(bar["y"]) + float(bar["height"]), 1) for bar in bars}
    assert all(any(0 < float(dot["cy"]) - low < 6 for low in lowest) for dot in dots)  # below its bar: no text is there


def test_inputs_of_the_datas_own_length():
    """Five texts of 2, 3, 5, 9 and 9 tokens, padded on either side: the one of 5, without its padding."""
    right = {
        "input_ids": torch.tensor([[11, 12, 0, 0, 0], [21, 22, 23, 0, 0], [31, 32, 33, 34, 35]]),
        "attention_mask": torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
        "other": torch.arange(3),
    }
    left = {
        "input_ids": torch.arange(20).reshape(2, 10), "attention_mask": torch.tensor([[0] + [1] * 9] * 2), "other": torch.arange(2),
    }  # fmt: skip
    one = median_row([right, left])
    assert one["input_ids"].tolist() == [[31, 32, 33, 34, 35]] and one["attention_mask"].tolist() == [[1] * 5]
    assert one["other"].tolist() == [2]
    assert median_row([left])["input_ids"].tolist() == [[11, 12, 13, 14, 15, 16, 17, 18, 19]]  # padded in front
    long = stretched(one, 12)
    assert long["input_ids"].tolist() == [[31, 32, 33, 34, 35] * 2 + [31, 32]] and long["attention_mask"].sum() == 12
    assert stretched(one, 3)["input_ids"].tolist() == [[31, 32, 33]] and long["other"].tolist() == [2]


@pytest.mark.hf
def test_what_a_compression_times(tmp_path):
    """A text model at its data's length and at 128 tokens; a decoder by prompt and token; both within their context."""
    pytest.importorskip("transformers")
    import transformers

    import winnow
    from small import sentences, word_tokenizer, write_lines

    text = write_lines(tmp_path / "text.txt", sentences(40))
    words = ["<unk>", "<pad>", ".", *sorted({w for line in sentences(40) for w in line.split()} - {"."})]
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=1024, max_position_embeddings=100,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    word_tokenizer(words, unk_token="<unk>", pad_token="<pad>").save_pretrained(tmp_path / "bert")
    options = dict(sparsity=0.7, method="magnitude", task="none", baselines="none")
    found = winnow.compress(tmp_path / "bert", text, **options).report.speed
    assert found.missing is None, found.missing
    first, second = (c.what for c in found.cases)
    length = int(re.fullmatch(r"one text of (\d+) tokens, the data's median length", first)[1])
    assert 6 <= length <= 16 and second == "one text of 100 tokens"  # the context is no longer

    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=1024, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    word_tokenizer(words, unk_token="<unk>").save_pretrained(tmp_path / "llama")
    found = winnow.compress(tmp_path / "llama", text, length=24, **options).report.speed
    assert found.missing is None, found.missing
    assert [(c.what, c.unit, c.per_call) for c in found.cases] == [
        ("one token after 48", "tokens", 1), ("a prompt of 48 tokens", "tokens", 48),
    ]  # fmt: skip
