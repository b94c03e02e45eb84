"""--rest: what is not pruned is stored in fewer bits, measured so, counted exactly, and comes back everywhere."""

import json

import pytest
import torch

import winnow
from families import family
from small import save_llama, sentences, write_lines
from winnow.compression.job import Job
from winnow.compression.setup import set_up
from winnow.masks.ties import tensors_of
from winnow.verbs.inspect import inspect

QUICK = dict(method="magnitude", task="none", baselines="none", speed=False)


def on_disk(folder):
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def rounded(tensor, values, group):
    """By hand, with the same scale for a row or group as the largest weight gives at most: the error no rounding exceeds."""
    rows = tensor.reshape(tensor.shape[0], -1)
    if values == "bf16":
        return (rows.abs() / 256).reshape(tensor.shape)
    size = rows.shape[1] if values == "int8" else group
    parts = rows.split(size, 1)
    levels = 127 if values == "int8" else 7
    steps = [p.abs().amax(1, keepdim=True).expand_as(p) * 1.5 / levels for p in parts]
    return torch.cat(steps, 1).reshape(tensor.shape)


@pytest.mark.hf
@pytest.mark.parametrize(
    "name, values", [("gpt2", "int8"), ("gpt2", "int4"), ("bert", "bf16"), ("vit", "int8"), ("t5", "int4")]
)
def test_every_way_of_loading_gives_the_same_narrower_tensors(name, values, tmp_path):
    model = family(name).build()
    dense = {n: t.detach().clone() for n, t in tensors_of(model).items()}
    setup = set_up(Job(model=model, **QUICK, sparsity=0.5, rest=values, group_size=32))
    folder = tmp_path / "out"
    result = winnow.compress(model, **QUICK, sparsity=0.5, rest=values, group_size=32, out=folder)
    assert setup.plan.rates[0][2] == result.chosen.file_bytes == result.report.sizes.file == on_disk(folder)
    assert sum(part.bytes for part in result.report.sizes.contents) == on_disk(folder)
    narrow = result.chosen.pruned.rest
    assert narrow and narrow.keys() <= setup.scope.rest.keys()
    loaded = {
        "load": winnow.load(folder),
        "packed": winnow.load(folder, packed=True),
        "from_pretrained": type(model).from_pretrained(folder),
        "model": result.model,
        "exported": type(model).from_pretrained(winnow.export_dense(folder, tmp_path / "dense")),
    }
    for how, made in loaded.items():
        tensors = tensors_of(made)
        for key, tensor in dense.items():
            now = tensors[key].to(tensor.dtype)
            first = setup.host.first[key]
            if first in setup.scope.prunables:
                continue
            if first in narrow:
                assert not torch.equal(now, tensor), (how, key)
                assert bool(((now - tensor).abs() <= rounded(tensor, values, 32) + 1e-9).all()), (how, key)
            else:
                assert torch.equal(now, tensor), (how, key)
            assert torch.equal(now, tensors_of(loaded["load"])[key])
    if name in ("gpt2", "t5"):  # one tensor before and after
        table = "transformer.wte.weight" if name == "gpt2" else "shared.weight"
        stored = [f.name for f in inspect(folder).layers]
        assert table in stored and "lm_head.weight" not in stored
        tied = loaded["from_pretrained"]
        assert tied.get_input_embeddings().weight is tied.get_output_embeddings().weight


@pytest.mark.hf
def test_streamed_and_loaded_write_the_same_file_and_measure_the_same(tmp_path):
    save_llama(tmp_path / "model", tied=True, shards=True)
    text = write_lines(tmp_path / "text.txt", sentences(60))
    options = dict(
        sparsity=0.5, method="wanda", rest="int8", values="int8", length=16, samples=8, eval_limit=8, speed=False
    )
    found = {}
    for how, more in (("loaded", {}), ("streamed", dict(ram="3GB"))):
        result = winnow.compress(tmp_path / "model", text, out=tmp_path / how, sequential="block", **options, **more)
        found[how] = (tmp_path / how / "model.winnow.safetensors").read_bytes(), result.report
    assert found["loaded"][0] == found["streamed"][0]
    first, second = ([c.quality for c in report.candidates] for _, report in found.values())
    assert first == pytest.approx(second, rel=1e-5)


@pytest.mark.hf
def test_baselines_get_the_same_rest_and_quality_is_measured_with_it(tmp_path, monkeypatch):
    from winnow.compression import setup

    monkeypatch.setattr(setup, "LARGE", 0.01)  # the vocabulary of the tests is small
    save_llama(tmp_path / "model")
    text = write_lines(tmp_path / "text.txt", sentences(60))
    held_out = write_lines(tmp_path / "held-out.txt", sentences(30, seed=1))
    options = dict(sparsity=0.5, method="magnitude", values="int4", group_size=32, length=16, samples=8, speed=False)
    options |= dict(eval=held_out, baselines="rtn")
    found = {}
    for rest, kept in (("keep", ("int8-rtn", "int8-all-rtn")), ("int4", ("int8-rtn",)), ("int8", ())):
        out = tmp_path / rest
        report = winnow.compress(tmp_path / "model", text, out=out, rest=rest, keep=kept, **options).report
        found[rest] = {c.name: c for c in report.candidates}
        for name in (report.chosen, *kept):  # the folder, measured by another way, is as good as the report says
            folder = out / name if name in kept else out
            again = winnow.evaluate(folder, held_out, length=16).value
            assert again == pytest.approx(found[rest][name].quality, rel=1e-4)
            assert on_disk(folder) == found[rest][name].file_bytes
    before, after = found["keep"], found["int4"]
    assert {c.rest for name, c in after.items() if name not in ("dense", "int8-all-rtn")} == {"int4"}
    assert after["int8-rtn"].file_bytes < before["int8-rtn"].file_bytes
    # What stock tools make: all matrices in int8, a row of its own unless --rest makes plain int8 just that.
    everything = before["int8-all-rtn"]
    assert everything.label == "int8 RTN, embeddings too" and everything.rest == "int8"
    plain = found["int8"]["int8-rtn"]
    assert "int8-all-rtn" not in found["int8"]
    assert (everything.file_bytes, everything.quality) == (plain.file_bytes, plain.quality)


def test_a_size_counts_the_rest_and_needs_fewer_zeros_for_it(tmp_path):
    model = trained_table()
    options = dict(method="magnitude", baselines="none", speed=False, task="none")
    size = round(1.02 * winnow.compress(model, sparsity=0.6, **options).chosen.file_bytes)
    wide = winnow.compress(model, size=size, out=tmp_path / "wide", **options)
    narrow = winnow.compress(model, size=size, rest="int8", out=tmp_path / "narrow", **options)
    assert on_disk(tmp_path / "narrow") <= size and on_disk(tmp_path / "wide") <= size
    assert narrow.report.requested.zeros_reached < wide.report.requested.zeros_reached


class Table(torch.nn.Module):
    """A table of 300 entries before layers, the head tied to nothing."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(300, 32)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(6))
        self.head = torch.nn.Linear(32, 3)

    def forward(self, ids):
        x = self.embed(ids).mean(1)
        for block in self.blocks:
            x = x + block(x).relu()
        return self.head(x)


def trained_table():
    torch.manual_seed(0)
    return Table().eval()


def test_the_report_says_what_the_file_consists_of_and_what_to_do(tmp_path):
    from winnow.report.compression.console import summary
    from winnow.report.compression.phrases import contents

    result = winnow.compress(trained_table(), **QUICK, sparsity=0.5, values="int8", out=tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    parts = {(p["what"], p["dtype"]): p["bytes"] for p in report["sizes"]["contents"]}
    assert parts["embeddings", "float32"] == 300 * 32 * 4 and parts["pruned layers", "int8"] == 6 * 32 * 32 // 2
    assert parts["index", None] == 6 * 32 * 32 // 8 and parts["scales", None] == 6 * 32 * 2
    assert parts["norms and biases", None] == 4 * (6 * 32 + 3) and parts["output layer", "float32"] == 4 * 3 * 32
    share = round(100 * 300 * 32 * 4 / on_disk(tmp_path / "out"))
    line = contents(result.report.sizes)
    assert line.startswith(f"{share}% embeddings (float32), ")
    assert ("The file", line) in summary(result.report).parts[-1]
    assert line in (tmp_path / "out" / "report.html").read_text()
    assert any("--rest int8" in note for note in result.report.notes)
    again = winnow.compress(trained_table(), **QUICK, sparsity=0.5, values="int8", rest="int8")
    assert not any("--rest" in note for note in again.report.notes)
    said = next(note for note in result.report.notes if "--rest int8" in note)
    assert (
        f"about {again.report.sizes.file / 1000:.1f} kB" in said
        or abs(again.report.sizes.file - float(said.split("about ")[1].split(" ")[0]) * 1000)
        < 0.1 * again.report.sizes.file
    )


def test_inspect_does_not_count_the_rest_as_prunable(tmp_path):
    winnow.compress(trained_table(), **QUICK, sparsity=0.5, rest="int4", group_size=32, out=tmp_path / "out")
    found = inspect(tmp_path / "out")
    table = next(x for x in found.layers if x.name == "embed.weight")
    assert found.sparsity == 0.5 and not table.prunable and "int4" in table.reason
    assert table.bits_per_weight == 4.5  # a float16 scale for 32


def test_what_the_type_does_not_hold_stays_as_it_is(tmp_path):
    model = trained_table()
    with torch.no_grad():
        model.embed.weight[3] = 1e-9  # no float16 scale holds that
    result = winnow.compress(model, **QUICK, sparsity=0.5, rest="int8", out=tmp_path / "out")
    loaded = winnow.load(tmp_path / "out", factory=Table)
    assert torch.equal(loaded.embed.weight, model.embed.weight)
    assert any("keep their type" in note and "embed.weight" in note for note in result.report.notes)


def test_a_run_that_stops_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    from winnow.compression import runner

    model, data = trained_table(), torch.randint(0, 300, (64, 5), generator=torch.Generator().manual_seed(0))
    options = dict(
        sparsity=0.5, method="wanda", task="none", baselines="none", speed=False, rest="int8", values="int8", samples=32
    )
    winnow.compress(model, data, out=tmp_path / "whole", **options)
    with monkeypatch.context() as patched:
        patched.setattr(runner.Pruner, "run", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            winnow.compress(model, data, out=tmp_path / "out", **options)
    assert list((tmp_path / "out.work").rglob("rest-*/*.safetensors"))
    winnow.compress(model, data, out=tmp_path / "out", **options)
    name = "model.winnow.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
