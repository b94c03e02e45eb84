import math
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.allocate import LayerInfo, allocate
from winnow.allocate.alphapruning import eigenvalues, hill_exponent
from winnow.allocate.exact import whole_units
from winnow.allocate.lamp import lamp_scores
from winnow.errors import InputError
from winnow.masks.structure import NM, BlockShape, Coupled

SHAPES = [(8, 12), (5, 7), (16, 4), (1, 1), (20, 20), (3, 30)]


def make(shapes=SHAPES, seed=0, blocks=True, scale=None):
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for i, (rows, cols) in enumerate(shapes):
        weight = torch.randn(rows, cols, generator=generator) * (scale[i] if scale else 1 + i)
        block = f"blocks.{i // 2}" if blocks and i < 4 else None
        layers.append(LayerInfo(f"l{i}", rows, cols, block, (rows, cols), weight, weight.abs()))
    return layers


def total(layers):
    return sum(layer.numel for layer in layers)


def test_callables_are_asked_one_at_a_time():
    alive, most = SimpleNamespace(now=0), [0]

    def lazily(tensor):
        def give():
            copy = tensor.clone()
            alive.now += 1
            most[0] = max(most[0], alive.now)
            weakref.finalize(copy, lambda: setattr(alive, "now", alive.now - 1))
            return copy

        return give

    plain = make()
    lazy = [
        LayerInfo(v.name, v.rows, v.cols, v.block, v.shape, lazily(v.weight), lazily(v.scores), v.index) for v in plain
    ]
    for name in ("global", "lamp", "l2", "owl", "alphapruning"):
        most[0] = 0
        assert allocate(name, lazy, 300) == allocate(name, plain, 300)
        assert most[0] == 1, name


def test_limits_give_way_only_when_the_total_forces_it():
    layers = make([(10, 10), (10, 20)])
    assert allocate("uniform", layers, 297) == {"l0": 99, "l1": 198}
    assert sum(allocate("uniform", layers, 299).values()) == 299
    assert allocate("global", make([(10, 10), (10, 20)], scale=[0.0, 1.0]), 120) == {"l0": 99, "l1": 21}
    assert allocate("global", make([(10, 10), (10, 20)], scale=[0.0, 1.0]), 120, max_rate=0.5) == {"l0": 50, "l1": 70}
    assert allocate("global", make([(10, 10), (10, 20)], scale=[0.0, 1.0]), 120, max_rate=1) == {"l0": 100, "l1": 20}


def test_uniform_is_one_rate():
    counts = allocate("uniform", make(), 400)
    for layer in make():
        assert abs(counts[layer.name] - 400 * layer.numel / total(make())) < 1


@pytest.mark.parametrize("zeros", [0, 1, 57, 350, 600, total(make()) - 3])
def test_global_is_one_sort_of_all_scores(zeros):
    layers = make(scale=[0.01, 1, 2, 3, 0.5, 1])
    counts = allocate("global", layers, zeros, max_rate=1.0)
    owner = torch.cat([torch.full((v.numel,), i) for i, v in enumerate(layers)])
    lowest = torch.cat([v.scores.flatten().float() for v in layers]).argsort(stable=True)[:zeros]
    assert list(counts.values()) == torch.bincount(owner[lowest], minlength=len(layers)).tolist()


def slow_erk(shapes, numels, density):
    """The loop of the RigL paper: layers above density 1 are made dense and epsilon is solved again."""
    raw = np.array([sum(s) / np.prod(s) for s in shapes], dtype=np.float64)
    dense = np.zeros(len(shapes), dtype=bool)
    while True:
        epsilon = (density * numels.sum() - numels[dense].sum()) / (raw * numels)[~dense].sum()
        over = (epsilon * raw > 1) & ~dense
        if not over.any():
            return np.where(dense, 1.0, epsilon * raw)
        dense |= (raw == raw[~dense].max()) & ~dense


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize(
    "shapes", [[(64, 64), (256, 64), (10, 64), (64, 256)], [(16, 3, 3, 3), (32, 16, 3, 3), (64, 32, 1, 1), (10, 64)]]
)
def test_erk_is_the_papers_loop(shapes, rate):
    layers = [LayerInfo(f"l{i}", s[0], int(np.prod(s[1:])), shape=s) for i, s in enumerate(shapes)]
    zeros = round(rate * total(layers))
    counts = allocate("erk", layers, zeros, max_rate=1.0)
    numels = np.array([layer.numel for layer in layers], dtype=np.float64)
    expected = numels * (1 - slow_erk(shapes, numels, 1 - zeros / numels.sum()))
    assert np.abs(np.array(list(counts.values())) - expected).max() < 1
    assert min(counts.values()) >= 0


@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_balanced_gives_every_layer_as_many_weights(numels, density):
    """Layers that have fewer than an even part of what is left to give stay dense, the smallest first."""
    layers = [LayerInfo(f"l{i}", 1, n) for i, n in enumerate(numels)]
    kept = left = round(density * sum(numels))
    expected, waiting = {}, sorted(range(len(numels)), key=lambda i: numels[i])
    while waiting:
        i = waiting[0]
        expected[i] = min(numels[i], left / len(waiting))
        left -= expected[i]
        waiting.remove(i)
    counts = allocate("balanced", layers, sum(numels) - kept, max_rate=1.0)
    assert all(abs(numels[i] - counts[f"l{i}"] - expected[i]) < 1 + 1e-6 for i in expected)


def test_erk_sees_single_experts():
    one = LayerInfo("one", 64, 32, shape=(64, 32))
    experts = LayerInfo("experts", 8 * 64, 32, shape=(8, 64, 32))
    stored_the_other_way = LayerInfo("experts", 8 * 64, 32, shape=(8, 32, 64))
    for layer in (experts, stored_the_other_way):
        counts = allocate("erk", [one, layer], 9 * 1024)
        assert counts["experts"] == 8 * counts["one"] == 8 * 1024
    conv = LayerInfo("conv", 8, 12, shape=(8, 4, 3))
    counts = allocate("erk", [conv, LayerInfo("fc", 8, 12)], 96)
    densities = [(96 - counts[n]) / 96 for n in ("conv", "fc")]
    assert densities[0] / densities[1] == pytest.approx((8 + 4 + 3) / (8 + 12), abs=0.03)


def slow_lamp(weights, zeros):
    """Every score from its definition, then one sort over (float32 score, layer)."""
    entries = []
    for i, weight in enumerate(weights):
        w = np.sort(np.abs(weight.numpy().astype(np.float64)).ravel())
        entries += [(np.float32(w[j] ** 2 / (w[j:] ** 2).sum()) if w[j] else np.float32(0), i) for j in range(len(w))]
    counts = [0] * len(weights)
    for _, i in sorted(entries)[:zeros]:
        counts[i] += 1
    return counts


@pytest.mark.parametrize("zeros", [1, 40, 200, 431, 600])
@pytest.mark.parametrize("ties", [False, True])
def test_lamp_is_its_definition(zeros, ties):
    layers = make(scale=[1, 5, 0.1, 1, 2, 3])
    if ties:
        layers = [LayerInfo(v.name, v.rows, v.cols, weight=(v.weight * 2).round() / 2) for v in layers]
    assert list(allocate("lamp", layers, zeros, max_rate=1.0).values()) == slow_lamp([v.weight for v in layers], zeros)


def test_lamp_scores_do_not_depend_on_scale_and_end_at_one():
    layer = make()[0]
    scores = lamp_scores(layer)
    assert scores[-1] == 1 and bool((scores.diff() >= 0).all())
    scaled = lamp_scores(LayerInfo("x", layer.rows, layer.cols, weight=layer.weight * 64))
    assert torch.equal(scores, scaled)
    assert float(lamp_scores(LayerInfo("x", 2, 2, weight=torch.zeros(2, 2))).sum()) == 0


def test_lamp_in_chunks_is_lamp(monkeypatch):
    layer = make([(20, 20)])[0]
    whole = lamp_scores(layer)
    for size in (1, 7, 399, 400):
        monkeypatch.setattr("winnow.allocate.lamp._CHUNK", size)
        assert torch.allclose(lamp_scores(layer), whole, rtol=1e-6, atol=0)


def slow_l2(weights, zeros):
    """Every |w| / ||W|| in float64, rounded to float32, then one sort over (score, layer)."""
    entries = []
    for i, weight in enumerate(weights):
        w = np.abs(weight.numpy().astype(np.float64)).ravel()
        entries += [(np.float32(v), i) for v in w / (np.sqrt((w**2).sum()) or 1)]
    counts = [0] * len(weights)
    for _, i in sorted(entries)[:zeros]:
        counts[i] += 1
    return counts


@pytest.mark.parametrize("zeros", [1, 40, 200, 431, 600])
@pytest.mark.parametrize("scale", [[1, 5, 0.1, 1, 2, 3], [1e-12, 1e9, 1, 0, 1, 1]])
def test_l2_is_its_definition(zeros, scale):
    layers = make(scale=scale)
    assert list(allocate("l2", layers, zeros, max_rate=1.0).values()) == slow_l2([v.weight for v in layers], zeros)


def test_l2_does_not_depend_on_scale_and_spares_small_layers():
    layers = make([(30, 30), (5, 5)], scale=[1, 1])
    scaled = make([(30, 30), (5, 5)], scale=[256, 2**-100])  # squares of the second are 0 in float32
    counts = allocate("l2", layers, 500)
    assert counts == allocate("l2", scaled, 500)
    assert counts["l1"] / 25 < counts["l0"] / 900  # a norm grows with the number of weights
    huge = LayerInfo("huge", 2, 2, weight=torch.full((2, 2), 3e38))  # the norm is beyond float32: 0.5 each, others 0.25
    assert allocate("l2", [huge, LayerInfo("many", 4, 4, weight=torch.ones(4, 4))], 16, max_rate=1.0)["huge"] == 0


def outlier_model(blocks=4, heavy=2):
    layers = []
    for b in range(blocks):
        for part, shape in enumerate([(32, 32), (64, 32)]):
            scores = torch.rand(shape, generator=torch.Generator().manual_seed(10 * b + part)) + 0.5
            if b == heavy:
                scores[:, :2] *= 40
            layers.append(LayerInfo(f"b{b}.p{part}", *shape, f"b{b}", shape, scores, scores, b))
    return layers


def test_owl_keeps_more_of_the_block_with_outliers():
    layers = outlier_model()
    zeros = round(0.7 * total(layers))
    counts = allocate("owl", layers, zeros)
    rates = {v.name: counts[v.name] / v.numel for v in layers}
    assert sum(counts.values()) == zeros
    # By hand: one block has every outlier, so its density stands 2 * 0.08 above the three others, whose mean shift
    # is 0.04 for blocks of equal size.
    for v in layers:
        assert rates[v.name] == pytest.approx(0.7 - 0.16 + 0.04 if v.block == "b2" else 0.7 + 0.04, abs=1.5 / v.numel)
    assert allocate("owl", layers, round(0.03 * total(layers)))["b2.p0"] == 0  # held at none after the shift
    wide = allocate("owl", layers, zeros, lam=0.3)
    assert wide["b2.p0"] < counts["b2.p0"] and sum(wide.values()) == zeros


def test_owl_without_outliers_is_uniform():
    layers = make([(10, 10), (20, 10)])
    layers = [LayerInfo(v.name, v.rows, v.cols, v.name, scores=torch.ones(v.rows, v.cols)) for v in layers]
    assert allocate("owl", layers, 150) == allocate("uniform", layers, 150)


@pytest.mark.parametrize("exponent", [2.0, 3.0, 4.5])
def test_hill_finds_the_exponent_of_a_pareto_tail(exponent):
    sample = (1 - np.random.default_rng(0).random(8_000)) ** (-1 / (exponent - 1))
    assert hill_exponent(np.sort(sample)) == pytest.approx(exponent, rel=0.05)


def test_hill_by_hand_and_on_poor_spectra():
    # bins of 1 (e.g. 4 values): x_min is the lowest value, alpha = 1 + 4 / (ln 1 + ln 2 + ln 4 + ln 8)
    assert hill_exponent(np.array([1.0, 2.0, 4.0, 8.0])) == pytest.approx(1 + 4 / (6 * np.log(2)))
    for poor in ([], [3.0], [2.0, 2.0, 2.0]):
        assert hill_exponent(np.array(poor)) == 2.0


def nearest_power_law(values):
    """Of every beginning up to 1.5 times the fullest of 100 bins, the Hill exponent of the tail nearest its power law."""
    logs = [math.log10(v) for v in values]
    width = (logs[-1] - logs[0]) / 100
    bins = [0] * 100
    for log in logs:
        bins[min(int((log - logs[0]) / width), 99)] += 1
    highest = 1.5 * 10 ** (logs[0] + width * bins.index(max(bins)))
    found = []
    for i, lowest in enumerate(values[:-1]):
        if lowest > highest:
            break
        tail = values[i:]
        alpha = 1 + len(tail) / sum(math.log(v / lowest) for v in tail)
        apart = max(abs(1 - (v / lowest) ** (1 - alpha) - k / len(tail)) for k, v in enumerate(tail))
        found.append((apart, alpha))
    return min(found)[1]


def test_large_spectra_begin_their_tail_where_it_is_nearest_a_power_law():
    rng = np.random.default_rng(5)
    body, tail = np.exp(rng.normal(size=800) * 0.7), 3 * (1 - rng.random(300)) ** (-1 / 1.6)
    values = np.sort(np.concatenate([body, tail]))
    found = hill_exponent(values)
    assert found == pytest.approx(nearest_power_law(values.tolist()), rel=1e-6)
    assert abs(found - hill_exponent(values[::2])) > 0.05  # smaller ones begin at the fullest bin itself


def test_eigenvalues_are_those_of_the_gram_matrix():
    for shape in ((12, 30), (30, 12)):
        weight = torch.randn(shape)
        expected = np.linalg.svd(weight.numpy().astype(np.float64), compute_uv=False)[::-1] ** 2
        assert np.allclose(eigenvalues(LayerInfo("w", *shape, weight=weight)), expected, rtol=1e-6)


def spectrum_model():
    """Blocks whose weights have heavier and heavier spectral tails."""
    layers = []
    for b, power in enumerate([0.3, 0.8, 1.5]):
        for part in range(2):
            generator = torch.Generator().manual_seed(b * 2 + part)
            q, _ = torch.linalg.qr(torch.randn(96, 96, generator=generator))
            p, _ = torch.linalg.qr(torch.randn(96, 96, generator=generator))
            values = (torch.rand(96, generator=generator) * 0.99 + 0.01) ** (-power)
            layers.append(LayerInfo(f"b{b}.p{part}", 96, 96, f"b{b}", weight=q @ values.diag() @ p))
    return layers


@pytest.mark.parametrize("rate", [0.3, 0.7])
def test_alphapruning_spares_heavy_tails(rate):
    layers = spectrum_model()
    zeros = round(rate * total(layers))
    counts = allocate("alphapruning", layers, zeros)
    rates = [counts[f"b{b}.p0"] / 96**2 for b in range(3)]
    assert sum(counts.values()) == zeros
    assert rates[0] > rates[1] > rates[2]
    # linear from 1 + eps to 1 - eps before the common factor
    assert rates[0] / rates[2] == pytest.approx(1.3 / 0.7, rel=1e-3)
    assert counts["b1.p0"] == pytest.approx(counts["b1.p1"], abs=1)
    assert allocate("alphapruning", layers, zeros, eps=0) == allocate("uniform", layers, zeros)


def test_table_rates_then_patterns_then_uniform():
    layers = make([(10, 10)] * 5, blocks=False)
    rates = {"l[0-3]": 0.2, "l1": 0.9, "l2*": 0.7}
    assert allocate("table", layers, 200, table=rates) == {"l0": 20, "l1": 90, "l2": 20, "l3": 20, "l4": 50}
    # all named: the total must be theirs, apart from rounding
    every = {"*": 0.333}
    assert sum(allocate("table", layers, 167, table=every).values()) == 167
    assert allocate("table", layers, 165, table=every) == dict.fromkeys([f"l{i}" for i in range(5)], 33)
    for table, zeros, said in [
        ({"*": 0.333}, 300, "sparsity to 0.33"),
        ({"l0": 0.5}, 10, "alone removes 50"),
        ({"l0": 0.5}, 460, "alone removes 50"),
        ({"l9": 0.5}, 100, "l9 of the table"),
        ({"l0": 1.5}, 100, "outside 0 to 1"),
    ]:
        with pytest.raises(InputError, match=said):
            allocate("table", layers, zeros, table=table)


def test_every_layer_gets_its_n_of_m():
    layers = make([(4, 8), (2, 16)])
    for name in ("uniform", "erk"):
        assert allocate(name, layers, 48, structure=NM(1, 4)) == {"l0": 24, "l1": 24}
    with pytest.raises(InputError, match=r"sparsity 0\.75"):
        allocate("uniform", layers, 30, structure=NM(1, 4))
    with pytest.raises(InputError, match="l1"):
        allocate("uniform", make([(4, 8), (2, 15)]), 48, structure=NM(1, 4))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_units_stay_whole_and_near(data):
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=6))
    layers = make([(2 * r, 4 * c) for r, c in shapes])
    zeros = data.draw(st.integers(0, int(0.9 * total(layers))))
    name = data.draw(st.sampled_from(["uniform", "global", "owl"]))
    by_structure = allocate(name, layers, zeros, structure=BlockShape(2, 4), max_rate=1.0)
    assert by_structure == allocate(name, layers, zeros, granularity={v.name: 8 for v in layers}, max_rate=1.0)
    assert all(count % 8 == 0 and count <= v.numel for count, v in zip(by_structure.values(), layers))
    assert abs(sum(by_structure.values()) - zeros) <= 4


def test_units_of_different_sizes():
    assert whole_units([10, 10, 10], [4, 3, 1], 30, [100, 100, 100]) == [12, 9, 10]
    assert whole_units([10, 10], [4, 4], 20, [8, 100]) == [8, 12]


def test_index_groups_where_there_is_no_block_path():
    first, second = make([(4, 4), (4, 4)], blocks=False)
    assert first.group != second.group
    same = [LayerInfo(v.name, 4, 4, index=3) for v in (first, second)]
    assert same[0].group == same[1].group


def test_bad_input_is_one_sentence():
    layers = make()
    nan = [LayerInfo("x", 4, 4, weight=torch.full((4, 4), float("nan")), scores=torch.full((4, 4), float("nan")))]
    cases = [
        (lambda: allocate("erdos", layers, 5), "uniform, global, erk, balanced, lamp, l2, owl, alphapruning, table"),
        (lambda: allocate("owl", layers, 5, eps=0.3), "it takes m, lam"),
        (lambda: allocate("uniform", layers, 5, eps=0.3), "it takes none"),
        (lambda: allocate("uniform", layers, 5, table={"l0": 0.5}), "table allocation"),
        (lambda: allocate("table", layers, 5), "give table"),
        (lambda: allocate("uniform", layers, total(layers) + 1), "fit"),
        (lambda: allocate("uniform", layers, -1), "fit"),
        (lambda: allocate("uniform", layers, 5, max_rate=1.5), "max_rate"),
        (lambda: allocate("uniform", [layers[0], layers[0]], 5), "same name"),
        (lambda: allocate("lamp", [LayerInfo("x", 4, 4, weight=torch.rand(2, 8))], 5), "not 4 x 4"),
        (lambda: allocate("owl", layers, 5, m=0), "owl needs m"),
        (lambda: allocate("alphapruning", layers, 5, eps=2), "eps"),
        (lambda: allocate("uniform", layers, 5, structure=Coupled("head")), "whole model"),
        *((lambda name=name: allocate(name, nan, 5), "x") for name in ("global", "lamp", "l2", "owl", "alphapruning")),
    ]
    for call, said in cases:
        with pytest.raises(InputError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
