"""Built-in real data for a first run without any download: scikit-learn's handwritten digits and a small ViT."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from winnow.disk.files import atomic_file
from winnow.errors import InputError, disk_errors
from winnow.seeding import torch_seed

Images = tuple[np.ndarray, np.ndarray]  # float32 [n, 1, 8, 8] in 0..1, int64 [n] in 0..9

SIZES = {"train": 1097, "calibration": 200, "test": 500}  # all 1,797 images
EPOCHS = 8
BATCH = 32


class DigitsBlock(nn.Module):
    """One pre-norm transformer block: [B, T, D] -> [B, T, D]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x_BTD)
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        x_BTD = x_BTD + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x_BTD + self.fc2(F.gelu(self.fc1(self.norm2(x_BTD))))


class DigitsViT(nn.Module):
    """A vision transformer for 8x8 digits: 16 patches of 2x2 pixels, mean over patches, 10 classes.

    ``forward(images [B, 1, 8, 8]) -> logits [B, 10]``.
    """

    def __init__(self, dim: int = 96, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, kernel_size=2, stride=2)
        # As large as a patch's own embedding: with the usual 0.02 the mean over patches hides where a stroke is.
        self.position = nn.Parameter(torch.randn(1, 16, dim) * 0.5)
        self.blocks = nn.ModuleList(DigitsBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x_BTD = self.patches(images).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(self.norm(x_BTD).mean(1))


class DigitsMLP(nn.Module):
    """64-96-96-10 with ReLU, on 8x8 digits: ``forward(images [B, 1, 8, 8]) -> logits [B, 10]``."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, 10)
        for layer in (self.fc1, self.fc2, self.head):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.fc2(F.relu(self.fc1(images.flatten(1))))))


def digits_mlp() -> DigitsMLP:
    """An untrained :class:`DigitsMLP`, for trainings from scratch."""
    return DigitsMLP()


def digits_vit() -> DigitsViT:
    """The untrained demo model, for ``winnow.demo_data:digits_vit`` with ``--weights``."""
    return DigitsViT()


class DigitsCNN(nn.Module):
    """Three convolutions with batch norms for 8x8 digits, to be trained from scratch.

    ``forward(images [B, 1, 8, 8]) -> logits [B, 10]``.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = [1, width, 2 * width, 2 * width]
        self.body = nn.Sequential(
            *(
                layer
                for i, o in pairwise(widths)
                for layer in (nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2))
            )
        )
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images).flatten(1))


def digits_cnn() -> DigitsCNN:
    """An untrained :class:`DigitsCNN`: the model of ``recipes/sparse-cnn.yaml``."""
    return DigitsCNN()


def digits_train() -> Images:
    """The 1,097 images of :func:`digits` to train on, for recipes: ``data: winnow.demo_data:digits_train``."""
    return digits()["train"]


def digits_test() -> Images:
    """The 500 images of :func:`digits` to test on."""
    return digits()["test"]


def digits(seed: int = 0) -> dict[str, Images]:
    """The 1,797 digits as disjoint ``train`` (1,097), ``calibration`` (200) and ``test`` (500), fixed by ``seed``."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images / 16).astype(np.float32)[:, None]
    labels = bunch.target.astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(labels))
    parts = np.split(order, np.cumsum(list(SIZES.values()))[:-1])
    return {name: (images[part], labels[part]) for name, part in zip(SIZES, parts)}


def train_digits(
    seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> tuple[DigitsViT, dict[str, Images]]:
    """Train a :class:`DigitsViT` from scratch in a few seconds; the same ``seed`` gives the same model.

    ``progress(done, total)`` is called after each pass over the training images. Returns the model in eval
    mode and the data of :func:`digits`, of which only ``train`` was used. The global random state is left as it was.
    """
    records = digits(seed)
    images, labels = (torch.from_numpy(a) for a in records["train"])
    with torch_seed(seed):
        model = DigitsViT()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.05)
        steps = EPOCHS * (len(labels) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.15, cycle_momentum=False
        )
        for epoch in range(EPOCHS):
            order = torch.randperm(len(labels))
            for i in range(len(labels) // BATCH):
                index = order[i * BATCH : (i + 1) * BATCH]
                loss = F.cross_entropy(model(images[index]), labels[index], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            if progress is not None:
                progress(epoch + 1, EPOCHS)
    return model.eval(), records


class DigitsFiles(NamedTuple):
    """What :func:`save_digits` wrote."""

    weights: Path  # safetensors, state dict of digits_vit()
    train: Path  # npz with "images" and "labels", and so the other two
    calibration: Path
    test: Path


def save_digits(
    folder: str | Path,
    trained: tuple[DigitsViT, dict[str, Images]] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> DigitsFiles:
    """Write the demo model's weights and data, for ``winnow compress winnow.demo_data:digits_vit --weights ...``.

    ``trained`` is what :func:`train_digits` returned; without it the model is trained with ``seed``. Files of the
    same names are replaced, each only once its successor is complete.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder} ({error.strerror}): name one that can be written") from error
    model, records = trained or train_digits(seed, progress)
    files = DigitsFiles(*(folder / name for name in ("digits_vit.safetensors", *(f"{part}.npz" for part in SIZES))))
    for path in files:
        with disk_errors(path), atomic_file(path) as part:
            if path == files.weights:
                save_file(model.state_dict(), part, metadata={"format": "pt"})
            else:
                images, labels = records[path.stem]
                with open(part, "wb") as file:
                    np.savez_compressed(file, images=images, labels=labels)
    return files
