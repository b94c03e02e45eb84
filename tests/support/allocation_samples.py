"""Made-up allocation records of realistic shape, for the tests of the page: none of these figures was measured."""

from __future__ import annotations

import math

from winnow.compression.earlier import compare
from winnow.records.allocation import AllocationLayer, AllocationRecord, Stability, StepTime
from winnow.train.distil.fit import downsample


def layer(
    name: str, numel: int, kept: float, index: int, seeds: int = 0, began: float | None = None
) -> AllocationLayer:
    """A layer that keeps this share of its weights."""
    zeros = round(numel * (1 - kept))
    rate = zeros / numel
    rates = [rate, *(min(1.0, max(0.0, rate + 0.25 * kept * math.sin(7 * index + 3 * s))) for s in range(1, seeds))]
    return AllocationLayer(
        name=name, numel=numel, rate=rate, raw_rate=min(1.0, rate + 0.002 * math.cos(index)),
        start_rate=1 - min(1.0, kept * (1.3 + 0.5 * math.sin(2.1 * index))) if began is None else began,
        threshold=0.02 + 0.01 * math.sin(index) ** 2, sensitivity=0.0004 * math.exp(2 * math.sin(1.7 * index)),
        drift=0.21 + 0.1 * math.cos(index), rates=rates if seeds else [],
    )  # fmt: skip


def fair(shapes: list[tuple[str, int]], kept: list[float], target: float) -> list[float]:
    """The shares kept, scaled until they keep what the target leaves."""
    for _ in range(50):
        now = sum(n * k for (_, n), k in zip(shapes, kept, strict=True)) / sum(n for _, n in shapes)
        kept = [min(0.95, k * (1 - target) / now) for k in kept]
    return kept


def record(layers: list[AllocationLayer], target: float, **more: object) -> AllocationRecord:
    numel = sum(x.numel for x in layers)
    zeros = sum(round(x.rate * x.numel) for x in layers)
    steps = int(more.pop("steps", 600))  # type: ignore[call-overload]
    noise = [0.35 * math.exp(-i / (steps / 4)) * (1.15 + 0.3 * math.sin(12.9 * i)) + 0.02 for i in range(steps)]
    values = {
        "method": "fcpts", "start": "erk", "structure": "unstructured", "target": target, "zeros": zeros,
        "numel": numel, "total_parameters": round(numel * 1.006), "raw_rate": min(1.0, zeros / numel + 0.0013),
        "exact_rate": zeros / numel, "exact_rate_all": zeros / round(numel * 1.006), "layers": layers,
        "losses": downsample(noise), "steps": steps, "seconds": 123.4,
        "step_time": StepTime(teacher=0.0021, forward=0.071, backward=0.118, bridge=0.0082, update=0.0061),
        "settings": {"lr": 0.01, "threshold_lr": 0.01, "penalty": 10.0, "bridge": "histogram", "bandwidth": None},
    }  # fmt: skip
    return AllocationRecord.model_validate({**values, **more})


def resnet(seeds: int = 3) -> AllocationRecord:
    """Twenty layers of a convolutional network at 95%, three seeds, beside an earlier run."""
    shapes = [("conv1", 432)]
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for i in range(3):
            before = width // 2 if i == 0 and stage > 1 else width
            shapes += [(f"layer{stage}.{i}.conv1", width * before * 9), (f"layer{stage}.{i}.conv2", width * width * 9)]
    shapes.append(("fc", 640))
    kept = [0.5, *(0.34 * math.exp(-0.17 * i) * (1 + 0.3 * math.cos(3 * i)) + 0.012 for i in range(18)), 0.31]
    kept = fair(shapes, kept, 0.95)
    layers = [layer(f"{n}.weight", m, k, i, seeds) for i, ((n, m), k) in enumerate(zip(shapes, kept, strict=True))]
    result = record(
        layers, 0.95,
        stability=Stability(seeds=list(range(seeds)), spread=0.032, correlation=0.91) if seeds else None,
        warnings=["The calibration set has 200 images: below 256 the learned rates scatter; give more with --samples 1024."],
    )  # fmt: skip
    before = [
        x.model_copy(update={"rate": min(1.0, max(0.0, x.rate - 0.02 + 0.05 * math.sin(5 * i)))})
        for i, x in enumerate(layers)
    ]
    result.comparison = compare(result, result.model_copy(update={"layers": before}), "runs/resnet20-0.94")
    return result


def encoder() -> AllocationRecord:
    """Thirty-six matrices of a small text encoder at 60%; one run, nothing to compare with."""
    parts = [("attention.self.query", 147_456), ("attention.self.key", 147_456), ("attention.self.value", 147_456)]
    parts += [("attention.output.dense", 147_456), ("intermediate.dense", 589_824), ("output.dense", 589_824)]
    shapes = [(f"bert.encoder.layer.{i // 6}.{parts[i % 6][0]}.weight", parts[i % 6][1]) for i in range(36)]
    kept = fair(shapes, [0.4 + 0.13 * math.sin(1.3 * (i % 6)) - 0.02 * (i // 6 - 2.5) for i in range(36)], 0.6)
    layers = [layer(n, m, k, i, began=0.6) for i, ((n, m), k) in enumerate(zip(shapes, kept, strict=True))]
    return record(layers, 0.6, start="uniform", steps=150, total_parameters=22_700_000)


def decoder(blocks: int = 32) -> AllocationRecord:
    """Seven matrices in each of 32 blocks of a language model, at 50%."""
    parts = [
        ("self_attn.q_proj", 16.8),
        ("self_attn.k_proj", 4.2),
        ("self_attn.v_proj", 4.2),
        ("self_attn.o_proj", 16.8),
    ]
    parts += [("mlp.gate_proj", 58.7), ("mlp.up_proj", 58.7), ("mlp.down_proj", 58.7)]
    shapes, kept = [], []
    for i in range(7 * blocks):
        name, millions = parts[i % 7]
        depth = (i // 7) / max(1, blocks - 1)
        shapes.append((f"model.layers.{i // 7}.{name}.weight", int(millions * 1e6)))
        kept.append(0.5 + 0.09 * math.sin(1.1 * (i % 7)) + 0.22 * (0.5 - depth) + 0.03 * math.sin(i))
    kept = fair(shapes, kept, 0.5)
    layers = [layer(n, m, k, i, began=0.5) for i, ((n, m), k) in enumerate(zip(shapes, kept, strict=True))]
    return record(layers, 0.5, start="uniform", steps=2000, seconds=21_400.0)
