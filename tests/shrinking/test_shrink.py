"""Shrinking: units zeroed by hand go, the smaller model computes the same, and what cannot go stays with its reason."""

from __future__ import annotations

import copy
import io
import itertools
import json
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import winnow
from coupled_models import Mobile, ResNet, stir, zeroed
from families import family
from winnow.coupled.call import forward, probing_mode, tensors_in
from winnow.coupled.unit import CoupledUnit
from winnow.errors import InputError
from winnow.formats.resaved import before_saving, say_dense
from winnow.masks.prunable import Scope
from winnow.shrinking import Removed, apply, kept_rows_cols, nonzero_rows_cols, plan, shrink, shrink_matrix
from winnow.shrinking.attention import NarrowAttention
from winnow.shrinking.dead_units import coupled_units, wide_scope
from winnow.shrinking.example import make_example

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def double(value):
    if isinstance(value, dict):
        return {k: double(v) for k, v in value.items()}
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def outputs(model: nn.Module, batch) -> list[torch.Tensor]:
    with probing_mode(model), torch.no_grad():
        return tensors_in(forward(model, batch))


def same(a: nn.Module, b: nn.Module, batch, wide: bool = True) -> bool:
    """Equal outputs in float64 (float32 where the model's own code has no other)."""
    if wide:
        a, b, batch = copy.deepcopy(a).double(), copy.deepcopy(b).double(), double(batch)
    found, expected = outputs(a, batch), outputs(b, batch)
    atol = 1e-6 if wide else 1e-4  # transformers keep float32 islands in float64 models
    return len(found) == len(expected) > 0 and all(
        x.shape == y.shape and torch.allclose(x, y, rtol=1e-6, atol=atol, equal_nan=True)
        for x, y in zip(found, expected)
    )


def model_of(name: str):
    """A small model of a family in evaluation mode, and a batch for it."""
    return family(name).build().eval(), family(name).batches()[0]


def units_zeroed(model: nn.Module, batch, chosen) -> tuple[nn.Module, list[CoupledUnit], Scope]:
    """The model with the units zeroed that ``chosen`` picks, all units, and the scope."""
    scope = wide_scope(model)
    units, _ = coupled_units(model, scope, batch)
    return zeroed(model, units, [i for i, u in enumerate(units) if chosen(u)], scope), units, scope


def odd_units_zeroed(model: nn.Module, batch) -> tuple[nn.Module, list[CoupledUnit], Scope]:
    return units_zeroed(model, batch, lambda u: u.index % 2)


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {n: tuple(t.shape) for n, t in model.state_dict().items()}


# ---- families: every second neuron, head and channel zeroed

# (parameters that go, tensor -> its new shape), by hand from the sizes in families.py.
# Hidden 32, 4 heads of 8, 48 neurons; a neuron with biases: 32 + 1 + 32, a head 3 * (8 * 32 + 8) + 32 * 8.
EXPECTED = {
    "mlp": (516 - (10 * 8 + 8 + 8 * 8 + 8 + 8 * 4 + 4), {"one.weight": (8, 10), "two.weight": (8, 8), "head.weight": (4, 8)}),
    "encoder": (2 * (12 * 33 + 2 * (3 * (4 * 16 + 4) + 16 * 4)), {"encoder.layers.0.self_attn.in_proj_weight": (24, 16), "encoder.layers.1.linear2.weight": (16, 12)}),
    "encoder_time_first": (2 * (12 * 33 + 2 * (3 * (4 * 16 + 4) + 16 * 4)), {"encoder.layers.1.self_attn.out_proj.weight": (16, 8)}),
    # The pooler's 32 outputs are neurons too, read by the 2 classes.
    "bert": (2 * (24 * 65 + 2 * (3 * 264 + 256)) + 16 * (32 + 1 + 2), {"bert.encoder.layer.0.attention.self.query.weight": (16, 32), "bert.encoder.layer.1.output.dense.weight": (32, 24)}),
    "vit": (2 * (24 * 65 + 2 * (3 * 264 + 256)), {"vit.layers.0.mlp.fc1.weight": (24, 32)}),
    "gpt2": (2 * (64 * 65 + 2 * (3 * 264 + 256)), {"transformer.h.0.attn.c_attn.weight": (32, 48), "transformer.h.0.attn.c_attn.bias": (48,), "transformer.h.1.mlp.c_proj.weight": (64, 32)}),
    # One of two key/value groups: 16 query rows, 8 key and 8 value rows, 16 columns.
    "llama": (2 * (24 * 3 * 32 + (16 + 8 + 8 + 16) * 32), {"model.layers.0.self_attn.q_proj.weight": (16, 32), "model.layers.0.self_attn.k_proj.weight": (8, 32), "model.layers.1.mlp.down_proj.weight": (32, 24)}),
    # Encoder and decoder, two attentions in the decoder, and two columns of both position tables.
    "t5": (2 * (24 * 64 + 2 * 4 * 256) + 2 * (24 * 64 + 4 * 4 * 256) + 2 * 32 * 2, {"encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 2), "decoder.block.1.layer.1.EncDecAttention.o.weight": (32, 16)}),
    "clip": (2 * (24 * 65 + 2 * (3 * 264 + 256)) + 2 * (12 * 33 + 2 * (3 * (4 * 16 + 4) + 16 * 4)), {"vision_model.encoder.layers.0.mlp.fc1.weight": (12, 16)}),
    # 4 experts of 24 neurons less, and a key/value group.
    "mixtral": (2 * (4 * 24 * 3 * 32 + (16 + 8 + 8 + 16) * 32), {"model.layers.0.mlp.experts.gate_up_proj": (4, 48, 32), "model.layers.0.mlp.experts.down_proj": (4, 32, 24)}),
    # Experts of 16 neurons less (2 rows with bias, 1 column), a group with biases, and 2 of 4 sinks.
    "gpt_oss": (2 * (4 * 16 * (2 * 33 + 32) + (16 + 8 + 8) * 33 + 16 * 32 + 2), {"model.layers.0.self_attn.sinks": (2,)}),
}  # fmt: skip


@pytest.mark.hf
@pytest.mark.parametrize("name", EXPECTED)
def test_families(name):
    model, batch = model_of(name)
    pruned, units, _ = odd_units_zeroed(model, batch)
    before = {n: t.clone() for n, t in pruned.state_dict().items()}
    result = shrink(pruned)  # its own example
    gone, some = EXPECTED[name]
    assert size(pruned) - size(result.model) == gone
    assert shapes(result.model) | some == shapes(result.model)
    assert result.skipped == [] and sum(r.count for r in result.removed) == sum(u.index % 2 for u in units)
    assert all(r.count * 2 == r.total for r in result.removed)
    wide = name not in ("mixtral", "gpt_oss")
    assert same(result.model, pruned, batch, wide) and not same(result.model, model, batch, wide)
    # The given model is what it was, and what was not cut is shared with it.
    assert all(torch.equal(t, before[n]) for n, t in pruned.state_dict().items())
    theirs = dict(pruned.named_parameters())
    cut = {c["name"] for c in result.plan["cuts"]}
    assert all((p is theirs[n]) == (n not in cut) for n, p in result.model.named_parameters())
    assert list(result.model.state_dict()) == list(before)
    result.model.load_state_dict(copy.deepcopy(result.model.state_dict()))
    for module in result.model.modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape


@pytest.mark.hf
def test_layers_that_differ(tmp_path, fake_hub):
    transformers = pytest.importorskip("transformers")
    model, batch = model_of("llama")
    first = {"model.layers.0": 5, "model.layers.1": 20}
    pruned, _, _ = units_zeroed(model, batch, lambda u: u.kind == "neuron" and u.index < first[u.block])
    result = shrink(pruned, batch)
    assert result.removed == [
        Removed("neuron", "model.layers.0.mlp", 5, 48),
        Removed("neuron", "model.layers.1.mlp", 20, 48),
    ]
    assert [layer.mlp.intermediate_size for layer in result.model.model.layers] == [43, 28]
    assert result.plan["config"] == [] and result.model.config.intermediate_size == 48
    assert same(result.model, pruned, batch)
    with pytest.raises(
        InputError, match=r"mlp.*is \[43, 32\].*and \[48, 32\].*take the model as it was before winnow.shrink"
    ):
        result.model.save_pretrained(tmp_path / "small")
    with pytest.raises(InputError, match="on it whenever it is loaded"):
        copy.deepcopy(result.model).push_to_hub("me/small")
    assert not fake_hub.repo and not (tmp_path / "small").exists()
    made = dict(sparsity=0.5, method="magnitude", task="none", baselines="none", speed=False)
    with pytest.raises(InputError, match="could load what would be written"):
        winnow.compress(result.model, out=tmp_path / "small", **made)
    in_memory = winnow.compress(result.model, **made)  # which needs no configuration
    assert in_memory.chosen.pruned is not None
    with pytest.raises(InputError, match="could load what would be written"):
        in_memory.save(tmp_path / "small")
    assert not (tmp_path / "small").exists()
    pruned.save_pretrained(tmp_path / "whole")  # the way that the sentence names
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32).eval()
    assert shapes(shrink(again).model) == shapes(result.model) and same(shrink(again).model, pruned, batch)


@pytest.mark.hf
def test_config_follows_where_layers_agree(tmp_path):
    T = pytest.importorskip("transformers")
    model, batch = model_of("llama")
    pruned, _, _ = odd_units_zeroed(model, batch)
    result = shrink(pruned)
    config = result.model.config
    assert (config.intermediate_size, config.num_attention_heads, config.num_key_value_heads) == (24, 2, 1)
    assert config.head_dim == 8 and model.config.intermediate_size == 48 and pruned.config.num_attention_heads == 4
    before_saving(pruned, say_dense)  # as a model of a packed folder has it; of the small one it would not be true
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*dense, zeros and all.*")
        shrink(pruned).model.save_pretrained(tmp_path)
    again = T.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert shapes(again) == shapes(result.model) and same(again, pruned, batch)
    ids = batch["input_ids"][:1, :4]
    with torch.no_grad():  # through the key/value cache
        long, short = (m.generate(ids, max_new_tokens=6, do_sample=False) for m in (pruned, result.model))
    assert torch.equal(long, short)
    # BERT's config cannot say that its heads are fewer than its width has room for: it says what it can.
    bert = shrink(odd_units_zeroed(*model_of("bert"))[0])
    assert bert.model.config.intermediate_size == 24 and bert.model.config.num_attention_heads == 4
    assert bert.model.bert.encoder.layer[0].attention.self.num_attention_heads == 2


@pytest.mark.hf
def test_heads_that_share_a_table_go_where_all_layers_agree():
    model, batch = model_of("t5")
    heads = {"encoder.block.0": {1, 2}, "encoder.block.1": {2}}
    pruned, _, _ = units_zeroed(model, batch, lambda u: u.kind == "head" and u.index in heads.get(u.block, ()))
    result = shrink(pruned)
    names = [f"encoder.block.{i}.layer.0.SelfAttention" for i in range(2)]
    assert result.removed == [Removed("head", n, 1, 4) for n in names]
    assert [(s.name, s.count) for s in result.skipped] == [(names[0], 1)] and "not in every layer" in result.skipped[
        0
    ].reason
    assert result.model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.shape == (32, 3)
    assert same(result.model, pruned, batch)


@pytest.mark.hf
@pytest.mark.parametrize("layers", ["alike", "apart"])
def test_heads_of_a_model_that_asks_its_config(layers):
    """Phi-3 splits its fused projection by the config's head counts, which all layers share."""
    T = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = T.Phi3ForCausalLM(T.Phi3Config(**sizes, **tokens, num_attention_heads=4, num_key_value_heads=4)).eval()
    batch = {"input_ids": torch.arange(3, 15).view(2, 6)}
    heads = {"model.layers.0": {0, 2}, "model.layers.1": {0, 2} if layers == "alike" else {0}}
    pruned, _, _ = units_zeroed(model, batch, lambda u: u.kind == "head" and u.index in heads[u.block])
    result = shrink(pruned, batch)
    count = 2 if layers == "alike" else 1
    assert [(r.kind, r.count, r.total) for r in result.removed] == [("head", count, 4)] * 2
    assert [s.count for s in result.skipped] == ([] if layers == "alike" else [1])
    assert result.model.config.num_attention_heads == 4 - count and model.config.num_attention_heads == 4
    assert same(result.model, pruned, batch)


@pytest.mark.hf
def test_half_of_a_query_group_stays():
    model, batch = model_of("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight[:8] = 0
            layer.self_attn.o_proj.weight[:, :8] = 0
    result = shrink(model, batch)
    assert result.removed == [] and shapes(result.model) == shapes(model)


@pytest.mark.hf
def test_what_fails_the_run_is_put_back():
    T = pytest.importorskip("transformers")
    torch.manual_seed(0)  # Bloom's position slopes are made for the config's number of heads
    model = T.BloomForCausalLM(T.BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4)).eval()
    batch = {"input_ids": torch.arange(12).view(2, 6)}
    pruned, _, _ = odd_units_zeroed(model, batch)
    result = shrink(pruned)
    assert {(r.kind, r.count, r.total) for r in result.removed} == {("neuron", 64, 128)}
    assert [(s.kind, s.count) for s in result.skipped] == [("head", 2)] * 2
    assert all("does not run" in s.reason for s in result.skipped)
    assert same(result.model, pruned, batch)


class Counts(nn.Module):
    """Its answer depends on how wide it is."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.free, self.out = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        hidden = self.up(x).relu()
        return self.out(self.free(self.down(hidden) / hidden.shape[-1]).relu())


def test_a_wrong_model_is_never_returned():
    torch.manual_seed(0)
    model, x = Counts(), torch.randn(4, 6)
    with torch.no_grad():
        for up, down in ((model.up, model.down), (model.free, model.out)):
            up.weight[:3], up.bias[:3], down.weight[:, :3] = 0, 0, 0
    result = shrink(model, x)
    assert result.removed == [Removed("neuron", "free", 3, 8)]
    assert [(s.kind, s.name, s.count) for s in result.skipped] == [("neuron", "up", 3)]
    assert "outputs differ" in result.skipped[0].reason
    assert same(result.model, model, x)


# ---- what is dead


def two_layers(act: nn.Module, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), act, nn.Linear(8, 4, bias=bias))


@pytest.mark.parametrize("act", [nn.ReLU(), nn.Sigmoid(), nn.GELU(), nn.Tanh()], ids=lambda a: type(a).__name__)
def test_live_biases_of_dead_rows_move_into_the_next_bias(act):
    model, x = two_layers(act), torch.randn(3, 5)
    with torch.no_grad():
        model[0].weight[[1, 4, 6]] = 0
        model[0].bias[[1, 4, 6]] = torch.tensor([0.7, -0.4, 1.1])
    result = shrink(model, x)
    assert result.removed == [Removed("neuron", "0", 3, 8)]
    constant = act(model[0].bias.detach().double())
    by_hand = model[2].bias.detach().double() + sum(
        model[2].weight[:, j].detach().double() * constant[j] for j in (1, 4, 6)
    )
    assert torch.allclose(result.model[2].bias.detach().double(), by_hand, atol=1e-7)
    keep = torch.tensor([0, 2, 3, 5, 7])
    assert torch.equal(result.model[0].weight, model[0].weight[keep]) and torch.equal(
        result.model[0].bias, model[0].bias[keep]
    )
    assert torch.equal(result.model[2].weight, model[2].weight[:, keep])
    assert same(result.model, model, x)


def test_a_constant_without_a_bias_to_go_to_stays():
    model, x = two_layers(nn.ReLU(), bias=False), torch.randn(3, 5)
    with torch.no_grad():
        model[0].weight[[1, 4]] = 0
        model[0].bias[[1, 4]] = torch.tensor([0.7, -0.4])  # the second gives zero after the ReLU
    result = shrink(model, x)
    assert result.removed == [Removed("neuron", "0", 1, 8)] and result.model[0].out_features == 7
    assert [(s.count, s.reason) for s in result.skipped] == [
        (1, "its constant output has no bias of the next layer to go to")
    ]
    assert same(result.model, model, x)


def test_zero_columns_are_enough_and_a_dead_relu_is_not():
    model, x = two_layers(nn.ReLU()), torch.rand(3, 5)
    with torch.no_grad():
        model[2].weight[:, [0, 3]] = 0
        model[0].weight[5], model[0].bias[5] = -1.0, -9.0  # never above zero on this example
        model[0].bias[6] = -1e6
    result = shrink(model, x)
    assert result.removed == [Removed("neuron", "0", 2, 8)]
    assert torch.equal(result.model[0].weight, model[0].weight[[1, 2, 4, 5, 6, 7]])


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 9), nn.Linear(6, 9, bias=False), nn.Linear(9, 6, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


def test_one_side_of_a_gate_silences_a_neuron():
    torch.manual_seed(2)
    model, x = Gated(), torch.randn(4, 6)
    with torch.no_grad():
        model.up.weight[2] = 0
        model.gate.weight[3], model.gate.bias[3] = 0, 0
        model.gate.weight[4] = 0  # its bias still opens the gate
    result = shrink(model, x)
    assert result.removed == [Removed("neuron", "gate", 2, 9)] and result.model.down.in_features == 7
    assert same(result.model, model, x)


class Opened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(8, 6)
        self.gate, self.up, self.down = nn.Linear(6, 9), nn.Linear(6, 9, bias=False), nn.Linear(9, 6, bias=False)

    def forward(self, ids):
        x = self.words(ids)
        return self.down(self.gate(x).sigmoid() * self.up(x).relu())


def test_what_this_example_does_not_wake_stays():
    """A gate that is always half open in front of a ReLU that this example leaves at zero: alive for another one."""
    torch.manual_seed(2)
    model = Opened()
    with torch.no_grad():
        model.words.weight[:6].abs_()
        model.words.weight[6:].abs_().neg_()
        model.gate.weight[2], model.gate.bias[2] = 0, 0.5
        model.up.weight[2] = -1
    result = shrink(model, torch.arange(6).view(2, 3))
    assert result.removed == [] and same(result.model, model, torch.tensor([[6, 7]]))


@pytest.mark.hf
def test_values_silence_a_head_but_queries_do_not():
    model, batch = model_of("bert")
    first, second = (layer.attention for layer in model.bert.encoder.layer)
    with torch.no_grad():
        first.self.value.weight[8:16] = 0
        first.self.value.bias[8:16] = torch.arange(8.0) / 4  # attention averages it to itself
        second.self.query.weight[8:16], second.self.query.bias[8:16] = 0, 0
    result = shrink(model, batch)
    assert result.removed == [Removed("head", "bert.encoder.layer.0.attention", 1, 4)]
    delta = first.output.dense.weight[:, 8:16] @ (torch.arange(8.0) / 4)
    new = result.model.bert.encoder.layer[0].attention.output.dense
    assert new.in_features == 24 and torch.allclose(new.bias, first.output.dense.bias + delta, atol=1e-5)
    assert same(result.model, model, batch)


@pytest.mark.hf
def test_constants_through_a_transposed_layer():
    model, batch = model_of("gpt2")
    mlp = model.transformer.h[0].mlp
    with torch.no_grad():
        mlp.c_fc.weight[:, 7], mlp.c_fc.bias[7] = 0, 1.5
    result = shrink(model, batch)
    small = result.model.transformer.h[0].mlp
    assert result.removed == [Removed("neuron", "transformer.h.0.mlp", 1, 128)]
    assert (small.c_fc.nf, small.c_proj.nx) == (127, 127)
    value = mlp.act(torch.tensor(1.5))
    assert torch.allclose(small.c_proj.bias, mlp.c_proj.bias + value * mlp.c_proj.weight[7], atol=1e-6)
    assert same(result.model, model, batch)


def test_what_only_the_dead_read_or_feed_is_dead_too():
    torch.manual_seed(3)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(5, 4)
    with torch.no_grad():
        model[4].weight[:, :2] = 0  # neurons 0 and 1 of the second layer are not read
        model[2].weight[2:, 0] = 0  # so neuron 0 of the first is not either
        model[0].weight[5], model[0].bias[5] = 0, 0.5  # constant, and all that neuron 5 of the second reads
        model[2].weight[5, :5] = 0
    result = shrink(model, x)
    assert result.removed == [Removed("neuron", "0", 2, 6), Removed("neuron", "2", 3, 6)]
    assert [tuple(m.weight.shape) for m in result.model if isinstance(m, nn.Linear)] == [(4, 4), (3, 4), (3, 3)]
    assert same(result.model, model, x)


def test_one_unit_stays_and_an_untouched_model_is_returned_as_it_is():
    model, x = two_layers(nn.ReLU()), torch.randn(3, 5)
    unchanged = shrink(model, x)
    assert unchanged.removed == unchanged.skipped == [] and unchanged.model is not model
    assert all(p is q for p, q in zip(unchanged.model.parameters(), model.parameters()))
    with torch.no_grad():
        model[0].weight.zero_(), model[0].bias.zero_()
    result = shrink(model, x)
    assert result.model[0].weight.shape == (1, 5) and result.removed == [Removed("neuron", "0", 7, 8)]
    assert [(s.count, s.reason) for s in result.skipped] == [(1, "all of them are zero, and one has to stay")]
    alone = shrink(nn.Sequential(nn.Linear(3, 2)))
    assert alone.removed == [] and alone.model[0].weight.shape == (2, 3)


def test_zero_rows_of_no_unit_are_named():
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(F.layer_norm(x + self.down(self.up(x).relu()), (6,)))

    model = Stream()
    with torch.no_grad():
        model.head.weight[1] = 0
    result = shrink(model, torch.randn(3, 6))
    assert result.removed == [] and [(s.kind, s.name, s.count) for s in result.skipped] == [("row", "head", 1)]


# ---- channels


def test_residual_channels_go_only_when_every_branch_agrees():
    model = stir(ResNet())
    blocks = model.blocks
    writers = [(model.stem, None), (blocks[0].conv2, blocks[0].bn2), (blocks[1].conv2, blocks[1].bn2)]
    with torch.no_grad():
        for conv, norm in writers:
            conv.weight[[1, 4]] = 0
            if norm is not None:
                norm.running_mean[[1, 4]], norm.bias[[1, 4]] = 0, 0
        blocks[1].conv2.weight[4, 0, 0, 0] = 0.1  # one branch still writes channel 4
    result = shrink(model, IMAGES)
    assert result.removed == [Removed("channel", "stem", 1, 8)]
    assert result.model.stem.out_channels == 7 and result.model.blocks[0].conv1.in_channels == 7
    assert result.model.blocks[2].down.weight.shape == (12, 7, 1, 1)
    # stem 27, two writers 6 * 9 and 5 * 9 with two norm entries each, readers 6 * 9, 5 * 9, 7 * 9 and 12
    assert size(model) - size(result.model) == 27 + 54 + 45 + 4 + 54 + 45 + 63 + 12
    assert same(result.model, model, IMAGES)


def test_every_second_channel_of_a_residual_network():
    model = stir(ResNet())
    pruned, units, _ = odd_units_zeroed(model, IMAGES)
    result = shrink(pruned, IMAGES)
    assert sum(r.count for r in result.removed) == sum(u.index % 2 for u in units) == 3 + 2 + 3 + 4 + 6
    assert [tuple(b.conv2.weight.shape[:2]) for b in result.model.blocks] == [(4, 3), (4, 3), (6, 4)]
    assert result.model.fc.in_features == 6 and result.model.blocks[2].bn2.running_var.shape == (6,)
    assert same(result.model, pruned, IMAGES)
    # Training what comes back leaves the running statistics of the given one alone, cut or not.
    for whole in (pruned, model):
        before = {n: b.clone() for n, b in whole.named_buffers()}
        shrink(whole, IMAGES).model.train()(IMAGES)
        assert all(torch.equal(b, before[n]) for n, b in whole.named_buffers())


def conv_pair(padding: int, norm: bool) -> nn.Sequential:
    torch.manual_seed(4)
    layers = [nn.Conv2d(3, 6, 3, bias=not norm), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.ReLU()]
    return stir(nn.Sequential(*layers, nn.Conv2d(6, 4, 3, padding=padding), nn.AdaptiveAvgPool2d(1), nn.Flatten()))


def test_a_zero_norm_scale_removes_a_channel_whatever_the_convolution_holds():
    model = conv_pair(1, True)
    with torch.no_grad():
        model[1].weight[:3] = 0
        model[1].bias[:3] = torch.tensor([0.0, -0.5, 0.8])  # zero after the ReLU, but the last
    result = shrink(model, IMAGES)
    assert result.removed == [Removed("channel", "0", 2, 6)]
    assert [(s.kind, s.count) for s in result.skipped] == [("channel", 1)] and "zero padding" in result.skipped[
        0
    ].reason
    assert result.model[1].num_features == 4 and result.model[1].running_mean.shape == (4,)
    assert same(result.model, model, IMAGES)


def test_constants_of_channels_go_into_a_bias_where_nothing_is_padded():
    model = conv_pair(0, False)
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0, 0.9
    result = shrink(model, IMAGES)
    assert result.removed == [Removed("channel", "0", 1, 6)] and result.skipped == []
    assert torch.allclose(result.model[3].bias, model[3].bias + 0.9 * model[3].weight[:, 2].sum((1, 2)), atol=1e-6)
    assert same(result.model, model, IMAGES)


@pytest.mark.parametrize("center", [0.5, 0.0])
def test_a_constant_that_meets_a_border_on_larger_maps_stays(center):
    """On a map of one pixel a padded depthwise convolution shows its center only."""
    torch.manual_seed(10)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU(), nn.Conv2d(6, 4, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[0].weight[[1, 2, 3]] = 0
        model[0].bias[[1, 2, 3]] = torch.tensor([0.8, -0.8, 0.8])
        model[2].weight[1, 0, 1, 1], model[2].bias[1] = center, 0
        model[2].weight[3], model[2].bias[3], model[2].bias[2] = 0, 0.25, 0.3
    result = shrink(model, IMAGES[:, :, :1, :1])
    assert result.removed == []  # channels 2 and 3 are constant, but one pixel does not show it
    assert sorted((s.count, "fewer than 3 pixels" in s.reason) for s in result.skipped) == [(1, False), (2, True)]
    large = shrink(model, IMAGES)
    assert large.removed == [Removed("channel", "0", 2, 6)] and large.model[2].groups == 4
    assert [s.count for s in large.skipped] == [1] and "zero padding" in large.skipped[0].reason
    for x in (IMAGES, IMAGES[:, :, :2, :5], IMAGES[:, :, :1, :1]):
        assert same(large.model, model, x)


class OptionA(nn.Module):
    """A shortcut without parameters that pads channels to a width of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        x = F.pad(x, (0, 0, 0, 0, 2, 2)) + self.conv2(self.conv1(x).relu())
        return self.head(x.relu().mean((2, 3)))


def test_channels_of_a_padded_shortcut_are_put_back():
    model = stir(OptionA())
    pruned, _, _ = odd_units_zeroed(model, IMAGES)
    result = shrink(pruned, IMAGES)
    assert result.model.conv1.out_channels == 3
    assert same(result.model, pruned, IMAGES)
    assert result.model.stem.out_channels == 4 or result.model.head.in_features == 8


def test_depthwise_convolutions_shrink_along():
    blocks = (Mobile(), Mobile())
    model = stir(nn.Sequential(nn.Conv2d(3, 6, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)))
    pruned, _, _ = odd_units_zeroed(model, IMAGES)
    result = shrink(pruned, IMAGES)
    for block in result.model[1:3]:
        depth = block.depth
        assert (depth.groups, depth.in_channels, depth.out_channels, *depth.weight.shape) == (6, 6, 6, 6, 1, 3, 3)
        assert (block.expand.in_channels, block.project.out_channels, block.squeeze.out_channels) == (3, 3, 2)
    assert result.model[5].in_features == 3
    # Per block: expand 12 x 6 -> 6 x 3, depthwise 9 a channel, norms, squeeze 4 x 12 -> 2 x 6, excite, project.
    block = (12 * 6 - 6 * 3) + 6 * 9 + 4 * 6 + (4 * 12 + 4 - 2 * 6 - 2) + (12 * 4 + 12 - 6 * 2 - 6) + (6 * 12 - 3 * 6)
    assert size(pruned) - size(result.model) == 2 * block + 3 * 28 + 3 * 4
    assert same(result.model, pruned, IMAGES)


def test_grouped_convolutions_and_flattened_channels():
    torch.manual_seed(5)
    model = stir(
        nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=4), nn.PReLU(12),
            nn.Conv2d(12, 4, 1), nn.Flatten(), nn.Linear(4 * 14 * 14, 3),
        )
    )  # fmt: skip
    pruned, _, _ = odd_units_zeroed(model, IMAGES)
    small = shrink(pruned, IMAGES).model
    assert (small[1].num_groups, small[1].num_channels, small[3].groups) == (2, 4, 2)
    assert small[3].weight.shape == (6, 2, 3, 3) and small[4].num_parameters == 6 and small[7].in_features == 2 * 196
    assert same(small, pruned, IMAGES)


# ---- experts


@pytest.mark.hf
def test_experts_lose_equally_many():
    model, batch = model_of("mixtral")
    lost = [19, 30, 21, 48]  # of 48, by expert; 16 is the most that all can lose in steps of 8
    number = itertools.count()  # of a neuron, over the experts of both layers
    pruned, _, _ = units_zeroed(
        model, batch, lambda u: u.kind == "neuron" and (n := next(number)) % 48 < lost[n // 48 % 4]
    )
    result = shrink(pruned, batch)
    assert [(r.kind, r.count, r.total) for r in result.removed] == [("neuron", 64, 192)] * 2
    assert [s.count for s in result.skipped] == [sum(lost) - 64] * 2
    assert result.model.model.layers[0].mlp.experts.down_proj.shape == (4, 32, 32)
    assert same(result.model, pruned, batch, wide=False)
    json.dumps(result.plan)


# ---- packed attention of torch with fewer heads


def attention(batch_first: bool, bias: bool = True) -> tuple[nn.MultiheadAttention, nn.MultiheadAttention]:
    """A module whose heads 1 and 3 of 4 are zero, and the same with two heads."""
    torch.manual_seed(6)
    full = nn.MultiheadAttention(16, 4, batch_first=batch_first, bias=bias).double().eval()
    keep = torch.tensor([*range(4), *range(8, 12)])
    rows = torch.cat([keep, 16 + keep, 32 + keep])
    gone = torch.tensor([i for i in range(48) if i not in rows.tolist()])
    with torch.no_grad():
        full.in_proj_weight[gone] = 0
        if bias:
            full.in_proj_bias.normal_()
            full.in_proj_bias[gone] = 0
    small = copy.deepcopy(full)
    small.in_proj_weight = nn.Parameter(full.in_proj_weight[rows].detach())
    if bias:
        small.in_proj_bias = nn.Parameter(full.in_proj_bias[rows].detach())
    small.out_proj.weight = nn.Parameter(full.out_proj.weight[:, keep].detach())
    NarrowAttention.narrow(small, 4, (0, 2))
    return full, small


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_with_fewer_heads(batch_first, need_weights):
    generator = torch.Generator().manual_seed(7)
    n, length, source = 3, 5, 6
    query, key, value = (
        torch.randn(n, k, 16, generator=generator, dtype=torch.float64) for k in (length, source, source)
    )
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    padding = torch.arange(source) >= torch.tensor([6, 4, 2])[:, None]
    barred = torch.rand(length, source, generator=generator) < 0.3
    barred[:, 0] = False
    added = torch.randn(length, source, generator=generator, dtype=torch.float64)
    each = torch.randn(n * 4, length, source, generator=generator, dtype=torch.float64)
    full, small = attention(batch_first)
    for options in (
        {},
        {"key_padding_mask": padding},
        {"attn_mask": barred},
        {"attn_mask": added},
        {"attn_mask": each},
        {"attn_mask": barred, "key_padding_mask": padding},
    ):
        out, weights = full(query, key, value, need_weights=need_weights, average_attn_weights=False, **options)
        got, seen = small(query, key, value, need_weights=need_weights, average_attn_weights=False, **options)
        assert torch.allclose(got, out, atol=1e-12)
        assert (seen is None) == (weights is None)
        if seen is not None:
            assert torch.allclose(seen, weights[:, [0, 2]], atol=1e-12)
            mean = small(query, key, value, **options)[1]
            assert torch.allclose(mean, weights[:, [0, 2]].mean(1), atol=1e-12)
    if batch_first:
        alone, weights = small(query[0], key[0], value[0])  # unbatched
        assert torch.allclose(alone, full(query[0], key[0], value[0])[0], atol=1e-12) and weights.shape == (
            length,
            source,
        )
    with pytest.raises(RuntimeError, match="is_causal"):
        small(query, key, value, is_causal=True)


def test_attention_by_the_formula():
    _, small = attention(True, bias=False)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    q, k, v = (x @ w.T for w in small.in_proj_weight.view(3, 8, 16))
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        scores = q[..., h] @ k[..., h].transpose(1, 2) / math.sqrt(4)
        heads.append(scores.exp() / scores.exp().sum(-1, keepdim=True) @ v[..., h])
    expected = torch.cat(heads, -1) @ small.out_proj.weight.T
    assert torch.allclose(small(x, x, x)[0], expected, atol=1e-12)


def test_an_encoder_of_torch_runs_on_every_path():
    torch.manual_seed(8)
    layer = nn.TransformerEncoderLayer(32, 4, 40, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(2, 7, 32)
    padding = torch.arange(7) >= torch.tensor([7, 4])[:, None]
    for kind in ("neuron", "head"):
        pruned, _, _ = units_zeroed(model, x, lambda u, kind=kind: u.kind == kind and u.index % 2)
        result = shrink(pruned)
        assert len(result.removed) == 2 and not result.skipped
        with torch.no_grad():  # with the fused kernels where torch takes them
            for options in ({}, {"src_key_padding_mask": padding}):
                new, old = result.model(x, **options), pruned(x, **options)
                assert torch.allclose(new[~padding], old[~padding], atol=1e-5)
        result.model.train()(x).square().sum().backward()
        assert all(bool((p.grad != 0).any()) for p in result.model.parameters())
        result.model.zero_grad()


# ---- the result is an ordinary model


def test_copy_save_and_compile():
    model, batch = model_of("encoder")
    pruned, _, _ = odd_units_zeroed(model, batch)
    small = shrink(pruned, batch).model
    assert same(copy.deepcopy(small), pruned, batch)
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert same(again, pruned, batch) and isinstance(again.encoder.layers[0].self_attn, NarrowAttention)
    torch._dynamo.reset()
    compiled = torch.compile(small, backend="eager", fullgraph=True)
    with torch.no_grad(), probing_mode(small):
        assert torch.allclose(compiled(**batch), small(**batch), atol=1e-5)


@pytest.mark.hf
def test_a_shrunk_transformer_compiles():
    pruned, _, _ = odd_units_zeroed(*model_of("llama"))
    small, ids = shrink(pruned).model, torch.arange(3, 11)[None]
    torch._dynamo.reset()
    compiled = torch.compile(small, backend="eager")
    with torch.no_grad():
        assert torch.allclose(compiled(input_ids=ids).logits, pruned(input_ids=ids).logits, atol=1e-4)


def test_lower_precision():
    torch.manual_seed(9)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).bfloat16()
    with torch.no_grad():
        model[0].weight[::2], model[0].bias[::2] = 0, 0
    result = shrink(model)
    assert result.removed == [Removed("neuron", "0", 16, 32)] and result.model[0].weight.dtype == torch.bfloat16


# ---- plans


@pytest.mark.hf
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "encoder", "cnn", "gpt_oss"])
def test_a_plan_rebuilds_the_model_from_a_fresh_one(name):
    build, (model, batch) = family(name).build, model_of(name)
    pruned, _, _ = odd_units_zeroed(model, batch)
    result = shrink(pruned, batch)
    made = json.loads(json.dumps(plan(pruned, batch)))
    assert made == result.plan
    fresh = build()
    with torch.no_grad():
        for p in fresh.parameters():
            p.normal_()
    again = apply(fresh, made)
    again.load_state_dict(result.model.state_dict())
    wide = name != "gpt_oss"
    assert same(again, result.model, batch, wide) and same(apply(pruned, made), pruned, batch, wide)
    skeleton = build().to("meta")
    assert shapes(apply(skeleton, made)) == shapes(result.model)


def test_plans_that_do_not_fit():
    model = two_layers(nn.ReLU())
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0, 0
    made = plan(model)
    cut = made["cuts"][0]
    assert cut == {"name": "0.weight", "axis": 0, "of": 8, "keep": [0, 2, 3, 4, 5, 6, 7]}
    for wrong, message in (
        ({**made, "version": 9}, "no shrink plan of version 1"),
        ({"version": 1}, "no shrink plan"),
        ({**made, "cuts": [{**cut, "name": "7.weight"}]}, "no tensor '7.weight'"),
        ({**made, "cuts": [{**cut, "of": 9}]}, "expects 9 along axis 0"),
        ({**made, "cuts": [{**cut, "axis": 2}]}, "along axis 2"),
        ({**made, "cuts": [{**cut, "keep": [1, 0]}]}, "not ascending"),
        ({**made, "cuts": [{**cut, "keep": [0, 8]}]}, "not ascending"),
        ({**made, "cuts": [{**cut, "keep": []}]}, "not ascending"),
        ({**made, "cuts": [{**cut, "keep": [[0], [1]]}]}, "do not fit"),
        ({**made, "cuts": [{"name": "0.weight"}]}, "does not fit this model"),
        ({**made, "attributes": [{"module": "5", "name": "n", "value": 1}]}, "does not fit this model"),
        ({**made, "narrow": [{"module": "0", "of": 4, "keep": [0]}]}, "no MultiheadAttention"),
    ):
        with pytest.raises(InputError, match=message):
            apply(model, wrong)
    assert model[0].weight.shape == (8, 5)


@pytest.mark.hf
def test_the_same_cut_on_packed_matrices():
    for name in ("gpt2", "llama", "cnn"):
        model, batch = model_of(name)
        pruned, _, scope = odd_units_zeroed(model, batch)
        result = shrink(pruned, batch)
        for p in scope.prunables.values():
            full, small = pruned.get_parameter(p.name), result.model.get_parameter(p.name)
            matrix = shrink_matrix(p.matrix(full.detach()), *kept_rows_cols(result.plan, p))
            expected = small.t() if p.transposed else small.flatten(1)
            assert torch.equal(matrix, expected.detach())


# ---- small things


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_zero_lines(rows, cols, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator) * (torch.rand(rows, cols, generator=generator) < 0.3)
    kept_rows, kept_cols = nonzero_rows_cols(weight)
    assert kept_rows.tolist() == [i for i in range(rows) if any(weight[i, j] != 0 for j in range(cols))]
    assert kept_cols.tolist() == [j for j in range(cols) if any(weight[i, j] != 0 for i in range(rows))]
    small = shrink_matrix(weight, kept_rows, kept_cols)
    assert small.tolist() == [[float(weight[i, j]) for j in kept_cols] for i in kept_rows]
    x = torch.randn(3, cols, generator=generator)
    y = torch.zeros(3, rows)
    y[:, kept_rows] = x[:, kept_cols] @ small.T
    assert torch.allclose(y, x @ weight.T, atol=1e-5)
    whole = shrink_matrix(weight)
    assert torch.equal(whole, weight) and (weight.numel() == 0 or whole.data_ptr() != weight.data_ptr())
    assert shrink_matrix(weight, cols=kept_cols).is_contiguous()


def test_not_a_number_counts_as_used():
    rows, cols = nonzero_rows_cols(torch.tensor([[0.0, float("nan")], [0.0, 0.0]]))
    assert rows.tolist() == [0] and cols.tolist() == [1]


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 2)),  # 28 pixels and no other
        nn.Sequential(nn.Conv1d(2, 4, 3), nn.AdaptiveAvgPool1d(1)),
        nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)),
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        nn.Sequential(nn.BatchNorm1d(7), nn.Linear(7, 3)),
        nn.Sequential(nn.LayerNorm(7), nn.Linear(7, 3)),
    ],
    ids=["conv2d", "conv1d", "embedding", "encoder", "batchnorm", "layernorm"],
)
def test_examples_are_made(model):
    model.eval()(make_example(model))


def test_bad_input():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x, y):
            return self.b(self.a(x + y))

    with pytest.raises(InputError, match="give example="):
        shrink(Two())
    assert shrink(Two(), (torch.randn(2, 3), torch.randn(2, 3))).removed == []
    with pytest.raises(InputError, match="cannot be run on the example"):
        shrink(two_layers(nn.ReLU()), torch.randn(2, 6))
    with pytest.raises(InputError, match="load its weights first"):
        shrink(two_layers(nn.ReLU()).to("meta"))


def test_the_package_can_be_called():
    model = two_layers(nn.ReLU())
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0, 0
    assert winnow.shrink(model).model[0].out_features == 7
