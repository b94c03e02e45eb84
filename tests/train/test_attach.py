"""The training hook against training written out by hand: weights m * theta, one plain loop, float64."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import sys
import warnings
import weakref
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from small import classifier, convnet, images, points
from sparse_methods import Grow, random_keeps
from winnow.errors import FormatError, InputError
from winnow.masks.global_ranking import global_magnitude, prune_globally
from winnow.masks.mask import MaskSet
from winnow.masks.prunable import Prunable, Scope
from winnow.masks.scope import find_scope
from winnow.train import Attached, Fixed, Gradual, attach, read_state, write_state
from winnow.train.masking import masked

X, Y = points()
TARGET = torch.as_tensor(Y)
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

ENTRYWISE: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.01),
    "momentum": lambda p: torch.optim.SGD(p, 0.02, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd fused": lambda p: torch.optim.SGD(p, 0.02, momentum=0.9, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 5e-3, weight_decay=0.1, foreach=False),
    "adamw foreach": lambda p: torch.optim.AdamW(p, 5e-3, weight_decay=0.1, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, 5e-3, weight_decay=0.1, fused=True),
    "adam amsgrad": lambda p: torch.optim.Adam(p, 5e-3, amsgrad=True, weight_decay=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, 5e-3),
    "radam": lambda p: torch.optim.RAdam(p, 5e-3),
    "adamax": lambda p: torch.optim.Adamax(p, 5e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
    "adadelta": lambda p: torch.optim.Adadelta(p, 0.5),
    "asgd": lambda p: torch.optim.ASGD(p, 1e-2),
}


def batch(step: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    rows = slice(32 * step % 352, 32 * step % 352 + 32)
    return X[rows].to(dtype), TARGET[rows]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0, clip: float | None = None):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        x, y = batch(step, next(model.parameters()).dtype)
        F.cross_entropy(model(x), y).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


FLOOR = {
    "adamax": 1e-8,
    "rprop": 1e-2,
}  # Adamax adds its epsilon to a maximum of zero; Rprop's step sizes are no moments


def assert_zeros(attached: Attached, weights_only: bool = False, floor: float = 0.0) -> None:
    """Weights, gradients and every moment of the same shape, at every weight that is gone."""
    seen = 0
    for name, prunable in attached.scope.prunables.items():
        weight = attached.weights[name]
        tensors = [weight] if weights_only else [weight, weight.grad, *attached.optimizer.state[weight].values()]
        for tensor in tensors:
            if torch.is_tensor(tensor) and tensor.shape == weight.shape:
                gone = prunable.matrix(tensor.detach())[~attached.keeps[name]]
                assert float(gone.abs().max()) <= (0.0 if tensor is weight or tensor is weight.grad else floor), name
                seen += gone.numel()
    assert seen


class Reference:
    """theta is trained freely; the model is run on m * theta. Nothing of winnow is in it."""

    def __init__(self, model: nn.Module, keeps: dict[str, torch.Tensor], make: Make, clip: float | None) -> None:
        self.model, self.keeps, self.clip = model, keeps, clip
        self.theta = {n: nn.Parameter(p.detach().clone()) for n, p in model.named_parameters()}
        self.optimizer = make(list(self.theta.values()))
        self.norms: list[float] = []

    def weights(self) -> dict[str, torch.Tensor]:
        return {n: t * self.keeps[n].to(t.dtype) if n in self.keeps else t for n, t in self.theta.items()}

    def train(self, steps: int, first: int = 0) -> None:
        for step in range(first, first + steps):
            self.optimizer.zero_grad()
            x, y = batch(step)
            F.cross_entropy(functional_call(self.model, self.weights(), (x,)), y).backward()
            if self.clip is not None:
                total = sum(float((t.grad.numpy() ** 2).sum()) for t in self.theta.values())
                self.norms.append(total**0.5)
                scale = min(1.0, self.clip / (self.norms[-1] + 1e-6))
                for t in self.theta.values():
                    t.grad *= scale
            self.optimizer.step()


@pytest.mark.parametrize("name", ENTRYWISE)
def test_equals_a_plain_loop_on_m_theta(name):
    """Masks that change once on the way; the weights equal m * theta at the end, and nothing is left of the others."""
    model, make = classifier().double(), ENTRYWISE[name]
    scope = find_scope(model)
    first = random_keeps(scope, 0.7)
    second = {n: k & random_keeps(scope, 0.6, seed=1)[n] for n, k in first.items()}
    reference = Reference(copy.deepcopy(model), first, make, None)
    attached = attach(model, make(list(model.parameters())), Fixed(first))
    train(model, attached.optimizer, 4)
    reference.train(4)
    floor = FLOOR.get(name, 0.0)
    assert_zeros(attached, floor=floor)
    attached.set(second)
    assert_zeros(attached)
    reference.keeps = second
    train(model, attached.optimizer, 6, first=4)
    reference.train(6, first=4)
    assert_zeros(attached, floor=floor)
    assert attached.step == 10
    for n, w in reference.weights().items():
        torch.testing.assert_close(model.get_parameter(n), w, rtol=1e-9, atol=1e-11)
    moved = reference.theta["blocks.0.up.weight"].detach() - classifier().double().blocks[0].up.weight.detach()
    assert moved.abs().max() > 1e-3  # something was learned


def test_the_clip_norm_is_of_the_masked_gradient():
    model = classifier().double()
    keeps = random_keeps(find_scope(model), 0.3)
    make = ENTRYWISE["sgd"]
    reference = Reference(copy.deepcopy(model), keeps, make, clip=0.1)
    optimizer = make(list(model.parameters()))
    attach(model, optimizer, Fixed(keeps))
    norms = []
    for step in range(5):
        optimizer.zero_grad()
        x, y = batch(step)
        F.cross_entropy(model(x), y).backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.1)))
        optimizer.step()
    reference.train(5)
    np.testing.assert_allclose(norms, reference.norms, rtol=1e-9)
    assert max(norms) > 0.1
    for n, w in reference.weights().items():
        torch.testing.assert_close(model.get_parameter(n), w, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("to_none", [True, False])
def test_gradient_accumulation(to_none):
    """Two half batches a step are the whole batch; gradients of what is gone are zero after each of them."""
    whole, halves = classifier().double(), classifier().double()
    keeps = random_keeps(find_scope(whole), 0.4)
    one, two = (torch.optim.AdamW(m.parameters(), 5e-3) for m in (whole, halves))
    attach(whole, one, Fixed(keeps))
    attached = attach(halves, two, Fixed(keeps))
    train(whole, one, 4)
    for step in range(4):
        two.zero_grad(set_to_none=to_none)
        x, y = batch(step)
        for part in (slice(0, 16), slice(16, 32)):
            (F.cross_entropy(halves(x[part]), y[part]) / 2).backward()
            for n, w in attached.weights.items():
                assert not w.grad[~keeps[n]].count_nonzero() and w.grad.count_nonzero()
        two.step()
    assert attached.step == 4
    for a, b in zip(whole.parameters(), halves.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def adam_by_hand(theta: dict[str, np.ndarray], gradients: list[dict[str, np.ndarray]], keeps: dict[str, np.ndarray]):
    """Weights and both moments after Adam's steps (lr 5e-3) on masked gradients, in numpy."""
    first, second = ({n: np.zeros_like(t) for n, t in theta.items()} for _ in range(2))
    for step, found in enumerate(gradients, 1):
        for n, g in found.items():
            g = np.where(keeps[n], g, 0.0) if n in keeps else g
            first[n] = 0.9 * first[n] + 0.1 * g
            second[n] = 0.999 * second[n] + 0.001 * g * g
            rate = 5e-3 * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            theta[n] = theta[n] - rate * first[n] / (np.sqrt(second[n]) + 1e-8 * np.sqrt(1 - 0.999**step))
    return theta, first, second


@pytest.mark.parametrize("in_place", [False, True])
def test_gradients_that_the_loop_writes_itself(in_place):
    """``torch.autograd.grad`` fires no hook on parameters: Adam must see zeros all the same, from the first step on.

    The third step comes by ``backward`` again; with ``in_place`` its gradients are written over by the fourth's.
    """
    model = classifier().double()
    keeps = random_keeps(find_scope(model), 0.4)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    attached = attach(model, optimizer, Fixed(keeps))
    parameters = dict(model.named_parameters())
    theta = {n: p.detach().numpy().copy() for n, p in parameters.items()}
    written: list[dict[str, np.ndarray]] = []
    for step in range(5):
        x, y = batch(step)
        loss = F.cross_entropy(model(x), y)
        gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
        written.append({n: g.numpy().copy() for n, g in zip(parameters, gradients)})
        if step == 2:
            optimizer.zero_grad()
            loss.backward()
        else:
            for p, g in zip(parameters.values(), gradients):
                if in_place and p.grad is not None:
                    p.grad.copy_(g)
                else:
                    p.grad = g
            assert any(parameters[n].grad[~k].count_nonzero() for n, k in keeps.items())
        optimizer.step()
        assert_zeros(attached)
    expected = adam_by_hand(theta, written, {n: k.numpy() for n, k in keeps.items()})
    for n, p in parameters.items():
        state = optimizer.state[p]
        for found, wanted in zip((p.detach(), state["exp_avg"], state["exp_avg_sq"]), expected):
            np.testing.assert_allclose(found.numpy(), wanted[n], rtol=1e-9, atol=1e-14, err_msg=n)


def test_written_gradients_of_several_optimizers_that_take_turns():
    """What one optimizer's step has looked at is not yet looked at for another, that steps later or more seldom."""
    model = classifier().double()
    matrices = [b.up.weight for b in model.blocks]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    optimizers = torch.optim.SGD(matrices, 0.01, momentum=0.9), torch.optim.Adam(others, 1e-3)
    attached = attach(model, optimizers, Fixed(random_keeps(find_scope(model), 0.4)))
    for step, turns in enumerate([(0, 1), (0,), (0,), (1,), (1, 0), (0, 1)]):
        for turn in turns:
            x, y = batch(step)
            own = [p for group in optimizers[turn].param_groups for p in group["params"]]
            for p, g in zip(own, torch.autograd.grad(F.cross_entropy(model(x), y), own)):
                p.grad = g
            optimizers[turn].step()
            held = [n for n, w in attached.weights.items() if any(w is p for p in own)]
            assert held
            for n in held:
                w = attached.weights[n]
                seen = [w, w.grad, *(v for v in optimizers[turn].state[w].values() if v.shape == w.shape)]
                assert len(seen) > 2 and not any(t[~attached.keeps[n]].count_nonzero() for t in seen), (step, turn, n)


def test_gradients_that_came_by_the_hook_are_masked_once(monkeypatch):
    calls = []
    monkeypatch.setattr(
        sys.modules[Attached.__module__], "masked", lambda g, m, n: (calls.append(n), masked(g, m, n))[1]
    )
    model = classifier()
    scope = find_scope(model)
    attach(model, optimizer := torch.optim.SGD(model.parameters(), 0.1), Fixed(random_keeps(scope)))
    train(model, optimizer, 3)
    assert sorted(calls) == sorted([*scope.prunables] * 3)


class Attention(nn.Module):
    def __init__(self, split: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(
            8, 2, batch_first=True, kdim=6 if split else None, vdim=6 if split else None
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(x, context, context, need_weights=False)[0].mean(1))


def attention_by_hand(a: nn.MultiheadAttention, weights: dict[str, np.ndarray], x: np.ndarray, context: np.ndarray):
    """Scaled dot products, two heads, in numpy with the weights given."""
    if "in_proj_weight" in weights:
        wq, wk, wv = np.split(weights["in_proj_weight"], 3)
    else:
        wq, wk, wv = (weights[f"{k}_proj_weight"] for k in "qkv")
    bq, bk, bv = np.split(a.in_proj_bias.detach().numpy(), 3)
    q, k, v = x @ wq.T + bq, context @ wk.T + bk, context @ wv.T + bv
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        logits = q[..., h] @ k[..., h].transpose(0, 2, 1) / 2.0  # sqrt(4)
        p = np.exp(logits - logits.max(-1, keepdims=True))
        heads.append(p / p.sum(-1, keepdims=True) @ v[..., h])
    return np.concatenate(heads, -1) @ weights["out_proj.weight"].T + a.out_proj.bias.detach().numpy()


@pytest.mark.parametrize("split", [False, True])
def test_multihead_attention_forwards_with_m_theta(split):
    """out_proj is read by MultiheadAttention directly and never called: hooks of that module would leave it stale."""
    torch.manual_seed(0)
    model = Attention(split).double()
    scope = find_scope(model, include=["attention"])
    projections = {"q_proj_weight", "k_proj_weight", "v_proj_weight"} if split else {"in_proj_weight"}
    assert {n.removeprefix("attention.") for n in scope.prunables} == {"out_proj.weight", *projections}
    attached = attach(model, torch.optim.AdamW(model.parameters(), 0.02), Fixed(random_keeps(scope)), scope=scope)
    x = torch.randn(4, 5, 8, dtype=torch.float64)
    context = torch.randn(4, 5, 6, dtype=torch.float64) if split else x
    before = model.attention.out_proj.weight.detach().clone()
    for step in range(3):
        attached.optimizer.zero_grad()
        used: list[torch.Tensor] = []
        handle = model.attention.register_forward_hook(lambda m, args, out, used=used: used.append(out[0].detach()))
        loss = F.cross_entropy(model(x, context), torch.tensor([0, 1, 2, 0]))
        handle.remove()
        masked = {
            n.removeprefix("attention."): (w.detach() * attached.keeps[n].double()).numpy()
            for n, w in attached.weights.items()
        }
        by_hand = attention_by_hand(model.attention, masked, x.numpy(), context.numpy())
        np.testing.assert_allclose(used[0].numpy(), by_hand, rtol=1e-9, atol=1e-12, err_msg=f"step {step}")
        loss.backward()
        attached.optimizer.step()
    assert (model.attention.out_proj.weight - before).abs().max() > 0.01
    with torch.no_grad():  # the fast path of evaluation
        model.eval()
        masked = {
            n.removeprefix("attention."): (w * attached.keeps[n].double()).numpy() for n, w in attached.weights.items()
        }
        out = model.attention(x, context, context, need_weights=False)[0]
    np.testing.assert_allclose(out, attention_by_hand(model.attention, masked, x.numpy(), context.numpy()), rtol=1e-9)


@pytest.mark.parametrize("channels_last", [False, True])
def test_convolutions(channels_last):
    model = convnet()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    x, y = images(32)
    attached = attach(model, torch.optim.AdamW(model.parameters(), 1e-2), Fixed(random_keeps(find_scope(model))))
    for _ in range(3):
        attached.optimizer.zero_grad()
        F.cross_entropy(model(x), torch.as_tensor(y)).backward()
        attached.optimizer.step()
    assert_zeros(attached)
    for n, w in attached.weights.items():
        assert attached._masks[n].stride() == w.stride()


@pytest.mark.parametrize("shape", [(1, 200_000), (700, 300), (300, 700), (200_000, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_large_tensors_are_masked_whole(shape, dtype):
    """What is gone is +0, whatever stood there; what stays keeps its bits."""
    model = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False)).to(dtype)
    keep = torch.rand(shape) < 0.5
    attached = attach(model, torch.optim.SGD(model.parameters(), 0.1), Fixed({"0.weight": keep}), include=["0.weight"])
    weight = attached.weights["0.weight"].detach()
    for value in (float("inf"), float("-inf"), float("nan"), -0.0, -1.5):
        weight.fill_(value)
        attached.enforce()
        found = weight.double().numpy()
        np.testing.assert_array_equal(found[keep.numpy()], value)
        assert not found[~keep.numpy()].any() and not np.signbit(found[~keep.numpy()]).any()


def test_transposed_storage():
    """A matrix view that is not the stored layout: GPT-2's [in, out] weights."""

    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(12, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    model = nn.Sequential(Transposed())
    scope = Scope({"0.weight": Prunable("0.weight", "0", "conv1d", (12, 3), transposed=True)})
    keeps = random_keeps(scope)
    attached = attach(model, torch.optim.AdamW(model.parameters(), 1e-2), Fixed(keeps), scope=scope)
    train(model, attached.optimizer, 3)
    assert_zeros(attached)
    assert bool((model[0].weight.detach()[keeps["0.weight"].t()] != 0).all())


MIXING: dict[str, Make] = {
    "adafactor": lambda p: torch.optim.Adafactor(p, 1e-2),
    "muon": lambda p: torch.optim.Muon([q for q in p if q.ndim == 2], 1e-2),
    "rprop": lambda p: torch.optim.Rprop(p, 1e-2),
}


@pytest.mark.parametrize("name", MIXING)
def test_optimizers_with_other_state(name):
    if not hasattr(torch.optim, name.capitalize()):
        pytest.skip("this torch has no such optimizer")
    model = classifier()
    keeps = random_keeps(find_scope(model), 0.4)
    attached = attach(model, MIXING[name](list(model.parameters())), Fixed(keeps))
    train(model, attached.optimizer, 3)
    assert_zeros(attached, floor=FLOOR.get(name, 0.0))
    fewer = {n: k & (torch.rand(k.shape) < 0.5) for n, k in keeps.items()}
    attached.set(fewer)
    assert_zeros(attached)
    train(model, attached.optimizer, 3, first=3)
    assert_zeros(attached, floor=FLOOR.get(name, 0.0))


def test_several_optimizers():
    """Muon for the matrices, AdamW for the rest and one of the matrices: moments of both are zero, steps count once."""
    model = classifier()
    matrices = [b.up.weight for b in model.blocks]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    first, last = torch.optim.SGD(matrices, 0.01, momentum=0.9), torch.optim.AdamW(others, 1e-3)
    attached = attach(model, [first, last], Gradual(0.5, end=4, every=2))
    for step in range(6):
        x, y = batch(step, torch.float32)
        F.cross_entropy(model(x), y).backward()
        for optimizer in (first, last):
            optimizer.step()
            optimizer.zero_grad()
        assert attached.step == step + 1
        for n, w in attached.weights.items():
            moments = [v for o in (first, last) for v in o.state.get(w, {}).values() if v.shape == w.shape]
            assert moments and not any(m[~attached.keeps[n]].count_nonzero() for m in moments)
    assert attached.zeros == round(0.5 * attached.numel) and attached.optimizer is last
    attached.detach()
    assert not first._optimizer_step_post_hooks and not last._optimizer_step_post_hooks


def test_weights_that_no_optimizer_trains_or_that_are_frozen_until_later():
    model = classifier()
    model.blocks[0].up.weight.requires_grad_(False)
    part = [p for n, p in model.named_parameters() if n != "blocks.1.up.weight"]
    attached = attach(model, torch.optim.SGD(part, 0.1, momentum=0.9), Fixed(random_keeps(find_scope(model))))
    assert not model.blocks[0].up.weight.requires_grad
    train(model, attached.optimizer, 2)
    assert model.blocks[0].up.weight.grad is None
    model.blocks[0].up.weight.requires_grad_(True)
    train(model, attached.optimizer, 2, first=2)
    assert model.blocks[0].up.weight.grad.count_nonzero()
    assert_zeros(attached)


def test_bfloat16():
    model = classifier().bfloat16()
    attached = attach(model, torch.optim.AdamW(model.parameters(), 1e-2), Gradual(0.5, end=2, every=1))
    train(model, attached.optimizer, 3)
    assert_zeros(attached)
    assert attached.zeros == round(0.5 * attached.numel)


@pytest.mark.parametrize("fused", [False, True])
def test_loss_scaling(fused):
    """Infinite gradients of weights that are gone are zero; where a kept weight's is infinite the step is not counted."""
    model = classifier()
    keeps = random_keeps(find_scope(model))
    attached = attach(model, torch.optim.Adam(model.parameters(), 1e-2, fused=fused), Fixed(keeps))
    name, weight = next(iter(attached.weights.items()))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    where = ~keeps[name]
    weight.register_hook(lambda g: g.masked_fill(where, float("inf")))
    for expected in (1, 2, 2):
        if attached.step == 2:
            where = keeps[name]  # now a weight that stays
            kept = weight.detach().clone()
        attached.optimizer.zero_grad()
        x, y = batch(attached.step, torch.float32)
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        assert torch.isfinite(weight.grad).all() == (expected > attached.step)
        scaler.step(attached.optimizer)
        scaler.update()
        assert attached.step == expected
    assert torch.equal(weight.detach(), kept)
    assert scaler.get_scale() == 4.0
    assert_zeros(attached, weights_only=True)


def test_closures_and_lbfgs():
    model = classifier().double()
    attached = attach(model, torch.optim.SGD(model.parameters(), 0.1), Fixed(random_keeps(find_scope(model))))

    def closure() -> float:
        attached.optimizer.zero_grad()
        x, y = batch(0)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return float(loss.detach())

    losses = [attached.optimizer.step(closure) for _ in range(5)]
    assert losses[-1] < losses[0] and attached.step == 5
    assert_zeros(attached)
    with pytest.raises(InputError, match="LBFGS"):
        attach(model, torch.optim.LBFGS(model.parameters()), Fixed())


def test_gradients_with_a_graph_are_masked_in_the_graph():
    """A Hessian-vector product through masked gradients is that of the masked model."""
    model = classifier().double()
    keeps = random_keeps(find_scope(model))
    attached = attach(model, torch.optim.SGD(model.parameters(), 0.1), Fixed(keeps))
    x, y = batch(0)
    name, weight = next(iter(attached.weights.items()))
    v = torch.randn_like(weight)
    plain = torch.autograd.grad(F.cross_entropy(model(x), y), weight, create_graph=True)[0]
    expected = torch.autograd.grad((plain * keeps[name] * v).sum(), weight)[0]
    F.cross_entropy(model(x), y).backward(create_graph=True)
    assert not weight.grad[~keeps[name]].count_nonzero()
    found = torch.autograd.grad((weight.grad * v).sum(), weight)[0]
    torch.testing.assert_close(found, expected)
    model.zero_grad()


def test_sparse_gradients():
    model = nn.Sequential(nn.Embedding(20, 8, sparse=True), nn.Flatten(), nn.Linear(24, 3))
    optimizer = torch.optim.SparseAdam([model[0].weight])
    attached = attach(model, optimizer, Gradual(0.5, end=2, every=1), include=["0.weight"], exclude=["2"])
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randint(20, (16, 3))), torch.randint(3, (16,))).backward()
        assert not model[0].weight.grad.to_dense()[~attached.keeps["0.weight"]].count_nonzero()
        optimizer.step()
    assert attached.zeros == 80 and int((model[0].weight == 0).sum()) == 80


def test_copies_of_the_model_are_plain():
    model = classifier()
    attached = attach(model, torch.optim.AdamW(model.parameters()), Fixed(random_keeps(find_scope(model))))
    train(model, attached.optimizer, 1)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(not p._post_accumulate_grad_hooks for p in other.parameters())
        for a, b in zip(model.parameters(), other.parameters()):
            assert torch.equal(a, b) and a is not b
        train(other, torch.optim.SGD(other.parameters(), 0.1), 1)  # no mask follows it
        assert int((other.blocks[0].up.weight == 0).sum()) == 0
    copy.deepcopy(attached.optimizer.state_dict())
    train(model, attached.optimizer, 1)
    assert_zeros(attached)


def test_two_attachments_at_once_and_one_after_the_other():
    """What a look-ahead does: a second optimizer on the same weights for a while, under masks of its own."""
    model = classifier()
    outer = attach(model, torch.optim.AdamW(model.parameters(), 1e-2), Fixed(random_keeps(find_scope(model))))
    train(model, outer.optimizer, 2)
    start = copy.deepcopy(model.state_dict())
    inner = attach(
        model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), Gradual(0.8, end=2, every=1), scope=outer.scope
    )
    assert inner.zeros == outer.zeros
    train(model, inner.optimizer, 2)
    assert inner.zeros == round(0.8 * inner.numel) > outer.zeros and outer.step == 2
    assert_zeros(inner)
    inner.detach()
    model.load_state_dict(start)
    train(model, outer.optimizer, 2)
    assert_zeros(outer)
    live = {n: int(m.count_nonzero()) for n, m in outer.matrices().items()}
    assert live == {n: int(k.count_nonzero()) for n, k in outer.keeps.items()}
    outer.detach()
    again = attach(model, torch.optim.SGD(model.parameters(), 0.1), Fixed())  # the zeros that are there
    assert again.zeros == outer.zeros


def test_detach_leaves_a_plain_model():
    model = classifier()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    names = list(model.state_dict())
    attached = attach(model, optimizer, Gradual(0.5, end=2, every=1))
    train(model, optimizer, 3)
    zeros = attached.zeros
    assert attached.detach() is model and attached.detach() is model
    assert list(model.state_dict()) == names
    assert all(not p._post_accumulate_grad_hooks and not p._backward_hooks for p in model.parameters())
    assert not optimizer._optimizer_step_post_hooks and not optimizer._optimizer_step_pre_hooks
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert sum(int((w == 0).sum()) for w in attached.weights.values()) == zeros
    gone = weakref.ref(attached)
    del attached
    gc.collect()
    assert gone() is None
    train(model, optimizer, 1)
    assert sum(int((b.up.weight == 0).sum()) for b in model.blocks) == 0


def test_a_failed_attach_leaves_nothing_behind():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(InputError):
        attach(model, optimizer, Fixed({"blocks.0.up.weight": torch.ones(2, 2, dtype=torch.bool)}))
    assert all(not p._post_accumulate_grad_hooks for p in model.parameters())
    assert not optimizer._optimizer_step_post_hooks


def test_weights_that_the_loop_loads_are_masked_again():
    model = classifier()
    dense = copy.deepcopy(model.state_dict())
    attached = attach(model, torch.optim.SGD(model.parameters(), 0.1), Fixed(random_keeps(find_scope(model))))
    model.load_state_dict(dense)
    attached.enforce()
    assert_zeros(attached)
    model.load_state_dict(dense)
    train(model, attached.optimizer, 1)
    assert_zeros(attached)


def test_another_dtype_goes_on_and_another_parameter_does_not():
    model = classifier()
    attached = attach(model, torch.optim.SGD(model.parameters(), 0.1), Fixed(random_keeps(find_scope(model))))
    train(model, attached.optimizer, 1)
    for dtype in (torch.float64, torch.bfloat16):
        model.to(dtype)
        train(model, attached.optimizer, 1, first=1)
        assert_zeros(attached)
    model.float()
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    with pytest.raises(InputError, match=r"blocks\.0\.up\.weight is another parameter now"):
        train(model, attached.optimizer, 1)


def test_another_device():
    model = classifier()
    attached = attach(model, torch.optim.SGD(model.parameters(), 0.1), Fixed(random_keeps(find_scope(model))))
    attached._masks["blocks.0.up.weight"] = attached._masks["blocks.0.up.weight"].to("meta")
    with pytest.raises(InputError, match="moved from meta to cpu after attach"):
        train(model, attached.optimizer, 1)


def test_compiled_model():
    plain, compiled = classifier(), classifier()
    keeps = random_keeps(find_scope(plain))
    one = attach(plain, torch.optim.AdamW(plain.parameters(), 1e-2), Fixed(keeps))
    module = torch.compile(compiled, backend="aot_eager")
    two = attach(module, torch.optim.AdamW(compiled.parameters(), 1e-2), Fixed(keeps))
    assert list(two.keeps) == list(one.keeps)
    train(plain, one.optimizer, 3)
    train(module, two.optimizer, 3)
    assert_zeros(two)
    for a, b in zip(plain.parameters(), compiled.parameters()):
        torch.testing.assert_close(a, b)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read, self.body, self.write = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.write.weight = self.read.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.write(self.body(self.read(x)))


def test_tied_weights():
    """Left alone unless named; named, the one parameter has one mask under both names."""
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    attached = attach(model, optimizer, Fixed(), exclude=["body"], include=["write.weight"])
    assert list(attached.keeps) == ["write.weight"]
    attached.set({"write.weight": torch.rand(12, 12) < 0.5})
    train(model, optimizer, 2)
    assert_zeros(attached)
    assert not model.read.weight[~attached.keeps["write.weight"]].count_nonzero()
    both = {n: Prunable(n, n[:-7], "linear", (12, 12)) for n in ("read.weight", "write.weight")}
    with pytest.raises(InputError, match="one parameter"):
        attach(model, optimizer, Fixed(), scope=Scope(both))


def test_a_method_that_grows_weights_back():
    """The dense gradient is handed over before the mask; what returns starts from zero, with empty moments."""
    model = classifier().double()
    attached = attach(model, torch.optim.AdamW(model.parameters(), 1e-2), Grow())
    zeros = attached.zeros
    train(model, attached.optimizer, 1)
    before = {n: k.clone() for n, k in attached.keeps.items()}
    probe = copy.deepcopy(model)
    x, y = batch(1)
    F.cross_entropy(probe(x), y).backward()
    train(model, attached.optimizer, 1, first=1)
    assert attached.zeros == zeros
    for n, dense in attached.method.dense.items():
        torch.testing.assert_close(dense, probe.get_parameter(n).grad)
        back = attached.keeps[n] & ~before[n]
        assert back.any()
        weight = attached.weights[n]
        assert (
            not weight[back].count_nonzero() and not attached.optimizer.state[weight]["exp_avg"][back].count_nonzero()
        )
    train(model, attached.optimizer, 1, first=2)
    assert all(attached.weights[n][k & ~before[n]].count_nonzero() for n, k in attached.keeps.items())
    assert_zeros(attached)


def test_a_method_that_goes_back_to_dense():
    """AC/DC in small: compressed and decompressed phases in turn."""

    class InTurn(Fixed):
        def stepped(self, attached: Attached) -> None:
            dense = {n: torch.ones_like(k) for n, k in attached.keeps.items()}
            compress = attached.step % 4 == 2
            half = attached.numel // 2
            attached.set(global_magnitude(attached.matrices(), dense, half) if compress else attached.keeps)
            if attached.step % 4 == 0:
                attached.set(dense)

    model = classifier()
    attached = attach(model, torch.optim.AdamW(model.parameters(), 1e-2), InTurn())
    zeros = []
    for step in range(8):
        train(model, attached.optimizer, 1, first=step)
        zeros.append(attached.zeros)
    half = attached.numel // 2
    assert zeros == [0, half, half, 0, 0, half, half, 0]


# Schedules


def flat_reference(scores: list[np.ndarray], keeps: list[np.ndarray], zeros: int, max_rate: float = 1.0) -> np.ndarray:
    """What is gone, then the lowest of a stable sort of all entries in order, one by one while their tensor has room."""
    values = np.concatenate([s.ravel() for s in scores]).astype(np.float32)
    kept = np.concatenate([k.ravel() for k in keeps])
    order = np.lexsort((np.arange(len(values)), values, kept))
    result = np.ones(len(values), bool)
    owner = np.concatenate([np.full(k.size, i) for i, k in enumerate(keeps)])
    share = Fraction(zeros, len(values))
    room = [max(int(max_rate * k.size), math.ceil(share * k.size), int((~k).sum())) for k in keeps]
    taken = 0
    for at in order:
        if taken < zeros and room[owner[at]] > 0:
            result[at], taken = False, taken + 1
            room[owner[at]] -= 1
    return result


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_global_pruning_is_the_stable_sort(data):
    """Few different values, so that most entries are tied; some are gone, also with large scores."""
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=4))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    levels = data.draw(st.integers(1, 5))
    scores = [rng.integers(-levels, levels + 1, s).astype(np.float32) for s in shapes]
    if data.draw(st.booleans()):
        scores[0][0, 0] = -np.inf
    keeps = [rng.random(s) < data.draw(st.sampled_from([0.5, 0.9, 1.0])) for s in shapes]
    gone = sum(int((~k).sum()) for k in keeps)
    zeros = data.draw(st.integers(gone, sum(k.size for k in keeps)))
    named = {str(i): torch.from_numpy(s) for i, s in enumerate(scores)}
    old = {str(i): torch.from_numpy(k) for i, k in enumerate(keeps)}
    max_rate = data.draw(st.sampled_from([0.5, 0.8, 0.99, 1.0]))
    found = prune_globally(named, old, zeros, max_rate)
    assert np.array_equal(
        torch.cat([k.flatten() for k in found.values()]).numpy(), flat_reference(scores, keeps, zeros, max_rate)
    )
    assert all(not bool((k & ~old[n]).any()) for n, k in found.items())
    if not np.isinf(scores[0][0, 0]):
        by_magnitude = global_magnitude(named, old, zeros, max_rate)
        reference = flat_reference([np.abs(s) for s in scores], keeps, zeros, max_rate)
        assert np.array_equal(torch.cat([k.flatten() for k in by_magnitude.values()]).numpy(), reference)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_gradual_counts_follow_the_cubic(data):
    begin = data.draw(st.integers(0, 6))
    end = begin + data.draw(st.integers(1, 20))
    every, sparsity = data.draw(st.integers(1, 8)), data.draw(st.floats(0.0, 0.99))
    model = nn.Sequential(nn.Linear(data.draw(st.integers(2, 9)), 7), nn.Linear(7, data.draw(st.integers(2, 9))))
    scope = find_scope(model, include=["*.weight"])
    numel = scope.numel
    already = data.draw(st.integers(0, round(sparsity * numel)))
    first = global_magnitude({n: model.get_parameter(n).detach() for n in scope.prunables}, _ones(scope), already)
    for n, k in first.items():
        model.get_parameter(n).data *= k
    optimizer = torch.optim.SGD(model.parameters(), 0.1)  # without gradients it moves nothing, and counts
    attached = attach(model, optimizer, Gradual(sparsity, begin=begin, end=end, every=every), scope=scope)
    assert attached.zeros == already
    for t in range(1, end + 3):
        before = {n: k.clone() for n, k in attached.keeps.items()}
        zeros = attached.zeros
        optimizer.step()
        assert all(not bool((k & ~before[n]).any()) for n, k in attached.keeps.items())
        if t >= end:
            assert attached.zeros == round(sparsity * numel)
        elif t >= begin and (t - begin) % every == 0:
            final = round(sparsity * numel)
            exact = final + (already - final) * (1 - (t - begin) / (end - begin)) ** 3
            assert abs(attached.zeros - exact) <= 0.5 + 1e-9
        else:
            assert attached.zeros == zeros
        assert attached.zeros == sum(int((w == 0).sum()) for w in attached.weights.values())


def _ones(scope: Scope) -> dict[str, torch.Tensor]:
    return {n: torch.ones(p.rows, p.cols, dtype=torch.bool) for n, p in scope.prunables.items()}


def test_gradual_ends_although_the_end_was_passed_by():
    model = classifier()
    attached = attach(model, torch.optim.SGD(model.parameters(), 0.1), Gradual(0.5, end=4, every=3))
    attached.step = 6
    train(model, attached.optimizer, 1)
    assert attached.zeros == round(0.5 * attached.numel)


def test_fixed_takes_a_mask_set():
    model = classifier()
    keeps = random_keeps(find_scope(model))
    attached = attach(model, torch.optim.SGD(model.parameters(), 0.1), Fixed(MaskSet(keeps)))
    assert attached.masks.zeros == attached.zeros == sum(int((~k).sum()) for k in keeps.values())
    assert attached.sparsity == attached.zeros / attached.numel


# State


def test_state_file(tmp_path):
    path = tmp_path / "a.safetensors"
    state = {
        "step": 3,
        "masks": {"a/b.weight": torch.tensor([[3, 255]], dtype=torch.uint8)},
        "method": {
            "tensor": {"tensor": 1.5},
            "list": [torch.randn(2, 0), None, True, "text"],
            "half": torch.ones(3).half(),
        },
    }
    write_state(path, state)
    found = read_state(path)
    assert found["step"] == 3 and found["method"]["tensor"] == {"tensor": 1.5}
    assert torch.equal(found["masks"]["a/b.weight"], state["masks"]["a/b.weight"])
    assert found["method"]["list"][0].shape == (2, 0) and found["method"]["list"][1:] == [None, True, "text"]
    assert torch.equal(found["method"]["half"], state["method"]["half"])
    with pytest.raises(InputError, match="numbers and text only"):
        write_state(path, {"step": object()})
    with pytest.raises(InputError, match="text keys"):
        write_state(path, {"method": {1: 2}})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(FormatError, match="not the ones that were written"):
        read_state(path)
    path.write_bytes(bytes(data[:-1]))
    with pytest.raises(FormatError):
        read_state(path)
    with pytest.raises(FormatError):
        read_state(tmp_path / "none.safetensors")


# Wrong inputs


def _attach(model: nn.Module | None = None, optimizer: Any = None, method: Any = None, **kwargs: Any) -> Attached:
    model = classifier() if model is None else model
    return attach(
        model,
        torch.optim.SGD(model.parameters(), 0.1) if optimizer is None else optimizer,
        Fixed() if method is None else method,
        **kwargs,
    )


def _with_nan() -> nn.Module:
    model = classifier()
    model.blocks[1].down.weight.data[3, 4] = float("nan")
    return model


def _half_gone() -> nn.Module:
    model = classifier()
    for block in model.blocks:
        block.up.weight.data.zero_()
    return model


def _state(**changes: Any) -> dict[str, Any]:
    return {**_attach().state_dict(), **changes}


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "another model's optimizer": (lambda: _attach(optimizer=torch.optim.SGD(classifier().parameters(), 0.1)), "trains none"),
    "no optimizer": (lambda: _attach(optimizer=[]), "no optimizer"),
    "a name": (lambda: _attach(optimizer=torch.nn.Linear(1, 1)), "Linear is no torch optimizer"),
    "masks for a method": (lambda: _attach(method={}), "dict is no method"),
    "NaN": (lambda: _attach(_with_nan()), r"blocks\.1\.down\.weight holds NaN"),
    "scope and include": (lambda: _attach(scope=find_scope(classifier()), include=["*.weight"]), "include and exclude"),
    "scope of another model": (lambda: _attach(scope=find_scope(convnet())), "has no conv1.weight"),
    "scope of another size": (
        lambda: _attach(scope=Scope({"head.weight": Prunable("head.weight", "head", "linear", (2, 2))})),
        "scope's shape",
    ),
    "an empty scope": (lambda: _attach(scope=Scope()), "nothing of this model is prunable"),
    "a pattern": (lambda: _attach(include=["nothing"]), "matches no parameter"),
    "a mask of no tensor": (lambda: _attach(method=Fixed({"x": torch.ones(1, 1) > 0})), "x is not prunable here"),
    "a mask of floats": (lambda: _attach().set({"blocks.0.up.weight": torch.ones(48, 24)}), "torch.float32"),
    "a mask of numbers": (lambda: _attach().set({"blocks.0.up.weight": [1]}), "is list"),
    "a transposed mask": (lambda: _attach().set({"blocks.0.up.weight": torch.ones(24, 48) > 0}), r"\(48, 24\)"),
    "steps out of order": (lambda: Gradual(0.5, begin=5, end=5), "begin < end"),
    "a share for a step": (lambda: Gradual(0.5, end=0.75), "whole numbers"),
    "a sparsity": (lambda: Gradual(1.5, end=10), "sparsity"),
    "fewer zeros than there are": (lambda: _attach(_half_gone(), method=Gradual(0.4, end=10)), "zero already"),
    "bringing weights back": (
        lambda: prune_globally({"a": torch.ones(1, 2)}, {"a": torch.zeros(1, 2) > 0}, 1),
        "gone already",
    ),
    "more than all": (lambda: prune_globally({"a": torch.ones(1, 2)}, {"a": torch.ones(1, 2) > 0}, 3), "of 2 weights"),
    "NaN scores": (lambda: prune_globally({"a": torch.tensor([[1, torch.nan]])}, {"a": torch.ones(1, 2) > 0}, 1), "NaN"),
    "no state": (lambda: _attach(state={"model": 1}), "no state of an attached method"),
    "another model's state": (lambda: _attach(state=_state(masks={"x": torch.zeros(1, 1)})), "masks of other tensors"),
    "another shape's state": (
        lambda: _attach(state=_state(masks={n: b[:1] for n, b in _state()["masks"].items()})),
        "another shape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs(case):
    call, words = WRONG[case]
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_refused_mask_changes_nothing():
    model = classifier()
    attached = _attach(model)
    before = copy.deepcopy(model.state_dict())
    good, bad = torch.zeros(48, 24, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)
    with pytest.raises(InputError):
        attached.set({"blocks.0.up.weight": good, "blocks.1.up.weight": bad})
    assert attached.zeros == 0 and all(torch.equal(before[n], t) for n, t in model.state_dict().items())


# A schedule that is longer than the training


def test_detach_tells_of_a_schedule_that_has_not_ended():
    attached = _attach(method=Gradual("80%", end=10, every=2))
    train(attached.model, attached.optimizer, 3)
    # The last change was after step 2: 0.8 (1 - (1 - 2/10)^3) = 0.3904 of all weights.
    assert attached.zeros == round(0.8 * attached.numel) - round(0.8 * attached.numel * Fraction(8, 10) ** 3)
    words = (
        "39% of the weights are zero, not the 80% asked for: the schedule ends at step 10 and training ended at step 3."
    )
    with pytest.warns(UserWarning) as caught:
        attached.detach()
    assert [str(w.message) for w in caught] == [words] and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attached.detach()  # said once
        _attach(method=Fixed()).detach()
        ended = _attach(method=Gradual("80%", end=3))
        train(ended.model, ended.optimizer, 3)
        ended.detach()
        _attach(method=Gradual("80%", end=3)).release()


def test_shares_that_look_alike_are_told_apart():
    attached = _attach(method=Gradual(0.8, end=100, every=1))
    train(attached.model, attached.optimizer, 90)
    with pytest.warns(UserWarning, match=rf"^{100 * attached.zeros / attached.numel:.6g}% of .* not the 80% asked"):
        attached.detach()


def test_the_same_model_and_optimizer_are_attached_once():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    first = attach(model, optimizer, Fixed(), exclude=["blocks.1.*"])
    with pytest.raises(InputError, match="detach first"):
        attach(model, [torch.optim.SGD(model.parameters(), 0.1), optimizer], Fixed(random_keeps(find_scope(model))))
    assert len(optimizer._optimizer_step_post_hooks) == 1
    other = attach(model, optimizer, Fixed(), include=["head.weight"], exclude=["blocks.*"])  # other tensors
    first.detach()
    other.detach()
    attach(model, optimizer, Fixed())
