"""Gradual pruning whose weights compete within their tensor: counts and places against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from small import points
from winnow.allocate import LayerInfo, allocate
from winnow.errors import InputError
from winnow.masks.global_ranking import global_magnitude
from winnow.masks.scope import find_scope
from winnow.train import Gradual, attach

X, Y = points()
Y = torch.as_tensor(Y)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 7), nn.ReLU(), nn.Linear(7, 3))
    with torch.no_grad():
        made[2].weight.mul_(100)  # a global ranking would spare it
    return made


@pytest.mark.parametrize("already", [0.0, 0.5])
@pytest.mark.parametrize("distribution", ["uniform", "erk", "balanced"])
def test_every_tensor_loses_its_share(distribution, already):
    model = network()
    scope = find_scope(model, include=["4.weight"])
    with torch.no_grad():  # zeros that the model brings along, all in one tensor
        flat = model[0].weight.view(-1)
        flat[: round(already * len(flat))] = 0
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    attached = attach(model, optimizer, Gradual(0.83, end=9, every=2, distribution=distribution), scope=scope)
    layers = [LayerInfo(n, p.rows, p.cols, None, p.shape) for n, p in scope.prunables.items()]
    assert attached.zeros == round(already * 480)
    for step in range(1, 12):
        old = {n: k.numpy().copy() for n, k in attached.keeps.items()}
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X[:32]), Y[:32]).backward()
        weights = {}
        with torch.no_grad():  # what the step is going to make of them, before it prunes
            for n, w in attached.weights.items():
                weights[n] = np.abs((w - 0.05 * w.grad).numpy())
        optimizer.step()
        if step % 2 and step != 9:
            assert all(np.array_equal(attached.keeps[n].numpy(), k) for n, k in old.items())
            continue
        if step > 9:
            continue
        shares = allocate(distribution, layers, attached.zeros)
        over = 0
        for n, keep in attached.keeps.items():
            new, gone = keep.numpy(), int((~keep).sum())
            assert not (new & ~old[n]).any()
            if gone > shares[n]:
                assert np.array_equal(new, old[n])  # it had more than its share, and loses no more
                over += gone - shares[n]
            else:
                over -= shares[n] - gone
                assert already or gone == shares[n] or abs(gone - shares[n]) <= 1
            lost = old[n] & ~new
            if lost.any() and new.any():
                assert weights[n][lost].max() <= weights[n][new].min()
        assert over == 0
    assert attached.zeros == round(0.83 * scope.numel)
    if distribution == "uniform":
        for n, keep in attached.keeps.items():
            assert abs(int((~keep).sum()) - 0.83 * keep.numel()) < 1 or already, n


def test_the_global_ranking_is_the_default():
    one, other = network(), network()
    attached = attach(one, torch.optim.SGD(one.parameters(), 0.0), Gradual(0.6, end=1, every=1))
    attached.optimizer.step()
    weights = {n: other.get_parameter(n).detach() for n in attached.keeps}
    ones = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
    expected = global_magnitude(weights, ones, round(0.6 * attached.numel))
    assert all(torch.equal(k, expected[n]) for n, k in attached.keeps.items())
    assert int((~expected["2.weight"]).sum()) < 0.1 * 280  # while by tensor it would lose as much as the others


def test_an_unknown_distribution():
    with pytest.raises(InputError, match="choose from global, erk, uniform, balanced"):
        Gradual(0.5, end=10, distribution="layer")
