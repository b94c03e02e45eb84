"""Thresholds start at the counts of a fixed allocation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from winnow.allocate import LayerInfo, allocate
from winnow.errors import InputError
from winnow.fcpts.groups import Elements
from winnow.fcpts.start import start_thresholds, threshold_removing
from winnow.fcpts.structures import make_units
from winnow.masks.prunable import Prunable, Scope
from winnow.masks.structure import parse_structure

SHAPES = {
    "stem.conv.weight": (8, 3, 3, 3),
    "body.0.weight": (16, 24),
    "body.1.weight": (24, 16),
    "head.weight": (10, 24),
}


def model(seed=0, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    scope = Scope(
        {n: Prunable(n, n.removesuffix(".weight"), "conv" if len(s) == 4 else "linear", s) for n, s in shapes.items()}
    )
    weights = {
        n: torch.randn(p.rows, p.cols, generator=generator) * (0.1 + i)
        for i, (n, p) in enumerate(scope.prunables.items())
    }
    return scope, weights


def removed(units, weights, t):
    """Counted from the masks after a round trip through the logarithm, which is what is learned."""
    masked, said = units.mask(weights, t.log().exp())
    counts = {n: int(((masked[n] == 0) & (weights[n] != 0)).sum()) for n in weights}
    return counts, said


@pytest.mark.parametrize("start", ["uniform", "erk", "l2", "lamp"])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.8, 0.95, 0.99])
def test_thresholds_remove_exactly_the_allocated_counts(start, rate):
    scope, weights = model()
    zeros = round(rate * scope.numel)
    layers = [LayerInfo(n, p.rows, p.cols, None, p.shape, weights[n]) for n, p in scope.prunables.items()]
    units = Elements(scope)
    t = start_thresholds(units, weights, scope, zeros, start)
    assert t.shape == (4,) and t.dtype == torch.float32 and bool((t > 0).all())
    counts, said = removed(units, weights, t)
    assert counts == allocate(start, layers, zeros)
    assert int(said.sum()) == zeros
    for name, x in zip(scope.prunables, t):
        magnitudes = weights[name].abs().flatten().sort().values
        k = counts[name]
        if k == 0:
            assert float(x) == pytest.approx(float(magnitudes[0]) / 2)
        else:
            assert magnitudes[k - 1] < x < magnitudes[k]


def test_a_table_of_names_and_patterns():
    scope, weights = model()
    table = {"stem.*": 0.0, "body.1.weight": 0.75, "body.?.weight": 0.25}
    zeros = 96 + 288 + 200  # 200 are left for the head
    t = start_thresholds(Elements(scope), weights, scope, zeros, "table", table, seed=3)
    counts, _ = removed(Elements(scope), weights, t)
    assert list(counts.values()) == [0, 96, 288, 200]
    everything = dict(zip(scope.prunables, (0.5, 1.0, 0.0, 0.1)))
    t = start_thresholds(Elements(scope), weights, scope, 108 + 384 + 24, "table", everything)
    counts, _ = removed(Elements(scope), weights, t)
    assert list(counts.values()) == [108, 384, 0, 24]  # a table may take all of a layer


def test_a_start_that_cannot_be_is_one_sentence():
    scope, weights = model()
    units = Elements(scope)
    cases = [
        (("erk", {"head.weight": 0.5}), '"start": "table"'),
        (("table", None), "give table with rates"),
        (("table", {"tail.*": 0.5}), "names no prunable layer"),
        (("table", {"*": 0.5}), "set the sparsity to 0.5"),
        (("kaiming", None), "unknown allocation"),
    ]
    for (start, table), said in cases:
        with pytest.raises(InputError, match=said) as caught:
            start_thresholds(units, weights, scope, 900, start, table)
        assert "\n" not in str(caught.value)


def test_layers_of_zeros():
    scope, weights = model()
    weights["body.0.weight"] = torch.zeros(16, 24)
    weights["head.weight"][:5] = 0.0
    for start in ("uniform", "erk", "l2", "lamp"):
        t = start_thresholds(Elements(scope), weights, scope, 700, start)
        assert bool((t > 0).all()) and bool(t.isfinite().all()) and bool((t.log().exp() > 0).all())
    t = start_thresholds(Elements(scope), weights, scope, 0, "uniform")
    assert removed(Elements(scope), weights, t)[0] == dict.fromkeys(scope.prunables, 0)  # no weight that is not zero


def gone(magnitudes, sizes, t):
    load = torch.as_tensor(sizes).expand(len(magnitudes))
    return int(load[magnitudes <= t].sum())


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_threshold_removes_as_near_to_the_count_as_equals_allow(data):
    values = data.draw(
        st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.3000001, 1.0, 7.0, 1e-20, 3e8]), min_size=1, max_size=30)
    )
    m = torch.tensor(values)
    count = data.draw(st.integers(0, len(values)))
    t = threshold_removing(m, 1, count)
    assert float(t) > 0 and t.dtype == torch.float32
    zeros = int((m == 0).sum())  # a magnitude of 0 is below every threshold
    edges = sorted({zeros} | {int((m <= v).sum()) for v in m if v > 0})
    if count < len(values) and len(values) > 1:
        edges = [e for e in edges if e < len(values)] or edges
    best = min(abs(e - count) for e in edges)
    assert abs(gone(m, 1, t) - count) == best
    assert gone(m, 1, t.double().log().exp()) == gone(m, 1, t)


def test_neighbouring_floats_have_no_middle():
    one = torch.tensor(1.0)
    m = torch.stack([one, torch.nextafter(one, one * 2), torch.nextafter(torch.nextafter(one, one * 2), one * 2)])
    for k in (1, 2):
        assert gone(m, 1, threshold_removing(m, 1, k)) == k


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_units_of_several_weights_come_nearest(data):
    n = data.draw(st.integers(2, 12))
    m = torch.randperm(n).float() + 1
    sizes = torch.tensor(data.draw(st.lists(st.integers(1, 9), min_size=n, max_size=n)))
    total = int(sizes.sum())
    count = data.draw(st.integers(0, total - 1))
    reached = np.append(0, np.cumsum(sizes[m.argsort()].numpy()))[:-1]  # one unit stays
    assert abs(gone(m, sizes, threshold_removing(m, sizes, count)) - count) == np.abs(reached - count).min()
    assert gone(m, sizes, threshold_removing(m, sizes, total)) == total
    assert gone(m, 4, threshold_removing(m, 4, 4 * n - 2)) == 4 * (n - 1)
    assert (m <= threshold_removing(m, sizes, 0, least=1)).sum() == 1


def test_blocks_go_whole():
    scope, weights = model(shapes={"a.weight": (16, 16), "b.weight": (8, 32)})
    units = make_units(parse_structure("block:4x4"), scope, nn.Identity())
    t = start_thresholds(units, weights, scope, 256, "uniform")
    counts, said = removed(units, weights, t)
    assert counts == {"a.weight": 128, "b.weight": 128} and said.tolist() == [128, 128]


def test_patterns_are_taken_by_whole_layers():
    shapes = {f"l{i}.weight": (8, 16) for i in range(6)}
    scope, weights = model(shapes=shapes)
    units = make_units(parse_structure("2:4"), scope, nn.Identity())
    taken = set()
    for seed in range(6):
        t = start_thresholds(units, weights, scope, 192, "uniform", seed=seed)  # half of what the pattern can remove
        _, said = removed(units, weights, t)
        assert sorted(said.tolist()) == [0, 0, 0, 64, 64, 64]
        assert torch.equal(t, start_thresholds(units, weights, scope, 192, "uniform", seed=seed))
        taken.add(tuple(said.tolist()))
    assert len(taken) > 1  # which of equals is drawn by the seed
    t = start_thresholds(units, weights, scope, 384, "erk")
    assert removed(units, weights, t)[1].tolist() == [64] * 6
    t = start_thresholds(units, weights, scope, 128, "table", {"l0.weight": 0.5, "l3.weight": 0.5})
    assert removed(units, weights, t)[1].tolist() == [64, 0, 0, 64, 0, 0]


@pytest.mark.parametrize("start", ["uniform", "erk", "l2", "lamp"])
def test_channels_come_near_and_none_loses_all(start):
    net = nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1))
    from winnow.masks.scope import find_scope

    scope = find_scope(net, include=["*"])
    weights = {n: p.matrix(net.get_parameter(n)).detach() for n, p in scope.prunables.items()}
    units = make_units(parse_structure("channel"), scope, net, torch.randn(2, 3, 8, 8))
    total = int(units.numels.sum())
    for rate in (0.2, 0.5, 0.9):
        t = start_thresholds(units, weights, scope, round(rate * total), start)
        for m, x in zip(units.magnitudes(weights), t):
            assert bool((m > x).any())
        if start == "uniform":
            for m, size, x, numel in zip(units.magnitudes(weights), units.sizes(), t, units.numels.tolist()):
                assert abs(gone(m, size, x) - rate * numel) <= int(torch.as_tensor(size).max())
