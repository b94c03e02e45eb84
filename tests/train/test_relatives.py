"""HAM and the limit of Sign-In with a reset at every step, against loops written by hand in float64."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from by_hand import ByHand, loss, train
from small import classifier
from sparse_methods import magnitude_keeps
from winnow.errors import InputError
from winnow.train import HAM, STR, Gradual, Hyperbolic, RigL, SignIn, attach


def masked():
    """A model, its masks [rows, cols], and the same as arrays of the weights' shapes (here the matrices themselves)."""
    model = classifier().double()
    keeps = magnitude_keeps(model)
    return model, keeps, {n: k.numpy() for n, k in keeps.items()}


def groups(model, lr):
    """The first block learns at half the rate."""
    slow = [p for n, p in model.named_parameters() if n.startswith("blocks.0")]
    fast = [p for n, p in model.named_parameters() if not n.startswith("blocks.0")]
    return [{"params": slow, "lr": lr / 2}, {"params": fast, "lr": lr}]


def test_ham_against_a_loop_by_hand():
    """Entry by entry, with two learning rates, momentum, weight decay, accumulation, and gradients large enough for the limit."""
    model, keeps, masks = masked()
    hand = ByHand(model, 0.1, decay=0.01)
    for n in masks:
        hand.weights[n] *= masks[n]
    optimizer = torch.optim.SGD(groups(model, 0.1), momentum=0.9, weight_decay=0.01)
    attached = attach(model, optimizer, HAM(keeps, alpha=1000.0, decay=0.02))
    limited, steps = 0, 3
    for number in range(steps):
        optimizer.zero_grad()
        for _ in range(2):
            (loss(model, number) / 2).backward()
        optimizer.step()
        for n, gradient in hand.gradients(number).items():
            hand.lr = 0.05 if n.startswith("blocks.0") else 0.1
            gradient = gradient * masks.get(n, 1)
            hand.descend(n, gradient)
            for place in np.ndindex(gradient.shape) if n in masks else ():
                theta = hand.weights[n][place]
                if theta != 0:
                    exponent = hand.lr * (-1000.0 * math.copysign(1, theta) * gradient[place] - 0.02)
                    limited += abs(exponent) > 5
                    hand.weights[n][place] = theta * math.exp(min(max(exponent, -5), 5))
        hand.require_same(model)
    hand.require_trained()
    everything = steps * sum(int(k.sum()) for k in masks.values())
    assert 0.001 * everything < limited < 0.5 * everything
    assert attached.zeros == sum(int((~m).sum()) for m in masks.values())


def test_ham_changes_no_sign_and_no_mask():
    model, keeps, _ = masked()
    attached = attach(model, torch.optim.SGD(model.parameters(), 0.0, momentum=0.9), HAM(keeps))
    attached.optimizer.param_groups[0]["lr"] = 0.0
    before = {n: w.detach().clone() for n, w in attached.weights.items()}
    for _ in train(attached, 1):
        pass
    assert all(torch.equal(w.detach(), before[n]) for n, w in attached.weights.items())  # eta 0: exp(0)
    rigl = RigL(0.7, end=6, every=2)
    model = classifier().double()
    attached = attach(model, torch.optim.SGD(model.parameters(), 0.05), HAM(rigl, alpha=20))
    first = attached.masks
    for _ in train(attached, 7):
        assert attached.zeros == round(0.7 * attached.numel)
    assert attached.masks != first  # grown by dense gradients, which the wrapper hands on


@pytest.mark.parametrize("inner", ["masks", "str"])
def test_ham_under_loss_scaling(inner):
    """A fused optimizer divides by the scale itself: the step is made with the gradient of the loss, also where v is stepped."""

    def run(scale):
        model, keeps, _ = masked()
        method = keeps if inner == "masks" else STR(0.5, end=5, every=1)
        attached = attach(model, torch.optim.AdamW(model.parameters(), 1e-2, fused=True), HAM(method, alpha=50))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale != 1)
        for number in range(6):
            attached.optimizer.zero_grad()
            scaler.scale(loss(model, number)).backward()
            scaler.step(attached.optimizer)
            scaler.update()
        return model

    one, other = run(1.0), run(1024.0)
    for name, weight in one.named_parameters():
        torch.testing.assert_close(other.get_parameter(name), weight, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("closure", [False, True])
def test_hyperbolic_against_a_loop_by_hand(closure):
    model, keeps, masks = masked()
    hand = ByHand(model, 0.1, decay=0.01)
    for n in masks:
        hand.weights[n] *= masks[n]
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    attached = attach(model, optimizer, Hyperbolic(keeps, beta=0.5))
    for number in range(6):

        def evaluated(number=number):
            optimizer.zero_grad()
            found = loss(model, number)
            found.backward()
            return found

        if not closure:
            evaluated()
        optimizer.step(*([evaluated] if closure else []))
        for n, gradient in hand.gradients(number).items():
            if n in masks:
                for place in np.ndindex(gradient.shape):
                    theta = hand.weights[n][place]
                    gradient[place] *= math.sqrt(4 * theta**2 + 0.25) if masks[n][place] else 0
            hand.descend(n, gradient)
        hand.require_same(model)
    hand.require_trained()
    assert {f.shape for f in attached.factors.tensors.values()} == {(1, int(m.sum())) for m in masks.values()}


def test_sign_in_with_a_reset_at_every_step_tends_to_hyperbolic():
    """Under plain SGD: m' w' = theta - eta g sqrt(4 theta^2 + 1) + eta^2 g^2 theta. So one step differs by the last term, and
    several steps by a fourth where eta is halved."""

    def run(method, lr, steps):
        model, keeps, _ = masked()
        attached = attach(model, torch.optim.SGD(model.parameters(), lr), method(keeps))
        start = {n: w.detach().clone() for n, w in attached.weights.items()}
        for _ in train(attached, steps):
            pass
        return start, {n: w.grad.clone() for n, w in attached.weights.items()}, attached.weights

    def sign_in(keeps):
        return SignIn(keeps, every=1)

    start, gradients, one = run(sign_in, 0.1, 1)
    _, _, limit = run(Hyperbolic, 0.1, 1)
    for n, theta in start.items():
        expected = 0.01 * gradients[n] ** 2 * theta
        torch.testing.assert_close((one[n] - limit[n]).detach(), expected, rtol=1e-6, atol=1e-15)
        assert float(expected.abs().max()) > 1e-8
    distance = []
    for lr in (0.0005, 0.00025, 0.000125):
        (_, _, one), (_, _, limit) = run(sign_in, lr, 6), run(Hyperbolic, lr, 6)
        distance.append(math.sqrt(sum(float((one[n] - limit[n]).detach().square().sum()) for n in one)))
    assert all(abs(a / b - 4) < 0.1 for a, b in pairwise(distance)), distance


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: HAM(alpha=-1), "numbers of 0 or more"),
        (lambda: HAM(decay=math.nan), "numbers of 0 or more"),
        (lambda: Hyperbolic(beta=0), "positive number"),
        (lambda: SignIn(HAM(), every=1), "SignIn and HAM both say how weights are trained"),
        (lambda: HAM(SignIn(every=1)), "give HAM a method of masks only, such as RigL"),
        (lambda: SignIn(STR(0.5, end=5), every=1), "SignIn and STR both say"),
        (lambda: Hyperbolic(STR(0.5, end=5)), "Hyperbolic and STR both say"),
    ],
)
def test_wrong_options(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_half_precision_and_short_trainings():
    model = classifier().bfloat16()
    with pytest.raises(InputError, match=r"up\.weight is bfloat16: factors close to 1.*autocast"):
        attach(model, torch.optim.SGD(model.parameters(), 0.1), HAM())
    model = classifier()
    attached = attach(model, torch.optim.SGD(model.parameters(), 0.1), HAM(Gradual(0.5, end=10)))
    with pytest.warns(UserWarning, match="the schedule ends at step 10"):  # of the masks' own method
        attached.detach()
