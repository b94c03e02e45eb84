"""Two phases of the study that search nothing: how alike masks are, and what masks cost in a training step."""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks import common

Row = dict[str, Any]


def masks_row(cell: Any, folder: Path) -> Row:
    """Overlap of the kept weights of two test cells' tickets, by sparsity: cosine (and what chance gives), shared, IoU.

    ``cell.options``: the keys of the two cells, and their number of weights.
    """
    from winnow.masks.mask import MaskSet

    found = []
    for sparsity in cell.sparsities:
        zeros = round(sparsity * cell.options["numel"])
        first, second = (
            MaskSet.load(folder / f"{cell.options[side]}-{zeros}.safetensors") for side in ("of", "beside")
        )
        overlap = first.overlap(second)
        found.append({
            "sparsity": sparsity, "cosine": first.cosine(second).overall, "chance": 1 - zeros / cell.options["numel"],
            "iou": overlap.iou.overall, "hamming": first.hamming(second).overall / first.numel,
            "layers": {n: round(v, 4) for n, v in first.cosine(second).layers.items()},
        })  # fmt: skip
    return {"overlaps": found}


def overhead_row(cell: Any, training: Any) -> Row:
    """Processor milliseconds of a step without the hook, with it and no zeros, and with zeros; and look-ahead's memory.

    All contenders take the same batches, one after the other, in turn; ratios are paired step by step. Time is the
    processor's (one thread), so other work on the machine moves it little. ``cell.options``: steps, warm (of them,
    untimed).
    """
    from winnow.masks.global_ranking import global_magnitude
    from winnow.train.task.run import Run

    plain, attached = Run(training), Run(training)
    plain.attached.detach()
    runs = {"plain": plain, "attached": attached}
    for sparsity in cell.sparsities:
        run = Run(training)
        run.prune(global_magnitude(run.attached.matrices(), run.keeps, round(sparsity * run.scope.numel)))
        runs[f"{sparsity:.0%}"] = run
    times: dict[str, list[float]] = {name: [] for name in runs}
    for step in range(cell.options["steps"]):
        for name in list(runs)[:: 1 if step % 2 else -1]:
            run = runs[name]
            run.model.train()
            started = time.process_time()
            run.one(run.optimizer, step, run.stream)
            times[name].append(time.process_time() - started)
    warm = cell.options["warm"]
    timed = {name: found[warm:] for name, found in times.items()}
    ratios = {n: [a / b for a, b in zip(found, timed["plain"])] for n, found in timed.items() if n != "plain"}
    return {
        "milliseconds": {name: 1e3 * statistics.median(found) for name, found in timed.items()},
        "ratios": {name: _quartiles(found) for name, found in ratios.items()},
        "memory": _memory(run),
    }


def _quartiles(values: list[float]) -> list[float]:
    """25%, 50%, 75%."""
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3


def _memory(run: Any) -> Row:
    """Bytes a look-ahead of two steps adds over what a step takes, beside the aim: one more copy of the weights and of
    the optimizer's state, and a byte a weight. Small models drown in what an allocator does."""
    from winnow.tickets.methods.isp.look_ahead import Protocol, look_ahead

    weights = sum(t.numel() * t.element_size() for t in run.model.state_dict().values())
    moments = sum(
        t.numel() * t.element_size() for s in run.optimizer.state.values() for t in s.values() if hasattr(t, "numel")
    )
    protocol = Protocol(0, run.training.lr, 0.0, 0.5)
    zeros = math.ceil((run.attached.zeros + run.scope.numel) / 2)

    def ahead() -> None:
        look_ahead(run, protocol, 2, zeros)

    def step() -> None:
        run.model.train()
        run.one(run.optimizer, 0, run.stream)

    try:
        step()
        steps = common.added_peak(step)[1]
        added = common.added_peak(ahead)[1]
    except RuntimeError:  # not Linux
        return {}
    return {"step": steps, "look_ahead": added, "aim": weights + moments + run.scope.numel}
