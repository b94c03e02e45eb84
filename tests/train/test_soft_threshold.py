"""STR against a loop written by hand in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from by_hand import ByHand, lowest, train
from small import classifier
from winnow.errors import InputError
from winnow.masks.scope import find_scope
from winnow.train import STR, attach

BEGIN, EVERY, END, SPARSITY, LR = 1, 2, 9, 0.7, 0.05


class Hand(ByHand):
    """v and s; the model computes with sign(v) relu(|v| - sigmoid(s))."""

    def __init__(self, model, names):
        super().__init__(model, 0.05, decay=0.01)
        self.names, self.v = names, {n: self.weights[n].copy() for n in names}
        self.s, self.adam, self.keep = {}, {n: [0.0, 0.0, 0] for n in names}, None
        self.numel = sum(v.size for v in self.v.values())

    def scores(self):
        return {n: np.log(np.abs(v) / (1 - np.abs(v))) - self.s.get(n, 0.0) for n, v in self.v.items()}

    def step(self, number):
        t, slopes = number + 1, {}
        for name, gradient in self.gradients(number).items():
            if name not in self.names:
                self.descend(name, gradient)
            elif self.keep is not None:
                self.descend(name, gradient * self.keep[name])
            else:
                if name in self.s:
                    threshold = 1 / (1 + math.exp(-self.s[name]))
                    slope = 0.0
                    for g, v in zip(gradient.ravel(), self.v[name].ravel()):
                        slope -= (
                            threshold * (1 - threshold) * g * math.copysign(1, v) * (abs(v) > threshold * (1 + 1e-5))
                        )
                    slopes[name] = slope
                    gradient = gradient * (np.abs(self.v[name]) > threshold * (1 + 1e-5))
                self.descend(name, gradient, self.v)
        if self.keep is None:
            self.learn(slopes if t < END else {})
            self.schedule(t)

    def learn(self, slopes):
        for name, slope in slopes.items():
            first, second, count = self.adam[name]
            first, second, count = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2, count + 1
            self.adam[name] = [first, second, count]
            size = math.sqrt(second / (1 - 0.999**count)) + 1e-8
            self.s[name] -= LR * first / (1 - 0.9**count) / size

    def schedule(self, t):
        final = round(SPARSITY * self.numel)
        zeros = round(final - final * (1 - min(max(t - BEGIN, 0) / (END - BEGIN), 1)) ** 3)
        if zeros and (t - BEGIN) % EVERY == 0:
            scores = self.scores()
            level = sorted(np.concatenate([s.ravel() for s in scores.values()]))[zeros - 1]
            self.s = {n: self.s.get(n, 0.0) + (level if t < END else min(level, 0.0)) for n in self.names}
        gone = lowest(self.scores(), final) if t == END else None
        for n in self.names:
            threshold = 1 / (1 + math.exp(-self.s[n])) if n in self.s else 0.0
            self.weights[n] = np.sign(self.v[n]) * np.maximum(np.abs(self.v[n]) - threshold, 0)
            if gone is not None:
                self.weights[n] = self.weights[n] * ~gone[n]
                self.velocity[n] = self.velocity[n] * ~gone[n]
        if gone is not None:
            self.keep = {n: ~g for n, g in gone.items()}


def begun(lr=LR):
    model = classifier().double()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    return attach(model, optimizer, STR(SPARSITY, begin=BEGIN, every=EVERY, end=END, lr=lr))


@pytest.mark.filterwarnings("error")
def test_against_a_loop_by_hand():
    attached = begun()
    hand = Hand(classifier().double(), list(attached.weights))
    seen = []
    for t in train(attached, 12):
        hand.step(t - 1)
        hand.require_same(attached.model, atol=2e-6)  # scores are ranked in float32
        if t < END:
            assert attached.zeros == 0
            assert attached.method.thresholds == pytest.approx(
                {n: 1 / (1 + math.exp(-s)) for n, s in hand.s.items()}, rel=1e-5
            )
            seen.append(set(attached.method.thresholds.values()))
        else:
            assert attached.zeros == round(SPARSITY * attached.numel) and not attached.method.thresholds
            for n, keep in hand.keep.items():
                assert np.array_equal(attached.scope.prunables[n].restore(attached.keeps[n]).numpy(), keep)
    hand.require_trained()
    assert len(seen[-1]) == len(attached.weights)  # each tensor has found a threshold of its own
    attached.detach()
    assert sum(int((w == 0).sum()) for w in attached.weights.values()) == attached.zeros


def test_the_schedule_is_kept_on_the_way():
    attached = begun()
    for t in train(attached, END):
        if t < END and t > BEGIN and (t - BEGIN) % EVERY == 0:
            assert abs(attached.method.zeros_now(attached) - attached.method.zeros_at(t, attached.numel)) <= 1


def test_what_lies_below_a_threshold_is_kept_in_mind():
    """Also where the loop has masks and weights brought into line."""
    attached = begun()
    for _ in train(attached, 5):
        pass
    before = {n: f.detach().clone() for n, f in attached.factors.tensors.items()}
    attached.enforce()
    for name, (v,) in before.items():
        assert torch.equal(attached.factors.tensors[name].detach()[0], v)
        assert (v != 0).sum() > 1.5 * attached.weights[name].count_nonzero()


def test_without_a_learning_rate_all_tensors_share_one_threshold():
    attached = begun(lr=0)
    for _ in train(attached, END - 1):
        pass
    assert len(set(attached.method.thresholds.values())) == 1


def test_where_learning_has_made_too_many_zero_what_stays_is_not():
    """A loss that pulls on every weight lifts all thresholds."""
    model = classifier()
    attached = attach(model, torch.optim.SGD(model.parameters(), 1e-6), STR(0.5, end=9, every=5, power=8, lr=0.3))
    for _ in range(9):
        before = attached.method.zeros_now(attached)
        attached.optimizer.zero_grad()
        sum(p.square().sum() for p in model.parameters()).backward()
        attached.optimizer.step()
    assert before > 1.2 * attached.zeros
    assert attached.method.zeros_now(attached) == attached.zeros == round(0.5 * attached.numel)


def test_a_tensor_of_small_weights_keeps_what_max_rate_leaves():
    model = classifier()
    name = next(iter(find_scope(model).prunables))
    with torch.no_grad():
        model.get_parameter(name).mul_(1e-3)
    attached = attach(model, torch.optim.SGD(model.parameters(), 1e-4), STR(0.7, end=6, every=1, max_rate=0.9))
    for t in range(6):
        attached.optimizer.zero_grad()
        model(torch.ones(2, 12)).square().sum().backward()
        attached.optimizer.step()
        zeros = int((model.get_parameter(name) == 0 if t < 5 else ~attached.keeps[name]).sum())
        assert zeros <= int(0.9 * 1152) and (zeros > 0.89 * 1152 or not t)
    assert attached.zeros == round(0.7 * attached.numel)


def test_training_that_ends_early_says_how_many_weights_are_zero():
    attached = begun()
    for _ in train(attached, 5):
        pass
    zeros = attached.method.zeros_now(attached)
    share = 100 * zeros / attached.numel
    assert 40 < share < 65
    with pytest.warns(UserWarning, match=rf"{share:.0f}% of the weights are zero, not the 70% asked for"):
        model = attached.detach()
    assert sum(int((p == 0).sum()) for p in model.parameters()) >= zeros


def test_wrong_options():
    assert STR(0.5, begin=10, end=210).lr == 1 / 200
    with pytest.raises(InputError, match="learning rate of 0 or more"):
        STR(0.5, end=5, lr=-0.1)
    with pytest.raises(InputError, match="0 <= begin < end"):
        STR(0.5, end=5, begin=5)


def test_sharded_weights_are_refused(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = classifier()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with pytest.raises(InputError, match=r"weight is sharded.*DistributedDataParallel, or take Gradual"):
            attach(model, optimizer, STR(0.5, end=5))
    finally:
        dist.destroy_process_group()
