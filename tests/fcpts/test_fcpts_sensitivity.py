"""What it costs to take a tenth more from one group alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from winnow.fcpts.groups import Elements
from winnow.fcpts.sensitivity import sensitivity
from winnow.fcpts.structures import make_units
from winnow.masks.prunable import Prunable, Scope
from winnow.masks.scope import find_scope
from winnow.masks.structure import parse_structure


def scope_of(**shapes):
    return Scope({n: Prunable(n, n, "linear", s) for n, s in shapes.items()})


def test_by_hand():
    """The loss is a weighted sum of what is missing; a has 20 of 40 weights left and gives up 2, b 10 of 20 and 1."""
    scope = scope_of(a=(4, 10), b=(2, 10))
    weights = {"a": torch.arange(1.0, 41).reshape(4, 10), "b": -torch.arange(1.0, 21).reshape(2, 10)}
    calls = []

    def loss_of(masked):
        assert set(masked) == {"a", "b"}
        calls.append({n: m.clone() for n, m in masked.items()})
        return 100.0 - float(masked["a"].sum()) / 10 + float(masked["b"].sum())

    thresholds = torch.tensor([20.5, 10.5])  # in proportion 2 : 1, the exact count takes the lower half of each
    found = sensitivity(Elements(scope), thresholds, weights, loss_of, 0.5)
    assert found == {"a": pytest.approx((21 + 22) / 10, rel=1e-5), "b": pytest.approx(11.0, rel=1e-5)}
    assert len(calls) == 3
    assert [int((c["a"] != 0).sum()) for c in calls] == [20, 18, 20]
    assert [int((c["b"] != 0).sum()) for c in calls] == [10, 10, 9]
    assert float(weights["a"].min()) == 1.0  # nothing was changed


def test_the_exact_selection_counts_not_the_raw_thresholds():
    scope = scope_of(a=(1, 40), b=(1, 20))
    weights = {"a": torch.arange(1.0, 41).reshape(1, 40), "b": torch.arange(1.0, 21).reshape(1, 20)}
    base = []
    sensitivity(
        Elements(scope), torch.tensor([4.0, 2.0]), weights, lambda m: base.append(m["a"].count_nonzero()) or 0.0, 0.5
    )
    assert int(base[0]) == 20


def test_one_weight_at_least_and_nothing_where_nothing_is_left():
    scope = scope_of(a=(1, 100), b=(1, 100))
    weights = {"a": torch.arange(1.0, 101)[None], "b": torch.zeros(1, 100)}
    weights["b"][0, :4] = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def loss_of(masked):
        return -float(masked["a"].sum() + masked["b"].sum())

    found = sensitivity(Elements(scope), torch.tensor([1.0, 1e-3]), weights, loss_of, 0.6)
    assert found["b"] == 1.0  # a tenth of four weights is none; one goes
    assert found["a"] == pytest.approx(sum(range(25, 33)), abs=1e-3)  # 96 of b and 24 of a are gone; a tenth of 76 is 8
    weights["b"].zero_()
    assert sensitivity(Elements(scope), torch.tensor([1.0, 1e-3]), weights, loss_of, 0.5)["b"] == 0.0


def close_to(net, scope, x):
    """The mean squared distance of the outputs from the dense ones, of stored weights by their matrices."""
    target = net(x).detach()

    def loss_of(masked):
        stored = {n: scope.prunables[n].restore(m) for n, m in masked.items()}
        with torch.no_grad():
            return float((torch.func.functional_call(net, stored, (x,)) - target).square().mean())

    return loss_of


def test_a_dense_layer_takes_its_pattern():
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8))
    scope = find_scope(net, include=["*"])
    weights = {n: net.get_parameter(n).detach() for n in scope.prunables}
    loss_of = close_to(net, scope, torch.randn(64, 8))
    patterns = make_units(parse_structure("2:4"), scope, net)
    t = torch.ones(3)
    keeps = patterns.select(weights, t, 64)
    found = sensitivity(patterns, t, weights, loss_of, 64 / int(patterns.numels.sum()))
    folded = {n: w * keeps[n] for n, w in weights.items()}
    for name, rise in found.items():
        if bool(keeps[name].all()):
            groups = weights[name].reshape(-1, 4)
            low = groups.abs().argsort(1)[:, :2]
            taken = groups.scatter(1, low, 0.0).reshape(weights[name].shape)
            assert rise == pytest.approx(loss_of({**folded, name: taken}) - loss_of(folded), rel=1e-4)
        else:  # it has nothing more to give
            assert rise == 0.0
    assert sum(v != 0 for v in found.values()) in (1, 2)


def test_channels_go_whole():
    net = nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 30, 3), nn.ReLU(), nn.Conv2d(30, 4, 1))
    x = torch.randn(4, 3, 8, 8)
    scope = find_scope(net, include=["*"])
    weights = {n: p.matrix(net.get_parameter(n)).detach() for n, p in scope.prunables.items()}
    loss_of = close_to(net, scope, x)
    channels = make_units(parse_structure("channel"), scope, net, x)
    start = torch.full((len(channels.groups),), 0.2)
    target = 0.3
    found = sensitivity(channels, start, weights, loss_of, target)
    keeps = channels.select(weights, start, round(target * int(channels.numels.sum())))
    folded = {n: w * keeps[n] for n, w in weights.items()}
    assert set(found) == set(channels.groups)
    for g, name in enumerate(channels.groups):
        m = channels.magnitudes(folded)[g]
        alive = m[m > 0].sort().values
        raised = torch.full_like(start, 1e-30)
        raised[g] = alive[max(round(0.1 * len(alive)), 1) - 1]  # units of one size
        masked, _ = channels.mask(folded, raised)
        assert found[name] == pytest.approx(loss_of(masked) - loss_of(folded), rel=1e-3, abs=1e-7)
        assert abs(found[name]) > 1e-5
