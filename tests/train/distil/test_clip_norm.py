"""How large a step may be when a masked model is fitted, and what is said of a training that broke down."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from small import convnet, images
from winnow.fcpts import FCPTS, FcptsSettings
from winnow.fcpts.warnings import warnings_for
from winnow.masks.scope import find_scope
from winnow.train.distil.fit import Distil
from winnow.train.distil.loop import largest_norm
from winnow.train.distil.settings import DistilSettings


def network() -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 4)).double()
    with torch.no_grad():
        model[4].weight.mul_(12)  # outputs that differ
    return model


def rows(count: int = 24) -> torch.Tensor:
    return 3 * torch.randn(count, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def by_hand(steps: int, lr: float, clip: float) -> tuple[list[torch.Tensor], list[float]]:
    """All rows in every step: KL at temperature 4, the norm of all gradients cut to ``clip``, then SGD with momentum.

    The head's weight is not prunable and stays.
    """
    model, x, keeps = network(), rows(), half(network())
    weights = [p.detach().clone() for p in model.parameters()]
    masks = [keeps.get(n) for n, _ in model.named_parameters()]
    target = (model(x).detach() / 4).softmax(-1)
    velocity, norms = [torch.zeros_like(w) for w in weights], []
    for step in range(steps):
        leaves = [w.clone().requires_grad_(i != 4) for i, w in enumerate(weights)]
        trained = [leaf for leaf in leaves if leaf.requires_grad]
        w1, b1, w2, b2, w3, b3 = (w if m is None else w * m for w, m in zip(leaves, masks))
        out = torch.tanh(torch.tanh(x @ w1.T + b1) @ w2.T + b2) @ w3.T + b3
        log = (out / 4).log_softmax(-1)
        loss = 16 * (target * (target.log() - log)).sum() / len(x)
        found = dict(zip(map(id, trained), torch.autograd.grad(loss, trained)))
        gradients = [found.get(id(leaf), torch.zeros_like(leaf)) for leaf in leaves]
        norms.append(math.sqrt(sum(float((g**2).sum()) for g in gradients)))
        cut = min(1.0, clip / (norms[-1] + 1e-6)) if clip else 1.0
        for i, g in enumerate(gradients):
            velocity[i] = 0.9 * velocity[i] + cut * g
            weights[i] = weights[i] - lr * 0.5 * (1 + math.cos(math.pi * step / steps)) * velocity[i]
    return [w if m is None else w * m for w, m in zip(weights, masks)], norms


def half(model: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    return {n: torch.rand(p.rows, p.cols, generator=generator) > 0.5 for n, p in find_scope(model).prunables.items()}


@pytest.mark.parametrize("clip", [0.0, 2.0, None])
def test_against_training_by_hand(clip):
    """None is 1 in a model without batch norms. Norms lie on both sides of either limit, so that cutting is seen."""
    settings = DistilSettings(steps=20, batch=24, lr=0.05, warmup=0.0, clip=clip)
    model = network()
    fitted = Distil(settings).fit(model, [rows()], half(model))
    expected, norms = by_hand(20, 0.05, 1.0 if clip is None else clip)
    if clip != 0.0:
        assert min(norms) < (clip or 1.0) < max(norms)
    found = dict(model.named_parameters()) | fitted.extra | fitted.weights
    for (name, _), w in zip(model.named_parameters(), expected):
        # Trained matrices come out as float32.
        assert torch.allclose(found[name].double(), w, rtol=1e-6, atol=1e-7), name


def test_models_with_batch_norms_have_no_limit_unless_it_is_said():
    assert largest_norm(convnet(), DistilSettings()) == 0 and largest_norm(network(), DistilSettings()) == 1
    assert (
        largest_norm(convnet(), DistilSettings(clip=2.5)) == 2.5
        and largest_norm(network(), DistilSettings(clip=0)) == 0
    )


def test_thresholds_are_not_cut():
    """Their own rate is in another unit: with weights held to a hair, the thresholds still learn."""
    data = [images(64)[0]]
    settings = FcptsSettings(steps=30, batch=64, lr=1e-6, threshold_lr=10.0, ramp=0.0)
    free = FCPTS(settings).fit(convnet(), data, sparsity=0.6)
    held = FCPTS(settings.model_copy(update={"clip": 1e-6})).fit(convnet(), data, sparsity=0.6)
    start = FCPTS(settings.model_copy(update={"steps": 1, "threshold_lr": 1e-9})).fit(convnet(), data, sparsity=0.6)
    ends = [layer.threshold for layer in free.record.layers]
    assert max(abs(e / layer.threshold - 1) for e, layer in zip(ends, start.record.layers)) > 0.01
    assert [layer.threshold for layer in held.record.layers] == pytest.approx(ends, rel=1e-3)


def test_a_training_that_broke_down_is_told():
    model, x = network(), rows(64)
    p = (model(x).detach() / 4).softmax(-1)
    mean = p.mean(0)
    by_formula = float(16 * sum((q * (q / mean).log()).sum() for q in p) / len(p))

    def fitted(**given):
        record = Distil(DistilSettings(steps=20, batch=64, **given)).fit(model, [x], half(model)).record
        return record, [w for w in warnings_for(record, examples=1024) if "same answer" in w]

    well, told = fitted(lr=0.05)
    assert well.constant == pytest.approx(by_formula) and well.losses[-1] < 0.5 * by_formula and not told
    ill, told = fitted(lr=300.0, clip=0)
    assert ill.losses[-1] > by_formula and len(told) == 1 and "--set lr=" in told[0]


def test_without_classes_there_is_no_constant_answer():
    model, x = network(), rows()
    assert Distil(DistilSettings(steps=1, loss="mse")).fit(model, [x], half(model)).record.constant is None
