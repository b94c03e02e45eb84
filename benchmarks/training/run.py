"""Sparse training from scratch on real data: which learning rate, which figures, in cells that can be interrupted.

    python -m benchmarks.training.run --phase tune --model resnet                  # learning rates, on selection data
    python -m benchmarks.training.run --phase test --model resnet --epochs 4,8,16  # figures, on test data
    python -m benchmarks.training.run --phase vary --model resnet                  # beta, period and learning rate of Sign-In
    python -m benchmarks.training.run --phase table                                # what has been measured

Any number of processes share the cells of a results file and may be stopped at any time. Learning rates are tuned for
every arm over the same grid; the figure of a training is that of its last step. Arms of a seed have the same first weights,
order of examples and, where their masks are drawn at random, masks.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.cells import Row, Study, begin, cell_key, origin, run_all

TUNE_SEED, TUNE_EPOCHS = 100, 4
RATES = (0.5, 1.0, 2.0, 4.0)  # times the subject's learning rate
SEEDS = range(5)
VARIED: dict[str, dict[str, Any]] = {  # of sign-in: options and factor of the tuned learning rate
    "beta 0.25": {"beta": 0.25},
    "beta 4": {"beta": 4.0},
    "5 periods": {"periods": 5},
    "40 periods": {"periods": 40},
    "rate x 0.5": {"rate": 0.5},
    "rate x 2": {"rate": 2.0},
}


@dataclass(frozen=True)
class Cell:
    """One training. All of it names the cell."""

    phase: str
    model: str
    arm: str
    sparsity: float
    seed: int
    epochs: float
    lr: float
    options: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""
    threads: int = 1

    @property
    def key(self) -> str:
        return cell_key(self)

    def __str__(self) -> str:
        varied = f" ({self.variant})" if self.variant else ""
        return f"{self.phase}: {self.model}, {self.arm}{varied}, {self.sparsity:.0%}, {self.epochs:g} epochs, seed {self.seed}, lr {self.lr:g}"


def run_cell(cell: Cell) -> Row:
    """Trains, and measures after the last step."""
    import torch

    from benchmarks.training.arms import ARMS
    from benchmarks.training.subjects import SUBJECTS

    started, busy = time.perf_counter(), time.process_time()
    subject, arm = SUBJECTS[cell.model], ARMS[cell.arm]
    steps = math.ceil(subject.examples * cell.epochs / subject.batch)
    model = subject.model(cell.seed)
    optimizer = subject.optimizer(model.parameters(), cell.lr)
    method = arm.method(steps, cell.sparsity, cell.seed, cell.options) if arm.method else None
    losses, row = _train(model, optimizer, method, subject, steps, cell.seed, cell.sparsity)
    model.eval()
    figures = subject.measure(model, "selection" if cell.phase == "tune" else "test")
    if not np.isfinite(losses[-1]):
        raise FloatingPointError("the loss became NaN or infinite")
    last = max(1, len(losses) // 20)
    return {
        "key": cell.key, "cell": asdict(cell), "steps": steps, "n": len(figures), "figure": float(figures.mean()),
        "train_loss": float(np.mean(losses[-last:])), **row, "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - busy,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), "load": os.getloadavg()[0],
        "torch_threads": torch.get_num_threads(), **origin(),
    }  # fmt: skip


def _train(
    model: Any, optimizer: Any, method: Any, subject: Any, steps: int, seed: int, sparsity: float
) -> tuple[list[float], dict[str, Any]]:
    """The user's own loop, with one line of winnow's: losses of the steps, and what became of the weights."""
    import torch

    from winnow.train import attach

    attached = attach(model, optimizer, method, steps=steps) if method is not None else None
    first = {n: w.detach().clone() for n, w in attached.weights.items()} if attached else {}
    order, moves = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    rise = max(1, steps // 5)
    schedule = torch.optim.lr_scheduler.LambdaLR(  # to the rate over a fifth of the steps, then straight to zero
        optimizer, lambda t: 0.2 + 0.8 * t / rise if t < rise else (steps - t) / (steps - rise)
    )
    losses: list[float] = []
    model.train()
    while len(losses) < steps:
        for index in torch.randperm(subject.examples, generator=order).split(subject.batch)[: steps - len(losses)]:
            with torch.autocast("cpu", torch.bfloat16):
                loss = subject.loss(model, index, moves)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    if attached is None:
        return losses, {"zeros": 0}
    health = getattr(method, "health", None)
    health_now = float(np.mean(list(health(attached).values()))) if health else None
    with np.errstate(invalid="ignore"), torch.no_grad():
        kept = {n: (w != 0) & (first[n] != 0) for n, w in attached.weights.items()}
        flips = sum(int(((attached.weights[n] * first[n] < 0) & k).sum()) for n, k in kept.items())
        both = sum(int(k.sum()) for k in kept.values())
    attached.detach()
    zeros = sum(int((w == 0).sum()) for w in attached.weights.values())
    return losses, {
        "zeros": zeros, "prunable": attached.numel, "flips": flips / max(1, both), "beta_health": health_now,
        "asked": round(sparsity * attached.numel),
    }  # fmt: skip


def chosen(rows: Mapping[str, Row], model: str, arm: str, sparsity: float) -> float | None:
    """The learning rate with the best mean figure on the selection data; None where not every rate was tried."""
    from benchmarks.training.subjects import SUBJECTS

    subject = SUBJECTS[model]
    found: dict[float, list[float]] = {}
    for row in rows.values():
        cell = row["cell"]
        if (cell["phase"], cell["model"], cell["arm"], cell["sparsity"]) == ("tune", model, arm, sparsity):
            worst = math.inf if subject.falls else -math.inf
            found.setdefault(cell["lr"], []).append(row.get("figure", worst))
    if not {subject.lr * r for r in RATES} <= set(found):
        return None
    return (min if subject.falls else max)(found, key=lambda lr: float(np.mean(found[lr])))


def cells(args: argparse.Namespace, rows: Mapping[str, Row]) -> list[Cell]:
    """What a phase is made of, the cells that a table needs first before the others."""
    from benchmarks.training.arms import ARMS
    from benchmarks.training.subjects import SUBJECTS

    names = args.arms or (["sign-in"] if args.phase == "vary" else list(ARMS))
    tuning, found = args.phase == "tune", []
    each = product(
        args.model, args.epochs or [TUNE_EPOCHS if tuning else 16], args.seeds or ([TUNE_SEED] if tuning else SEEDS),
        args.sparsities, names,
    )  # fmt: skip
    for model, epochs, seed, sparsity, arm in each:
        at = 0.0 if arm == "dense" else sparsity
        if tuning:
            trials = [(SUBJECTS[model].lr * rate, "", {}) for rate in args.rates or RATES]
        else:
            lr = args.lr or chosen(rows, model, arm, at)
            if lr is None:
                common.stop(f"no learning rate was chosen for {arm} yet: run --phase tune --arms {arm}, or give --lr")
            varied = VARIED if args.phase == "vary" else {"": {}}
            trials = [(lr * options.get("rate", 1.0), name, options) for name, options in varied.items()]
        for lr, name, options in trials:
            own = {k: v for k, v in options.items() if k != "rate"}
            found.append(Cell(args.phase, model, arm, at, seed, epochs, lr, own, name, args.threads))
    return list({cell.key: cell for cell in found}.values())


def expected(cell: Cell) -> float:
    from benchmarks.training.subjects import SUBJECTS

    return SUBJECTS[cell.model].seconds * cell.epochs


def _told(row: Row) -> str:
    if "figure" not in row:
        return ""
    flips = f", {row['flips']:.1%} of signs flipped" if "flips" in row else ""
    return f"{row['figure']:.4f}, training loss {row['train_loss']:.4f}{flips}"


def main() -> None:
    args = _arguments()
    common.pin(args.threads)
    from benchmarks.training.subjects import SUBJECTS

    results, facts = begin(args, SUBJECTS)
    rows = results.rows()
    if args.phase == "table":
        from benchmarks.training.tables import tables

        print("\n".join(tables(rows)))
        common.finish({**facts, "rows": list(rows.values())}, args.json)
        return
    kind = lambda cell: (cell["model"], cell["arm"], cell["epochs"])  # noqa: E731
    failed = run_all(cells(args, rows), results, Study(run_cell, expected, kind, _told))
    if failed:
        common.stop(f"{len(failed)} cells failed")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", choices=["tune", "test", "vary", "table"], required=True)
    parser.add_argument("--model", type=common.listed(str), help="of resnet, vit, lm")
    parser.add_argument("--arms", type=common.listed(str), help="default all of arms.py; of vary sign-in")
    parser.add_argument("--sparsities", type=common.listed(float), default=[0.9])
    parser.add_argument("--seeds", type=common.listed(int), help="default 0 to 4; of tune 100")
    parser.add_argument("--epochs", type=common.listed(float), help="default 16; of tune 4")
    parser.add_argument(
        "--rates", type=common.listed(float), help="of tune: times the subject's own; default 0.5,1,2,4"
    )
    parser.add_argument("--lr", type=float, help="in place of the tuned one")
    parser.add_argument("--results", type=Path, default=common.CACHE / "training" / "results.jsonl", metavar="FILE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="of --phase table: write the rows here too")
    args = parser.parse_args()
    if args.phase != "table" and not args.model:
        parser.error(f"--phase {args.phase} needs --model")
    return args


if __name__ == "__main__":
    main()
