"""What thresholds decide about: counts, gradients and selections of weights, blocks, coupled units and patterns."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

import winnow
from coupled_models import Mobile, PlainCNN, ResNet, stir
from families import family
from patterns import realized
from small import classifier, convnet, images
from winnow.coupled.find import find_coupled_units
from winnow.coupled.unit import CoupledUnit, Member, unit_masks, unit_sizes
from winnow.errors import InputError
from winnow.fcpts.groups import Elements
from winnow.fcpts.groups_blocks import Blocks
from winnow.fcpts.groups_channels import Channels
from winnow.fcpts.groups_patterns import Patterns, nearest_subset
from winnow.fcpts.straight_through import root, step
from winnow.fcpts.structures import make_units
from winnow.masks.prunable import Prunable, Scope
from winnow.masks.scope import find_scope
from winnow.masks.structure import NM, BlockShape, parse_structure

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
CNNS = {"plain": PlainCNN, "residual": ResNet, "mobile": Mobile}
INPUTS = {
    "plain": IMAGES,
    "residual": IMAGES,
    "mobile": torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(3)),
}


def scope_of(*shapes: tuple[int, int]) -> Scope:
    return Scope({f"w{i}": Prunable(f"w{i}", f"m{i}", "linear", shape) for i, shape in enumerate(shapes)})


def drawn(scope: Scope, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.rows, p.cols, generator=g, dtype=dtype) for n, p in scope.prunables.items()}


def matrices(model: nn.Module, scope: Scope) -> dict[str, torch.Tensor]:
    return {n: p.matrix(model.get_parameter(n)) for n, p in scope.prunables.items()}


def quantiles(units, weights, share: float) -> torch.Tensor:
    return torch.stack([m.double().quantile(share) for m in units.magnitudes(weights)])


def zeros_in(keeps: dict[str, torch.Tensor]) -> int:
    assert all(k.dtype == torch.bool for k in keeps.values())
    return sum(int((~k).sum()) for k in keeps.values())


def run(model: nn.Module, stored: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return functional_call(model, stored, (x,))


def stored(scope: Scope, masked: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: p.restore(masked[n]) for n, p in scope.prunables.items()}


@cache
def cnn(name: str) -> tuple[nn.Module, Scope, torch.Tensor, Channels]:
    """A model that no test changes, and its channels."""
    torch.manual_seed(1)
    model = stir(CNNS[name]())
    scope = find_scope(model)
    return model, scope, INPUTS[name], make_units(parse_structure("channel"), scope, model, INPUTS[name])


# ---- the step


def test_step_by_hand():
    m = torch.tensor([0.5, 1.0, 1.5, 4.0], dtype=torch.float64, requires_grad=True)
    t = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    out = step(m, t, 2.0)
    assert out.tolist() == [0, 0, 1, 1]  # equal to the threshold: gone
    (out * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert m.grad.tolist() == [0.5, 1.0, 1.5, 0.0]  # 4.0 lies outside the window
    assert t.grad.item() == -3.0


def test_step_with_a_threshold_each():
    m, t = (torch.rand(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    step(m, t).sum().backward()
    assert torch.equal(m.grad, torch.full((5,), 0.5, dtype=torch.float64)) and torch.equal(t.grad, -m.grad)


def test_root_at_zero():
    x = torch.tensor([0.0, 4.0], requires_grad=True)
    root(x).sum().backward()
    assert root(x).tolist() == [0, 2] and x.grad.tolist() == [0, 0.25]


# ---- gradients against autograd through explicit masks


def soft(magnitude: torch.Tensor, threshold: torch.Tensor, window: float) -> torch.Tensor:
    """The mask as value, 0.5 (magnitude - threshold) within the window as derivative: written out for autograd."""
    line = 0.5 * (magnitude - threshold) * ((magnitude - threshold).abs() < window)
    return (magnitude > threshold).double() + (line - line.detach())


def reference_elements(units, w, t, window):
    return {n: w[n] * soft(w[n].abs(), t[i], window) for i, n in enumerate(units.groups)}


def reference_blocks(units, w, t, window):
    out = {}
    for i, n in enumerate(units.groups):
        rows = []
        for a in range(0, w[n].shape[0], units.shape.r):
            row = []
            for b in range(0, w[n].shape[1], units.shape.c):
                block = w[n][a : a + units.shape.r, b : b + units.shape.c]
                row.append(block * soft(block.abs().mean(), t[i], window))
            rows.append(torch.cat(row, 1))
        out[n] = torch.cat(rows)
    return out


def reference_patterns(units, w, t, window):
    out = dict(w)
    for i, n in enumerate(units.groups):
        keep = torch.ones_like(w[n])
        for r in range(w[n].shape[0]):
            for c in range(0, w[n].shape[1], units.pattern.m):
                group = w[n][r, c : c + units.pattern.m].detach().abs().tolist()
                for k in sorted(range(len(group)), key=group.__getitem__)[: units.pattern.m - units.pattern.n]:
                    keep[r, c + k] = 0
        m = (w[n] * (1 - keep)).norm() / w[n].norm()
        out[n] = w[n] * keep + w[n] * (1 - keep) * soft(m, t[i], window)
    return out


def reference_channels(units, w, t, window):
    factor = {n: torch.ones_like(v) for n, v in w.items()}
    groups = list(dict.fromkeys(u.group for u in units.units))
    for unit in units.units:
        rows = torch.cat([w[m.name][list(m.indices)].reshape(-1) for m in unit.members if m.axis == "rows"])
        gate = soft(rows.square().mean().sqrt(), t[groups.index(unit.group)], window)
        for m in unit.members:
            if m.axis == "cols":
                only = replace(unit, members=(replace(m),))
                inside = (~unit_masks([only], [0], units.scope)[m.name]).double()
                factor[m.name] = factor[m.name] * (1 - inside + inside * gate)
    return {n: w[n] * factor[n] for n in w}


def gradients(masked, w, t, seed=3):
    g = torch.Generator().manual_seed(seed)
    loss = sum((m * torch.randn(m.shape, generator=g, dtype=m.dtype)).sum() + m.pow(3).sum() for m in masked.values())
    return torch.autograd.grad(loss, [*w.values(), t])


def compare(units, reference, weights, window, share=0.5):
    w = {n: v.detach().double().requires_grad_() for n, v in weights.items()}
    t = quantiles(units, w, share).requires_grad_()
    masked, removed = units.mask(w, t)
    expected = reference(units, w, t, window)
    for n in w:
        assert torch.equal(masked[n], expected[n]), n
    assert removed.dtype == torch.float32 and not removed.requires_grad
    found, wanted = gradients(masked, w, t), gradients(expected, w, t)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert float(found[-1].abs().min()) > 0
    if not isinstance(units, Channels):
        assert int(removed.sum()) == sum(int((m == 0).sum()) for m in masked.values())


@pytest.mark.parametrize("window", [1.0, 0.3])
@pytest.mark.parametrize("structure", ["unstructured", "block:2x3", "2:4", "1:3"])
def test_gradients(structure, window):
    scope = scope_of((4, 12), (6, 24))
    units = make_units(parse_structure(structure), scope, nn.Identity(), window=window)
    reference = {Elements: reference_elements, Blocks: reference_blocks, Patterns: reference_patterns}[type(units)]
    weights = drawn(scope)
    if isinstance(units, Patterns):
        w = {n: v.requires_grad_() for n, v in weights.items()}
        m = torch.cat(units.magnitudes(w)).double()
        for t in (m * 0.9, m * 1.1, m * torch.tensor([0.9, 1.1])):
            t = t.detach().requires_grad_()
            masked, removed = units.mask(w, t)
            expected = reference(units, w, t, window)
            for n in w:
                assert torch.equal(masked[n], expected[n])
            for a, b in zip(gradients(masked, w, t), gradients(expected, w, t)):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
            assert removed.tolist() == [float((v == 0).sum()) for v in masked.values()]
    else:
        compare(units, reference, weights, window)


@pytest.mark.parametrize("name", CNNS)
def test_gradients_of_channels(name):
    model, scope, _, units = cnn(name)
    compare(units, reference_channels, matrices(model, scope), 1.0)


def test_masks_learn_which_units_matter():
    """Descending the loss alone raises the threshold of the tensor that does not matter and lowers the other's."""
    scope = scope_of((8, 8), (8, 8))
    for structure in ("unstructured", "block:2x2", "2:4"):
        units = make_units(parse_structure(structure), scope, nn.Identity())
        w = drawn(scope)
        t = quantiles(units, w, 0.5)
        if structure == "2:4":
            t = t * 1.01
        t = t.requires_grad_()
        masked, _ = units.mask(w, t)
        (masked["w0"] - w["w0"]).square().sum().backward()
        assert t.grad[0] > 0 and t.grad[1] == 0  # a lower threshold brings w0 nearer to itself


# ---- magnitudes, sizes, counts


def test_blocks_count_by_hand():
    scope = scope_of((2, 4))
    units = Blocks(scope, BlockShape(1, 2))
    w = {"w0": torch.tensor([[1.0, -3.0, 0.0, 0.5], [4.0, 4.0, -0.5, 1.0]])}
    assert units.magnitudes(w)[0].tolist() == [2.0, 0.25, 4.0, 0.75]
    assert units.sizes() == [2] and units.numels.tolist() == [8]
    masked, removed = units.mask(w, torch.tensor([0.75]))
    assert masked["w0"].tolist() == [[1, -3, 0, 0], [4, 4, 0, 0]] and removed.tolist() == [4]


def test_patterns_count_by_hand():
    scope = scope_of((1, 8), (2, 6), (2, 4))
    units = Patterns(scope, NM(2, 4))
    w = drawn(scope)
    w["w0"] = torch.tensor([[3.0, 0.0, 4.0, 0.0, 0.0, 0.0, 12.0, 5.0]])
    assert units.groups == ("w0", "w2") and units.dense == ("w1",)
    assert units.numels.tolist() == [4, 4] and units.sizes() == [4, 4]
    assert units.magnitudes(w)[0].tolist() == [0.0]  # shows the pattern already
    w["w0"][0, 1] = 2.0
    assert units.magnitudes(w)[0].item() == pytest.approx(2 / (9 + 4 + 16 + 144 + 25) ** 0.5)
    masked, removed = units.mask(w, torch.tensor([0.2, 1e-6]))
    assert removed.tolist() == [4, 0] and masked["w0"][0].tolist() == [3, 0, 4, 0, 0, 0, 12, 5]
    assert masked["w1"] is w["w1"] and torch.equal(masked["w2"], w["w2"])


@pytest.mark.parametrize("name", CNNS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_channels_count_every_weight_once(name, share):
    model, scope, _, units = cnn(name)
    w = matrices(model, scope)
    t = quantiles(units, w, share)
    touched = unit_masks(units.units, range(len(units.units)), scope)
    assert int(units.numels.sum()) == sum(int((~k).sum()) for k in touched.values())
    assert units.numels.dtype == torch.int64 and len(units.numels) == len(units.groups) == len(set(units.groups))
    assert not set(units.groups) & set(scope.prunables)  # a group is not a tensor
    for numel, sizes, m in zip(units.numels, units.sizes(), units.magnitudes(w)):
        assert sizes.dtype == torch.int64 and sizes.shape == m.shape and sizes.sum() == numel and (sizes > 0).all()
    masked, removed = units.mask(w, t)
    alone = unit_masks(units.units, [i for i in range(len(units.units)) if _gone(units, w, t)[i]], scope)
    assert int(removed.sum()) == sum(int((~k).sum()) for k in alone.values())
    for n in alone:
        assert torch.equal(masked[n], w[n] * columns_only(units, w, t)[n])
    if share == 1.0:
        assert torch.equal(removed, units.numels.float())


def columns_only(units: Channels, w, t) -> dict[str, torch.Tensor]:
    parts = [replace(u, members=tuple(m for m in u.members if m.axis == "cols")) for u in units.units]
    keep = unit_masks(parts, [i for i, is_gone in enumerate(_gone(units, w, t)) if is_gone], units.scope)
    return {n: keep.get(n, torch.ones(p.rows, p.cols, dtype=torch.bool)) for n, p in units.scope.prunables.items()}


def _gone(units: Channels, w, t) -> list[bool]:
    groups = list(dict.fromkeys(u.group for u in units.units))
    out = []
    for unit in units.units:
        rows = torch.cat([w[m.name][list(m.indices)].reshape(-1) for m in unit.members if m.axis == "rows"])
        out.append(bool(rows.double().square().mean().sqrt() <= t[groups.index(unit.group)] * (1 + 1e-6)))
    return out


def test_channels_in_a_chain_by_hand():
    """Two layers: 3 neurons between 2 inputs and 4 neurons that 2 outputs read."""
    scope = scope_of((3, 2), (4, 3), (2, 4))
    units = [CoupledUnit("neuron", "", i, (Member("w0", "rows", (i,)), Member("w1", "cols", (i,)))) for i in range(3)]
    units += [CoupledUnit("neuron", "", i, (Member("w1", "rows", (i,)), Member("w2", "cols", (i,)))) for i in range(4)]
    found = Channels(units, scope)
    assert found.groups == ("m0", "m1")
    assert found.numels.tolist() == [6 + 6, 6 + 8]  # w1's 12 weights half and half
    assert [s.tolist() for s in found.sizes()] == [[4, 4, 4], [4, 3, 3, 4]]  # 2 + 4/2 and 3/2 + 2, in whole numbers
    w = {n: torch.ones(p.rows, p.cols) for n, p in scope.prunables.items()}
    w["w0"][0] = 0.1
    w["w1"][2:] = 0.1
    masked, removed = found.mask(w, torch.tensor([0.5, 0.5]))
    assert [int((m == 0).sum()) for m in masked.values()] == [0, 4, 4]  # rows live on
    # of w1 8 of 12 are gone, 4 in either half
    assert removed.tolist() == [2 + 4, 4 + 4]


def test_channels_refuse_shared_lines():
    scope = scope_of((3, 2), (2, 3))
    unit = CoupledUnit("neuron", "", 0, (Member("w0", "rows", (0,)), Member("w1", "cols", (0,))))
    with pytest.raises(InputError, match="share rows"):
        Channels([unit, unit], scope)


@pytest.mark.hf
@pytest.mark.parametrize(
    ("name", "kind"), [("llama", "neuron"), ("llama", "head"), ("gpt2", "head"), ("mixtral", "neuron")]
)
def test_channels_of_transformers(name, kind):
    """Gated and fused producers, transposed storage, experts in one tensor."""
    model, batch = family(name).build().eval(), family(name).batches()[0]
    scope = find_scope(model)
    units = make_units(parse_structure(kind), scope, model, batch)
    w = matrices(model, scope)
    masked, removed = units.mask(w, quantiles(units, w, 0.5))
    gone = [i for i, is_gone in enumerate(_gone(units, w, quantiles(units, w, 0.5))) if is_gone]
    keep = unit_masks(units.units, gone, scope)
    assert gone and int(removed.sum()) == zeros_in(keep)
    columns = columns_only(units, w, quantiles(units, w, 0.5))
    for n in scope.prunables:
        assert torch.equal(masked[n], w[n] * columns.get(n, 1))
    zeros = int(units.numels.sum()) // 3
    keeps = units.select(w, quantiles(units, w, 0.5), zeros)
    assert abs(zeros_in(keeps) - zeros) <= max(unit_sizes(units.units, scope)) // 2
    assert zeros_in(unit_masks(units.units, units.chosen(keeps), scope)) == zeros_in(keeps)


# ---- selection: single weights


@given(
    st.integers(10, 99),
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 17)), min_size=1, max_size=4),
    st.integers(0, 10**6),
    st.sampled_from(["normal", "ties", "zeros", "all equal"]),
    st.floats(-12, 12),
)
@settings(max_examples=150, deadline=None)
def test_elements_are_exact(percent, shapes, seed, how, decades):
    scope = scope_of(*shapes)
    w = drawn(scope, seed, torch.float32)
    if how == "ties":
        w = {n: (v * 2).round() / 2 for n, v in w.items()}
    if how == "zeros":
        w = {n: v * (v.abs() > 0.7) for n, v in w.items()}
    if how == "all equal":
        w = {n: torch.full_like(v, 0.25) for n, v in w.items()}
    zeros = min(round(percent / 100 * scope.numel), scope.numel - 1)
    t = torch.logspace(decades, 0, len(shapes))
    keeps = Elements(scope).select(w, t, zeros)
    assert zeros_in(keeps) == zeros and {n: k.shape for n, k in keeps.items()} == {n: v.shape for n, v in w.items()}
    dead = {n: int((v == 0).sum()) for n, v in w.items()}
    for n, p in scope.prunables.items():  # within a tensor what is zero already goes first
        lost = int((~keeps[n]).sum())
        assert int((~keeps[n] & (w[n] == 0)).sum()) == min(dead[n], lost)
        if lost < p.numel and lost:
            assert w[n].abs()[~keeps[n]].max() <= w[n].abs()[keeps[n]].min()


def test_elements_rank_over_all_tensors():
    scope = scope_of((20, 30), (7, 11), (4, 50))
    w, t = drawn(scope, 4, torch.float32), torch.tensor([0.7, 1.2, 1.0])
    ranked = sorted(
        (float(v.abs().flatten()[i] / t[g]), g, i) for g, v in enumerate(w.values()) for i in range(v.numel())
    )
    for zeros in (1, 100, 300):
        keeps = list(Elements(scope).select(w, t, zeros).values())
        assert {(g, i) for _, g, i in ranked[:zeros]} == {
            (g, int(i)) for g, k in enumerate(keeps) for i in (~k).flatten().nonzero()
        }


def test_elements_at_the_ends_of_the_thresholds():
    scope = scope_of((10, 10), (10, 10))
    w = drawn(scope, 0, torch.float32)
    w["w1"][:9] = 0
    keeps = Elements(scope).select(w, torch.tensor([1e-30, 1e-30]), 120)
    assert zeros_in(keeps) == 120 and not keeps["w1"][:9].any()
    keeps = Elements(scope).select(drawn(scope), torch.tensor([1e30, 1e-30]), 150)
    assert [int((~k).sum()) for k in keeps.values()] == [99, 51]  # no tensor loses more than 99%


# ---- selection: blocks


@given(st.integers(10, 99), st.sampled_from([(1, 4), (4, 1), (2, 2), (4, 4)]), st.integers(0, 10**6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_blocks_to_one_block(percent, shape, seed, ties):
    scope = scope_of((8, 16), (4, 8), (12, 4))
    shape = BlockShape(*shape)
    area = shape.r * shape.c
    w = drawn(scope, seed, torch.float32)
    w = {n: v.round() for n, v in w.items()} if ties else w
    zeros = round(percent / 100 * scope.numel)
    keeps = Blocks(scope, shape).select(w, torch.tensor([1.0, 0.3, 2.0]), zeros)
    assert abs(zeros_in(keeps) - zeros) * 2 <= area
    assert all(realized(shape, k) for k in keeps.values())


def test_blocks_rank_over_all_tensors():
    scope = scope_of((6, 8), (16, 12))
    w, t = drawn(scope, 5, torch.float32), torch.tensor([0.8, 1.0])
    w["w1"][2:4, :2] = 0
    ranked = sorted(
        (float(v[a : a + 2, b : b + 2].abs().mean() / t[g]), g, a, b)
        for g, v in enumerate(w.values())
        for a in range(0, v.shape[0], 2)
        for b in range(0, v.shape[1], 2)
    )
    assert ranked[0][1:] == (1, 2, 0)  # already zero
    for count in (1, 9, 20):
        keeps = list(Blocks(scope, BlockShape(2, 2)).select(w, t, 4 * count + 1).values())
        gone = {
            (g, a, b)
            for g, k in enumerate(keeps)
            for a, b in itertools.product(range(0, 16, 2), range(0, 12, 2))
            if a < k.shape[0] and b < k.shape[1] and not k[a, b]
        }
        assert gone == {r[1:] for r in ranked[:count]}
    plain = sorted((r[0] * float(t[r[1]]), *r[1:]) for r in ranked)
    assert {r[1:] for r in plain[:20]} != {r[1:] for r in ranked[:20]}  # thresholds matter here


def test_blocks_spare_the_last_one_and_take_what_is_zero():
    scope = scope_of((2, 8), (16, 16))
    w = drawn(scope, 2, torch.float32)
    units = Blocks(scope, BlockShape(2, 2))
    keeps = units.select(w, torch.tensor([1e6, 1e-6]), 250)  # 62 of 4 + 64 blocks
    assert [int((~k).sum()) for k in keeps.values()] == [4 * 3, 4 * 59]
    keeps = units.select(w, torch.tensor([1e6, 1e-6]), 272)
    assert not any(k.any() for k in keeps.values())
    w["w0"] = torch.zeros(2, 8)
    keeps = units.select(w, torch.tensor([1e-6, 1e6]), 40)
    assert [int((~k).sum()) for k in keeps.values()] == [16, 24]


# ---- selection: which tensors take a pattern


def disorder(taken: list[int], count: int) -> int:
    return sum(i not in taken and j in taken for i, j in itertools.combinations(range(count), 2))


def single_moves(taken: list[int], count: int) -> list[list[int]]:
    inside, outside = list(taken), [i for i in range(count) if i not in taken]
    moves = [[i for i in inside if i != o] for o in inside] + [[*inside, a] for a in outside]
    return moves + [[*(i for i in inside if i != o), a] for o in inside for a in outside]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_near_ends_where_no_exchange_helps(sizes, share):
    total = round(share * sum(sizes))
    taken = nearest_subset(sizes, total)
    missing = abs(total - sum(sizes[i] for i in taken))
    assert taken == sorted(set(taken))
    prefix = min(abs(total - sum(sizes[:k])) for k in range(len(sizes) + 1))
    assert missing <= prefix
    if 2 * prefix <= min(sizes):  # nothing to improve: the ranking as it is
        assert taken == list(range(len(taken)))
    if 2 * missing > min(sizes):
        nearest = min((abs(total - sum(sizes[i] for i in m)) for m in single_moves(taken, len(sizes))), default=missing)
        assert nearest >= missing


def test_near_moves_as_little_as_it_can():
    """Where one move is enough, it is one of the least disorder."""
    rng, seen = np.random.default_rng(0), 0
    for _ in range(1500):
        sizes = rng.choice([2, 3, 5, 8, 13], rng.integers(3, 8)).tolist()
        total = int(rng.integers(1, sum(sizes)))
        reached = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
        k = min(range(len(reached)), key=lambda k: abs(total - reached[k]))
        good = [
            m
            for m in single_moves(list(range(k)), len(sizes))
            if 2 * abs(total - sum(sizes[i] for i in m)) <= min(sizes)
        ]
        if 2 * abs(total - reached[k]) > min(sizes) and good:
            assert disorder(nearest_subset(sizes, total), len(sizes)) == min(disorder(m, len(sizes)) for m in good)
            seen += 1
    assert seen > 200


def test_near_by_hand():
    assert nearest_subset([4, 4, 4], 8) == [0, 1]
    assert nearest_subset([10, 3, 10, 3], 6) == [1, 3]
    assert nearest_subset([8, 8, 1, 8], 17) == [0, 1, 2]
    assert nearest_subset([8, 8, 8, 1], 9) == [0, 3]
    assert nearest_subset([2, 2, 16], 18) == [0, 2]
    assert nearest_subset([], 0) == [] and nearest_subset([5], 2) == [] and nearest_subset([5], 3) == [0]
    rng = np.random.default_rng(0)
    sizes = rng.choice([64 * 576, 32 * 288, 16 * 144, 10 * 64], 200).tolist()
    total = round(0.37 * sum(sizes))
    assert 2 * abs(total - sum(sizes[i] for i in nearest_subset(sizes, total))) <= min(sizes)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.4, 0.5])
@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 2), NM(4, 8)])
def test_patterns_hold_where_they_are_taken(pattern, share):
    scope = scope_of((16, 32), (8, 9), (64, 16), (8, 8), (24, 32), (4, 24))
    w = drawn(scope, 7, torch.float32)
    units = Patterns(scope, pattern)
    t = torch.rand(len(units.groups), generator=torch.Generator().manual_seed(1)) + 0.5
    zeros = round(share * sum(scope.prunables[n].numel for n in units.groups))
    keeps = units.select(w, t, zeros)
    assert list(keeps) == list(scope.prunables) and keeps["w1"].all() and units.dense == ("w1",)
    for name, keep in keeps.items():
        if not keep.all():
            assert realized(pattern, keep)
            groups = w[name].abs().reshape(-1, pattern.m)
            kept = keep.reshape(-1, pattern.m)
            low = torch.where(kept, groups, torch.inf).amin(1)
            high = torch.where(kept, -torch.inf, groups).amax(1)
            assert (low >= high).all()
    sums = {sum(c) for k in range(6) for c in itertools.combinations(units.numels.tolist(), k)}
    best = min(abs(zeros - total) for total in sums)
    assert abs(zeros_in(keeps) - zeros) <= max(best, int(units.numels.min()) // 2)


def test_patterns_go_in_the_order_of_magnitude_over_threshold():
    scope = scope_of(*[(8, 16)] * 6)
    w = drawn(scope, 3, torch.float32)
    units = Patterns(scope, NM(2, 4))
    t = torch.tensor([1.0, 5.0, 0.5, 2.0, 1.5, 3.0])
    order = sorted(
        units.groups, key=lambda n: float(units.magnitudes(w)[units.groups.index(n)] / t[units.groups.index(n)])
    )
    for k in range(7):
        keeps = units.select(w, t, 64 * k)
        assert {n for n, keep in keeps.items() if not keep.all()} == set(order[:k])


def test_patterns_that_are_there_go_first():
    scope = scope_of((8, 16), (8, 16))
    w = drawn(scope, 3, torch.float32)
    units = Patterns(scope, NM(2, 4))
    w["w1"] = w["w1"] * units.select(w, torch.tensor([1.0, 1.0]), 128)["w1"]
    keeps = units.select(w, torch.tensor([1e6, 1e-6]), 64)
    assert keeps["w0"].all() and realized(NM(2, 4), keeps["w1"])


def test_patterns_refuse_what_they_cannot_give():
    scope = scope_of((8, 16), (8, 9))
    units = Patterns(scope, NM(2, 4))
    with pytest.raises(
        InputError, match=r"can remove 64 of 200 weights here, not 150: ask for a sparsity of at most 0\.32"
    ):
        units.select(drawn(scope), torch.ones(1), 150)
    with pytest.raises(InputError, match="no tensor has a multiple of 4"):
        Patterns(scope_of((8, 9)), NM(2, 4))


# ---- selection: channels


@given(st.sampled_from(sorted(CNNS)), st.floats(0.05, 0.6), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_channels_to_one_unit(name, share, seed):
    model, scope, _, units = cnn(name)
    w = matrices(model, scope)
    t = torch.rand(len(units.groups), generator=torch.Generator().manual_seed(seed)) + 0.1
    zeros = round(share * int(units.numels.sum()))
    keeps = units.select(w, t, zeros)
    assert set(keeps) == set(scope.prunables)
    assert 2 * abs(zeros_in(keeps) - zeros) <= max(unit_sizes(units.units, scope))
    chosen = units.chosen(keeps)
    expected = unit_masks(units.units, chosen, scope)
    for n, keep in keeps.items():
        assert torch.equal(keep, expected.get(n, torch.ones_like(keep)))
    left = {u.group for i, u in enumerate(units.units) if i not in chosen}
    assert left == {u.group for u in units.units}  # one unit of every group stays


def test_channels_go_in_the_order_of_magnitude_over_threshold():
    model, scope, _, units = cnn("residual")
    w = matrices(model, scope)
    t = quantiles(units, w, 0.5) * torch.tensor([0.95, 1.0, 1.1])
    groups = list(dict.fromkeys(u.group for u in units.units))
    relative = []
    for unit in units.units:
        rows = torch.cat([w[m.name][list(m.indices)].reshape(-1) for m in unit.members if m.axis == "rows"])
        relative.append(float(rows.detach().double().square().mean().sqrt() / t[groups.index(unit.group)]))
    order = sorted(range(len(relative)), key=relative.__getitem__)
    for count in (1, 4, 8):
        zeros = sum(int((~k).sum()) for k in unit_masks(units.units, order[:count], scope).values())
        assert units.chosen(units.select(w, t, zeros)) == sorted(order[:count])


def test_channels_that_are_zero_go_first():
    model, scope, _, units = cnn("plain")
    unit = units.units[9]
    w = {n: m.clone() for n, m in matrices(model, scope).items()}
    for m in unit.members:
        if m.axis == "rows":
            w[m.name][list(m.indices)] = 0
    t = torch.tensor([1e3, 1e-3, 1.0][: len(units.groups)])
    t[units.owner[9]] = 1e-6
    assert units.chosen(units.select(w, t, unit_sizes([unit], scope)[0])) == [9]
    masked, _ = units.mask({n: v.detach().requires_grad_() for n, v in w.items()}, t.requires_grad_())
    sum(v.sum() for v in masked.values()).backward()
    assert t.grad.isfinite().all()


def test_channels_keep_one_of_a_group():
    model, scope, _, units = cnn("residual")
    with pytest.raises(InputError, match="one unit of every layer"):
        units.select(matrices(model, scope), torch.ones(len(units.groups)), int(units.numels.sum()))


@pytest.mark.parametrize("name", CNNS)
def test_masked_channels_run_like_zeroed_ones(name):
    model, scope, x, units = cnn(name)
    w = matrices(model, scope)
    t = quantiles(units, w, 0.4).float()
    masked, removed = units.mask(w, t)
    gone = [i for i, is_gone in enumerate(_gone(units, w, t)) if is_gone]
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        for n, keep in unit_masks(units.units, gone, scope).items():
            p = scope.prunables[n]
            zeroed.get_parameter(n).mul_(p.restore(keep.float()))
    assert gone and removed.sum() > 0
    torch.testing.assert_close(run(model, stored(scope, masked), x), run(zeroed, {}, x))
    assert not torch.allclose(run(model, {}, x), run(zeroed, {}, x))


@pytest.mark.parametrize("name", CNNS)
def test_entries_and_masks_shrink(name):
    model, scope, x, units = cnn(name)
    w = matrices(model, scope)
    t = quantiles(units, w, 0.5).float()
    keeps = units.select(w, t, int(units.numels.sum()) // 2)
    pruned = copy.deepcopy(model)
    entries = units.entries(keeps, model)
    with torch.no_grad():
        for n, p in scope.prunables.items():
            pruned.get_parameter(n).mul_(p.restore(keeps[n].float()))
        before = run(pruned, {}, x)
        for n, value in entries.items():
            assert not torch.equal(model.get_parameter(n), value)  # the model given is what it was
            pruned.get_parameter(n).copy_(value)
        torch.testing.assert_close(run(pruned, {}, x), before)
    result = winnow.shrink(pruned, x)
    assert sum(r.count for r in result.removed) == len(units.chosen(keeps))
    small, large = (sum(p.numel() for p in m.parameters()) for m in (result.model, model))
    assert small <= large - zeros_in(keeps)
    torch.testing.assert_close(run(result.model, {}, x), before, rtol=1e-4, atol=1e-5)


def test_entries_by_hand():
    model, scope, _, units = cnn("plain")  # 0: convolution with a bias, 1: its norm, 3: without a bias
    assert units.groups == ("0", "3")
    keeps = {n: torch.ones(p.rows, p.cols, dtype=torch.bool) for n, p in scope.prunables.items()}
    assert units.entries(keeps, model) == {} and units.chosen(keeps) == []
    for layer, rows in {"0": [1, 4], "3": [0]}.items():
        keeps[f"{layer}.weight"][rows] = False
    assert units.chosen(keeps) == [1, 4, 6]
    found = units.entries(keeps, model.state_dict())
    assert set(found) == {"0.bias", "1.weight", "1.bias"}
    for name, value in found.items():
        expected = model.get_parameter(name).detach().clone()
        expected[[1, 4]] = 0
        assert torch.equal(value, expected)


# ---- all of them


@pytest.mark.parametrize("structure", ["unstructured", "block:2x4", "2:4", "neuron"])
def test_half_types_and_shapes(structure):
    model = classifier().bfloat16()
    scope = find_scope(model)
    units = make_units(parse_structure(structure), scope, model, torch.randn(4, 12).bfloat16())
    w = matrices(model, scope)
    t = quantiles(units, w, 0.5).float().mul(1.001).requires_grad_()
    masked, removed = units.mask(w, t)
    assert all(m.dtype == torch.bfloat16 and m.shape == w[n].shape for n, m in masked.items())
    assert set(masked) == set(scope.prunables) and removed.shape == (len(units.groups),)
    assert all(m.dtype == torch.float32 and not m.requires_grad and m.ndim == 1 for m in units.magnitudes(w))
    sum((m.float() * torch.randn(m.shape)).sum() for m in masked.values()).backward()
    assert t.grad.abs().sum() > 0 and all(model.get_parameter(n).grad is not None for n in scope.prunables)
    zeros = int(units.numels.sum()) // 3
    keeps = units.select(w, t.detach(), zeros)
    unit = 1 if structure == "unstructured" else 8 if structure == "block:2x4" else 48 * 24
    assert abs(zeros_in(keeps) - zeros) <= unit


def test_nothing_is_changed():
    model = convnet()
    scope = find_scope(model)
    example, _ = images(4)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    for structure in ("unstructured", "channel"):
        units = make_units(parse_structure(structure), scope, model, example)
        w = matrices(model, scope)
        t = quantiles(units, w, 0.5).float()
        units.mask(w, t)
        units.select(w, t, int(units.numels.sum()) // 4)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("structure", "says"),
    [
        ("2:5x", "unknown structure"),
        ("block:5x1", "does not tile"),
        ("channel", "give calibration data"),
        ("64:128", "multiple of 128"),
    ],
)
def test_structures_that_do_not_fit(structure, says):
    model = convnet()
    with pytest.raises(InputError, match=says):
        make_units(parse_structure(structure), find_scope(model), model)


def test_structures_by_name():
    model = convnet()
    scope, (example, _) = find_scope(model), images(4)
    kinds = {"unstructured": Elements, "block:1x9": Blocks, "1:3": Patterns, "channel": Channels}
    for name, kind in kinds.items():
        assert type(make_units(parse_structure(name), scope, model, example)) is kind
    assert make_units(parse_structure("block:1x9"), scope, model, window=0.25).window == 0.25
    with pytest.raises(InputError, match="nothing is prunable"):
        make_units(parse_structure("unstructured"), Scope(), model)
    assert [u.group for u in make_units(parse_structure("channel"), scope, model, example).units] == [
        u.group for u in find_coupled_units(model, scope, example, "channel")
    ]
