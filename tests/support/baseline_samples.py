"""A tiny labelled task, searches on it, and searches that are killed again and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from winnow.run.store import Store
from winnow.tickets.methods.registry import METHODS
from winnow.tickets.search import Search, Ticket
from winnow.train.examples import Examples
from winnow.train.task.training import Training

ISP = {"candidates": 2, "look_ahead": 1, "budget": 0.5}
# Small enough that a search is a few dozen steps.
QUICK: dict[str, dict[str, Any]] = {
    "synflow": {"iterations": 4},
    "progressive": {"step_points": 30.0},
    "gradual": {"every": 2},
    "earlybird": {"every": 1, "queue": 2, "tolerance": 0.02, "patience": 0.8},
    "imp": {"rate": 0.5},
    "imp-rewind": {"rate": 0.5, "rewind": 0.3},
    "lrr": {"rate": 0.5},
    "lottery-pool": {"rate": 0.5, "grid": (0.1, 0.5), "fine_tune": 0.3},
    "isp": ISP,
    "isp-plain": ISP,
    "isp-matched": ISP,
}


class Killed(Exception):
    pass


def network(batch_norm: bool = True) -> nn.Sequential:
    torch.manual_seed(2)
    norm = [nn.BatchNorm1d(12)] if batch_norm else []
    return nn.Sequential(nn.Linear(10, 12), *norm, nn.ReLU(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4))


def cross_entropy(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def task(model: nn.Module | None = None, *, steps: int = 6, rows: int = 60, size: int = 12, **more: Any) -> Training:
    """Rows of normal numbers; the label is the largest of the first four."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows, 10, generator=generator)
    model = model or network()
    x = x.to(next(model.parameters()).dtype)
    examples = Examples([(x, x[:, :4].argmax(1))], size)
    return Training(model, examples, cross_entropy, **{"steps": steps, "lr": 1e-2, **more})


def find(
    method: str,
    training: Training,
    sparsities: list[float],
    *,
    store: Store | None = None,
    progress: Callable[[str], Any] | None = None,
    **settings: Any,
) -> list[Ticket]:
    entry = METHODS[method]
    given = entry.settings_class(**{**QUICK.get(method, {}), **settings})
    return list(entry.finder(Search(method, training, sparsities, given, store, progress=progress)))


def killed_again_and_again(
    method: str, training: Training, sparsities: list[float], store: Store, after: int
) -> list[Ticket]:
    """The tickets of a search that dies after every ``after`` steps and is started anew, in a new process as it were."""
    deaths = 0
    while True:
        left = [after]

        def progress(step: int, total: int, text: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        try:
            found = find(method, training, sparsities, store=store, progress=lambda label: progress)
        except Killed:
            deaths += 1
            assert deaths < 200, "no attempt gets further than the one before"
        else:
            assert deaths, "it was never killed"
            return found


def same(first: list[Ticket], second: list[Ticket]) -> None:
    """Equal to the bit, all but the time."""
    assert len(first) == len(second)
    for a, b in zip(first, second):
        assert (a.method, a.sparsity, a.zeros, a.notes) == (b.method, b.sparsity, b.zeros, b.notes)
        assert dict(a.masks) == dict(b.masks)
        mine, theirs = a.model.state_dict(), b.model.state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[n], theirs[n]) for n in mine)
        assert [asdict(r) for r in a.history] == [asdict(r) for r in b.history]
        costs = [{k: v for k, v in vars(t.cost).items() if k != "seconds"} for t in (a, b)]
        assert costs[0] == costs[1]
