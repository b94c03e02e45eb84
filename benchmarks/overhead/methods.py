"""Time and memory of a training step under every method, over those of plain masks and of no masks at all.

    python -m benchmarks.overhead.methods --threads 1 [--models resnet20 vit mlp] [--optimizers sgd adamw-fused]

Equal models, one for each method of ``winnow.train.methods``, take steps in turn on the same batch: forward, backward, clip norm,
optimizer. The reference is ``random``, a random ERK mask that stays. Times are seconds of the processor, which other programs on
the machine disturb less than those of a clock (of one thread; with more, waiting counts), medians of the runs; ratios are
medians of paired ratios. Forward and backward are the same for all and vary by several per cent on a busy machine, more than
what is looked for, so a second ratio takes them as equal: 1 + (update - update of ``random``) / step of ``random``, the
update being ``optimizer.step`` with all hooks around it. (Gradients are masked in the backward, by all alike.) A step that changes masks is rare and does not show in a median: it is timed on its own. Memory is
parameters, factors and optimizer state ("all": with masks and indices too) over those of ``random``, as ``Attached.cost`` counts them. A method that needs
more than a sparsity and steps is left out, which is said.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks import common
from benchmarks.overhead.attach import MODELS, OPTIMIZERS, stepper

NEVER = 10**6  # steps


def methods(sparsity: float) -> dict[str, Any]:
    """Every method at this sparsity from the second step on."""
    from winnow.train import RandomMasks, RigL, SignIn
    from winnow.train.methods import METHODS

    def random() -> RandomMasks:
        return RandomMasks(sparsity)

    given: dict[str, Any] = {"sparsity": sparsity, "end": NEVER, "every": 10}
    own = {"gradual": {"end": 1, "every": 1}, "sign-in": {"masks": random(), "every": NEVER, "end": None}}
    found: dict[str, Any] = {"random": random()}
    for name, made in METHODS.items():
        accepted = inspect.signature(made).parameters
        options = {n: v for n, v in {**given, **own.get(name, {})}.items() if n in accepted}
        needed = [
            n for n, p in accepted.items() if p.default is p.empty and n not in options and p.kind != p.VAR_KEYWORD
        ]
        if needed or name in ("random", "fixed"):  # fixed masks are what random ones are after the start
            if needed:
                print(f"{name} is left out: it needs {', '.join(needed)}")
            continue
        found[name] = made(**options)
    found["sign-in, rigl"] = SignIn(RigL(sparsity, end=NEVER, every=10), every=NEVER)
    return found


def measure(name: str, batch: int, sparsity: float, runs: int, optimizer: str) -> dict[str, Any]:
    import torch

    from winnow.train import attach

    torch.manual_seed(0)
    model, loss = MODELS[name](batch)
    contenders: dict[str, Callable[[], float]] = {}
    attached: dict[str, Any] = {}
    updates: dict[str, list[float]] = {}
    for key, method in {"unmasked": None, **methods(sparsity)}.items():
        own = copy.deepcopy(model)
        updates[key] = []
        made, contenders[key] = stepper(own, loss, optimizer, time.process_time, updates[key])
        if method is not None:
            attached[key] = attach(own, made, method)
    for _ in range(2):
        for step in contenders.values():
            step()  # the first ones make the optimizer's state
    seconds = common.alternate(contenders, runs, f"{name}, {optimizer}, ")
    updates = {key: values[-runs:] for key, values in updates.items()}
    costs = {key: a.cost() for key, a in attached.items()}
    reference, some = costs["random"], attached["random"]
    print(f"{name}, {some.numel:,} prunable weights, {some.sparsity:.1%} zero, batch {batch}, {optimizer}")
    figures: dict[str, Any] = {"seconds": seconds, "updates": updates, "batch": batch}
    plain, step = statistics.median(updates["random"]), statistics.median(seconds["random"])
    for key, values in seconds.items():
        ratios = [statistics.median(a / b for a, b in zip(values, seconds[k])) for k in ("random", "unmasked")]
        update = statistics.median(updates[key])
        bounded = 1 + (update - plain) / step
        line = f"  {key:14} {1e3 * statistics.median(values):.2f} ms ({1e3 * min(values):.2f} to {1e3 * max(values):.2f}), "
        line += (
            f"update {1e3 * update:.2f} ms; / random {bounded:.3f} by the update ({ratios[0]:.3f} by the whole step)"
        )
        line += f", / unmasked {ratios[1]:.3f}"
        figures[key] = {"over_random": ratios[0], "by_update": bounded, "over_unmasked": ratios[1], "update": update}
        if (cost := costs.get(key)) is not None:
            trained = (cost.parameters + cost.optimizer + cost.factors) / (reference.parameters + reference.optimizer)
            figures[key] |= {"memory": trained, "memory_all": cost.memory / reference.memory, "change": cost.change}
            line += f"; memory {trained:.2f} (all {cost.memory / reference.memory:.2f})"
            line += f"; change of masks {cost.change:.3f} s" if cost.change is not None else ""
        print(line)
    print(flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["resnet20", "vit", "mlp"])
    parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=["sgd", "adamw-fused"])
    parser.add_argument("--runs", type=int, default=9, help="steps of each contender (default 9)")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=64, help="examples a step (default 64)")
    args = common.arguments(parser)
    figures: dict[str, Any] = {"about": common.heading(threads=args.threads)}
    for name in args.models:
        for optimizer in args.optimizers:
            figures[f"{name}, {optimizer}"] = measure(name, args.batch, args.sparsity, args.runs, optimizer)
    common.finish(figures, args.json)


if __name__ == "__main__":
    main()
