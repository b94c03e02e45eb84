"""RigL and Sign-In in the ways people train: accumulation, low precision, loss scaling, averages, compiled models, new groups."""

from __future__ import annotations

import copy
import os
import shutil
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from small import classifier, points
from winnow.errors import InputError
from winnow.masks.scope import find_scope
from winnow.train import Attached, Gradual, RandomMasks, RigL, SignIn, attach

X, Y = points()
Y = torch.as_tensor(Y)
METHODS: dict[str, Any] = {
    "rigl": lambda: RigL(0.6, end=9, every=2, fraction=0.4),
    "sign-in": lambda: SignIn(RandomMasks(0.6), every=3),
    "sign-in, rigl": lambda: SignIn(RigL(0.6, end=9, every=2, fraction=0.4), every=3),
}
each = pytest.mark.parametrize("name", METHODS)


def begun(name: str, model: nn.Module | None = None, lr: float = 1e-2) -> Attached:
    model = classifier() if model is None else model
    return attach(model, torch.optim.AdamW(model.parameters(), lr, weight_decay=0.1), METHODS[name]())


def loss(model: nn.Module, step: int, part: int = 0, rows: int = 32) -> torch.Tensor:
    chosen = slice(32 * step + part, 32 * step + part + rows)
    return F.cross_entropy(model(X[chosen].to(next(model.parameters()).dtype)), Y[chosen])


def train(attached: Attached, steps: int, called: nn.Module | None = None, first: int = 0) -> Attached:
    for step in range(first, first + steps):
        attached.optimizer.zero_grad()
        loss(called or attached.model, step).backward()
        attached.optimizer.step()
    return attached


def require_zeros(attached: Attached) -> None:
    assert attached.zeros == round(0.6 * attached.numel)
    for name, weight in attached.weights.items():
        gone = ~attached.keeps[name]
        assert gone.any() and not weight[gone].count_nonzero(), name


@pytest.mark.parametrize("name", ["rigl", "sign-in, rigl"])
def test_weights_grow_by_the_last_micro_batch(name):
    attached = begun(name, classifier().double())
    for step in range(4):
        attached.optimizer.zero_grad()
        before = dict(attached.keeps)
        for part in (0, 16):
            halved = loss(attached.model, step, part, 16) / 2
            gradients = torch.autograd.grad(halved, list(attached.weights.values()), retain_graph=True)
            halved.backward()
        norm = nn.utils.clip_grad_norm_(attached.model.parameters(), 0.1)
        assert norm > 0.1  # what grows is ranked by gradients before the clip: the scale does not matter
        attached.optimizer.step()
        for n, last in zip(attached.weights, gradients):
            old, new = before[n], attached.keeps[n]
            assert torch.equal(old, new) == (step % 2 == 0)
            grown, left = last.abs()[new & ~old], last.abs()[~new & ~old]
            assert not grown.numel() or grown.min() >= left.max()
    require_zeros(attached)


@each
def test_autocast_keeps_float32_masters(name):
    """Updates far below what bfloat16 can tell near m = 1 arrive in weights and factors all the same."""
    attached = begun(name, lr=1e-5)
    start = {n: w.detach().clone() for n, w in attached.weights.items()}
    for step in range(4):
        attached.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = attached.model(X[32 * step : 32 * step + 32])
        assert out.dtype == torch.bfloat16
        F.cross_entropy(out.float(), Y[32 * step : 32 * step + 32]).backward()
        attached.optimizer.step()
    require_zeros(attached)
    for n, weight in attached.weights.items():
        assert weight.dtype == torch.float32
        stayed = attached.keeps[n] & (start[n] != 0)
        assert float((weight != start[n])[stayed].float().mean()) > 0.9, n
        if n in attached.factors:
            m = attached.factors.tensors[n].detach()[0]
            assert m.dtype == torch.float32 and not torch.equal(m.bfloat16().float(), m)


@each
@pytest.mark.parametrize("fused", [False, True])
def test_skipped_steps_are_not_counted(name, fused):
    """An infinite gradient in the step after which masks or scales would change: nothing does, until it is done again."""
    model = classifier()
    attached = attach(model, torch.optim.Adam(model.parameters(), 1e-2, fused=fused), METHODS[name]())
    scaler, counted = torch.amp.GradScaler("cpu", init_scale=1024.0), 0
    for attempt in range(10):
        step = attached.step
        before, keeps = copy.deepcopy(model.state_dict()), dict(attached.keeps)
        resets = getattr(attached.method, "resets", 0)
        attached.optimizer.zero_grad()
        scaler.scale(loss(model, step)).backward()
        bad = attempt in (1, 3, 4)
        if bad:
            next(iter(attached.weights.values())).grad[attached.keeps["blocks.0.up.weight"]] = torch.inf
        scaler.step(attached.optimizer)
        scaler.update()
        counted += not bad
        assert attached.step == counted
        if bad:
            assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
            assert all(attached.keeps[n] is k for n, k in keeps.items())
            assert getattr(attached.method, "resets", 0) == resets
    assert attached.step == 7 and getattr(attached.method, "resets", 2) == 2
    require_zeros(attached)


@each
def test_averages_of_weights(name):
    """What is averaged is theta. Zeros that stay are exact; where masks moved, the masks make them so."""
    attached = begun(name)
    average = AveragedModel(attached.model, avg_fn=get_ema_avg_fn(0.5))
    by_hand = {n: w.detach().double() for n, w in attached.weights.items()}
    always = {n: ~k for n, k in attached.keeps.items()}
    for step in range(6):
        train(attached, 1, first=step)
        average.update_parameters(attached.model)
        for n, w in attached.weights.items():
            by_hand[n] = w.detach().double() if step == 0 else 0.5 * by_hand[n] + 0.5 * w.detach().double()
            always[n] = always[n] & ~attached.keeps[n]
    for n, expected in by_hand.items():
        found = average.module.get_parameter(n).detach()
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-7)
        assert always[n].any() and not found[always[n]].count_nonzero()
    masked = attached.masks.apply(average.module.state_dict())
    gone = {n: ~k for n, k in attached.keeps.items()}
    assert any(average.module.get_parameter(n)[g].count_nonzero() for n, g in gone.items()) == ("rigl" in name)
    assert not any(masked[n][g].count_nonzero() for n, g in gone.items())
    assert all(torch.equal(masked[n][~g], average.module.get_parameter(n).detach()[~g]) for n, g in gone.items())


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
def test_compiled_models(before):
    """Compiled by inductor before or after attach: the masks and weights of the eager model."""
    eager = train(begun("sign-in, rigl", small().double()), 4)
    model = small().double()
    compiled = torch.compile(model) if before else model
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)
    attached = attach(compiled, optimizer, METHODS["sign-in, rigl"]())
    train(attached, 4, compiled if before else torch.compile(model))
    assert attached.masks == eager.masks
    require_zeros(attached)
    for n, parameter in eager.model.named_parameters():
        torch.testing.assert_close(model.get_parameter(n), parameter, rtol=1e-8, atol=1e-10)


def small() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


@each
def test_detach_leaves_a_plain_model_and_optimizer(name):
    attached = train(begun(name), 5)
    model, optimizer = attached.model, attached.optimizer
    zeros = {n: attached.weights[n] == 0 for n in attached.weights}
    assert attached.detach() is model
    assert sum(int(z.sum()) for z in zeros.values()) >= round(0.6 * attached.numel)
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert list(map(id, held)) == list(map(id, model.parameters())) and set(optimizer.state) <= set(held)
    loss(model, 6).backward()
    optimizer.step()  # and goes on as any other
    assert all((w != 0)[zeros[n]].any() for n, w in attached.weights.items())


# Parameter groups that come later


@each
def test_matrices_that_come_after_attach_are_refused_before_the_step(name):
    model = classifier()
    attached = train(begun(name, model), 1)
    model.extra = nn.Linear(24, 24)
    attached.optimizer.add_param_group({"params": model.extra.parameters()})
    before = copy.deepcopy(model.state_dict())
    loss(model, 1).backward()
    with pytest.raises(InputError, match=r"extra\.weight came to the optimizer \(group 1\) after attach.*attach again"):
        attached.optimizer.step()
    assert attached.step == 1 and all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    with pytest.raises(
        ValueError, match="more than one parameter group"
    ):  # of weights that are there already: torch's own
        attached.optimizer.add_param_group({"params": [model.blocks[0].up.weight]})
    attached.release()
    again = attach(model, attached.optimizer, METHODS[name](), exclude=["extra"])
    train(again, 2)
    require_zeros(again)


@each
def test_prunable_weights_may_be_thawed_in_a_group_of_their_own(name):
    """As when layers are unfrozen one after the other: masked from the beginning, trained from then on."""
    model = classifier()
    late = model.blocks[2].down.weight
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p is not late], 1e-2)
    attached = attach(model, optimizer, METHODS[name]()) if "rigl" not in name else None
    if attached is None:  # masks that move need the gradient of every weight
        attached = attach(model, optimizer, SignIn(Gradual(0.6, end=3, every=1), every=2))
    train(attached, 2)
    start = late.detach().clone()
    optimizer.add_param_group({"params": [late], "lr": 1e-3})
    train(attached, 2, first=2)
    keep = attached.keeps["blocks.2.down.weight"]
    assert bool((late != start)[keep].any()) and not late[~keep].count_nonzero()
    require_zeros(attached)


# Other bad input


def test_a_model_without_prunable_weights():
    model = nn.Sequential(nn.LayerNorm(4), nn.ReLU())
    with pytest.raises(
        InputError, match=r"there is nothing to prune in this model.*give a model with other linear layers"
    ):
        attach(model, torch.optim.SGD(model.parameters(), 0.1), SignIn(RandomMasks(0.5), every=1))


def test_an_optimizer_of_another_model():
    model, other = classifier(), classifier()
    with pytest.raises(InputError, match="trains none of the prunable weights: make it of this model's parameters"):
        attach(model, torch.optim.SGD(other.parameters(), 0.1), METHODS["sign-in, rigl"]())


def test_a_mask_that_does_not_fit():
    model = classifier()
    masks = {n: torch.ones(p.cols, p.rows, dtype=torch.bool) for n, p in find_scope(model).prunables.items()}
    with pytest.raises(
        InputError, match=r"blocks\.0\.up\.weight is torch\.bool \(24, 48\): give a bool matrix \(48, 24\)"
    ):
        attach(model, torch.optim.SGD(model.parameters(), 0.1), SignIn(masks, every=1))


@pytest.mark.parametrize("named", [True, False])
def test_a_checkpoint_of_another_method_changes_nothing(named):
    state = train(begun("sign-in, rigl"), 3).state_dict()
    if not named:  # as versions before wrote it
        del state["of"]
    model = classifier()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    attached = train(attach(model, optimizer, Gradual(0.5, end=9, every=1)), 3)
    before, zeros = copy.deepcopy(model.state_dict()), attached.zeros
    words = (
        r"is of another method, SignIn\(RigL\), and this is Gradual" if named else "is of another method, and this is"
    )
    with pytest.raises(InputError, match=f"{words}.*attach with the method it was made with"):
        attached.load_state_dict(state)
    assert attached.zeros == zeros and attached.step == 3
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    train(attached, 1, first=3)
