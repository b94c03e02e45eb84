"""Tickets from pretrained models: ISP against IMP, its own controls and pruning at the start, all in the same training.

    python -m benchmarks.models.make vit-source; python -m benchmarks.models.make clip-small      # once; the others are at hand
    python -m benchmarks.tickets.run --phase tune --model vit          # 1. one learning rate for all methods, on selection data
    python -m benchmarks.tickets.run --phase rates --model vit         # then the rates of IMP and LRR within ISP's steps
    python -m benchmarks.tickets.run --phase test --model vit          # 2. methods x 50, 70, 80, 90% x 5 seeds (IMP kinds: 3)
    python -m benchmarks.tickets.run --phase masks --model vit         # 3. overlap with IMP's masks, from the masks of 2
    python -m benchmarks.tickets.run --phase sensitivity --model vit   # settings of ISP, on selection data
    python -m benchmarks.tickets.run --phase variants --model vit      # at most six variants, on selection data
    python -m benchmarks.tickets.run --phase confirm --model resnet --variants "mean goes on"   # once, on test data, new seeds
    python -m benchmarks.tickets.run --phase overhead --model vit      # what masks cost in a step
    python -m benchmarks.tickets.run --phase table                     # markdown of everything
    python -m benchmarks.tickets.run --phase summary                   # markdown of the models side by side

Start the same command in two terminals and they share the cells; stop it at any time and start it again: a cell goes on
where it stood. Every finished cell is a line of ``--results`` (default ``tickets/results.jsonl`` in
``$WINNOW_CACHE``) and is not run twice. A cell runs on one thread.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.tickets.methods import (
    CONFIRM_SEEDS,
    CONTROLS,
    FIVE,
    HARD,
    METHODS,
    RATES,
    SELECT_SEEDS,
    SENSITIVITY,
    TUNE,
    TUNE_RATES,
    TUNE_SEED,
    VARIANTS,
)

PHASES = ("tune", "rates", "test", "masks", "sensitivity", "variants", "confirm", "overhead", "table", "summary")
TOLD = ("table", "summary")  # phases that only show what is there


def main() -> None:
    args = _arguments()
    common.pin(args.threads)
    from benchmarks.cells import begin, run_all
    from benchmarks.tickets.cells import study
    from benchmarks.tickets.studies import everything, shown
    from benchmarks.tickets.subjects import SUBJECTS

    results, facts = begin(args, SUBJECTS)
    rows = results.rows()
    names = args.model or [n for n in SUBJECTS if any(r["cell"]["model"] == n for r in rows.values())]
    failed = run_all(cells(args, rows), results, study(results)) if args.phase not in TOLD else []
    rows = results.rows()
    if args.phase == "summary":
        from benchmarks.tickets.summary import summary

        print("\n" + summary(rows, names), flush=True)
    else:
        print("\n" + shown(args.phase, rows, names), flush=True)
    if args.svg:
        from benchmarks.tickets.curves import write

        for file in write(rows, names, args.svg):
            print(f"drawn: {file}", flush=True)
    common.finish({**facts, "tables": everything(rows, names), "cells": list(rows.values())}, args.json)
    if failed:
        common.stop("failed: " + "; ".join(failed))


def cells(args: argparse.Namespace, rows: dict[str, Any]) -> list[Any]:
    """The cells of a phase, seed by seed, so that an unfinished study is a smaller one and not a lopsided one."""
    found: list[Any] = []
    for model in args.model:
        found += {
            "tune": _tune, "rates": _rates, "test": _test, "masks": _masks, "overhead": _overhead,
            "sensitivity": _select, "variants": _select, "confirm": _select,
        }[args.phase](args, rows, model)  # fmt: skip
    return list({cell.key: cell for cell in found}.values())


def _training(args: argparse.Namespace, rows: dict[str, Any], model: str) -> dict[str, Any]:
    """What the cells of a subject are trained with; the learning rate is that of ``--lr``, or what the trials chose."""
    from benchmarks.tickets.studies import chosen
    from benchmarks.tickets.subjects import SUBJECTS

    subject = SUBJECTS[model]
    settings: dict[str, Any] = {"steps": args.steps or subject.steps, "batch": args.batch or subject.batch}
    if args.phase == "masks":  # of any training like this
        return settings if args.lr is None else {**settings, "lr": args.lr}
    settings |= {"weight_decay": subject.weight_decay, "precision": "bfloat16"}
    if args.phase == "tune":
        return settings
    lr = args.lr or (subject.lr if args.phase == "overhead" else chosen(rows, model, settings))
    if lr is None:
        common.stop(
            f"no learning rate has been chosen for {model} yet: run --phase tune --model {model} to its end, or give --lr"
        )
    return {**settings, "lr": lr}


def _tune(args: argparse.Namespace, rows: dict[str, Any], model: str) -> list[Any]:
    from benchmarks.tickets.cells import Cell
    from benchmarks.tickets.subjects import SUBJECTS

    settings = _training(args, rows, model)
    rates = [args.lr] if args.lr else [SUBJECTS[model].lr * times for times in TUNE_RATES]
    return [
        Cell("tune", model, method, (s,), seed, {**settings, "lr": lr}, {}, "", args.threads)
        for seed in args.seeds or [TUNE_SEED]
        for lr in rates
        for method, sparsities in TUNE.items()
        for s in sparsities
    ]


def _rates(args: argparse.Namespace, rows: dict[str, Any], model: str) -> list[Any]:
    from benchmarks.tickets.cells import Cell

    settings = _training(args, rows, model)
    rated = [name for name in args.methods or METHODS if METHODS[name].rated]
    return [
        Cell("rates", model, name, (s,), TUNE_SEED, settings, {**METHODS[name].options(settings["steps"], (s,)), "rate": rate}, "", args.threads)
        for name in rated
        for rate in RATES
        for s in HARD
    ]  # fmt: skip


def _test(args: argparse.Namespace, rows: dict[str, Any], model: str) -> list[Any]:
    from benchmarks.tickets.cells import Cell
    from benchmarks.tickets.studies import chosen_rate

    settings = _training(args, rows, model)
    found = []
    for seed in args.seeds or FIVE:
        for name in args.methods or METHODS:
            method = METHODS[name]
            if not args.seeds and seed not in method.seeds:
                continue
            rate = chosen_rate(rows, model, name, settings) if method.rated else None
            if method.rated and rate is None:
                common.stop(
                    f"no rate has been chosen for {name} yet: run --phase rates --model {model} with the same --lr"
                )
            sparsities = method.sparsities if name == "dense" or not args.sparsities else tuple(args.sparsities)
            for group in [sparsities] if method.whole else [(s,) for s in sparsities]:
                options = {**method.options(settings["steps"], group), **({} if rate is None else {"rate": rate})}
                found.append(Cell("test", model, name, group, seed, settings, options, "", args.threads))
    return found


def _select(args: argparse.Namespace, rows: dict[str, Any], model: str) -> list[Any]:
    """Settings of ISP, and ISP with its controls beside them: on selection data, or (confirm) once on test data."""
    from benchmarks.tickets.cells import Cell

    settings = _training(args, rows, model)
    steps = settings["steps"]
    tried = SENSITIVITY if args.phase == "sensitivity" else VARIANTS
    if unknown := sorted(set(args.variants or ()) - set(tried)):
        common.stop(f"there is no setting {unknown[0]!r} in this phase: choose of {', '.join(tried)}")
    rows_of = [(name, "", METHODS[name].options(steps, ())) for name in CONTROLS]
    rows_of += [(tried[n].finder, n, tried[n].at(steps)) for n in args.variants or tried]
    seeds = {"sensitivity": SELECT_SEEDS[:3], "variants": SELECT_SEEDS, "confirm": CONFIRM_SEEDS}[args.phase]
    rates = args.sparsities or (HARD[-1:] if args.phase == "sensitivity" else HARD)
    phase = "confirm" if args.phase == "confirm" else "select"
    return [
        Cell(phase, model, method, (s,), seed, settings, options, variant, args.threads)
        for seed in args.seeds or seeds
        for method, variant, options in rows_of
        for s in rates
    ]


def _masks(args: argparse.Namespace, rows: dict[str, Any], model: str) -> list[Any]:
    """Every test cell beside IMP's of the same seed, and IMP's beside the next seed's: how alike two runs of it are."""
    from benchmarks.tickets.cells import Cell
    from benchmarks.tickets.tables import tickets

    found = []
    settings = _training(args, rows, model)
    done = [t for t in tickets(rows.values(), "test", model) if t["sparsity"] > 0]
    done = [t for t in done if all(t["settings"][k] == v for k, v in settings.items())]
    imp = {(t["settings"]["lr"], t["seed"], t["sparsity"]): t for t in done if t["method"] == "imp"}
    seeds = sorted({seed for _, seed, _ in imp})
    for t in done:
        own = t["method"] == "imp"
        seed = seeds[(seeds.index(t["seed"]) + 1) % len(seeds)] if own else t["seed"]
        other = imp.get((t["settings"]["lr"], seed, t["sparsity"]))
        if other is None or other is t:
            continue
        options = {"of": t["key"], "beside": other["key"], "numel": t["numel"]}
        variant = "IMP of another seed" if own else "IMP of the same seed"
        found.append(
            Cell(
                "masks", model, t["method"], (t["sparsity"],), t["seed"], t["settings"], options, variant, args.threads
            )
        )
    return found


def _overhead(args: argparse.Namespace, rows: dict[str, Any], model: str) -> list[Any]:
    from benchmarks.tickets.cells import Cell

    settings = _training(args, rows, model)
    options = {"steps": args.timed + 5, "warm": 5}
    rates = tuple(args.sparsities or (0.5, 0.9))
    return [Cell("overhead", model, "isp", rates, s, settings, options, "", args.threads) for s in args.seeds or [0]]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", choices=PHASES, required=True)
    parser.add_argument("--model", type=common.listed(str), help="of minilm, resnet, vit, clip (table: all there are)")
    parser.add_argument("--methods", type=common.listed(str), help="of the test phase; default all of methods.py")
    parser.add_argument("--variants", type=common.listed(str), help="settings by name; default all of the phase")
    parser.add_argument(
        "--sparsities", type=common.listed(float), help="default 0.5,0.7,0.8,0.9; 0.9; 0.8,0.9 by phase"
    )
    parser.add_argument("--seeds", type=common.listed(int), help="default by phase and method: methods.py")
    parser.add_argument("--steps", type=int, help="T (default 600, of minilm and clip 240)")
    parser.add_argument("--batch", type=int, help="default the subject's")
    parser.add_argument("--lr", type=float, help="in place of the tuned one")
    parser.add_argument("--timed", type=int, default=40, help="steps timed by --phase overhead (default 40)")
    parser.add_argument("--results", type=Path, default=common.CACHE / "tickets" / "results.jsonl", metavar="FILE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write cells and tables here too")
    parser.add_argument("--svg", type=Path, metavar="FOLDER", help="of --phase table: draw tickets-MODEL.svg here")
    args = parser.parse_args()
    if args.phase not in TOLD and not args.model:
        parser.error(f"--phase {args.phase} needs --model")
    if args.svg and args.phase != "table":
        parser.error("--svg goes with --phase table")
    if args.phase == "confirm" and not args.variants:
        parser.error("--phase confirm needs --variants: name what the selection data chose")

    if unknown := sorted(set(args.methods or ()) - set(METHODS)):
        parser.error(f"--methods {unknown[0]}: choose of {', '.join(METHODS)}")
    return args


if __name__ == "__main__":
    main()
