"""SR-STE against the paper's update written out, one group of weights at a time, in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from small import classifier, convnet, images, points
from winnow.errors import InputError
from winnow.masks.scope import find_scope
from winnow.train import HAM, SRSTE, SignIn, attach

X, Y = points()
X, Y = X.double(), torch.as_tensor(Y)
LR, MOMENTUM, WEIGHT_DECAY = 0.3, 0.9, 0.01


class Gpt(nn.Module):
    """A layer that stores its weight as [in, out], as GPT-2 does."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        torch.manual_seed(2)
        self.up, self.down, self.head = Conv1D(24, 12), Conv1D(12, 24), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.down(F.relu(self.up(x))))


def mask_of(weight: np.ndarray, n: int, m: int) -> np.ndarray:
    """The n largest of every m inputs of an output unit; ``weight`` is [out, inputs]."""
    keep = np.zeros_like(weight, dtype=bool)
    for row in range(len(weight)):
        for start in range(0, weight.shape[1], m):
            group = np.abs(weight[row, start : start + m])
            keep[row, start + np.argsort(-group, kind="stable")[:n]] = True
    return keep


def stored_mask(weight: torch.Tensor, n: int, m: int, transposed: bool) -> torch.Tensor:
    matrix = weight.detach().numpy()
    matrix = matrix.T if transposed else matrix.reshape(len(matrix), -1)
    keep = mask_of(matrix, n, m)
    return torch.from_numpy((keep.T if transposed else keep).reshape(weight.shape).copy())


def data(kind: str, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = slice(8 * step, 8 * step + 8)
    if kind != "convolutions":
        return X[rows], Y[rows]
    x, y = images()
    return x[rows].double(), torch.as_tensor(y[rows])


@pytest.mark.parametrize(
    "kind, n, m", [("linear", 2, 4), ("convolutions", 1, 4), pytest.param("transposed", 1, 3, marks=pytest.mark.hf)]
)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_papers_update(kind, n, m, decay):
    """W <- W - lr v, v the momentum of dL/d(M W) + decay (1 - M) W + weight decay W, M of the W of every step."""
    model = {"linear": classifier, "convolutions": convnet, "transposed": Gpt}[kind]().double().eval()
    exclude = ["conv1.weight"] if kind == "convolutions" else []  # nine inputs
    names = list(find_scope(model, exclude=exclude).prunables)
    assert len(names) >= 1 and not any("head" in name for name in names)
    twin = copy.deepcopy(model)
    dense = {name: p.detach().clone() for name, p in twin.named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in dense.items()}
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    attached = attach(model, optimizer, SRSTE(f"{n}:{m}", decay=decay), exclude=exclude)
    moved = 0
    for step in range(8):
        x, y = data(kind, step)
        masks = {name: stored_mask(dense[name], n, m, kind == "transposed") for name in names}
        leaves = {name: (w * masks[name] if name in masks else w).requires_grad_() for name, w in dense.items()}
        for name in names:
            keep = attached.scope.prunables[name].restore(attached.keeps[name])
            assert torch.equal(keep, masks[name]), (step, name)
            torch.testing.assert_close(model.get_parameter(name), leaves[name], rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(
                attached.factors.tensors[name].detach()[0], dense[name].detach(), rtol=1e-9, atol=1e-12
            )
            assert not model.get_parameter(name)[~keep].count_nonzero()
        loss = F.cross_entropy(functional_call(twin, leaves, (x,)), y)
        for (name, w), gradient in zip(dense.items(), torch.autograd.grad(loss, list(leaves.values()))):
            w = w.detach()
            if name in masks:
                gradient = gradient + decay * (w * ~masks[name])
            velocity[name] = MOMENTUM * velocity[name] + gradient + WEIGHT_DECAY * w
            dense[name] = w - LR * velocity[name]
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        moved += sum(int((stored_mask(dense[name], n, m, kind == "transposed") != masks[name]).sum()) for name in names)
    assert moved > 0  # masks have changed on the way
    plain = attached.detach()
    for name in names:
        weight = plain.get_parameter(name).detach()
        matrix = weight.T if kind == "transposed" else weight.reshape(len(weight), -1)
        groups = (matrix.reshape(len(matrix), -1, m) != 0).sum(2)
        assert bool((groups == n).all())
    assert attached.zeros == attached.numel // m * (m - n)


def test_weights_that_the_loop_writes_are_projected_and_optimizers_may_write_data():
    class Data(torch.optim.SGD):  # writes as older optimizers do, which autograd does not count
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.data.add_(p.grad.data, alpha=-0.5)

    model = classifier().double()
    attached = attach(model, Data(model.parameters(), 0.5), SRSTE("2:4"))
    name = next(iter(attached.weights))
    for step in range(3):
        attached.optimizer.zero_grad()
        F.cross_entropy(model(X[32 * step : 32 * step + 32]), Y[32 * step : 32 * step + 32]).backward()
        attached.optimizer.step()
        dense = attached.factors.tensors[name].detach()[0]
        assert torch.equal(attached.keeps[name], stored_mask(dense, 2, 4, False))
        assert torch.equal(model.get_parameter(name), dense * attached.keeps[name])
    fresh = classifier().double().state_dict()
    model.load_state_dict(fresh)
    attached.enforce()
    assert torch.equal(model.get_parameter(name), fresh[name] * stored_mask(fresh[name], 2, 4, False))


def test_bad_input():
    for structure, words in (
        ("unstructured", "give n:m"),
        ("4:2", "0 < n < m"),
        ("block:1x4", "give n:m"),
        (2, "use unstructured, n:m"),
    ):
        with pytest.raises(InputError, match=words):
            SRSTE(structure)
    with pytest.raises(InputError, match="2e-4 as in the paper"):
        SRSTE("2:4", decay=-1.0)
    model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(InputError, match=r"2:4 needs a multiple of 4 inputs, which 0\.weight of 8 x 10 does not have"):
        attach(model, optimizer, SRSTE("2:4"))
    with pytest.raises(InputError, match="both say how weights are trained"):
        attach(model, optimizer, SignIn(SRSTE("2:4"), every=2), exclude=["0.weight"])
    with pytest.raises(InputError, match="attach it alone"):
        attach(model, optimizer, HAM(SRSTE("2:4")), exclude=["0.weight"])
    assert all(torch.equal(p, before.get_parameter(n)) for n, p in model.named_parameters())
    attach(model, optimizer, SRSTE("2:4"), exclude=["0.weight"]).detach()
