"""Time of a training step under masks over the time of the same step without them.

    python -m benchmarks.overhead.attach [--runs 15] [--sparsity 0.9] [--batch 32]

``winnow.train.attach`` masks gradients as they are accumulated and weights after the optimizer's step. Two equal models,
one attached, take steps in turn on the same batch: forward, backward, clip norm, optimizer. MiniLM (weights of the data
folder, 64 tokens a row), a ViT as small as those for CIFAR-10 (32 x 32 pixels) and an MLP, whose few multiplications a
weight make it the hardest case. Medians of the runs; the ratio is the median of the paired ratios. New masks are
timed too: the global magnitude ranking that chooses them, and ``Attached.set``.

``--optimizer adamw`` is AdamW without ``fused=True``. Torch takes its square roots with MKL, which is several times slower at
zeros than elsewhere (2.5 against 0.4 ns an element on an AMD EPYC): whoever keeps second moments at zero pays for it there.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks import common


def minilm(batch: int) -> tuple[Any, Callable[[Any], Any]]:
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(common.data("minilm-l6"), dtype=torch.float32)  # stored as halves
    ids = torch.randint(1000, 30000, (batch, 64))
    return model, lambda m: m(input_ids=ids).last_hidden_state[:, 0].square().mean()


def vit(batch: int) -> tuple[Any, Callable[[Any], Any]]:
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=32, patch_size=4, hidden_size=192, intermediate_size=384, num_hidden_layers=6, num_attention_heads=3,
        num_labels=10,
    )  # fmt: skip
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    return ViTForImageClassification(config), lambda m: m(pixel_values=x, labels=y).loss


def mlp(batch: int) -> tuple[Any, Callable[[Any], Any]]:
    from itertools import pairwise

    import torch
    from torch import nn

    sizes = [784, 1024, 1024, 10]
    layers = [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), nn.ReLU())]
    x, y = torch.randn(batch, 784), torch.randint(10, (batch,))
    return nn.Sequential(*layers[:-1]), lambda m: nn.functional.cross_entropy(m(x), y)


def resnet20(batch: int) -> tuple[Any, Callable[[Any], Any]]:
    """Of the data folder, newly initialised: 32 x 32 pixels, 0.27 M weights."""
    import runpy

    import torch
    from torch import nn

    model = runpy.run_path(str(common.data("resnet-cifar10", "model.py")))["CifarResNet"](3)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    return model, lambda m: nn.functional.cross_entropy(m(x), y)


MODELS = {"minilm": minilm, "vit": vit, "mlp": mlp, "resnet20": resnet20}
OPTIMIZERS: dict[str, Callable[[Any], Callable[[Any], Any]]] = {
    "adamw": lambda torch: lambda p: torch.optim.AdamW(p, 1e-4),
    "adamw-fused": lambda torch: lambda p: torch.optim.AdamW(p, 1e-4, fused=True),
    "sgd": lambda torch: lambda p: torch.optim.SGD(p, 1e-4, momentum=0.9),
}


def stepper(
    model: Any,
    loss: Callable[[Any], Any],
    optimizer: str = "adamw",
    clock: Callable[[], float] = time.perf_counter,
    updates: list[float] | None = None,
) -> tuple[Any, Callable[[], float]]:
    """An optimizer for the model, and one training step that says how long it took; the optimizer's part of it, with the
    hooks around it, goes to ``updates``."""
    import torch

    made = OPTIMIZERS[optimizer](torch)(model.parameters())

    def step() -> float:
        started = clock()
        made.zero_grad()
        loss(model).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        backward = clock()
        made.step()
        ended = clock()
        if updates is not None:
            updates.append(ended - backward)
        return ended - started

    return made, step


def measure(name: str, batch: int, sparsity: float, runs: int, optimizer: str) -> dict[str, Any]:
    import torch

    from winnow.masks.global_ranking import global_magnitude
    from winnow.train import Fixed, attach

    torch.manual_seed(0)
    model, loss = MODELS[name](batch)
    masked = copy.deepcopy(model)
    (_, plain_step), (made, masked_step) = stepper(model, loss, optimizer), stepper(masked, loss, optimizer)
    attached = attach(masked, made, Fixed())
    ranking = time.perf_counter()
    keeps = global_magnitude(attached.matrices(), attached.keeps, round(sparsity * attached.numel))
    setting = time.perf_counter()
    attached.set(keeps)
    done = time.perf_counter()
    for step in (plain_step, masked_step):
        step()  # the first one makes the optimizer's state
    seconds = common.alternate({"with": masked_step, "without": plain_step}, runs, f"{name}, ")
    ratio = statistics.median(a / b for a, b in zip(seconds["with"], seconds["without"]))
    print(f"{name}, {attached.numel:,} prunable weights, {attached.sparsity:.1%} gone, batch {batch}, {optimizer}")
    for key, values in seconds.items():
        print(f"  step {key:8} {common.spread(values)}")
    print(f"  with / without: {ratio:.3f} (of the fastest: {min(seconds['with']) / min(seconds['without']):.3f})")
    print(f"  new masks: ranking {setting - ranking:.3f} s, set {done - setting:.3f} s", flush=True)
    return {"seconds": seconds, "ratio": ratio, "ranking": setting - ranking, "set": done - setting}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["minilm", "vit", "mlp"])
    parser.add_argument("--runs", type=int, default=15, help="steps of each contender (default 15)")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=32, help="examples a step (default 32)")
    parser.add_argument("--optimizer", choices=list(OPTIMIZERS), default="adamw-fused", help="default: the Trainer's")
    args = common.arguments(parser)
    figures: dict[str, Any] = {"about": common.heading(threads=args.threads)}
    for name in args.models:
        figures[name] = measure(name, args.batch, args.sparsity, args.runs, args.optimizer)
    common.finish(figures, args.json)


if __name__ == "__main__":
    main()
