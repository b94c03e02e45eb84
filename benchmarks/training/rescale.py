"""Does a random mask need a rescaled initialisation? Small networks on scikit-learn's digits, with and without.

    python benchmarks/training/rescale.py --models mlp cnn cnn-batch-norm transformer --seeds 5

Two hundred steps of 64 of 1,300 digits, cosine schedule; accuracy on the other 497 after the last step, mean and standard
error over seeds, and of the paired difference. A seed is initialisation, mask and order of the data.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from winnow.train import RandomMasks, attach

STEPS, BATCH, TRAIN = 200, 64, 1300


class Transformer(nn.Module):
    """Eight rows of eight pixels as tokens; three blocks with layer norms before attention and MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Linear(8, 64), nn.Parameter(torch.randn(8, 64) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(64, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True) for _ in range(3)
        )
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x[:, 0]) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def mlp() -> nn.Module:
    layers = [part for a, b in itertools.pairwise((64, 128, 128, 128)) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(128, 10))


def cnn(batch_norm: bool = False) -> nn.Module:
    """Five convolutions; without batch norms initialised as He et al. do, since from torch's own default SGD does not train it even dense."""
    layers: list[nn.Module] = []
    width = 1
    for out, stride in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        layers += [nn.Conv2d(width, out, 3, stride, 1, bias=not batch_norm)]
        layers += [nn.BatchNorm2d(out), nn.ReLU()] if batch_norm else [nn.ReLU()]
        width = out
    made = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    for module in () if batch_norm else made:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return made


MODELS = {"mlp": mlp, "cnn": cnn, "cnn-batch-norm": lambda: cnn(True), "transformer": Transformer}
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=5e-4),
    "Adam": lambda p: torch.optim.Adam(p, 2e-3),
}


def accuracy(model: str, optimizer: str, sparsity: float, rescale: bool, seed: int) -> float:
    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x.reshape(-1, 1, 8, 8) / 16, dtype=torch.float32)
    x, y = (x - x.mean()) / x.std(), torch.tensor(y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:TRAIN], order[TRAIN:]
    torch.manual_seed(seed)
    network = MODELS[model]()
    stepper = OPTIMIZERS[optimizer](network.parameters())
    attach(network, stepper, RandomMasks(sparsity, seed=seed, rescale=rescale))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(stepper, STEPS)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        rows = train[torch.randint(TRAIN, (BATCH,), generator=draw)]
        stepper.zero_grad()
        F.cross_entropy(network(x[rows]), y[rows]).backward()
        stepper.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        return 100 * float((network(x[test]).argmax(1) == y[test]).float().mean())


def shown(values: np.ndarray) -> str:
    return f"{values.mean():.1f} ± {values.std(ddof=1) / len(values) ** 0.5:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.9, 0.95, 0.98])
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | optimizer | sparsity | as initialised | rescaled | difference |\n|---|---|---|---|---|---|")
    for cell in itertools.product(given.models, given.optimizers, given.sparsities):
        one, other = (np.array([accuracy(*cell, r, s) for s in range(given.seeds)]) for r in (False, True))
        model, optimizer, sparsity = cell
        print(
            f"| {model} | {optimizer} | {sparsity:.0%} | {shown(one)} | {shown(other)} | {shown(other - one)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
