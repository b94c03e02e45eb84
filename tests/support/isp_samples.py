"""A tiny labelled task, models that learn it in some dozen steps, and searches on it."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from winnow.tickets.methods.isp.plan import IspSettings
from winnow.tickets.search import Search
from winnow.train.examples import Examples
from winnow.train.task import run as run_module
from winnow.train.task.training import Training


def rows(n: int = 160, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 10, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :4].argmax(1)


def mlp() -> nn.Module:
    """Two prunable matrices (12 x 10 and 12 x 12), batch norm and dropout."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(10, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4)
    )  # fmt: skip


def cross_entropy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def noisy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Augments with every generator there is."""
    x = batch[0] + 0.01 * torch.randn_like(batch[0]) + 0.01 * random.random() + 0.01 * float(np.random.rand())
    return F.cross_entropy(model(x), batch[1])


def sgd(parameters, lr, weight_decay):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay)


def training(model: nn.Module | None = None, *, steps: int = 24, size: int = 20, **options) -> Training:
    options = {"lr": 1e-2, "weight_decay": 0.01, **options}
    loss = options.pop("loss", cross_entropy)
    return Training(mlp() if model is None else model, Examples([rows()], size), loss, steps, **options)


def search(given: Training, method: str = "isp", sparsities=(0.6,), **options) -> Search:
    more = {name: options.pop(name) for name in ("store", "executor", "progress") if name in options}
    settings = IspSettings(**{"rate": 0.4, "candidates": 2, "look_ahead": 2, "budget": 0.5, **options})
    return Search(method, given, sparsities, settings, **more)


class Killed(Exception):
    pass


class Killer:
    """The n-th training step from now on (main or candidate, from 0) raises; later ones do not. Counts the steps taken."""

    def __init__(self, monkeypatch) -> None:
        self.at, self.taken, work = -1, 0, run_module.Run.one

        def one(run, *args, **options):
            if self.taken == self.at:
                self.at = -1
                raise Killed
            self.taken += 1
            return work(run, *args, **options)

        monkeypatch.setattr(run_module.Run, "one", one)

    def arm(self, at: int) -> None:
        self.at, self.taken = at, 0


def same_tickets(a, b) -> None:
    """Bit for bit: weights, buffers, masks, history and steps."""
    assert len(a) == len(b)
    for one, other in zip(a, b):
        ours, theirs = one.model.state_dict(), other.model.state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[n], theirs[n]) for n in ours)
        assert one.masks == other.masks and one.zeros == other.zeros
        assert one.history == other.history and one.notes == other.notes
        for name in ("main", "look_ahead", "extra", "weighted"):
            assert getattr(one.cost, name) == getattr(other.cost, name), name
