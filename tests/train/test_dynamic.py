"""RigL and SET against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from small import classifier, points
from winnow.errors import InputError
from winnow.masks.scope import find_scope
from winnow.train import SET, RigL, SignIn, attach
from winnow.train.methods.random_masks import RandomMasks, random_masks

X, Y = points()
Y = torch.as_tensor(Y)


def test_random_masks_have_erk_densities_and_exact_counts():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(32, 64), nn.Linear(64, 10))
    scope = find_scope(model, include=["4.weight"])
    keeps = random_masks(scope, "80%", seed=3)
    zeros = {n: int((~k).sum()) for n, k in keeps.items()}
    assert sum(zeros.values()) == round(0.8 * scope.numel)
    # ERK by hand: density = eps * sum(shape) / prod(shape); those that would be above 1 stay dense
    claims = {n: sum(p.shape) / math.prod(p.shape) for n, p in scope.prunables.items()}
    numel = {n: math.prod(p.shape) for n, p in scope.prunables.items()}
    dense: set[str] = set()
    while True:
        left = scope.numel - round(0.8 * scope.numel) - sum(numel[n] for n in dense)
        eps = left / sum(claims[n] * numel[n] for n in numel if n not in dense)
        new = {n for n in numel if n not in dense and eps * claims[n] > 1}
        if not new:
            break
        dense |= new
    for n in numel:
        assert abs(1 - zeros[n] / numel[n] - (1 if n in dense else eps * claims[n])) < 0.01, n
    assert not all(torch.equal(k, random_masks(scope, "80%", seed=4)[n]) for n, k in keeps.items())
    uniform = random_masks(scope, 0.8, "uniform")
    assert all(abs(int((~k).sum()) / k.numel() - 0.8) < 1 / k.numel() + 1e-9 for k in uniform.values())
    with pytest.raises(InputError, match="choose from erk, uniform, balanced"):
        RandomMasks(0.5, distribution="even").start(
            attach(model, torch.optim.SGD(model.parameters(), 0.1), SET(0.5, end=1, every=1))
        )


def step(attached, number):
    part = slice(32 * number, 32 * number + 32)
    attached.optimizer.zero_grad()
    F.cross_entropy(attached.model(X[part]), Y[part]).backward()
    attached.optimizer.step()


def dense_gradients(model, number):
    part = slice(32 * number, 32 * number + 32)
    found = torch.autograd.grad(
        F.cross_entropy(model(X[part]), Y[part]), [model.get_parameter(n) for n in find_scope(model).prunables]
    )
    return {n: g.clone() for n, g in zip(find_scope(model).prunables, found)}


@pytest.mark.parametrize("sign_in", [False, True])
def test_rigl_drops_the_smallest_and_grows_by_dense_gradient(sign_in):
    model = classifier()
    inner = RigL(0.7, end=8, every=2, fraction=0.4)
    method = SignIn(inner, every=3) if sign_in else inner
    attached = attach(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), method)
    for number in range(10):
        before, gradients = dict(attached.keeps), dense_gradients(model, number)
        step(attached, number)
        t = number + 1
        if t % 2 or t > 8:
            assert all(attached.keeps[n] is before[n] for n in before)
            continue
        for name, old in before.items():
            new, old = attached.keeps[name].numpy(), old.numpy()
            kept = int(old.sum())
            assert new.sum() == kept
            count = int(0.2 * (1 + math.cos(math.pi * t / 8)) * kept)
            grown, gone = new & ~old, old & ~new
            assert grown.sum() == gone.sum() == count
            if count:
                g = np.abs(gradients[name].numpy())
                assert g[grown].min() >= g[~old & ~grown].max()
                weight = attached.weights[name].detach().numpy()
                assert not weight[grown].any() and not weight[~new].any()
                if sign_in:
                    at = torch.from_numpy(grown)[attached.keeps[name]]
                    assert bool((attached.factors.tensors[name].detach()[0, at] == 1).all())
    assert attached.zeros == round(0.7 * attached.numel)


def test_rigl_drops_the_smallest_weights():
    model = classifier()
    attached = attach(model, torch.optim.SGD(model.parameters(), 0.0), RigL(0.5, end=4, every=1))
    before = {n: (k.numpy(), attached.weights[n].detach().numpy().copy()) for n, k in attached.keeps.items()}
    step(attached, 0)
    for name, (old, weight) in before.items():
        gone = old & ~attached.keeps[name].numpy()
        assert gone.any() and np.abs(weight[gone]).max() <= np.abs(weight[old & ~gone]).min()


def test_set_grows_at_random_and_repeatably():
    def masks(seed):
        model = classifier()
        attached = attach(model, torch.optim.SGD(model.parameters(), 0.1), SET(0.7, end=4, every=2, seed=seed))
        first = attached.masks
        for number in range(4):
            step(attached, number)
        assert attached.zeros == round(0.7 * attached.numel) and attached.masks != first
        return attached.masks

    assert masks(0) == masks(0) and masks(0) != masks(1)


@pytest.mark.parametrize("options", [dict(end=1, every=2), dict(end=5, every=0), dict(end=5, every=1, fraction=1.0)])
def test_wrong_options(options):
    with pytest.raises(InputError, match="give"):
        RigL(0.5, **options)
