"""AC/DC against a loop written by hand in float64, alone and with the weights trained as m * w."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from by_hand import ByHand, lowest, train
from small import classifier
from winnow.errors import InputError
from winnow.masks.scope import find_scope
from winnow.train import ACDC, SignIn, attach

SPARSE = {2, 3, 6, 7, *range(12, 20)}  # of begin 2, every 2, end 12: the sparse phase from 10 to 12 is left out


def begun(method):
    model = classifier().double()
    return attach(model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), method)


def test_the_schedule_of_the_paper():
    """ImageNet, 100 epochs: dense to 10, phases of 5, dense from 75, sparse from 85."""
    method = ACDC.of(100, 0.9)
    sparse = {*(e for first in range(10, 75, 10) for e in range(first, first + 5)), *range(85, 100)}
    assert {e for e in range(100) if method.phase_at(e) % 2} == sparse
    phases = [method.phase_at(e) for e in range(200)]
    assert phases == sorted(phases) and set(phases) == set(range(phases[-1] + 1))
    for steps in range(1, 60):
        method = ACDC.of(steps, 0.9)
        assert method.phase_at(steps) % 2 and method.end <= steps and method.phase_at(method.end - 1) % 2 == 0
    one = ACDC(0.5, begin=2, end=12, every=2)
    assert {t for t in range(20) if one.phase_at(t) % 2} == SPARSE


class Hand(ByHand):
    def __init__(self, model, names, sparsity, reset):
        super().__init__(model, 0.05)
        self.names, self.reset = names, reset
        self.keep = {n: np.ones_like(self.weights[n], bool) for n in names}
        self.zeros = round(sparsity * sum(self.weights[n].size for n in names))

    def step(self, number):
        for name, gradient in self.gradients(number).items():
            self.descend(name, gradient * self.keep.get(name, 1))
        self.phases(number + 1)

    def phases(self, t):
        if t in SPARSE and t - 1 not in SPARSE:
            gone = lowest({n: np.abs(self.weights[n]) for n in self.names}, self.zeros)
            self.keep = {n: ~gone[n] for n in self.names}
        elif t - 1 in SPARSE and t not in SPARSE:
            self.keep = {n: np.ones_like(k) for n, k in self.keep.items()}
            if self.reset:
                self.velocity = {n: 0 * v for n, v in self.velocity.items()}
        for n, keep in self.keep.items():
            self.weights[n] = self.weights[n] * keep
            self.velocity[n] = self.velocity[n] * keep


class HandSignIn(Hand):
    """m and w are arrays of their own; their velocities lie in [2, ...] under the weight's name."""

    def __init__(self, *args):
        super().__init__(*args)
        self.factors = {n: self.split(self.weights[n]) for n in self.names}
        self.velocity |= {n: np.zeros_like(f) for n, f in self.factors.items()}

    @staticmethod
    def split(theta):
        m = np.sqrt((1 + np.sqrt(1 + 4 * theta**2)) / 2)
        return np.stack([m, theta / m])

    def step(self, number):
        for name, gradient in self.gradients(number).items():
            if name in self.names:
                self.descend(name, gradient * self.keep[name] * self.factors[name][::-1], self.factors)
                self.weights[name] = self.factors[name].prod(0) * self.keep[name]
            else:
                self.descend(name, gradient)
        self.phases(number + 1)
        for n in self.names:
            (m, w), (vm, vw), theta = self.factors[n], self.velocity[n], self.weights[n]
            # What comes back starts from m = 1, w = 0, where it has no velocity; and a reset every third step.
            self.factors[n] = np.where(self.keep[n] & (theta != 0), self.factors[n], self.split(0 * theta))
            if (number + 1) % 3 == 0:
                self.factors[n] = self.split(theta)
                self.velocity[n] = self.factors[n][::-1] * (m * vw + w * vm) / (m**2 + w**2) * self.keep[n]


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("sign_in", [False, True])
def test_against_a_loop_by_hand(sign_in, reset):
    inner = ACDC(0.6, begin=2, end=12, every=2, reset=reset)
    attached = begun(SignIn(inner, every=3) if sign_in else inner)
    hand = (HandSignIn if sign_in else Hand)(classifier().double(), list(attached.weights), 0.6, reset)
    for t in train(attached, 12):
        hand.step(t - 1)
        assert attached.zeros == (hand.zeros if t in SPARSE else 0)
        for name, keep in hand.keep.items():
            assert np.array_equal(attached.scope.prunables[name].restore(attached.keeps[name]).numpy(), keep), (t, name)
        for name, factors in attached.factors.tensors.items():
            laid = (int(attached.keeps[name].sum()),) if t in SPARSE else attached.weights[name].shape
            assert factors.shape[1:] == laid
        hand.require_same(attached.model)
    hand.require_trained()


def test_moments_that_are_no_entries_start_anew_where_the_masks_change():
    """Adafactor's means over rows and columns: of other entries from phase to phase."""
    model = classifier().double()
    method = SignIn(ACDC(0.6, begin=2, end=8, every=2), every=3)
    attached = attach(model, torch.optim.Adafactor(model.parameters(), 1e-2), method)
    counts = [attached.zeros for _ in train(attached, 10)]
    assert counts == [round(0.6 * attached.numel) * (t in {2, 3, 8, 9, 10}) for t in range(1, 11)]


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_rankings_within_a_tensor(distribution):
    model = torch.nn.Sequential(*(torch.nn.Conv2d(i, o, 3) for i, o in ((3, 8), (8, 16), (16, 8))))
    before = {n: w.detach().clone() for n, w in model.named_parameters() if n in find_scope(model).prunables}
    attached = attach(
        model, torch.optim.SGD(model.parameters(), 0.1), ACDC("70%", begin=0, end=9, every=2, distribution=distribution)
    )
    assert attached.zeros == round(0.7 * attached.numel)  # sparse from the first step on
    densities = {n: float(k.float().mean()) for n, k in attached.keeps.items()}
    for name, keep in attached.keeps.items():
        size = before[name].abs().reshape(keep.shape)
        assert size[~keep].max() <= size[keep].min()
    claims = {n: sum(w.shape) / w.numel() for n, w in before.items()}
    eps = 0.3 * attached.numel / sum(claims[n] * before[n].numel() for n in before)
    for name, density in densities.items():
        assert abs(density - (eps * claims[name] if distribution == "erk" else 0.3)) < 1 / before[name].numel() + 1e-9


def test_a_loop_that_jumps_over_phases_and_one_that_ends_early():
    attached = begun(ACDC(0.6, begin=2, end=12, every=2))
    for _ in train(attached, 2):
        pass
    attached.step = 6  # a loop that counts steps itself: one dense phase was passed over
    assert attached.zeros
    for _ in train(attached, 1, 7):
        pass
    assert attached.zeros == round(0.6 * attached.numel)
    sentence = attached.method.unfinished(attached)
    assert "sparse, in a phase that is not the last," in sentence and "ended, at step 7" in sentence
    assert attached.method.unfinished(attached, 12) is None
    assert "take ACDC.of(9, 0.6)" in attached.method.unfinished(attached, 9)
    with pytest.warns(UserWarning, match="the last sparse phase begins at step 12"):
        attached.detach()


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(begin=5, end=5), "give 0 <= begin < end"),
        (dict(begin=0, end=5, every=0), "give 0 <= begin < end and every >= 1"),
        (dict(begin=0.5, end=5), "begin, end and every are numbers of optimizer steps: give whole numbers"),
        (dict(begin=0, end=5, distribution="layer"), "choose from global, erk, uniform"),
        (dict(begin=0, end=5, max_rate=2), "max_rate"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(InputError, match=words):
        ACDC(0.5, **options)
