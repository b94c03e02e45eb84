"""The densities that stand in for the derivative of a count, and the gradients that flow through masks and thresholds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.errors import InputError
from winnow.fcpts.bridge import Histogram, KernelDensity, make_bridge, rates
from winnow.fcpts.groups import Elements
from winnow.fcpts.settings import FcptsSettings
from winnow.fcpts.straight_through import gate
from winnow.fcpts.thresholds import Thresholds
from winnow.masks.prunable import Prunable, Scope

stats = pytest.importorskip("scipy.stats")

BACK_ENDS = {"histogram": Histogram, "kde": KernelDensity}
SHAPES = {
    "normal": stats.norm(0, 0.02),
    "laplace": stats.laplace(0, 3),
    "student": stats.t(3),
    "uniform": stats.uniform(-1, 2),
}


def bridge(kind, magnitudes, sizes=None):
    found = BACK_ENDS[kind]()
    found.refresh(magnitudes, sizes or [1] * len(magnitudes))
    return found


def sample(name, n, seed=0):
    return np.abs(SHAPES[name].rvs(n, random_state=np.random.default_rng(seed)))


@pytest.mark.parametrize("kind", BACK_ENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_density_is_that_of_the_distribution(kind, shape):
    d = SHAPES[shape]
    magnitudes = torch.tensor(sample(shape, 100_000), dtype=torch.float32)
    found = bridge(kind, [magnitudes] * 7)
    quantiles = np.array(
        [0.01, 0.1, 0.3, 0.6, 0.8, 0.9, 0.9 if shape == "uniform" else 0.95]
    )  # its edge is rounded off
    t = d.ppf(0.5 + quantiles / 2)  # of |w|
    expected = d.pdf(t) + d.pdf(-t)
    measured = found.density(torch.tensor(t, dtype=torch.float32)).numpy()
    assert np.allclose(measured, expected, rtol=0.1), (measured / expected, shape)


@pytest.mark.parametrize("kind", BACK_ENDS)
def test_the_density_is_the_slope_of_the_true_count(kind):
    generator = torch.Generator().manual_seed(1)
    groups = [  # a mixture, so that no closed form is near
        torch.cat(
            [torch.randn(n, generator=generator) * 0.01, torch.randn(n // 3, generator=generator) * 0.3 + 0.2]
        ).abs()
        for n in (150_000, 90_000, 60_000)
    ]
    found = bridge(kind, groups)
    for place in (0.2, 0.5, 0.7, 0.9):
        t = torch.stack([g.double().quantile(place).float() for g in groups])
        rise = torch.stack(
            [
                ((g <= 1.03 * x).double().mean() - (g <= 0.97 * x).double().mean()) / (0.06 * x)
                for g, x in zip(groups, t)
            ]
        )
        assert torch.allclose(found.density(t).double(), rise, rtol=0.12), place


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(400, 3000),
    tail=st.floats(0.3, 3.0),  # of a log-normal: 3.0 spans ten decades
    place=st.floats(0.05, 0.95),
    seed=st.integers(0, 99),
)
def test_the_two_agree_on_heavy_tails(n, tail, place, seed):
    m = torch.tensor(np.random.default_rng(seed).lognormal(-4, tail, n), dtype=torch.float32)
    t = m.quantile(place).reshape(1)
    one, other = (float(bridge(kind, [m]).density(t)) for kind in BACK_ENDS)
    assert 0.5 < one / other < 2


@pytest.mark.parametrize("signed", [True, False])
def test_the_kernel_density_is_scipys_on_signed_weights(signed):
    rng = np.random.default_rng(3)
    groups = [rng.normal(size=700), rng.laplace(size=3000) * 0.1, rng.standard_t(4, 5000)]
    if not signed:  # the signs make no difference to the sum of the two tails
        groups = [np.abs(w) * rng.choice([-1, 1], len(w)) for w in groups]
    found = KernelDensity(0.3)
    found.refresh([torch.tensor(np.abs(w)) for w in groups], [1] * 3)
    for place in (0.001, 0.1, 0.5, 0.9, 0.97):
        t = np.array([np.quantile(np.abs(w), place) for w in groups])
        for g, w in enumerate(groups):
            kde = stats.gaussian_kde(w, float(found.bandwidth[g]) / w.std(ddof=1))
            assert float(found.density(torch.tensor(t))[g]) == pytest.approx(
                float(kde(t[g])[0] + kde(-t[g])[0]), rel=1e-4
            )


def test_the_bandwidth_is_silvermans_where_weights_are_normal():
    w = np.random.default_rng(0).normal(size=20_000) * 0.7
    for kind in BACK_ENDS:
        found = bridge(kind, [torch.tensor(np.abs(w))])
        assert float(found.bandwidth) == pytest.approx(1.06 * w.std() * 20_000**-0.2, rel=0.03)
    own = KernelDensity(0.5)
    own.refresh([torch.tensor(np.abs(w))], [1])
    assert float(own.bandwidth) == pytest.approx(0.5 * w.std(), rel=0.03)


def test_the_bandwidth_follows_the_bulk_and_norms_that_crowd_around_their_mean():
    rng = np.random.default_rng(0)
    heavy, norms = np.abs(rng.standard_cauchy(5000)), 5 + 0.1 * rng.normal(size=512)
    found = bridge("kde", [torch.tensor(heavy), torch.tensor(norms)])
    assert float(found.bandwidth[0]) < 0.5  # the deviation of this sample is hundreds
    assert 0.3 < float(found.bandwidth[1]) / (1.06 * 0.1 * 512**-0.2) < 2
    density = bridge("histogram", [torch.tensor(norms)]).density(torch.tensor([5.0]))
    assert float(density) == pytest.approx(stats.norm(5, 0.1).pdf(5), rel=0.25)


def test_shares_of_the_histogram_are_the_counts():
    groups = [torch.rand(5000) ** 4, torch.randn(300).abs(), torch.full((50,), 0.25), torch.zeros(7)]
    found = bridge("histogram", groups)
    x = torch.rand(4, 40, dtype=torch.float64) * 3
    counted = torch.stack([(g[:, None] <= row[None]).double().mean(0) for g, row in zip(groups, x)])
    near = torch.stack([((g[:, None] / row[None] - 1).abs() < 0.02).double().mean(0) for g, row in zip(groups, x)])
    assert bool(((found.share(x) - counted).abs() <= near + 1e-6).all())
    top = torch.stack([g.max() for g in groups]).double().clamp_min(1e-3)[:, None] * 1.001
    assert torch.allclose(found.share(top), torch.ones(4, 1, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("bins", [200, 1000, 5000])
def test_bins_change_little(bins):
    m = torch.tensor(sample("normal", 30_000), dtype=torch.float32)
    t = torch.tensor([0.03])
    few = Histogram(bins)
    few.refresh([m], [1])
    assert float(few.density(t)) == pytest.approx(2 * SHAPES["normal"].pdf(0.03), rel=0.06)


@pytest.mark.parametrize("kind", BACK_ENDS)
def test_an_outlier_smears_nothing(kind):
    m = torch.randn(4000).abs()
    loud = torch.cat([m, torch.tensor([3e4])])
    t = torch.tensor([0.1, 0.7, 1.6])
    assert torch.allclose(bridge(kind, [loud] * 3).density(t), bridge(kind, [m] * 3).density(t), rtol=0.03)


@pytest.mark.parametrize("kind", BACK_ENDS)
def test_units_count_with_their_weights(kind):
    m, sizes = torch.rand(600) + 0.1, torch.randint(1, 6, (600,))
    t = torch.tensor([0.6])
    weighted, repeated = BACK_ENDS[kind](), BACK_ENDS[kind]()
    if kind == "kde":
        weighted, repeated = KernelDensity(0.2), KernelDensity(0.2)
    weighted.refresh([m], [sizes])
    repeated.refresh([m.repeat_interleave(sizes)], [1])
    assert float(weighted.density(t)) == pytest.approx(float(repeated.density(t)), rel=0.02 if kind == "kde" else 0.15)
    lopsided = torch.where(m < 0.6, 9, 1)  # nearly all the weight lies below
    assert float(bridge(kind, [m], [lopsided]).density(torch.tensor([0.35]))) > 1.3
    same = bridge(kind, [m, m, m], [1, 64, torch.full((600,), 7)]).density(t.expand(3))
    assert torch.allclose(same, same[:1].expand(3), rtol=1e-5)


@pytest.mark.parametrize("kind", BACK_ENDS)
def test_a_group_of_one_unit_can_be_learned(kind):
    m = torch.tensor([0.37])
    t = m * torch.tensor([0.2, 0.5, 1.0, 2.0, 5.0])
    slopes = t * bridge(kind, [m] * 5, [1152] * 5).density(t)  # by log t
    assert bool((slopes > 0.02).all()) and bool((slopes < 1).all())
    assert 0.2 < float(slopes[2]) < 0.6


@pytest.mark.parametrize("kind", BACK_ENDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_threshold_is_ever_stuck(kind, data):
    value = st.one_of(st.just(0.0), st.floats(1e-12, 1e12), st.sampled_from([0.5, 1.0]))
    groups = data.draw(st.lists(st.lists(value, min_size=1, max_size=20), min_size=1, max_size=4))
    exponents = data.draw(st.lists(st.floats(-14, 14), min_size=len(groups), max_size=len(groups)))
    found = bridge(kind, [torch.tensor(g, dtype=torch.float32) for g in groups])
    t = torch.tensor([10.0**e for e in exponents])
    density = found.density(t)
    assert density.dtype == torch.float32 and bool(density.isfinite().all())
    # at least a hundredth of a unit for an e-fold change
    assert bool((density * t * torch.tensor([len(g) for g in groups]) > 0.0099).all())


@pytest.mark.parametrize("kind", BACK_ENDS)
@settings(max_examples=40, deadline=None)
@given(power=st.integers(-20, 20), n=st.integers(1, 300), seed=st.integers(0, 50), place=st.floats(0.0, 1.0))
def test_scale_is_only_scale(kind, power, n, seed, place):
    m = torch.tensor(np.abs(np.random.default_rng(seed).standard_t(2, n)) + 1e-3, dtype=torch.float32)
    t, c = m.quantile(place).reshape(1), 2.0**power
    assert float(bridge(kind, [m * c]).density(t * c)) * c == pytest.approx(
        float(bridge(kind, [m]).density(t)), rel=1e-3
    )


def test_pieces_make_no_difference(monkeypatch):
    groups = [torch.rand(1000), torch.rand(17), torch.rand(430)]
    sizes = [torch.randint(1, 9, (1000,)), 4, 1]
    t = torch.tensor([0.4, 0.5, 0.6])
    whole = {kind: bridge(kind, groups, sizes) for kind in BACK_ENDS}
    density = {kind: whole[kind].density(t) for kind in BACK_ENDS}
    for piece in (1, 100, 1016, 1017):
        monkeypatch.setattr("winnow.fcpts.histogram._PASS", piece)
        monkeypatch.setattr("winnow.fcpts.bridge._CHUNK", piece)
        for kind in BACK_ENDS:
            again = bridge(kind, groups, sizes)
            assert torch.allclose(again.density(t), density[kind], rtol=1e-5)
            assert torch.equal(again.bandwidth, whole[kind].bandwidth)


@pytest.mark.parametrize("kind", BACK_ENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_types_of_the_magnitudes(kind, dtype):
    m = torch.rand(3000)
    t = torch.tensor([0.5])
    expected = bridge(kind, [m]).density(t)
    assert torch.allclose(bridge(kind, [m.to(dtype)]).density(t.double()), expected, rtol=0.05)


def test_settings_name_the_back_end():
    assert make_bridge(FcptsSettings(bins=177)).bins == 177
    kde = make_bridge(FcptsSettings(bridge="kde", bandwidth=0.4))
    assert isinstance(kde, KernelDensity) and kde.factor == 0.4
    for wrong in (lambda: Histogram(0), lambda: KernelDensity(0.0), lambda: KernelDensity(float("nan"))):
        with pytest.raises(InputError, match="set"):
            wrong()


class Known:
    """A bridge whose density is written down."""

    def __init__(self, density):
        self.values = torch.tensor(density)

    def refresh(self, magnitudes, sizes):
        pass

    def density(self, thresholds):
        return self.values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rates_are_counts_forward_and_densities_backward(dtype):
    t = torch.tensor([0.1, 0.2, 0.3], dtype=dtype, requires_grad=True)
    removed, numels = torch.tensor([3.0, 0.0, 50.0]), torch.tensor([4, 10, 50])
    found = rates(t, removed, numels, Known([2.0, 3.0, 5.0]))
    assert found.dtype == dtype and found.tolist() == [0.75, 0.0, 1.0]
    (found * torch.tensor([1.0, 10.0, 100.0], dtype=dtype)).sum().backward()
    assert t.grad.tolist() == [2.0, 30.0, 500.0]


def slow_gate(weight, threshold, window):
    """A mask with gradients of its own: the hard step, plus something of value 0 and slope 0.5 in the window."""
    distance = weight.abs() - threshold
    soft = 0.5 * distance.clamp(-window, window)
    mask = (distance > 0).double() + soft - soft.detach()
    return weight * mask


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), t=st.floats(0.05, 2.0), window=st.sampled_from([0.1, 0.5, 1.0, 10.0]))
def test_the_gate_is_the_masks_autograd(seed, t, window):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 5, dtype=torch.float64, generator=generator) * 1.5
    x = torch.randn(5, 7, dtype=torch.float64, generator=generator)
    found = []
    for masked in (lambda w, s: gate(w, s, window)[0], lambda w, s: slow_gate(w, s, window)):
        w, s = weight.clone().requires_grad_(), torch.tensor(t, dtype=torch.float64, requires_grad=True)
        loss = ((masked(w, s) @ x).tanh() ** 2).sum()
        loss.backward()
        found.append((loss.detach(), w.grad, s.grad))
    for ours, reference in zip(*found):
        assert torch.allclose(ours, reference, rtol=1e-10, atol=1e-12)


def test_the_gate_by_hand():
    w = torch.tensor([0.5, -2.0, 1.0, -0.3, 0.0, 3.5], requires_grad=True)
    t = torch.tensor(1.0, requires_grad=True)
    masked, removed = gate(w, t)
    assert masked.tolist() == [0.0, -2.0, 0.0, 0.0, 0.0, 3.5]  # a weight equal to the threshold goes
    assert float(removed) == 4 and not removed.requires_grad
    (masked * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])).sum().backward()
    # | |w| - 1 | < 1 holds for 0.5, 1.0 and -0.3: dL/dt = -0.5 * (1 * 0.5 + 3 * 1.0 + 4 * -0.3)
    assert float(t.grad) == pytest.approx(-0.5 * (0.5 + 3.0 - 1.2))
    assert w.grad.tolist() == pytest.approx([0.25, 2.0, 1.5, 0.6, 0.0, 6.0])


def model(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (6, 5), "b": (3, 6)}
    scope = Scope({n: Prunable(n, n, "linear", s) for n, s in shapes.items()})
    weights = {n: torch.randn(s, generator=generator).requires_grad_() for n, s in shapes.items()}
    x = torch.randn(9, 5, generator=generator)
    return scope, weights, x


def run(masked, x):
    return ((x @ masked["a"].t()).relu() @ masked["b"].t()).square().sum()


def learner(scope, target, density=(0.5, 2.0), start=(0.4, 0.6), **kw):
    values = FcptsSettings(penalty=0.5, ramp=0, **kw)
    return Thresholds(Elements(scope), Known(list(density)), values, torch.tensor(start), target)


def test_thresholds_take_the_gradient_of_the_outputs():
    """dL_rec / dlog t = -0.5 t sum(dL/dWs * w) over weights within 1 of the threshold."""
    scope, weights, x = model()
    learned = learner(scope, 0.5)
    masked = learned.masked(weights)
    for m in masked.values():
        m.retain_grad()
    run(masked, x).backward()
    for i, (name, t) in enumerate(zip(weights, (0.4, 0.6))):
        w = weights[name].detach()
        terms = masked[name].grad * w * ((w.abs() - t).abs() < 1)
        assert float(learned.theta.grad[i]) == pytest.approx(-0.5 * t * float(terms.sum()), rel=1e-4)
    assert bool(learned.theta.grad.abs().min() > 0)


def test_c_only_gives_thresholds_nothing_of_the_outputs():
    """What the released code does: its mask generator runs without gradients, so only the rate moves thresholds."""
    scope, weights, x = model()
    learned = learner(scope, 0.9, threshold_grad="c_only")
    run(learned.masked(weights), x).backward()
    assert learned.theta.grad is None
    assert all(w.grad is not None for w in weights.values())
    learned.backward()
    both = learner(scope, 0.9)
    both.masked(weights)  # counts
    both.backward()
    assert torch.equal(learned.theta.grad, both.theta.grad) and bool(learned.theta.grad.abs().min() > 0)


@pytest.mark.parametrize("target", [0.05, 0.95])
def test_the_wanted_rate_pulls_with_the_density(target):
    """dL_c / dlog t = penalty * sign(rate - target) * N_l / N * (p(t) + p(-t)) * t."""
    scope, weights, _ = model()
    learned = learner(scope, target)
    learned.masked(weights)
    gone = sum(int((weights[n].abs() <= t).sum()) for n, t in (("a", 0.4), ("b", 0.6)))
    assert float(learned.removed.sum()) == gone and 0.05 < gone / 48 < 0.95
    learned.backward()
    sign = 1 if gone / 48 > target else -1
    expected = [0.5 * sign * 30 / 48 * 0.5 * 0.4, 0.5 * sign * 18 / 48 * 2.0 * 0.6]
    assert learned.theta.grad.tolist() == pytest.approx(expected, rel=1e-5)
    assert all(w.grad is None for w in weights.values())  # a count pulls at no weight


@pytest.mark.parametrize("kind", BACK_ENDS)
@pytest.mark.parametrize("target", [0.3, 0.9])
def test_the_pull_alone_brings_the_rate_to_the_target(kind, target):
    scope = Scope({n: Prunable(n, n, "linear", (40, 50)) for n in "ab"})
    weights = {"a": torch.randn(40, 50), "b": torch.randn(40, 50) ** 3 * 0.01}
    learned = Thresholds(
        Elements(scope), BACK_ENDS[kind](), FcptsSettings(penalty=1.0, ramp=0), torch.tensor([0.7, 0.003]), target
    )
    learned.prepare(weights)
    optimizer = torch.optim.SGD([learned.theta], lr=1.0)
    for i in range(120):
        for group in optimizer.param_groups:
            group["lr"] = 1 - i / 120
        learned.masked(weights)
        optimizer.zero_grad()
        learned.backward()
        optimizer.step()
    learned.masked(weights)
    assert float(learned.removed.sum()) / 4000 == pytest.approx(target, abs=0.01)
