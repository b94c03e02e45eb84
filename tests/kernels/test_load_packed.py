"""winnow.load(packed=True): the same model as winnow.load, its packed layers left packed."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import families
import winnow
from artifacts import artifact_of, outputs
from small import ConvNet, convnet
from winnow.errors import FormatError, InputError
from winnow.formats import load, read_artifact
from winnow.kernels.modules import PackedConv2d, PackedLinear
from winnow.kernels.swap import packed_layers
from winnow.masks.structure import NM, BlockShape

PARAMS = [
    pytest.param(f, id=f.name, marks=[] if f.name in families.TORCH else pytest.mark.hf) for f in families.FAMILIES
]


def close(found, expected, tolerance):
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert (a - b).abs().max() <= tolerance * b.abs().max()


def both(tmp_path, model, factory=None, dtype=None, **options):
    """The artifact of a model, loaded dense and packed."""
    folder = artifact_of(tmp_path / "out", model, **options)
    return folder, *(load(folder, factory=factory, dtype=dtype, packed=packed) for packed in (False, True))


@pytest.mark.parametrize("family", PARAMS)
def test_every_family_gives_the_same_outputs(tmp_path, family):
    if family.name not in families.TORCH:
        pytest.importorskip("transformers")
    factory = family.build if family.name in families.TORCH else None
    folder, dense, fast = both(tmp_path, family.build(), factory)
    assert type(fast) is type(dense) and not fast.training
    assert not any(p.requires_grad or p.is_meta for p in fast.parameters())
    for batch in family.batches():
        close(outputs(fast, batch), outputs(dense, batch), 1e-4)

    packed = packed_layers(fast)
    said = fast.winnow_packed
    assert set(said) == set(read_artifact(folder).packed_names)
    assert {f"{path}.weight" for path in packed} == {name for name, what in said.items() if what == "packed"}
    expected = dense.state_dict()
    found = fast.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    dense.load_state_dict(found)
    fast.load_state_dict(expected)
    for name, target in (getattr(dense, "all_tied_weights_keys", None) or {}).items():
        assert fast.get_parameter(name) is fast.get_parameter(target)


@pytest.mark.parametrize(
    "name, dense",
    [
        ("mixtral", "a parameter of MixtralExperts itself, not the weight of a layer below it"),
        ("encoder", "nn.MultiheadAttention multiplies by it in one fused call"),
    ],
)
def test_it_says_what_stays_dense(tmp_path, caplog, name, dense):
    family = families.family(name)
    folder = artifact_of(tmp_path / "out", family.build())
    with caplog.at_level("INFO", logger="winnow"):
        fast = load(folder, factory=family.build if name != "mixtral" else None, packed=True)
    assert dense in fast.winnow_packed.values() and "packed" in fast.winnow_packed.values()
    assert dense in caplog.text


@pytest.mark.hf
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["llama", "t5", "gpt2"])
def test_types(tmp_path, name, dtype):
    family = families.family(name)
    _, dense, fast = both(tmp_path, family.build().bfloat16(), dtype=dtype)
    for (name, a), (other, b) in zip(dense.state_dict().items(), fast.state_dict().items(), strict=True):
        assert name == other and a.dtype == b.dtype and torch.equal(a, b), name
    for path, layer in packed_layers(fast).items():
        assert layer.weight.dtype == dense.get_parameter(f"{path}.weight").dtype
        assert layer.matrix.values == "bfloat16"
    tolerance = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}[dtype]
    for batch in family.batches():
        close(outputs(fast, batch), outputs(dense, batch), tolerance)


@pytest.mark.hf
@pytest.mark.parametrize("values", ["keep", "int8", "int4"])
@pytest.mark.parametrize("structure", [NM(2, 4), BlockShape(1, 4), BlockShape(4, 2)], ids=str)
def test_values_and_structures(tmp_path, values, structure):
    family = families.family("llama")
    _, dense, fast = both(tmp_path, family.build(), values=values, structure=structure)
    layers = packed_layers(fast)
    assert len(layers) == 14
    for name, tensor in dense.state_dict().items():
        assert torch.equal(fast.state_dict()[name], tensor), name
    blocks = {layer.matrix.block for layer in layers.values()}
    assert blocks == ({4} if values == "int8" and structure == BlockShape(1, 4) else {1})
    for batch in family.batches():
        close(outputs(fast, batch), outputs(dense, batch), 1e-4)


@pytest.mark.hf
def test_generation_and_its_settings(tmp_path):
    folder = artifact_of(tmp_path / "out", families.family("llama").build())
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 6, "pad_token_id": 0}))
    dense, fast = load(folder), load(folder, packed=True)
    assert fast.generation_config.max_new_tokens == 6
    assert getattr(fast.config, "quantization_config", None) is None
    assert fast.dtype == dense.dtype and fast.device == dense.device
    ids = torch.arange(3, 9)[None]
    with torch.inference_mode():
        assert torch.equal(fast.generate(ids, do_sample=False), dense.generate(ids, do_sample=False))
    fast.save_pretrained(tmp_path / "dense")
    again = type(dense).from_pretrained(tmp_path / "dense")
    assert torch.equal(outputs(again, {"input_ids": ids})[0], outputs(dense, {"input_ids": ids})[0])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.one, self.two, self.out = nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 16, bias=False)
        self.out.weight = self.embed.weight
        self.again = self.two
        self.register_buffer("table", torch.arange(8.0), persistent=False)

    def forward(self, ids):
        x = self.one(self.embed(ids)) + self.table
        return self.out(self.again(torch.relu(self.two(x))))


class Odd(nn.Module):
    """Needs values of its parameters while it is built, and derives a buffer from them."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 3)
        self.scale = float(self.one.weight.detach().abs().max()) * 0 + 2
        self.register_buffer("low", self.two.weight[:1].detach() * 0, persistent=False)

    def forward(self, x):
        return self.two(self.one(x) * self.scale) + self.low.sum()


def test_plain_models_keep_ties_and_buffers(tmp_path):
    torch.manual_seed(3)
    _, dense, fast = both(tmp_path, Tied(), Tied)
    assert fast.out.weight is fast.embed.weight and fast.again is fast.two
    assert isinstance(fast.one, PackedLinear)
    ids = torch.arange(6).reshape(2, 3)
    close(outputs(fast, ids), outputs(dense, ids), 1e-5)


def test_a_model_that_needs_values_to_be_built(tmp_path):
    torch.manual_seed(3)
    _, dense, fast = both(tmp_path, Odd(), Odd)
    assert isinstance(fast.one, PackedLinear)
    x = torch.randn(4, 8)
    close(outputs(fast, x), outputs(dense, x), 1e-5)


def test_convolutions(tmp_path):
    _, dense, fast = both(tmp_path, convnet(), ConvNet)
    assert {type(m) for m in packed_layers(fast).values()} == {PackedConv2d}
    x = torch.randn(3, 1, 9, 8)
    close(outputs(fast, x), outputs(dense, x), 1e-5)


def test_building_leaves_other_threads_alone():
    from concurrent.futures import ThreadPoolExecutor

    from winnow.kernels.load_packed import parameters_on_meta

    with ThreadPoolExecutor(1) as pool, parameters_on_meta():
        assert nn.Linear(2, 2).weight.is_meta
        assert not pool.submit(nn.Linear, 2, 2).result().weight.is_meta
    assert not nn.Linear(2, 2).weight.is_meta


def test_a_changed_file_is_refused(tmp_path):
    folder = artifact_of(tmp_path / "out", convnet())
    artifact = read_artifact(folder)
    shard = next(folder.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(FormatError, match="damaged"):
        load(folder, factory=ConvNet, packed=True)
    with pytest.raises(FormatError):
        for name in artifact.packed_names:
            artifact.mapped(name)


def test_wrong_models_are_refused(tmp_path):
    folder = artifact_of(tmp_path / "out", convnet())
    with pytest.raises(FormatError, match="right factory"):
        load(folder, factory=families.MLP, packed=True)
    with pytest.raises(InputError, match="factory="):
        winnow.load(folder, packed=True)


def test_mapped_tensors_are_the_stored_ones_and_never_write(tmp_path):
    folder = artifact_of(tmp_path / "out", convnet())
    artifact = read_artifact(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in artifact.packed_names:
        a, b = artifact.packed(name), artifact.mapped(name)
        assert a.meta() == b.meta() and a.tensors().keys() == b.tensors().keys()
        for suffix, tensor in a.tensors().items():
            assert torch.equal(tensor, b.tensors()[suffix])
        b.data.zero_()
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


MEMORY = """
    import json, sys
    import torch, winnow

    def status(key):
        for line in open("/proc/self/status"):
            if line.startswith(key):
                return int(line.split()[1]) * 1024

    def run(folder):
        model = winnow.load(folder, packed=True)
        loaded = status("VmHWM")
        with torch.inference_mode():
            model(input_ids=torch.arange(3, 5)[None], use_cache=False)
        return model, loaded

    torch.set_num_threads(1)
    run(sys.argv[1])  # a small one: all code is imported and has run once
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
    before = status("VmRSS")
    model, peak = run(sys.argv[2])
    print(json.dumps({"peak": peak - before, "used": status("VmRSS") - before}))
"""


def llama_artifact(folder, **options):
    import transformers

    config = transformers.LlamaConfig(vocab_size=2000, num_attention_heads=16, dtype="bfloat16", **options)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    return artifact_of(folder, model), sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.hf
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_the_packed_size(tmp_path):
    """A random Llama of 30 million weights, loaded and run once in a process of its own."""
    pytest.importorskip("transformers")
    small, _ = llama_artifact(tmp_path / "small", hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    folder, dense = llama_artifact(tmp_path / "large", hidden_size=768, intermediate_size=2048, num_hidden_layers=4)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), str(small), str(folder)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["peak"] <= 1.15 * size < dense, (size, found)
    assert found["used"] <= 1.15 * size, (size, found)
