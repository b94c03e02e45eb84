"""A model streamed from its shards ends as the one loaded whole does, within the memory that was promised."""

import json
import subprocess
import sys

import pytest
import torch

import winnow
from small import save_llama, sentences, write_lines
from winnow.calibrate.stream import Shards
from winnow.errors import FormatError, InputError

pytest.importorskip("transformers")
pytestmark = pytest.mark.hf


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    return write_lines(folder / "calibration.txt", sentences(200)), write_lines(
        folder / "eval.txt", sentences(60, seed=1)
    )


@pytest.mark.parametrize(("tied", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_streamed_equals_in_memory(tmp_path, texts, tied, dtype, method):
    folder = save_llama(tmp_path / "model", tied=tied, shards=True, dtype=dtype)
    assert len(list(folder.glob("*.safetensors"))) > 1
    calibration, held_out = map(str, texts)
    options = dict(
        eval=held_out, sparsity=0.5, method=method, values="int8", sequential="block", samples=16, length=32, baselines="rtn",
        dtype="bfloat16" if dtype == torch.bfloat16 else "float32",
    )  # fmt: skip
    whole = winnow.compress(folder, calibration, out=tmp_path / "whole", **options)
    streamed = winnow.compress(folder, calibration, out=tmp_path / "streamed", ram="20GB", **options)
    a, b = winnow.load(tmp_path / "whole").state_dict(), winnow.load(tmp_path / "streamed").state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    for x, y in zip(whole.report.candidates, streamed.report.candidates, strict=True):
        assert x.name == y.name and x.quality == pytest.approx(y.quality, rel=1e-6) and x.file_bytes == y.file_bytes


def test_a_pruned_tensor_outside_the_blocks_is_every_candidate_s_own(tmp_path, texts):
    """The head stays in memory between candidates: each is measured with its own zeros, the dense model with none."""
    folder = save_llama(tmp_path / "model", shards=True)
    options = dict(
        eval=str(texts[1]), sparsity="0.3,0.8", method="magnitude", include=("lm_head.weight",), baselines="rtn", length=32, samples=4,
        dtype="float32", values="int8",
    )  # fmt: skip
    whole = winnow.compress(folder, str(texts[0]), out=tmp_path / "whole", **options)
    streamed = winnow.compress(folder, str(texts[0]), out=tmp_path / "streamed", ram="20GB", **options)
    assert whole.report.dense.quality == pytest.approx(streamed.report.dense.quality, rel=1e-6)
    for x, y in zip(whole.report.candidates, streamed.report.candidates, strict=True):
        assert x.name == y.name and x.quality == pytest.approx(y.quality, rel=1e-6)


def test_impossible_limit_is_refused_before_the_start(tmp_path, texts):
    folder = save_llama(tmp_path / "model")
    with pytest.raises(InputError, match="cannot be kept"):
        winnow.compress(folder, str(texts[0]), sparsity=0.5, ram="50MB", out=tmp_path / "out", length=32)
    assert {p.name for p in tmp_path.iterdir()} == {"model"}


def test_missing_and_truncated_shards_are_one_sentence(tmp_path, texts):
    folder = save_llama(tmp_path / "model", shards=True)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError, match="not a whole safetensors file"):
        Shards(folder)
    shard.unlink()
    with pytest.raises(FormatError, match="lacks"):
        Shards(folder)


@pytest.mark.slow
def test_peak_stays_below_the_whole_model(tmp_path):
    """A model of 180 MB pruned with the peak where the plan put it, well below the model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    save_llama(tmp_path / "tok")
    vocabulary = json.loads((tmp_path / "tok" / "config.json").read_text())["vocab_size"]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=512, intermediate_size=1408, num_hidden_layers=14, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model", max_shard_size="40MB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_bytes((tmp_path / "tok" / name).read_bytes())
    size = sum(f.stat().st_size for f in (tmp_path / "model").glob("*.safetensors"))
    assert size > 170e6
    write_lines(tmp_path / "text.txt", sentences(100))
    script = f"""
import torch
torch.set_num_threads(1)
import winnow
import winnow.compression.setup, winnow.report.compression.page, jinja2, scipy.stats
from winnow.machine.memory import peak_rss, resident, reset_peak
from transformers import LlamaForCausalLM
import accelerate
def compress(model, out):
    return winnow.compress(model, {str(tmp_path / "text.txt")!r}, sparsity=0.5, method="wanda", task="none", samples=8, length=32,
                baselines="none", ram=str(resident() // 10**6 + 500) + "MB", out=out)
compress({str(tmp_path / "tok")!r}, {str(tmp_path / "first")!r})  # loads what is loaded when first used
reset_peak()
before = resident()
result = compress({str(tmp_path / "model")!r}, {str(tmp_path / "out")!r})
print(result._setup.plan.ledger.need, peak_rss(), peak_rss() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reckoned, peak, above = map(int, done.stdout.split()[-3:])
    assert peak <= reckoned  # what the plan said before the start
    assert above < size * 0.6
