"""What is prunable and what is not, and the words for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import families
from winnow.errors import InputError
from winnow.masks.blocks import find_blocks
from winnow.masks.experts import find_experts
from winnow.masks.scope import find_scope


def reasons(scope):
    return {s.name: s.reason for s in scope.skipped}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x):
        return x + self.inner(self.norm(x))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.layers = nn.ModuleList([Block(), Block()])
        self.pooler = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(torch.tanh(self.pooler(x)))


def test_every_parameter_is_prunable_or_skipped_with_a_reason():
    model = Tied()
    scope = find_scope(model)
    assert list(scope.prunables) == ["layers.0.inner.weight", "layers.1.inner.weight"]
    assert [p.block for p in scope.prunables.values()] == ["layers.0", "layers.1"]
    found = reasons(scope)
    assert found["embed.weight"] == "tied to head.weight"
    assert found["layers.0.norm.weight"] == "norm" and found["layers.0.norm.bias"] == "bias"
    assert found["pooler.weight"] == "outside the repeated blocks"
    assert scope.numel + sum(s.numel for s in scope.skipped) == sum(p.numel() for p in model.parameters())


def test_include_overrides_reasons_but_tied_only_by_name():
    model = Tied()
    assert "pooler.weight" in find_scope(model, include=["pooler"]).prunables
    everything = find_scope(model, include=["*"])
    assert list(everything.prunables) == ["layers.0.inner.weight", "layers.1.inner.weight", "pooler.weight"]
    assert reasons(everything)["embed.weight"] == "tied to head.weight"
    by_alias = find_scope(model, include=["head.weight"])
    assert by_alias.prunables["head.weight"].shape == (10, 4)
    assert "embed.weight" not in reasons(by_alias)
    norm = find_scope(model, include=["layers.0.norm.weight"]).prunables["layers.0.norm.weight"]
    assert (norm.rows, norm.cols) == (4, 1)


def test_exclude_wins():
    scope = find_scope(Tied(), include=["layers.0.inner.weight"], exclude=["layers.0"])
    assert list(scope.prunables) == ["layers.1.inner.weight"]
    assert reasons(scope)["layers.0.inner.weight"] == "excluded by name"


@pytest.mark.parametrize("where", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_an_error(where):
    with pytest.raises(InputError, match="matches no parameter"):
        find_scope(Tied(), **{where: ["layres.*"]})


def test_nothing_to_prune_is_an_error_with_the_fix():
    with pytest.raises(InputError, match="include"):
        find_scope(nn.Sequential(nn.Linear(4, 4)))  # its only layer is the head
    with pytest.raises(InputError, match="include"):
        find_scope(nn.Embedding(4, 4))
    with pytest.raises(InputError, match="exclude less, or name other matrices with include"):
        find_scope(Tied(), exclude=["layers"])
    with pytest.raises(InputError, match=r'include=\["weight_hh_l0", "weight_ih_l0"\]'):
        find_scope(nn.GRU(4, 4))


def test_parameters_without_floating_point_stay():
    model = Tied()
    model.layers[0].inner.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    scope = find_scope(model, include=["layers.0.inner.weight"])
    assert list(scope.prunables) == ["layers.1.inner.weight"]
    assert reasons(scope)["layers.0.inner.weight"] == "not floating point"


def test_uninitialised_layers_stay():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4), nn.Linear(4, 2))
    scope = find_scope(model)
    assert list(scope.prunables) == ["1.weight"] and reasons(scope)["0.weight"] == "not initialised"


def test_two_parameters_on_one_storage_are_tied():
    model = Tied()
    model.layers[1].inner.weight = nn.Parameter(model.layers[0].inner.weight.data)
    assert reasons(find_scope(model, include=["pooler"]))["layers.0.inner.weight"] == "tied to layers.1.inner.weight"


def test_convolutional_networks_prune_stem_and_tail_but_not_the_head():
    scope = find_scope(families.SmallCNN())
    assert {"stem.weight", "tail.weight"} <= scope.prunables.keys()
    assert reasons(scope)["head.weight"] == "output head"
    assert scope.prunables["stages.1.first.weight"].parts == 8
    assert (scope.prunables["stages.1.first.weight"].rows, scope.prunables["stages.1.first.weight"].cols) == (8, 9)


def test_patch_embeddings_of_a_transformer_stay():
    class Vision(nn.Module):
        def __init__(self):
            super().__init__()
            self.cut = nn.Conv2d(3, 4, 4, 4)
            self.layers = nn.ModuleList([Block(), Block()])

    assert reasons(find_scope(Vision()))["cut.weight"] == "embedding"


def test_separate_projections_of_multihead_attention():
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, kdim=4, vdim=6, add_bias_kv=True)

    scope = find_scope(nn.Sequential(Cross(), Cross()))
    assert [(n, p.rows, p.cols) for n, p in scope.prunables.items()][:4] == [
        ("0.attention.q_proj_weight", 8, 8),
        ("0.attention.k_proj_weight", 8, 4),
        ("0.attention.v_proj_weight", 8, 6),
        ("0.attention.out_proj.weight", 8, 8),
    ]
    assert reasons(scope)["0.attention.bias_k"] == "bias"


def test_transposed_convolutions_and_recurrent_weights_stay():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 2), nn.LSTM(4, 4))
    scope = find_scope(model)
    assert list(scope.prunables) == ["0.weight"]
    assert reasons(scope)["1.weight"] == "transposed convolution"
    assert reasons(scope)["2.weight_ih_l0"] == "recurrent weight"


def test_blocks_of_plain_sequentials_need_equal_parameters():
    def part(width):
        return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 4))

    equal = nn.Sequential(part(4), part(6), nn.Linear(4, 2))
    assert [b.path for b in find_blocks(equal)] == ["0", "1"]
    unlike = nn.Sequential(part(4), nn.Sequential(nn.Conv1d(4, 4, 1), nn.ReLU()))
    assert find_blocks(unlike) == []
    leaves = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert find_blocks(leaves) == []


def test_blocks_are_outermost_and_each_module_counts_once():
    inner = nn.ModuleList([nn.ModuleList([Block(), Block()]) for _ in range(2)])
    assert [b.path for b in find_blocks(nn.ModuleDict({"x": inner}))] == ["x.0", "x.1"]
    shared = Block()
    assert find_blocks(nn.ModuleList([shared, shared])) == []


class Experts(nn.Module):
    def __init__(self, first, last, **attributes):
        super().__init__()
        self.first, self.last = nn.Parameter(torch.zeros(first)), nn.Parameter(torch.zeros(last))
        self.__dict__.update(attributes)


def moe(experts, width):
    module = nn.Module()
    module.router, module.experts = nn.Linear(width, 4, bias=False), experts
    return module


@pytest.mark.parametrize(
    "first, last, attributes, flipped",
    [
        ((4, 32, 8), (4, 8, 16), {}, False),  # fused gate, [E, 2*16, 8] and [E, 8, 16]
        ((4, 8, 32), (4, 16, 8), {}, True),
        ((4, 32, 16), (4, 16, 16), {}, False),  # fused gate, as wide inside as outside
        ((4, 16, 32), (4, 16, 16), {}, True),
        ((4, 12, 8), (4, 8, 12), {}, False),  # no gate: the router's width (8) decides
        ((4, 8, 12), (4, 12, 8), {}, True),
        ((4, 8, 8), (4, 8, 8), {}, False),  # square in every respect
        ((4, 8, 8), (4, 8, 8), {"is_transposed": True}, True),
    ],
)
def test_orientation_of_stacked_experts(first, last, attributes, flipped):
    width = first[1] if flipped else first[2]
    (group,) = find_experts(moe(Experts(first, last, **attributes), width))
    assert group.stacked == {"experts.first": flipped, "experts.last": flipped}
    assert group.routers == {"router.weight"}


def test_listed_experts_are_pruned_and_their_router_is_not():
    def layer():
        module = nn.Module()
        module.gate = nn.Linear(8, 3)
        module.experts = nn.ModuleList([nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8)) for _ in range(3)])
        return module

    model = nn.ModuleList([layer(), layer()])
    scope = find_scope(model)
    assert len(scope.prunables) == 12
    assert reasons(scope)["0.gate.weight"] == "router" and reasons(scope)["0.gate.bias"] == "bias"


def test_tables_in_three_dimensions_are_not_experts():
    class Table(Block):
        def __init__(self):
            super().__init__()
            self.positions = nn.Parameter(torch.zeros(3, 5, 4))

    scope = find_scope(nn.Sequential(Table(), Table()))
    assert reasons(scope)["0.positions"] == "embedding"


@pytest.mark.shared_data
@pytest.mark.hf
def test_a_real_model_has_its_written_parameter_counts(shared_data):
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(shared_data / "reference-lm")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    # 6 blocks of 2*384*384 + 2*384*128 + 3*384*1024
    assert find_scope(model).numel == 9437184
