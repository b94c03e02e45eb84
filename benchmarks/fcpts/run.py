"""FCPTS against fixed allocations: same distillation, same steps, same tuning; and what its bridge and a time limit cost.

    python -m benchmarks.fcpts.run --phase tune --model resnet20       # 1. settings, on held-out training images
    python -m benchmarks.fcpts.run --phase test --model resnet20       # 2. 5 seeds x 80, 90, 95%, on the test set
    python -m benchmarks.fcpts.run --phase table                       # 3. markdown
    python -m benchmarks.fcpts.run --phase bridge --model resnet20     # a step by its parts, both density estimates
    python -m benchmarks.fcpts.run --phase time --model resnet20       # accuracy by time limit

Start the same command in two terminals and they share the cells; stop it at any time and start it again. Every finished
cell is a line of ``--results`` (default ``fcpts/results.jsonl`` in ``$WINNOW_CACHE``) and is not run twice. A cell
runs on one thread, so that two processes use two cores (bridge and time: two threads; run them alone).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.fcpts.methods import METHODS, TUNE_SEED

PHASES = ("tune", "test", "table", "bridge", "time")
RATES = {"tune": [0.95], "test": [0.8, 0.9, 0.95], "bridge": [0.95], "time": [0.95]}
SEEDS = {"test": [0, 1, 2, 3, 4], "bridge": [0, 1, 2], "time": [0, 1, 2]}
TIMED = ("fcpts-uniform", "distil-erk")


def main() -> None:
    args = _arguments()
    common.pin(args.threads)
    from benchmarks.cells import begin, run_all
    from benchmarks.fcpts.cells import STUDY
    from benchmarks.fcpts.data import SUBJECTS
    from benchmarks.fcpts.tables import everything

    results, facts = begin(args, SUBJECTS)
    models = args.model or sorted({r["cell"]["model"] for r in results.rows().values()})
    failed = run_all(cells(args, results.rows()), results, STUDY) if args.phase != "table" else []
    rows = results.rows()
    print("\n" + _shown(args.phase, rows, models), flush=True)
    common.finish({**facts, "tables": everything(rows, models), "cells": list(rows.values())}, args.json)
    if failed:
        common.stop("failed: " + "; ".join(failed))


def cells(args: argparse.Namespace, rows: dict[str, Any]) -> list[Any]:
    """The cells of a phase, seed by seed, so that an unfinished study is a smaller one and not a lopsided one."""
    from benchmarks.fcpts.cells import Cell
    from benchmarks.fcpts.data import SUBJECTS

    found = []
    rates = args.rates or RATES[args.phase]
    seeds = args.seeds or SEEDS.get(args.phase, [TUNE_SEED])
    default = TIMED if args.phase in ("bridge", "time") else list(METHODS)
    for model in args.model:
        subject = SUBJECTS[model]
        for seed in seeds:
            for rate in rates:
                for name in args.methods or default:
                    method = METHODS[name]
                    base = (
                        {"batch": subject.batch, "steps": args.steps, "precision": "bfloat16", **method.settings}
                        if method.whole
                        else {}
                    )
                    base |= {"steps": args.layer_steps} if method.family == "reconstruct" and args.layer_steps else {}
                    if args.phase == "tune":
                        for i, trial in enumerate(method.trials(subject.lr)) if method.trains else ():
                            found.append(
                                Cell("tune", model, name, rate, seed, i, {**base, **trial}, None, args.threads)
                            )
                        continue
                    if method.family == "dense":
                        found.append(Cell("test", model, name, 0.0, 0, threads=args.threads))
                        continue
                    settings = {**base, **_chosen(args, rows, model, name, base.get("steps"))}
                    if args.phase == "test":
                        found.append(Cell("test", model, name, rate, seed, None, settings, None, args.threads))
                    elif args.phase == "bridge":
                        for kind in ("histogram", "kde") if method.family == "fcpts" else (None,):
                            named = {**settings, "bridge": kind} if kind else settings
                            found.append(Cell("bridge", model, name, rate, seed, None, named, None, args.threads))
                    else:
                        settings = {k: v for k, v in settings.items() if k != "steps"}
                        found += [
                            Cell("time", model, name, rate, seed, None, settings, t, args.threads) for t in args.limits
                        ]
    return list({cell.key: cell for cell in found}.values())


def _chosen(args: argparse.Namespace, rows: dict[str, Any], model: str, name: str, steps: int | None) -> dict[str, Any]:
    """What the trials on the hold-out chose. Test figures need all of them; timings are about the same without."""
    from benchmarks.fcpts.tables import tried

    method = METHODS[name]
    if not method.trains:
        return {}
    grid, found = method.trials(1.0), tried(rows, model, name, steps)
    if args.phase == "test" and len(found) < len(grid):
        again = "" if steps is None else f" --{'' if method.whole else 'layer-'}steps {steps}"
        common.stop(
            f"{len(found)} of {len(grid)} trials of {name} are there: run --phase tune --model {model}{again} to its end first"
        )
    best = next(iter(found.values()), None)
    return {k: v for k, v in best[0]["cell"]["settings"].items() if k in grid[0]} if best else {}


def _shown(phase: str, rows: dict[str, Any], models: list[str]) -> str:
    from benchmarks.fcpts import tables

    if phase == "table":
        return tables.everything(rows, models)
    lines: list[str] = []
    for model in models:
        group = tables.groups(rows.values(), "test", model)
        lines += {
            "tune": lambda m=model: tables.trials(rows, m),
            "test": lambda m=model, g=group: [*tables.accuracies(g, m), *tables.differences(g)] if g else [],
            "bridge": lambda m=model: tables.bridge(rows.values(), m),
            "time": lambda m=model: tables.limits(rows.values(), m),
        }[phase]()
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", choices=PHASES, required=True)
    parser.add_argument(
        "--model",
        type=common.listed(str),
        help="of resnet20, resnet32, resnet32-jpeg, vit, minilm-sst2 (table: all there are)",
    )
    parser.add_argument(
        "--methods", type=common.listed(str), help="default all; bridge and time: fcpts-uniform,distil-erk"
    )
    parser.add_argument("--rates", type=common.listed(float), help="default 0.8,0.9,0.95; tune, bridge and time: 0.95")
    parser.add_argument(
        "--seeds", type=common.listed(int), help="default 0 to 4; bridge and time: 0 to 2; tune: one of its own"
    )
    parser.add_argument("--steps", type=int, default=300, help="training steps of distillation and FCPTS (default 300)")
    parser.add_argument("--layer-steps", type=int, help="steps a layer of reconstruction (default winnow's)")
    parser.add_argument(
        "--limits", type=common.listed(float), default=[15.0, 30.0, 60.0, 120.0, 300.0], help="seconds, of --phase time"
    )
    parser.add_argument("--results", type=Path, default=common.CACHE / "fcpts" / "results.jsonl", metavar="FILE")
    parser.add_argument("--threads", type=int, help="default 1; bridge and time: 2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write cells and tables here too")
    args = parser.parse_args()
    args.threads = args.threads or (2 if args.phase in ("bridge", "time") else 1)
    if args.phase != "table" and not args.model:
        parser.error(f"--phase {args.phase} needs --model")

    if unknown := sorted(set(args.methods or ()) - set(METHODS)):
        parser.error(f"--methods {unknown[0]}: choose of {', '.join(METHODS)}")
    return args


if __name__ == "__main__":
    main()
