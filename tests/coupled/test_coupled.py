"""Coupled units: what is found, that it is really removable, and how units are chosen."""

from __future__ import annotations

import copy
from collections import Counter
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from coupled_models import Mobile, PlainCNN, ResNet, stir, zeroed
from families import FAMILIES, SIZES
from winnow.coupled.call import forward, record_blocks, tensors_in
from winnow.coupled.cut import CutProbe
from winnow.coupled.find import find_coupled_units, find_coupling
from winnow.coupled.graph import Component, find_components, separate
from winnow.coupled.select import compensate, matrices, score_units, select_units
from winnow.coupled.unit import CoupledUnit, Entries, Member, unit_masks, unit_sizes, zero_biases
from winnow.errors import InputError
from winnow.inputs import InputStats
from winnow.masks.prunable import Scope
from winnow.masks.scope import find_scope

IDS = torch.randint(0, 60, (2, 7), generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
HEADS = {**SIZES, "vocab_size": 64, "max_position_embeddings": 32}
GROUPS = {**HEADS, "num_key_value_heads": 2}
ENDS = {"bos_token_id": 1, "eos_token_id": 1}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4}
MODELS = {
    "llama": ("LlamaForCausalLM", {**HEADS, "intermediate_size": 48, "num_key_value_heads": 4}),
    "llama-gqa": ("LlamaForCausalLM", {**GROUPS, "intermediate_size": 48}),
    "qwen3": ("Qwen3ForCausalLM", {**GROUPS, "intermediate_size": 48, "head_dim": 12}),
    "bert": ("BertForSequenceClassification", {**HEADS, "intermediate_size": 40}),
    "gpt2": ("GPT2LMHeadModel", {**GPT2, **ENDS}),
    "opt": ("OPTForCausalLM", {**HEADS, "ffn_dim": 40, "word_embed_proj_dim": 32}),
    "neox": ("GPTNeoXForCausalLM", {**HEADS, "intermediate_size": 40}),
    "phi3": ("Phi3ForCausalLM", {**GROUPS, **ENDS, "intermediate_size": 40, "pad_token_id": 0}),
    "t5": ("T5ForConditionalGeneration", T5),
    "vit": ("ViTModel", {**SIZES, "intermediate_size": 40, "image_size": 16, "patch_size": 4}),
    "mixtral": (
        "MixtralForCausalLM",
        {**GROUPS, "intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}
STIRRED = ("bert", "gpt2", "opt", "neox", "vit")


def family(name: str) -> tuple[nn.Module, object]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    kind = getattr(transformers, MODELS[name][0])
    model = kind(kind.config_class(**MODELS[name][1])).eval()
    example = {"input_ids": IDS, **({"decoder_input_ids": IDS} if name == "t5" else {})}
    return stir(model) if name in STIRRED else model, IMAGES if name == "vit" else example


@cache
def found(name: str, unit: str) -> tuple[nn.Module, object, Scope, tuple[CoupledUnit, ...]]:
    model, example = family(name)
    scope = find_scope(model)
    return model, example, scope, tuple(find_coupled_units(model, scope, example, unit))


def shape_of(unit: CoupledUnit, block: str) -> dict[tuple[str, str], tuple[int, ...]]:
    return {(m.name.removeprefix(f"{block}.").removesuffix(".weight"), m.axis): m.indices for m in unit.members}


def span(start: int, stop: int) -> tuple[int, ...]:
    return tuple(range(start, stop))


# ---- what is found, against members written by hand


NEURONS = {
    "llama": (48, "model.layers.1", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", False),
    "bert": (40, "bert.encoder.layer.1", ("intermediate.dense",), "output.dense", True),
    "gpt2": (128, "transformer.h.1", ("mlp.c_fc",), "mlp.c_proj", True),
    "opt": (40, "model.decoder.layers.1", ("fc1",), "fc2", True),
    "neox": (40, "gpt_neox.layers.1", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h", True),
}


@pytest.mark.hf
@pytest.mark.parametrize("name", NEURONS)
def test_neurons(name):
    width, block, up, down, biased = NEURONS[name]
    _, _, scope, units = found(name, "neuron")
    assert len(units) == 2 * width
    own = [u for u in units if u.block == block]
    for i, unit in enumerate(own):
        assert unit.kind == "neuron" and unit.index == i
        assert shape_of(unit, block) == {**{(n, "rows"): (i,) for n in up}, (down, "cols"): (i,)}
        assert unit.biases == (tuple(Entries(f"{block}.{n}.bias", (i,)) for n in up) if biased else ())
    assert unit_sizes(own, scope) == [32 * (len(up) + 1)] * width


@pytest.mark.hf
def test_neurons_of_a_fused_gate():
    units = found("phi3", "neuron")[3]
    assert len(units) == 80
    for i, unit in enumerate(u for u in units if u.block == "model.layers.0"):
        assert shape_of(unit, "model.layers.0") == {
            ("mlp.gate_up_proj", "rows"): (i, 40 + i),
            ("mlp.down_proj", "cols"): (i,),
        }


def head_rows(head: int, dim: int) -> tuple[int, ...]:
    return span(head * dim, (head + 1) * dim)


def expected_head(name: str, h: int) -> dict[tuple[str, str], tuple[int, ...]]:
    own = head_rows(h, 8)
    if name in ("llama-gqa", "qwen3"):  # a key/value head with its two query heads
        dim = 8 if name == "llama-gqa" else 12
        own, two = head_rows(h, dim), head_rows(h, 2 * dim)
        q, k, v, o = (f"self_attn.{n}_proj" for n in "qkvo")
        return {(q, "rows"): two, (k, "rows"): own, (v, "rows"): own, (o, "cols"): two}
    if name == "gpt2":
        rows = own + tuple(32 + i for i in own) + tuple(64 + i for i in own)
        return {("attn.c_attn", "rows"): rows, ("attn.c_proj", "cols"): own}
    if name == "neox":  # per head: query, key, value
        return {("attention.query_key_value", "rows"): head_rows(h, 24), ("attention.dense", "cols"): own}
    if name == "phi3":  # all queries, then keys, then values
        rows = head_rows(h, 16) + tuple(32 + i for i in own) + tuple(48 + i for i in own)
        return {("self_attn.qkv_proj", "rows"): rows, ("self_attn.o_proj", "cols"): head_rows(h, 16)}
    names, out = {
        "llama": (tuple(f"self_attn.{n}_proj" for n in "qkv"), "self_attn.o_proj"),
        "opt": (tuple(f"self_attn.{n}_proj" for n in "qkv"), "self_attn.out_proj"),
        "bert": (tuple(f"attention.self.{n}" for n in ("query", "key", "value")), "attention.output.dense"),
    }[name]
    return {**{(n, "rows"): own for n in names}, (out, "cols"): own}


@pytest.mark.hf
@pytest.mark.parametrize(
    ("name", "heads", "block"),
    [
        ("llama", 4, "model.layers.1"),
        ("llama-gqa", 2, "model.layers.1"),
        ("qwen3", 2, "model.layers.1"),
        ("bert", 4, "bert.encoder.layer.1"),
        ("gpt2", 4, "transformer.h.1"),
        ("opt", 4, "model.decoder.layers.1"),
        ("neox", 4, "gpt_neox.layers.1"),
        ("phi3", 2, "model.layers.1"),
    ],
)
def test_heads(name, heads, block):
    units = found(name, "head")[3]
    assert len(units) == 2 * heads
    own = [u for u in units if u.block == block]
    assert [shape_of(u, block) for u in own] == [expected_head(name, h) for h in range(heads)]
    assert {u.kind for u in own} == {"head"} and [u.index for u in own] == list(range(heads))
    if name in ("bert", "gpt2", "opt", "neox"):
        for unit in own:
            rows = {m.name: m.indices for m in unit.members if m.axis == "rows"}
            assert {e.name: e.indices for e in unit.biases} == {n.replace("weight", "bias"): i for n, i in rows.items()}


@pytest.mark.hf
def test_encoder_and_decoder():
    heads = found("t5", "head")[3]
    assert Counter(u.block for u in heads) == {
        **{f"encoder.block.{i}": 4 for i in range(2)},
        **{f"decoder.block.{i}": 8 for i in range(2)},  # own attention and attention to the encoder
    }
    cross = [u for u in heads if "EncDec" in u.members[0].name]
    assert all(m.indices == head_rows(u.index, 6) for u in cross for m in u.members)
    assert Counter(u.block for u in found("t5", "neuron")[3]) == {
        f"{side}.block.{i}": 40 for side in ("encoder", "decoder") for i in range(2)
    }


@pytest.mark.hf
def test_vision_transformer():
    assert len(found("vit", "head")[3]) == 8 and len(found("vit", "neuron")[3]) == 80
    model, example, scope, _ = found("vit", "head")
    with pytest.raises(InputError, match="no channel that can be removed"):  # patches go straight into the stream
        find_coupled_units(model, scope, example, "channel")


@pytest.mark.hf
def test_experts_even_where_no_token_goes():
    model, _, scope, units = found("mixtral", "neuron")
    one_token = find_coupled_units(model, scope, {"input_ids": IDS[:1, :1]}, "neuron")  # reaches 2 of 4 experts
    assert list(units) == one_token and len(units) == 2 * 4 * 24
    for unit in units:
        expert, i = divmod(units.index(unit) % 96, 24)
        rows, cols = unit.members
        assert rows.indices == (expert * 48 + i, expert * 48 + 24 + i) and rows.parts == 4
        assert (cols.indices, cols.part, cols.parts) == ((i,), expert, 4)
    assert set(unit_sizes(units, scope)) == {3 * 32}


def test_packed_attention_of_torch():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 40, batch_first=True), 2)
    model.train()
    scope, example = find_scope(model), torch.randn(2, 5, 32)
    heads = find_coupled_units(model, scope, example, "head")
    assert len(heads) == 8 and len(find_coupled_units(model, scope, example, "neuron")) == 80
    for h, unit in enumerate(heads[4:]):
        own = head_rows(h, 8)
        rows = own + tuple(32 + i for i in own) + tuple(64 + i for i in own)
        assert shape_of(unit, "layers.1") == {
            ("self_attn.in_proj_weight", "rows"): rows,
            ("self_attn.out_proj", "cols"): own,
        }
        assert unit.biases == (Entries("layers.1.self_attn.in_proj_bias", rows),)
    assert model.training and all(m.training for m in model.modules())
    assert not any("forward" in m.__dict__ for m in model.modules())


def test_only_inner_channels_of_residual_blocks_are_free():
    model = stir(ResNet())
    scope = find_scope(model, include=["fc.weight"])  # even where the head may be pruned
    coupling = find_coupling(model, scope, IMAGES, "channel")
    assert Counter(u.block for u in coupling.units) == {"blocks.0": 6, "blocks.1": 5, "blocks.2": 7}
    for unit in coupling.units:
        i, block = unit.index, unit.block
        assert shape_of(unit, block) == {("conv1", "rows"): (i,), ("conv2", "cols"): span(9 * i, 9 * i + 9)}
        assert unit.biases == (Entries(f"{block}.bn1.weight", (i,)), Entries(f"{block}.bn1.bias", (i,)))
    reasons = {r.names[0]: r.reason for r in coupling.refused}
    assert set(reasons) == {"stem.weight", "blocks.2.down.weight", "fc.weight"}
    assert all("residual" in reason for reason in reasons.values())


def test_channels_of_a_plain_cnn():
    model = stir(PlainCNN())
    scope = find_scope(model, include=["9.weight"])
    units = find_coupled_units(model, scope, IMAGES, "channel")
    assert [shape_of(u, "") for u in units] == [
        *({("0", "rows"): (i,), ("3", "cols"): span(9 * i, 9 * i + 9)} for i in range(6)),
        *({("3", "rows"): (i,), ("6", "cols"): span(9 * i, 9 * i + 9)} for i in range(7)),
        *({("6", "rows"): (i,), ("9", "cols"): span(36 * i, 36 * i + 36)} for i in range(5)),
    ]
    assert units[1].biases == (Entries("0.bias", (1,)), Entries("1.weight", (1,)), Entries("1.bias", (1,)))
    assert units[7].biases == () and units[7].members[1].bias == "6.bias" and units[0].members[1].bias is None


def test_depthwise_and_gated_channels():
    model = stir(nn.Sequential(nn.Conv2d(3, 6, 3), Mobile(), Mobile(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    units = [u for u in find_coupled_units(model, find_scope(model), IMAGES, "channel") if u.block in ("2", "")]
    wide = [u for u in units if len(u.members) == 5 and u.members[0].name.startswith("2.")]
    assert len(wide) == 12
    for i, unit in enumerate(wide):
        assert shape_of(unit, "2") == {
            ("expand", "rows"): (i,),
            ("depth", "rows"): (i,),
            ("excite", "rows"): (i,),
            ("squeeze", "cols"): (i,),
            ("project", "cols"): (i,),
        }


def test_grouped_convolutions_lose_whole_groups():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.GroupNorm(4, 8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, groups=4),
        nn.ReLU(),
        nn.Conv2d(12, 4, 1),
        nn.Flatten(),
        nn.Linear(4 * 14 * 14, 3),
    )
    units = find_coupled_units(model, find_scope(model), IMAGES, "channel")
    assert [shape_of(u, "") for u in units] == [
        {
            ("0", "rows"): (2 * g, 2 * g + 1),
            ("3", "rows"): span(3 * g, 3 * g + 3),
            ("5", "cols"): span(3 * g, 3 * g + 3),
        }
        for g in range(4)
    ]
    assert Entries("1.weight", (2, 3)) in units[1].biases
    # Reading from channels that stay, a depthwise convolution cannot lose one of its own.
    stays = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(784, 2))
    coupling = find_coupling(stays, find_scope(stays), IMAGES, "channel")
    assert not coupling.units
    assert "input channels that stay" in {r.names[0]: r.reason for r in coupling.refused}["0.weight"]


class Hidden(nn.Module):
    """Half of the coupling is invisible to gradients, and one of the layers is dead at these values."""

    def __init__(self, mix: str) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 6)
        self.mix = mix
        nn.init.constant_(self.up.bias, -100.0)

    def forward(self, x):
        up, gate = self.up(x).relu(), self.gate(x).detach()
        if self.mix == "flipped":
            return self.down(up * gate.flip(-1))
        return self.down(up * gate.sum(-1, keepdim=True) if self.mix == "summed" else up.softmax(-1) * gate)


def test_what_gradients_do_not_show():
    x = torch.randn(3, 6)
    model = Hidden("flipped")
    scope = find_scope(model, include=["down.weight"])
    for i, unit in enumerate(find_coupled_units(model, scope, x, "neuron")):
        assert shape_of(unit, "") == {("up", "rows"): (i,), ("gate", "rows"): (4 - i,), ("down", "cols"): (i,)}
    for mix in ("summed", "softmax"):
        coupling = find_coupling(Hidden(mix), scope, x, "neuron")
        assert not coupling.units
        reasons = {r.names[0]: r.reason for r in coupling.refused}
        assert "all its features depend on each other" in reasons["up.weight"]


def test_wrong_components_are_caught():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    probe = CutProbe(model, record_blocks(model, torch.randn(3, 4), [""])[""])
    good = find_components(probe)
    assert len(good) == 6 + 5 and separate(probe, good).failed == set()
    swapped = list(good)
    swapped[0] = Component({"0": good[0].rows["0"]}, {"2": good[1].cols["2"]}, False)
    swapped[1] = Component({"0": good[1].rows["0"]}, {"2": good[0].cols["2"]}, False)
    assert separate(probe, swapped).failed == {0, 1}
    assert separate(probe, [Component({"0": (1,)}, good[0].cols, False), *good[2:]]).failed >= {0}
    missing = [Component({"0": (0, 1)}, {"2": (0,)}, False), *good[2:]]  # row 1 reaches a column that is not its own
    assert 0 in separate(probe, missing).failed


# ---- units really go: the zeroed model equals one rebuilt with smaller dense layers


def smaller(layer: nn.Linear, rows=None, cols=None) -> nn.Linear:
    weight, bias = layer.weight.data, layer.bias
    weight = weight if rows is None else weight[rows]
    weight = weight if cols is None else weight[:, cols]
    new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    new.weight.data = weight.clone()
    if bias is not None:
        new.bias.data = (bias.data if rows is None else bias.data[rows]).clone()
    return new


def run(model, example):
    with torch.no_grad():
        out = model(**example) if isinstance(example, dict) else model(example)
    return out if isinstance(out, torch.Tensor) else out[0]


@pytest.mark.hf
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_removed_neurons_equal_smaller_layers(name):
    model, example, scope, units = found(name, "neuron")
    chosen = [i for i, u in enumerate(units) if u.index % 3 == 0]
    small = copy.deepcopy(model)
    blocks = small.model.layers if name == "llama" else small.bert.encoder.layer
    for block in blocks:
        width = 48 if name == "llama" else 40
        keep = torch.tensor([i for i in range(width) if i % 3])
        if name == "llama":
            block.mlp.gate_proj = smaller(block.mlp.gate_proj, rows=keep)
            block.mlp.up_proj = smaller(block.mlp.up_proj, rows=keep)
            block.mlp.down_proj = smaller(block.mlp.down_proj, cols=keep)
        else:
            block.intermediate.dense = smaller(block.intermediate.dense, rows=keep)
            block.output.dense = smaller(block.output.dense, cols=keep)
    got = run(zeroed(model, units, chosen, scope), example)
    assert torch.allclose(got, run(small, example), atol=1e-5)
    assert not torch.allclose(got, run(model, example), atol=1e-5)


@pytest.mark.hf
def test_removed_kv_groups_equal_a_smaller_attention():
    model, example, scope, units = found("llama-gqa", "head")
    config = copy.deepcopy(model.config)
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 2, 1, 8
    small = type(model)(config).eval()
    keep_q, keep_kv = torch.arange(16, 32), torch.arange(8, 16)  # the second group stays
    state = {}
    for name, tensor in model.state_dict().items():
        if "q_proj" in name:
            tensor = tensor[keep_q]
        elif "k_proj" in name or "v_proj" in name:
            tensor = tensor[keep_kv]
        elif "o_proj" in name:
            tensor = tensor[:, keep_q]
        state[name] = tensor
    small.load_state_dict(state)
    chosen = [i for i, u in enumerate(units) if u.index == 0]
    assert torch.allclose(run(zeroed(model, units, chosen, scope), example), run(small, example), atol=1e-5)


@pytest.mark.hf
def test_removed_expert_neurons_equal_smaller_experts():
    model, example, scope, units = found("mixtral", "neuron")
    config = copy.deepcopy(model.config)
    config.intermediate_size = 16
    small = type(model)(config).eval()
    keep = torch.arange(8, 24)
    state = dict(model.state_dict())
    for name in state:
        if name.endswith("gate_up_proj"):
            state[name] = torch.cat([state[name][:, :24][:, keep], state[name][:, 24:][:, keep]], 1)
        elif name.endswith("experts.down_proj"):
            state[name] = state[name][:, :, keep]
    small.load_state_dict(state)
    chosen = [i for i, u in enumerate(units) if u.index < 8]
    assert torch.allclose(run(zeroed(model, units, chosen, scope), example), run(small, example), atol=1e-5)


def test_removed_channels_equal_smaller_convolutions():
    model = stir(PlainCNN())
    scope = find_scope(model, include=["9.weight"])
    units = find_coupled_units(model, scope, IMAGES, "channel")
    gone = {"0": {0, 4}, "3": {1, 2, 6}, "6": {3}}
    chosen = []
    for i, unit in enumerate(units):
        rows = next(m for m in unit.members if m.axis == "rows")
        if rows.indices[0] in gone[rows.name.split(".")[0]]:
            chosen.append(i)
    small = PlainCNN(4, 4, 4).eval()
    a, b, c = (torch.tensor([i for i in range(n) if i not in gone[k]]) for k, n in (("0", 6), ("3", 7), ("6", 5)))
    old = model.state_dict()
    flat = (c[:, None] * 36 + torch.arange(36)).flatten()
    small.load_state_dict(
        {k: v[a] if k.startswith(("0.", "1.")) and v.dim() else v for k, v in old.items()}
        | {
            "3.weight": old["3.weight"][b][:, a],
            "6.weight": old["6.weight"][c][:, b],
            "6.bias": old["6.bias"][c],
            "9.weight": old["9.weight"][:, flat],
        }
    )
    pruned = zeroed(model, units, chosen, scope)
    assert torch.allclose(run(pruned, IMAGES), run(small, IMAGES), atol=1e-5)


COUNTS = {  # neurons, heads or KV groups: all layers, by hand from the configurations
    "llama": (96, 4),
    "qwen3": (96, 4),
    "mistral": (96, 4),
    "gpt2": (256, 8),
    "opt": (96, 8),
    "gpt_neox": (96, 8),
    "phi": (96, 8),
    "gemma": (96, 4),
    "gemma2": (96, 4),
    "gemma3": (96, 4),
    "mixtral": (384, 4),  # 2 layers x 4 experts x 48
    "qwen3_moe": (128, 4),
    "gpt_oss": (256, 4),
    "bert": (96, 8),
    "roberta": (96, 8),
    "t5": (192, 24),  # decoder layers have two attentions
    "vit": (96, 8),
    "clip": (144, 16),  # 2 x 48 in the text tower, 2 x 24 in the vision tower
    "encoder": (48, 8),
    "encoder_time_first": (48, 8),
}


@pytest.mark.hf
@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name in COUNTS], ids=lambda f: f.name)
def test_nothing_else_reads_a_unit(family):
    """Zero columns alone give the outputs that zero rows, biases and columns give: the rows reach nothing else."""
    if family.name not in ("encoder", "encoder_time_first"):
        pytest.importorskip("transformers")
    model, batch = family.build().eval(), family.batches()[0]
    scope = find_scope(model)
    with torch.no_grad():
        dense = tensors_in(forward(model, batch))
    for kind, count in zip(("neuron", "head"), COUNTS[family.name]):
        units = find_coupled_units(model, scope, batch, kind)
        assert len(units) == count
        chosen = [i for i, u in enumerate(units) if u.index % 2]
        columns = [
            CoupledUnit(u.kind, u.block, u.index, tuple(m for m in u.members if m.axis == "cols")) for u in units
        ]
        with torch.no_grad():
            whole = tensors_in(forward(zeroed(model, units, chosen, scope), batch))
            alone = tensors_in(forward(zeroed(model, columns, chosen, scope), batch))
        assert all(torch.allclose(a, b, atol=1e-5, equal_nan=True) for a, b in zip(whole, alone))
        assert not all(torch.allclose(a, b, atol=1e-5, equal_nan=True) for a, b in zip(whole, dense))


# ---- scores, selection, masks, compensation


def toy(groups: list[int], width: int = 4) -> tuple[list[CoupledUnit], Scope]:
    """A chain of layers: unit i of layer l is row i of layer l and column i of layer l + 1."""
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in zip([width, *groups], [*groups, 3])))
    scope = find_scope(model, include=["*.weight"])
    units = [
        CoupledUnit(
            "neuron",
            "",
            i,
            (Member(f"{n}.weight", "rows", (i,)), Member(f"{n + 1}.weight", "cols", (i,), bias=f"{n + 1}.bias")),
            (Entries(f"{n}.bias", (i,)),),
        )
        for n, count in enumerate(groups)
        for i in range(count)
    ]
    return units, scope


@given(st.lists(st.integers(2, 6), min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_selection_is_exact_to_one_unit(groups, share, seed):
    units, scope = toy(groups)
    scores = torch.rand(len(units), generator=torch.Generator().manual_seed(seed))
    most = [i for i, u in enumerate(units) if u.index]  # one unit of each layer stays
    limit = sum(int((~m).sum()) for m in unit_masks(units, most, scope).values())
    zeros = int(share * limit)
    selection = select_units(units, scores, zeros, scope)
    masks = unit_masks(units, selection, scope)
    assert selection.zeros == sum(int((~m).sum()) for m in masks.values())  # shared weights counted once
    assert selection.difference == selection.zeros - zeros
    assert abs(selection.difference) < max(unit_sizes(units, scope))
    left = Counter(u.group for i, u in enumerate(units) if i not in selection.chosen)
    assert set(left) == {u.group for u in units}
    assert all(bool(m.any()) for m in masks.values())


def test_selection_takes_the_lowest_scores_per_weight():
    units, scope = toy([6])  # 4 + 3 weights each
    scores = torch.tensor([5.0, 1.0, 4.0, 1.0, 0.5, 9.0])
    assert select_units(units, scores, 14, scope).chosen == (1, 4)  # the tie goes by order
    assert select_units(units, scores, 17, scope).chosen == (1, 4)  # 14 is nearer than 21
    assert select_units(units, scores, 18, scope).difference == 3
    assert select_units(units, scores, 35, scope).chosen == (0, 1, 2, 3, 4)
    with pytest.raises(InputError, match="35 is the most"):
        select_units(units, scores, 42, scope)
    mixed, scope = toy([2, 3])  # 4 + 3 and 2 + 3 weights, of which one is shared by each pair
    assert unit_sizes(mixed, scope) == [7, 7, 5, 5, 5]
    scores = torch.tensor([3.5, 3.5, 3.0, 3.0, 3.0])  # per weight 0.5 and 0.6
    assert select_units(mixed, scores, 7, scope).chosen == (0,)
    both = select_units(mixed, scores, 11, scope)
    assert both.chosen == (0, 2) and both.difference == 0 and len(both) == 2 and list(both) == [0, 2]


@pytest.mark.parametrize(
    ("scores", "zeros", "message"),
    [([1.0] * 6, -1, "negative"), ([1.0] * 5, 7, "6 units"), ([float("nan")] * 6, 7, "not finite")],
)
def test_selection_bad_input(scores, zeros, message):
    units, scope = toy([6])
    with pytest.raises(InputError, match=message):
        select_units(units, torch.tensor(scores), zeros, scope)


def test_sum_score_adds_each_weight_once():
    scope = find_scope(nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 1)))
    both = CoupledUnit("neuron", "", 0, (Member("0.weight", "rows", (1, 3)), Member("0.weight", "cols", (0, 3))))
    score = torch.arange(25.0).view(5, 5)
    keep = unit_masks([both], [0], scope)["0.weight"]
    assert score_units([both], {"0.weight": score}).tolist() == [float(score[~keep].sum())]
    assert unit_sizes([both], scope) == [int((~keep).sum())]
    with pytest.raises(InputError, match=r"no scores for 0\.weight"):
        score_units([both], {})


def stats_of(x: torch.Tensor) -> InputStats:
    x = x.double()
    return InputStats(x.shape[1], len(x), x.sum(0), x.square().sum(0))


def test_flap_score_by_hand():
    units, scope = toy([3, 4])
    weights = {n: torch.randn(p.rows, p.cols) for n, p in scope.prunables.items()}
    inputs = {n: torch.randn(50, p.cols) * torch.rand(p.cols) + 2 for n, p in scope.prunables.items()}
    stats = {n: [stats_of(x)] if n == "1.weight" else stats_of(x) for n, x in inputs.items()}
    got = score_units(units, {}, "flap", stats=stats, weights=weights)
    expected = []
    for layer, count in ((1, 3), (2, 4)):
        name = f"{layer}.weight"
        metric = [
            float(inputs[name][:, j].double().var(correction=0)) * sum(float(w) ** 2 for w in weights[name][:, j])
            for j in range(count)
        ]
        mean = sum(metric) / count
        std = (sum((m - mean) ** 2 for m in metric) / (count - 1)) ** 0.5
        size = 4 + 4 if layer == 1 else 3 + 3
        expected += [size * (m - mean) / std for m in metric]
    assert torch.allclose(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-6)
    with pytest.raises(InputError, match="pass stats and weights"):
        score_units(units, {}, "flap")
    with pytest.raises(InputError, match="no input statistics for 2"):
        score_units(units, {}, "flap", stats={"1.weight": stats["1.weight"]}, weights=weights)
    with pytest.raises(InputError, match="use sum or flap"):
        score_units(units, {}, "max")  # type: ignore[arg-type]


def test_flap_averages_the_columns_of_a_head_and_keeps_experts_apart():
    unit = CoupledUnit("head", "", 0, (Member("w", "cols", (0, 2), part=1, parts=2),))
    weight = torch.arange(1.0, 13).view(4, 3)
    x = torch.tensor([[0.0, 0.0, 0.0], [2.0, 4.0, 6.0]])  # variances 1, 4, 9
    metric = torch.tensor([1.0, 4, 9]) * weight[2:].square().sum(0)
    z = (metric - metric.mean()) / metric.std()
    got = score_units([unit], {}, "flap", stats={"w": [stats_of(x + 7), stats_of(x)]}, weights={"w": weight})
    assert got.item() == pytest.approx(float((z[0] + z[2]) / 2 * 4), rel=1e-5)  # 2 rows x 2 columns


def test_compensation_is_exact_for_constant_inputs_and_helps_otherwise():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(8, 12), nn.Sigmoid(), nn.Linear(12, 10), nn.Sigmoid(), nn.Linear(10, 3))
    scope = find_scope(model, include=["*.weight"])
    x = torch.randn(64, 8)
    units = [u for u in find_coupled_units(model, scope, x, "neuron")]
    chosen = [i for i, u in enumerate(units) if u.members[0].name == "0.weight" and u.index in (1, 5, 6)]
    for data, exact in ((x[:1].expand(64, 8), True), (x, False)):
        hidden = model[:2](data).detach()
        stats = {"2.weight": stats_of(hidden)}
        deltas = compensate(units, chosen, matrices(model, scope), stats)
        by_hand = sum(model[2].weight[:, j].double() * hidden[:, j].double().mean() for j in (1, 5, 6))
        assert list(deltas) == ["2.bias"] and torch.allclose(deltas["2.bias"], by_hand)
        before = (run(zeroed(model, units, chosen, scope), data) - run(model, data)).square().mean()
        after = (run(zeroed(model, units, chosen, scope, deltas), data) - run(model, data)).square().mean()
        assert after < 1e-10 < before if exact else after < 0.3 * before


def test_compensation_of_a_chain_and_of_a_layer_without_bias():
    units, scope = toy([3, 4])
    weights = {n: torch.randn(p.rows, p.cols) for n, p in scope.prunables.items()}
    stats = {n: stats_of(torch.randn(9, p.cols) + 1) for n, p in scope.prunables.items()}
    deltas = compensate(units, [0, 3 + 2], weights, stats)
    assert set(deltas) == {"1.bias", "2.bias"}
    assert deltas["1.bias"][2] == 0 and (deltas["1.bias"][[0, 1, 3]] != 0).all()  # row 2 goes itself
    bare = [CoupledUnit("neuron", "", 0, (Member("1.weight", "cols", (0,)),))]
    assert compensate(bare, [0], weights, stats) == {"1.weight": None}


def test_compensation_of_one_expert_touches_its_rows_only():
    unit = CoupledUnit("neuron", "", 0, (Member("w", "cols", (1,), part=1, parts=2, bias="b"),))
    weight = torch.arange(12.0).view(4, 3)
    stats = {"w": [stats_of(torch.ones(2, 3)), stats_of(torch.full((2, 3), 5.0))]}
    assert compensate([unit], [0], {"w": weight}, stats)["b"].tolist() == [0, 0, 35.0, 50.0]


def test_zero_biases_leaves_the_model_alone():
    model = stir(PlainCNN())
    units = find_coupled_units(model, find_scope(model), IMAGES, "channel")
    before = {n: p.clone() for n, p in model.named_parameters()}
    new = zero_biases(units, [1, 3], model)
    assert set(new) == {"0.bias", "1.weight", "1.bias"}
    for name, value in new.items():
        assert value.tolist() == [0 if i in (1, 3) else v for i, v in enumerate(before[name].tolist())]
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_examples_that_do_not_fit():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    with pytest.raises(InputError, match="cannot be run on the example"):
        find_coupled_units(model, find_scope(model), torch.randn(2, 3), "neuron")
    with pytest.raises(InputError, match="no head that can be removed"):
        find_coupled_units(model, find_scope(model), torch.randn(2, 4), "head")
