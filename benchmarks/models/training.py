"""What the models of the benchmarks are trained on, and how: data sets of the data folder, and one training loop."""

from __future__ import annotations

import csv
import gzip
import json
import math
import runpy
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.common import DATA

SEED = 0
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SOURCE_CLASSES = range(5)  # what vit-source knows; three animals and two vehicles, as among the other five
TOKENS = 48  # longest phrase of SST-2 that MiniLM reads


def cifar10(split: str, classes: range = range(10)) -> tuple[torch.Tensor, torch.Tensor]:
    """The JPEG CIFAR-10 set, ``split`` "train" (50,000) or "test" (10,000): uint8 [n, 3, 32, 32], int64 [n].

    Of ``classes`` only, numbered from 0.
    """
    images, labels = runpy.run_path(str(DATA / "cifar10" / "load.py"))["jpeg"](split)
    kept = (labels >= classes.start) & (labels < classes.stop)
    images, labels = images[kept], labels[kept] - classes.start
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.astype(np.int64))


def sst2(split: str) -> tuple[list[str], torch.Tensor]:
    """SST-2, ``split`` "train_a", "train_b" or "validation" (872 sentences): texts and int64 labels, 1 = positive."""
    with gzip.open(DATA / "sst2" / f"{split}.tsv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row["sentence"].strip() for row in rows], torch.tensor([int(row["label"]) for row in rows])


def shakespeare() -> tuple[torch.Tensor, int]:
    """The whole text, a number a character (chargpt's numbers), int64 [n], and how many characters there are."""
    found = json.loads((DATA / "chargpt-shakespeare" / "chars.json").read_text(encoding="utf-8"))
    number = {char: i for i, char in enumerate(found)}
    with gzip.open(DATA / "tinyshakespeare" / "input.txt.gz", "rt", encoding="utf-8", newline="") as file:
        text = file.read()
    return torch.tensor([number[char] for char in text]), len(number)


def normalize(images_u8: torch.Tensor) -> torch.Tensor:
    """uint8 [n, 3, 32, 32] as the image transformers want it: float32, zero mean and unit deviation per channel."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (CIFAR_MEAN, CIFAR_STD))
    return (images_u8.float() / 255 - mean) / std


def augment(images: torch.Tensor, size: int, zoom: float, generator: torch.Generator) -> torch.Tensor:
    """Random flip, shift (up to 4 of 32 pixels) and zoom (side of the window 1 - ``zoom`` to 1), to ``size`` pixels."""
    n = len(images)
    side = 1 - zoom * torch.rand(n, generator=generator)
    room = (1 - side).clamp_min(0.25)  # in half image widths: 0.25 is 4 pixels of padding on each side
    shift = (2 * torch.rand(n, 2, generator=generator) - 1) * room[:, None]
    flip = 1 - 2 * torch.randint(2, (n,), generator=generator)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = side * flip, side, shift
    grid = F.affine_grid(theta, [n, 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def optimize(
    model: torch.nn.Module,
    optimizers: list[torch.optim.Optimizer],
    steps: int,
    batch_loss: Callable[[int], torch.Tensor],
) -> None:
    """``steps`` updates under bf16 autocast; learning rates rise over the first 6%, then fall as a cosine to zero."""
    ramp = max(1, round(0.06 * steps))

    def factor(step: int) -> float:
        fall = (step - ramp) / max(1, steps - ramp)
        return (step + 1) / ramp if step < ramp else 0.5 * (1 + math.cos(math.pi * fall))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]
    model.train()
    start, mean = time.time(), 0.0
    for step in range(steps):
        with torch.autocast("cpu", torch.bfloat16):
            loss = batch_loss(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        mean = loss.item() if step == 0 else mean + 0.02 * (loss.item() - mean)
        if step % 100 == 0 or step + 1 == steps:
            left = (time.time() - start) / (step + 1) * (steps - step - 1)
            print(f"step {step + 1}/{steps}  loss {mean:.3f}  {left / 60:.1f} min left", file=sys.stderr, flush=True)
    model.eval()
