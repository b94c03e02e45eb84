"""Sign-In against its closed forms in float64, and against what it is for."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from small import classifier, points
from sparse_methods import magnitude_keeps
from winnow.errors import InputError
from winnow.train import Gradual, SignIn, attach

X, Y = points()
X, Y = X.double(), torch.as_tensor(Y)


def begun(make, model=None, **options):
    model = model or classifier().double()
    return attach(model, make(list(model.parameters())), SignIn(magnitude_keeps(model), **options))


def step(attached, number):
    rows = slice(32 * number, 32 * number + 32)
    attached.optimizer.zero_grad()
    F.cross_entropy(attached.model(X[rows]), Y[rows]).backward()
    attached.optimizer.step()


def sgd(p):
    return torch.optim.SGD(p, 0.05, momentum=0.9)


def adam(p):
    return torch.optim.Adam(p, 1e-2, amsgrad=True)


@pytest.mark.parametrize("beta", [0.01, 1.0, 3.0])
def test_the_split(beta):
    theta = torch.linspace(-3, 3, 101, dtype=torch.float64)
    method = SignIn(every=1, beta=beta)
    m, w = method.split("any", theta)
    torch.testing.assert_close(m * w, theta, rtol=0, atol=1e-12)
    torch.testing.assert_close(m * m - w * w, torch.full_like(m, beta), rtol=1e-9, atol=1e-9)
    assert bool((m >= math.sqrt(beta)).all()) and torch.equal(w.sign(), theta.sign())


def test_beta_decays_by_its_law_and_a_reset_brings_it_back():
    """One step of SGD: beta (1 - eta^2 g^2) of every entry, g the gradient of the weight."""
    model = classifier().double()
    attached = attach(model, torch.optim.SGD(model.parameters(), 0.5), SignIn(magnitude_keeps(model), every=2))
    before = {n: w.detach().clone() for n, w in attached.weights.items()}
    F.cross_entropy(model(X[:32]), Y[:32]).backward()
    gradients = {n: w.grad[attached.keeps[n]] for n, w in attached.weights.items()}
    attached.optimizer.step()
    for name, (m, w) in attached.factors.tensors.items():
        torch.testing.assert_close((m * m - w * w).detach(), 1 - 0.25 * gradients[name] ** 2, rtol=0, atol=1e-9)
        # and the speed: theta moves by -eta (m^2 + w^2) g to first order
        keep, old = attached.keeps[name], before[name][attached.keeps[name]]
        speed = (4 * old**2 + 1).sqrt()
        moved = attached.weights[name].detach()[keep] - old
        torch.testing.assert_close(
            moved, -0.5 * speed * gradients[name], rtol=0.05, atol=0.3 * float(gradients[name].square().max())
        )
    health = attached.method.health(attached)
    assert all(0.5 < h < 1 for h in health.values())
    step(attached, 1)  # and the reset
    assert attached.method.resets == 1
    assert all(abs(h - 1) < 1e-9 for h in attached.method.health(attached).values())


@pytest.mark.parametrize("make", [sgd, adam])
def test_a_reset_changes_no_weight_and_maps_the_moments(make):
    attached = begun(make, every=1000)
    for number in range(5):
        step(attached, number)
    before = {
        n: (w.detach().clone(), attached.factors.tensors[n].detach().clone()) for n, w in attached.weights.items()
    }
    state = copy.deepcopy({n: attached.optimizer.state[w] for n, w in attached.weights.items()})
    loss = F.cross_entropy(attached.model(X), Y)
    attached.method.reset(attached)
    torch.testing.assert_close(F.cross_entropy(attached.model(X), Y), loss, rtol=0, atol=1e-12)
    for name, (theta, (m, w)) in before.items():
        torch.testing.assert_close(attached.weights[name].detach(), theta, rtol=0, atol=1e-12)
        m2, w2 = attached.factors.tensors[name].detach().numpy()
        now = attached.optimizer.state[attached.weights[name]]
        for key in [k for k, t in state[name].items() if t.ndim]:
            v, found, m1, w1 = (t.numpy() for t in (state[name][key], now[key], m, w))
            if key in ("momentum_buffer", "exp_avg"):
                of_theta = (m1 * v[1] + w1 * v[0]) / (m1**2 + w1**2)
                np.testing.assert_allclose(found, [w2 * of_theta, m2 * of_theta], rtol=1e-9, atol=1e-15)
            else:
                of_theta = (v[0] + v[1]) / (m1**2 + w1**2)
                np.testing.assert_allclose(found, [w2**2 * of_theta, m2**2 * of_theta], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("moments", ["keep", "zero"])
def test_the_other_ways_with_moments(moments):
    attached = begun(sgd, every=1000, moments=moments)
    for number in range(3):
        step(attached, number)
    before = {n: attached.optimizer.state[w]["momentum_buffer"].clone() for n, w in attached.weights.items()}
    attached.method.reset(attached)
    for name, weight in attached.weights.items():
        now = attached.optimizer.state[weight]["momentum_buffer"]
        assert torch.equal(now, before[name]) if moments == "keep" else not now.count_nonzero()


def test_with_masks_that_change():
    """Under a gradual schedule the counts are the schedule's, and what is left has beta 1 after every reset."""
    model = classifier().double()
    attached = attach(model, sgd(model.parameters()), SignIn(Gradual(0.8, end=6, every=2), every=2, end=8))
    for number in range(8):
        step(attached, number)
    assert attached.zeros == round(0.8 * attached.numel) and attached.method.resets == 4
    for name, factors in attached.factors.tensors.items():
        assert factors.shape == (2, int(attached.keeps[name].sum()))
    assert all(abs(h - 1) < 1e-9 for h in attached.method.health(attached).values())


def recovered(betas, a, w, steps: int = 20000, eta: float = 0.01) -> np.ndarray:
    """Which starts a, w [n] of a relu(w x) gradient descent brings to relu(x), x ~ N(0, 1), on population gradients.

    Through factors where betas (of a, of w) are given.
    """
    theta = [np.array(v, dtype=np.float64) for v in (a, w)]
    parts = (
        theta
        if betas is None
        else [SignIn(every=1, beta=b).split("", torch.tensor(t)).numpy() for b, t in zip(betas, theta)]
    )
    for _ in range(steps):
        a, w = parts if betas is None else (p[0] * p[1] for p in parts)
        r, on = a * w - 1, w > 0
        gradient = np.where(on, r * w, a * w * w) / 2, np.where(on, r * a, a * a * w) / 2
        for p, g in zip(parts, gradient):
            p -= eta * (g if betas is None else g * p[::-1].copy())
    a, w = parts if betas is None else (p[0] * p[1] for p in parts)
    return (np.abs(a * w - 1) < 1e-2) & (w > 0)


SPEEDS = {"plain": None, "even": (1.0, 1.0), "outer": (1.0, 0.1), "outermost": (1.0, 0.01)}


def test_a_single_neuron_recovers_a_wrong_outer_sign():
    """The paper's theorem: plain descent recovers from (+, +) only; with a faster outer weight from (-, +) as well; nothing
    does from w < 0."""
    a, w = [0.3, -0.3, 0.3, -0.3], [0.3, 0.3, -0.3, -0.3]
    found = {name: recovered(betas, a, w).tolist() for name, betas in SPEEDS.items()}
    assert found["plain"] == found["even"] == [True, False, False, False]
    assert found["outer"] == found["outermost"] == [True, True, False, False]


def test_random_starts_are_recovered_as_the_flow_says():
    """200 starts of each pattern of signs: all from (+, +), none from w < 0, and from (-, +) those of the invariant.

    Along the flow sqrt(4 a^2 + beta_a^2) - sqrt(4 w^2 + beta_w^2) stays what it was (of plain descent a^2 - w^2), so that a
    passes through zero while w > 0 if and only if what is left for w then is more than beta_w.
    """
    a, w = np.abs(0.5 * np.random.default_rng(0).standard_normal((2, 200)))
    signs = np.repeat([[1, 1], [-1, 1], [1, -1], [-1, -1]], 200, axis=0).T
    shares = {}
    for name, betas in SPEEDS.items():
        found = recovered(betas, signs[0] * np.tile(a, 4), signs[1] * np.tile(w, 4)).reshape(4, 200)
        assert found[0].all() and not found[2:].any()
        of_a, of_w = betas or (0.0, 0.0)
        crosses = np.hypot(2 * w, of_w) - of_w > np.hypot(2 * a, of_a) - of_a
        assert (
            found[1] == crosses
        ).mean() > 0.97  # but for starts so near to the boundary that the steps end on the way
        shares[name] = found[1].mean()
    assert shares["plain"] <= shares["even"] < shares["outer"] < shares["outermost"]


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(every=0), "give 1 or more"),
        (dict(every=10, end=5), "smaller every or a larger end"),
        (dict(every=1, beta=0), "positive number"),
        (dict(every=1, beta=float("nan")), "positive number"),
        (dict(every=1, beta="1"), "positive number"),
        (dict(every=1, beta={"head": -1.0}), "positive number"),
        (dict(every=1, moments="mix"), "remap, keep, zero"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(InputError, match=words):
        SignIn(**options)


def test_wrong_models_and_short_trainings():
    model = classifier().bfloat16()
    with pytest.raises(InputError, match=r"blocks\.0\.up\.weight is bfloat16.*autocast"):
        attach(model, sgd(model.parameters()), SignIn(every=1))
    model = classifier()
    with pytest.raises(InputError, match="fits no prunable tensor"):
        attach(model, sgd(model.parameters()), SignIn(every=1, beta={"nothing*": 1.0}))
    with pytest.warns(UserWarning, match="beta 0.1 makes training near zero 0.1 times as fast"):
        attached = attach(
            model, sgd(model.parameters()), SignIn(magnitude_keeps(model), every=10, beta={"blocks.0.*": 0.1})
        )
    assert attached.method.beta_of("blocks.0.up.weight") == 0.1 and attached.method.beta_of("blocks.1.up.weight") == 1
    with pytest.warns(UserWarning, match=r"before the first reset at step 10: take SignIn\.of\(0\)"):
        attached.detach()
    assert SignIn.of(100).every == 10 and SignIn.of(100).end == 90


def test_the_gradient_in_closed_form():
    factors = torch.randn(2, 50, dtype=torch.float64, requires_grad=True)
    method, upstream = SignIn(every=1), torch.randn(50, dtype=torch.float64)
    (by_autograd,) = torch.autograd.grad(method.merge("any", factors), factors, upstream)
    assert torch.equal(method.vjp("any", factors.detach(), upstream), by_autograd)
