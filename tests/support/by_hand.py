"""Training under masks written by hand: numpy in float64, one array a parameter, nothing of winnow's training in it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from small import points

Arrays = dict[str, np.ndarray]
X, Y = points()
X, Y = X.double(), torch.as_tensor(Y)


def loss(model: Any, number: int) -> torch.Tensor:
    """Of the mini-batch of a step."""
    rows = slice(32 * number, 32 * number + 32)
    return F.cross_entropy(model(X[rows]), Y[rows])


def train(attached: Any, steps: int, first: int = 0) -> Iterator[int]:
    """Steps of an attached float64 model; yields how many there have been, after each."""
    for number in range(first, first + steps):
        attached.optimizer.zero_grad()
        loss(attached.model, number).backward()
        attached.optimizer.step()
        yield number + 1


class ByHand:
    """SGD with momentum on arrays, which stand in the model's place where its loss is differentiated."""

    def __init__(self, model: nn.Module, lr: float, momentum: float = 0.9, decay: float = 0.0) -> None:
        self.model, self.lr, self.momentum, self.decay = copy.deepcopy(model), lr, momentum, decay
        self.weights: Arrays = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
        self.first: Arrays = {n: w.copy() for n, w in self.weights.items()}
        self.velocity: Arrays = {n: np.zeros_like(w) for n, w in self.weights.items()}

    def gradients(self, number: int) -> Arrays:
        weights = {n: torch.tensor(w, requires_grad=True) for n, w in self.weights.items()}
        loss(lambda x: functional_call(self.model, weights, (x,)), number).backward()
        return {n: w.grad.numpy() for n, w in weights.items()}

    def descend(self, name: str, gradient: np.ndarray, of: Arrays | None = None) -> None:
        """One step of one array: a weight, or another number in ``of``, under the same name."""
        arrays = self.weights if of is None else of
        self.velocity[name] = self.momentum * self.velocity[name] + gradient + self.decay * arrays[name]
        arrays[name] = arrays[name] - self.lr * self.velocity[name]

    def require_same(self, model: nn.Module, rtol: float = 1e-9, atol: float = 1e-11) -> None:
        for name, weight in self.weights.items():
            found = model.get_parameter(name).detach().numpy()
            np.testing.assert_allclose(found, weight, rtol=rtol, atol=atol, err_msg=name)

    def require_trained(self) -> None:
        for name, weight in self.weights.items():
            assert np.abs(weight - self.first[name]).max() > 1e-3, f"{name} was not trained"


def lowest(scores: Arrays, count: int) -> Arrays:
    """True at the ``count`` lowest of all arrays together, by sorting a list of all entries."""
    entries = sorted((value, name, place) for name, s in scores.items() for place, value in enumerate(s.ravel()))
    found = {n: np.zeros(s.size, bool) for n, s in scores.items()}
    for _, name, place in entries[:count]:
        found[name][place] = True
    return {n: f.reshape(scores[n].shape) for n, f in found.items()}
