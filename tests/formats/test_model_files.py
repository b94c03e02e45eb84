"""Which files and which values are the model: those of from_pretrained(folder), or a sentence that says why not."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import winnow
from winnow.errors import FormatError, InputError
from winnow.formats.hf_folder import model_files, quantization
from winnow.models.source import open_model

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.hf

PICK = {"sparsity": 0.5, "method": "magnitude", "baselines": "none", "speed": False}
WHOLE, STREAMED = None, "20GB"


def llama(folder, seed=0, tied=False, **options):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        tie_word_embeddings=tied,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder, **options)
    return folder


def change(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    config = {k: v for k, v in {**config, **values}.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))


def rewrite(folder, edit):
    file = folder / "model.safetensors"
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})


def other_weights(tmp_path, tied=False):
    return llama(tmp_path / "other", seed=9, tied=tied) / "model.safetensors"


def backups(folder, other):
    for name in (
        "model_ema.safetensors",
        "old_backup.safetensors",
        "model.fp16.safetensors",
        "consolidated.safetensors",
    ):
        shutil.copy(other, folder / name)
    (folder / "original").mkdir()
    shutil.copy(other, folder / "original" / "model.safetensors")
    torch.save(load_file(other), folder / "pytorch_model.bin")


def newer_than_index(folder, other):
    rest = llama(folder.parent / "sharded", seed=4, max_shard_size="20KB")
    for file in rest.glob("model*"):
        shutil.copy(file, folder / file.name)


def older_shards(folder, other):
    """Sharded, and beside the index shards of another count that it does not name."""
    whole = llama(folder.parent / "sharded", seed=4, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    for file in whole.glob("model*"):
        shutil.copy(file, folder / file.name)
    shutil.copy(other, folder / "model-00001-of-00099.safetensors")


def named_by_config(folder, other):
    os.rename(folder / "model.safetensors", folder / "mine.safetensors")
    shutil.copy(other, folder / "model.safetensors")
    change(folder, transformers_weights="mine.safetensors")


def without_prefix(folder, other):
    rewrite(folder, lambda state: {n.removeprefix("model."): t for n, t in state.items()})


def in_bfloat16_by_config(folder, other):
    change(folder, dtype="bfloat16")


def in_half_without_config(folder, other):
    rewrite(folder, lambda state: {n: t.half() for n, t in state.items()})
    change(folder, dtype=None, torch_dtype=None)


@pytest.mark.parametrize("ram", [WHOLE, STREAMED], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "make",
    [backups, newer_than_index, older_shards, named_by_config, without_prefix, in_bfloat16_by_config, in_half_without_config],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_what_is_pruned_is_what_from_pretrained_gives(tmp_path, make, ram):
    folder = llama(tmp_path / "model")
    make(folder, other_weights(tmp_path))
    want = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    result = winnow.compress(folder, ram=ram, out=tmp_path / "out", **PICK)
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert found.dtype == want.dtype
    given = want.state_dict()
    for name, tensor in found.state_dict().items():
        pruned = name in {layer.name for layer in result.layers}
        stay = tensor != 0 if pruned else torch.ones_like(tensor, dtype=torch.bool)
        assert tensor.dtype == given[name].dtype and torch.equal(tensor[stay], given[name][stay]), name
    # The hash that names the model changes with these weights and not with what lies beside them.
    assert set(model_files(folder)) == set(open_model(folder).weight_files())
    before = open_model(folder).sha256()
    shutil.copy(other_weights(tmp_path), folder / "zz_later.safetensors")
    assert open_model(folder).sha256() == before


def test_tensors_made_of_others_while_loading(tmp_path):
    """Experts that a checkpoint stores one by one."""
    from families import FAMILIES

    family = next(f for f in FAMILIES if f.name == "mixtral")
    family.build().save_pretrained(tmp_path / "model")
    assert any(".experts.0." in n for n in load_file(tmp_path / "model" / "model.safetensors"))
    want = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    result = winnow.compress(tmp_path / "model", out=tmp_path / "out", **PICK)
    assert any(layer.kind == "experts" for layer in result.layers)
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(t[t != 0], want[n][t != 0]) for n, t in found.items())
    with pytest.raises(InputError, match=r"under another name or layout.*leave out ram"):
        winnow.compress(tmp_path / "model", ram=STREAMED, out=tmp_path / "no", **PICK)


def quantized_fp8(folder):
    def codes(state):
        new = {}
        for name, tensor in state.items():
            if "proj" not in name:
                new[name] = tensor.bfloat16()
                continue
            scale = tensor.abs().max() / 448
            new |= {name: (tensor / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale.reshape(1, 1)}
        return new

    rewrite(folder, codes)
    about = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    change(folder, dtype="bfloat16", quantization_config=about)


def test_quantized_weights_are_dequantized_as_transformers_does_it(tmp_path):
    folder = llama(tmp_path / "model")
    dense = load_file(folder / "model.safetensors")
    quantized_fp8(folder)
    want = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    result = winnow.compress(folder, out=tmp_path / "out", **PICK)
    found = winnow.load(tmp_path / "out").state_dict()
    for name, tensor in found.items():
        assert torch.equal(tensor[tensor != 0], want[name][tensor != 0])
        assert (tensor - dense[name])[tensor != 0].abs().max() < 0.07 * dense[name].abs().max()  # e4m3: 4 bits of value
    assert any("stored quantized (fp8)" in note for note in result._setup.remarks)
    size = (folder / "model.safetensors").stat().st_size
    assert result.report.sizes.dense_file == size
    with pytest.raises(InputError, match=r"already quantized \(fp8\).*ram"):
        winnow.compress(folder, ram=STREAMED, out=tmp_path / "no", **PICK)


QUANTIZED = {
    "gptq": {"quant_method": "gptq", "bits": 4},
    "awq": {"quant_method": "awq", "bits": 4},
    "bitsandbytes": {"load_in_8bit": True},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "torchao": {"quant_method": "torchao"},
    "hqq": {"quant_method": "hqq"},
    "quanto": {"quant_method": "quanto"},
    "one of tomorrow": {"quant_method": "one of tomorrow"},
}


@pytest.mark.parametrize("method", QUANTIZED)
@pytest.mark.parametrize("nested", [False, True])
def test_other_quantized_weights_are_refused_before_any_work(tmp_path, method, nested):
    folder = llama(tmp_path / "model")
    about = {"quantization_config": QUANTIZED[method]}
    change(folder, **({"text_config": about} if nested else about))
    assert quantization(json.loads((folder / "config.json").read_text())) == method
    for ram in (WHOLE, STREAMED):
        with pytest.raises(InputError, match=rf"already quantized \({method}\): give the original"):
            winnow.compress(folder, ram=ram, out=tmp_path / "out", **PICK)
    assert not (tmp_path / "out").exists()


def moved(name):
    return lambda folder: os.rename(folder / "model.safetensors", folder / name)


def adapter_alone(folder):
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    save_file({"lora_A": torch.zeros(2)}, folder / "adapter_model.safetensors")


def adapter_beside(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')


def below(folder):
    (folder / "unet").mkdir()
    for name in ("model.safetensors", "config.json"):
        os.rename(folder / name, folder / "unet" / name)


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def pointer(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def pointer_config(folder):
    (folder / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def cut_short(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def index_to_nowhere(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')


def index_outside(folder):
    shutil.copy(folder / "model.safetensors", folder.parent / "away.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../away.safetensors"}}')


def parallel(folder):
    rewrite(folder, lambda state: {f"module.{n}": t for n, t in state.items()})


def other_size(folder):
    change(folder, intermediate_size=48)


def one_missing(folder):
    rewrite(folder, lambda state: {n: t for n, t in state.items() if n != "model.norm.weight"})


def gptq_without_saying(folder):
    rewrite(folder, lambda s: {n.replace("up_proj.weight", "up_proj.qweight"): t for n, t in s.items()})


ODD = [
    (emptied, "is empty"),
    (adapter_alone, "holds an adapter, not a model: load org/base"),
    (adapter_beside, "adapter beside the model.*winnow.train.merge"),
    (moved("model-Q4_K.gguf"), "GGUF.*give the original"),
    (moved("model.onnx"), "ONNX"),
    (moved("tf_model.h5"), "TensorFlow or Flax"),
    (moved("flax_model.msgpack"), "TensorFlow or Flax"),
    (moved("pytorch_model.bin"), "pytorch_model.bin.*safe_serialization"),
    (moved("model.fp16.safetensors"), "variant.*rename it to model.safetensors"),
    (moved("model.winnow.safetensors"), "packed by winnow, but not the config.json that belongs to it"),
    (moved("model.winnow-00001-of-00002.safetensors"), "packed by winnow, but not the config.json"),
    (moved("consolidated.safetensors"), "Mistral's and Meta's own"),
    (moved("model_ema.safetensors"), "model_ema.safetensors but no model.safetensors"),
    (below, "unet"),
    (pointer, "git lfs pull"),
    (pointer_config, "git lfs pull"),
    (cut_short, "not a whole safetensors file"),
    (index_to_nowhere, "lacks model-1.safetensors, which its index names"),
    (index_outside, "no safetensors file of the folder"),
    (parallel, r"begin with 'module\.'.*model\.module\.state_dict"),
    (other_size, r"\[32, 64\] in the weights and \[32, 48\]"),
    (one_missing, "model.norm.weight"),
    (gptq_without_saying, "already quantized: give the original"),
]


@pytest.mark.parametrize(("make", "says"), ODD, ids=[str(i) for i in range(len(ODD))])
def test_other_folders_get_one_sentence_with_the_fix(tmp_path, make, says):
    folder = llama(tmp_path / "model")
    make(folder)
    for ram in (WHOLE, STREAMED):
        if ram and make in (one_missing, gptq_without_saying):
            says = "cannot be streamed"
        with pytest.raises((InputError, FormatError), match=says) as caught:
            winnow.compress(folder, ram=ram, out=tmp_path / "out", **PICK)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ram", [WHOLE, STREAMED], ids=["whole", "streamed"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_parts_that_a_class_keeps_in_float32(tmp_path, dtype, ram):
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=64, d_model=32, d_ff=48, d_kv=8, num_heads=4, num_layers=2)
    transformers.T5ForConditionalGeneration(config).to(dtype).save_pretrained(tmp_path / "model")
    load = transformers.T5ForConditionalGeneration.from_pretrained
    want = load(tmp_path / "model", dtype="auto").state_dict()
    assert (len({t.dtype for t in want.values()}) == 2) is (dtype == torch.float16)
    winnow.compress(tmp_path / "model", ram=ram, out=tmp_path / "out", **PICK)
    found = load(tmp_path / "out", dtype="auto").state_dict()
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in want.items()}


def test_buffers_of_a_streamed_model_come_from_its_file(tmp_path):
    """Batch-norm statistics are persistent buffers: the streamed model is measured with those of the file."""
    from winnow.compression.hosts import Loaded, Streamed
    from winnow.models.modules import identity_of_weights

    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    model = transformers.ResNetForImageClassification(config)
    with torch.no_grad():
        model(torch.randn(8, 3, 32, 32))  # in training mode: the statistics move
    model.save_pretrained(tmp_path / "model")
    whole = Loaded(open_model(tmp_path / "model")).model
    streamed = Streamed(open_model(tmp_path / "model"))
    streamed.stream.load_rest([], head=True)
    assert identity_of_weights(streamed.model) == identity_of_weights(whole) == identity_of_weights(model)
