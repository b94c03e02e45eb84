"""FLOPs of a forward pass against formulas written out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import small
from winnow.errors import InputError
from winnow.masks.scope import find_scope
from winnow.measure.flops import TRAINING, Flops, forward_flops


class Attention(nn.Module):
    """One MultiheadAttention between two linear layers, all prunable but the last."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner(x)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Shared(nn.Module):
    """A layer that is used through functions, a slice and a copy of its weight, never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        halves = [F.linear(x, self.first.weight[:4]), F.linear(x, self.first.weight[4:])]
        copied = self.second.weight.clone()
        return self.head(torch.cat(halves, -1) @ copied.double().float().t())


class Experts(nn.Module):
    """Every row goes to the expert of its sign."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(2, 5, 3))
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(len(x), 5)
        for e in range(2):
            mine = (x[:, 0] > 0) == bool(e)
            out[mine] = x[mine] @ self.weights[e].t()
        return self.head(out)


def counted(model: nn.Module, *batches: torch.Tensor) -> Flops:
    return forward_flops(model, batches, find_scope(model))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=12, deadline=None)
def test_linear(inputs: int, outputs: int, positions: int, examples: int) -> None:
    model = nn.Sequential(nn.Linear(inputs, outputs), nn.Linear(outputs, 2))
    found = counted(model, torch.randn(examples, positions, inputs))
    assert found.tensors == {"0.weight": 2 * inputs * outputs * positions}
    assert found.rest == 2 * outputs * 2 * positions
    assert found.total == found.prunable + found.rest


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (2, 1), (1, 2)])
def test_convolution_counts_output_positions(groups: int, stride: int) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, stride, 1, groups=groups, bias=False), nn.Flatten(), nn.LazyLinear(2))
    model(torch.randn(1, 4, 8, 8))
    found = counted(model, torch.randn(3, 4, 8, 8))
    side = 8 // stride
    assert found.tensors["0.weight"] == 2 * 6 * (4 // groups) * 9 * side * side
    assert found.rest == 2 * 6 * side * side * 2


def test_convnet_of_the_tests() -> None:
    found = counted(small.convnet(), small.images(5)[0])
    assert found.tensors == {"conv1.weight": 2 * 8 * 9 * 64, "conv2.weight": 2 * 16 * 8 * 9 * 16}
    assert found.rest == 2 * 16 * 3


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_attention(frozen: bool, fast: bool) -> None:
    """in_proj sees three inputs, out_proj is read without being called, and the two products of attention are rest."""
    width, tokens = 8, 5
    model = Attention(width, 2).train(not fast).requires_grad_(not frozen)
    found = counted(model, torch.randn(3, tokens, width))
    assert found.tensors == {
        "inner.weight": 2 * width * width * tokens,
        "attention.in_proj_weight": 3 * 2 * width * width * tokens,
        "attention.out_proj.weight": 2 * width * width * tokens,
    }
    assert found.rest == 2 * (2 * tokens * tokens * width) + 2 * width * 3
    assert model.training is not fast  # as it was


def test_the_fused_attention_of_the_processor_is_counted() -> None:
    """torch's counter has no entry for it: a plain count would say that attention is free."""

    class Fused(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    found = forward_flops(Fused(), [torch.randn(2, 4, 7, 8)])
    assert found.rest == 2 * (2 * 4 * 7 * 7 * 8)


def test_slices_and_copies_belong_to_their_tensor() -> None:
    found = counted(Shared(), torch.randn(3, 6))
    assert found.tensors == {"first.weight": 2 * 6 * 8, "second.weight": 2 * 8 * 4}
    assert found.rest == 2 * 4 * 2


def test_experts_count_what_was_routed_to_them() -> None:
    model = Experts()
    x = torch.randn(6, 3)
    scope = find_scope(model, include=["weights"])
    found = forward_flops(model, [x], scope)
    assert found.tensors["weights"] == 2 * 3 * 5  # each row meets one expert of two


@pytest.mark.hf
def test_tiny_bert() -> None:
    pytest.importorskip("transformers")
    from transformers import BertConfig, BertForSequenceClassification

    width, inner, tokens, layers = 16, 24, 6, 2
    config = BertConfig(
        vocab_size=50, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=inner,
        max_position_embeddings=20, num_labels=2,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    batch = {"input_ids": torch.randint(0, 50, (3, tokens)), "attention_mask": torch.ones(3, tokens, dtype=torch.long)}
    found = forward_flops(model, [batch], find_scope(model))
    square, wide = 2 * width * width * tokens, 2 * width * inner * tokens
    assert sorted(found.tensors.values()) == sorted([square] * 4 * layers + [wide] * 2 * layers)
    assert found.rest == layers * 2 * 2 * tokens * tokens * width + 2 * width * width + 2 * width * 2


def test_total_is_the_plain_counters() -> None:
    model, x = small.classifier(), small.points(7)[0]
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert counted(model, x).total * 7 == counter.get_total_flops()


def test_mean_over_batches_of_several_lengths() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    found = counted(model, torch.randn(1, 2, 3), torch.randn(3, 6, 3))
    assert found.tensors["0.weight"] == 2 * 3 * 4 * (2 + 3 * 6) / 4


def test_nothing_of_the_model_or_of_chance_changes() -> None:
    model = small.convnet().train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    torch.manual_seed(5)
    counted(nn.Sequential(model, nn.Dropout()), small.images(4)[0])
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    assert model.training and all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_sparse_and_training() -> None:
    flops = Flops({"a": 100.0, "b": 20.0}, 7.0)
    assert flops.sparse(0.25) == 7 + 30
    assert flops.sparse({"a": 0.1}) == 7 + 10 + 20
    assert flops.training() == TRAINING * 127
    assert flops.training(0.0) == TRAINING * 7


def test_no_example() -> None:
    with pytest.raises(InputError, match="no example"):
        forward_flops(nn.Linear(2, 2), [])
