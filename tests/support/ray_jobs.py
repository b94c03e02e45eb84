"""Jobs for the tests of executors: a module of the user's own, which no worker has installed."""

from __future__ import annotations

import copy
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from small import points
from winnow.errors import InputError
from winnow.run.store import Store
from winnow.tickets.methods.registry import METHODS
from winnow.tickets.search import Search, Ticket
from winnow.train.examples import Examples
from winnow.train.task.training import Training


class Net(nn.Module):
    """A classifier of the user's own, with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)
        self.tied = self.a.weight  # one tensor under two names must stay one

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.relu(self.norm(self.a(x))))


def training(steps: int = 30) -> Training:
    """A training whose loss and schedule are closures."""
    x, y = points(96)
    torch.manual_seed(2)
    smoothing = 0.1
    return Training(
        Net(),
        Examples([(x, torch.as_tensor(y))], 16),
        lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], label_smoothing=smoothing),
        steps=steps,
        lr=1e-2,
        schedule=lambda progress: 1 - progress / 2,
        include=("a.weight", "b.weight"),
    )


@dataclass(frozen=True)
class Whole:
    """A whole search as a job; ``store`` keeps its runs, ``kills`` its worker so often, each time after its first ticket."""

    method: str
    seed: int
    store: Path
    kills: int = 0


def search(shared: Training, item: Whole) -> list[Ticket]:
    entry = METHODS[item.method]
    given = Search(
        item.method, shared.replaced(seed=item.seed), (0.5, 0.8), entry.settings_class(), store=Store(item.store)
    )
    tickets = []
    for ticket in entry.finder(given):
        tickets.append(ticket)
        if tries(item.store / "killed") <= item.kills:
            die()
    return tickets


def product(shared: tuple[nn.Module, Any], item: torch.Tensor) -> tuple[torch.Tensor, str]:
    """A forward and backward pass, and who did it."""
    model, loss = copy.deepcopy(shared)  # gradients and batch norms are left on the copy
    loss(model.train()(item)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]), f"{os.getpid()} on {torch.get_num_threads()}"


def doubled(shared: Path | None, item: int) -> int:
    if shared is not None:
        tries(shared / str(item))
    return 2 * item


def variable(shared: str, item: int) -> str | None:
    return os.environ.get(shared)


def last_is_quick(shared: Path, item: int) -> int:
    """Item 0 waits until item 1 is about to end, and longer than that takes to be told."""
    if item == 0:
        wait_for(shared / "one")
        time.sleep(1)
    else:
        (shared / "one").touch()
    return item


def refuses(shared: Path, item: int) -> int:
    tries(shared / str(item))
    if item == 1:
        raise InputError("item 1 cannot be used: leave it out.")
    if item == 2:
        raise KeyError("item 2")
    return item


def dies(shared: Path, item: int) -> int:
    """Item 1 takes its worker down with it every time."""
    tries(shared / str(item))
    if item == 1:
        die()
    return item


def stays_until(shared: Path, item: int) -> tuple[int, torch.Tensor]:
    """Says that it has begun, and ends when it is let go."""
    tries(shared / f"begun-{item}")
    wait_for(shared / "go")
    return item, torch.randn(
        50_000, generator=torch.Generator().manual_seed(item)
    )  # too large to travel with the answer


def makes(shared: Net, item: int) -> tuple[Net, dict[str, Any]]:
    """Sends back a model, an array to write to, and a class that only the worker imported."""
    import ray_late

    return shared, {"array": torch.full((200_000,), float(item)).numpy(), "late": ray_late.Late(item)}


def tries(path: Path) -> int:
    """Counts up in a file: how often this was called, by any process."""
    with open(path, "ab") as file:
        file.write(b".")
    return path.stat().st_size


def wait_for(path: Path, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > until:
            raise TimeoutError(f"{path} never came")
        time.sleep(0.05)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
