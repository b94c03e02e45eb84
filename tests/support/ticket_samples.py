"""Made-up tickets of realistic shape, for the tests of the page: none of these figures was measured."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from winnow.masks.global_ranking import prune_globally
from winnow.masks.mask import MaskSet
from winnow.measure.classification import class_figures
from winnow.measure.evaluation import Evaluation
from winnow.measure.intervals import proportion_interval
from winnow.tickets.method import levels
from winnow.tickets.search import Round, Ticket, densities
from winnow.train.examples import Examples
from winnow.train.task.run import Cost
from winnow.train.task.training import Training

CLASSES = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
STEPS, TEST = 600, 2000


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(x)
        return x + self.down(F.relu(self.up(x)))


class Stack(nn.Module):
    """Repeated blocks of three matrices, and a head."""

    def __init__(self, blocks: int = 6, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Layer(width) for _ in range(blocks))
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def training(blocks: int = 6, steps: int = STEPS) -> Training:
    torch.manual_seed(3)
    x, y = torch.randn(64, 16), torch.randint(10, (64,))
    return Training(Stack(blocks), Examples([(x, y)], 8), lambda m, b: F.cross_entropy(m(b[0]), b[1]), steps)


def evaluation(accuracy: float, seed: int, dense: Evaluation | None = None) -> Evaluation:
    """A classifier right this often; where ``dense`` is given, wrong mostly where that one is."""
    truth = np.random.default_rng(0).integers(0, 10, TEST)
    rng = np.random.default_rng(seed)
    hardness = np.random.default_rng(1).random(TEST) + 0.25 * rng.random(TEST) + 0.1 * (truth == 3)
    wrong = np.argsort(-hardness)[: round((1 - accuracy) * TEST)]
    predictions = truth.copy()
    predictions[wrong] = (truth[wrong] + 1 + rng.integers(0, 8, len(wrong))) % 10
    right = (predictions == truth).astype(np.float64)
    low, high = proportion_interval(int(right.sum()), TEST)
    details = {"classes": CLASSES} | class_figures(truth, predictions, 10)
    return Evaluation("accuracy", float(right.mean()), low, high, right, predictions, TEST, truth, details)


LOSSES = {  # points lost at 50%, and how fast that grows
    "isp-matched": (0.2, 2.2), "isp": (0.3, 2.4), "isp-plain": (0.6, 2.4), "imp": (-0.1, 2.5), "imp-rewind": (-0.2, 2.6),
    "lrr": (-0.1, 2.3), "magnitude": (1.2, 3.0), "snip": (2.0, 3.0), "grasp": (3.0, 2.8), "synflow": (2.4, 3.1),
    "earlybird": (1.0, 2.8), "progressive": (0.9, 2.5), "gradual": (0.8, 2.4), "lottery-pool": (0.3, 2.6),
    "random": (9.0, 2.2),
}  # fmt: skip


def _cost(method: str, sparsity: float, seed: int) -> Cost:
    rounds, density = len(levels([sparsity], 0.2)), 1 - sparsity
    if method in ("imp", "imp-rewind", "lrr", "lottery-pool"):
        shares = [1.0, *(1 - s for s in levels([sparsity], 0.2))]
        return Cost(main=(rounds + 1) * STEPS, weighted=STEPS * sum(shares), seconds=3.1 * (rounds + 1))
    if method == "isp":
        ahead = len(levels([sparsity], 0.15)) * 25
        return Cost(STEPS, ahead, 0, STEPS * (0.2 + 0.8 * density) + 0.6 * ahead, 4.6)
    if method == "isp-matched":
        steps = STEPS + len(levels([sparsity], 0.15)) * 25
        return Cost(steps, 0, 0, steps * (0.2 + 0.8 * density), 4.4)
    if method in ("snip", "grasp", "synflow"):
        return Cost(STEPS, 0, 100 if method == "synflow" else 2, STEPS * density + 1, 3.2)
    if method == "earlybird":
        return Cost(STEPS + 60 + 5 * seed, 0, 0, 60 + STEPS * density, 3.6)
    return Cost(STEPS, 0, 0, STEPS * density, 3.1)


def _masks(method: str, owner: Training, sparsity: float, seed: int) -> tuple[MaskSet, list[Round]]:
    """Magnitudes with noise of the method's own; several rounds where it has several."""
    scope = owner.scope()
    own = torch.Generator().manual_seed(1000 * list([*LOSSES, "dense"]).index(method) + seed)
    noise = 3.0 if method == "random" else 0.25 if method == "imp" else 0.6
    scores = {}
    for i, (n, p) in enumerate(scope.prunables.items()):
        weight = p.matrix(owner.model.get_parameter(n).detach()).abs()
        depth = 1.0 if method == "random" else 1.2 - 0.35 * i / len(scope.prunables)
        level = 1 + (method != "random") * 0.25 * math.sin(i)
        scores[n] = depth * level * (weight / weight.mean() + noise * torch.randn(weight.shape, generator=own).abs())
    keeps = {n: torch.ones_like(s, dtype=torch.bool) for n, s in scores.items()}
    rate = 0.15 if method.startswith("isp") else 0.2
    several = method in ("imp", "imp-rewind", "lrr", "lottery-pool", "isp", "isp-plain", "isp-matched")
    path = [] if not sparsity else levels([sparsity], rate) if several else [sparsity]
    history = []
    for k, s in enumerate(path):
        zeros = round(s * scope.numel)
        keeps = prune_globally(scores, keeps, zeros, 1.0)  # as the papers do: one tensor is emptied
        soup = method == "isp"
        history.append(
            Round(
                k + 1, round(0.25 * STEPS * (k + 1) / len(path)) if method != "imp" else STEPS, zeros, (k + 1) * 40,
                0.021 + 0.004 * math.sin(k) if soup else None, 0.8 - 0.01 * k if soup else None, densities(keeps),
            )
        )  # fmt: skip
    return MaskSet(keeps), history


def ticket(
    method: str, sparsity: float, seed: int, owner: Training, measured: Evaluation | None, notes: tuple[str, ...] = ()
) -> Ticket:
    masks, history = _masks(method, owner, sparsity, seed)
    cost = Cost(STEPS, 0, 0, STEPS, 3.1) if method == "dense" else _cost(method, sparsity, seed)
    zeros = masks.zeros
    return Ticket(
        method, zeros / masks.numel, zeros, owner.model, masks, cost, history, measured, list(notes)
    )  # fmt: skip


def search(
    methods: tuple[str, ...], sparsities: tuple[float, ...], seeds: int = 1, blocks: int = 6
) -> tuple[list[Ticket], list[Evaluation], Training]:
    """Tickets, the dense evaluations by seed, and the training."""
    owner = training(blocks)
    dense = [evaluation(0.915 + 0.002 * math.sin(s), 50 + s) for s in range(seeds)]
    tickets = []
    for method in methods:
        for sparsity in sparsities:
            for seed in range(seeds):
                first, power = LOSSES[method]
                lost = first + abs(first + 0.8) * 6 * max(0.0, (sparsity - 0.5) / 0.4) ** power
                value = 0.915 - lost / 100 + 0.003 * math.sin(7 * seed + len(method))
                number = 100 * (1 + list(LOSSES).index(method)) + seed
                tickets.append(ticket(method, sparsity, seed, owner, evaluation(value, number)))
    return tickets, dense, owner
