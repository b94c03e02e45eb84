"""Whole models, dense against packed and accelerated: decoding, an encoder's requests, images; load time and memory.

    python -m benchmarks.inference.whole_models                                   # all four models, two threads
    python -m benchmarks.inference.whole_models --models llama --values int8 --sparsity 0.5,0.9
    python -m benchmarks.inference.whole_models --table                           # print what has been measured

Every contender is a process of its own (so load time and peak memory are its own) and they take turns, in rounds. The
Llama has random weights (models/make.py): time and memory only. Pruned artifacts are written by ``winnow compress
--method magnitude`` once and kept in the cache of the benchmarks. Results go to --out, one JSON line a model, value type
and point (batch and length); what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks import common, turns
from benchmarks.inference.server import POINTS

VALUES = {"llama": ["bf16", "int8", "int4"], "minilm": ["keep", "int8"], "vit": ["keep"], "mobilenet": ["keep"]}
SPARSITY = {"llama": [0.5, 0.7, 0.9], "minilm": [0.5, 0.8, 0.9], "vit": [0.5, 0.8, 0.9], "mobilenet": [0.5, 0.8, 0.9]}


def source(model: str) -> str:
    """A model folder, or the function that makes the model."""
    from benchmarks.models.make import get

    if model == "mobilenet":
        return "benchmarks.adapters:mobilenet"
    known = {"llama": ("random-llama", "300m"), "minilm": ("minilm-sst2", "1b"), "vit": ("vit", "1b")}[model]
    return str(get(known[0], params=known[1]))


def artifact(model: str, sparsity: float, values: str) -> Path:
    """The pruned and packed folder, made once."""
    folder = common.CACHE / "speed" / f"{model}-{sparsity:.0%}-{values}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        block = ["--structure", "block:1x4"] if (model, values) == ("minilm", "int8") else []
        command = [
            sys.executable, "-m", "winnow", "compress", source(model), "--method", "magnitude", "--sparsity",
            str(sparsity), "--values", values, "--task", "none", "--baselines", "none", "--no-recalibrate", *block,
            "--out", str(folder),
        ]  # fmt: skip
        print(f"writing {folder.name}", file=sys.stderr, flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def measure(
    model: str, values: str, points: list[tuple[str, int, int]], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """All contenders of one model and value type, in turns."""
    dense = source(model)
    kinds = [f"{how}{dtype}" for dtype in ("float32", "bfloat16") for how in ("", "frozen ")]
    contenders = {f"dense {kind}": (kind, dense) for kind in kinds}
    for sparsity in args.sparsity or SPARSITY[model]:
        folder = str(artifact(model, sparsity, values))
        for how in args.how:
            contenders[f"{how} {values} {sparsity:.0%}"] = (how, folder)
    processes, loaded, failed = {}, {}, {}
    try:
        for name, (how, folder) in contenders.items():
            processes[name] = turns.Turn(common.script("inference.server"), args.threads, args.policy)
            loaded[name] = processes[name].ask(do="load", model=model, how=how, source=folder)
            print(f"  {model}: {name}: {json.dumps(loaded[name])[:300]}", file=sys.stderr, flush=True)
            if "failed" in loaded[name]:
                failed[name] = loaded.pop(name)["failed"]
                processes.pop(name).end()
        return [_point(model, values, point, processes, loaded, failed, args) for point in points]
    finally:
        for process in processes.values():
            process.end()


def _point(
    model: str, values: str, point: tuple[str, int, int], processes: dict[str, turns.Turn], loaded: dict[str, Any],
    failed: dict[str, str], args: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    do, batch, length = point
    found: dict[str, dict[str, Any]] = {name: {"seconds": [], "first": [], "rounds": []} for name in processes}
    loads = [os.getloadavg()[0]]
    for i in range(-1, args.rounds):  # the round before the first is a warm-up
        for name in list(processes)[:: 1 if i % 2 == 0 else -1]:
            asked = processes[name].ask(do=do, batch=batch, length=length, seconds=args.seconds if i >= 0 else 0)
            if "failed" in asked:
                failed[name] = asked["failed"]
            elif i >= 0:
                found[name]["seconds"] += asked["seconds"]
                found[name]["first"] += asked.get("first", [])
                found[name]["rounds"].append(statistics.median(asked["seconds"]))
                found[name]["peak"] = asked["peak"]
    loads.append(os.getloadavg()[0])
    figures = {}
    for name, one in found.items():
        if one["rounds"]:
            ordered = sorted(one["seconds"])
            figures[name] = loaded[name] | {
                "median": statistics.median(one["rounds"]), "p95": ordered[int(0.95 * (len(ordered) - 1))],
                "n": len(ordered), "rounds": one["rounds"], "peak": one["peak"],
                "first": statistics.median(one["first"]) if one["first"] else None,
            }  # fmt: skip
    return {
        "model": model, "values": values, "point": list(point), "threads": args.threads, "policy": args.policy,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), "load": loads, "failed": failed,
        "figures": figures,
    }  # fmt: skip


def table(records: list[dict[str, Any]]) -> None:
    """Markdown: one line a contender and point."""
    print(
        "| model | threads | point | contender | per s | median ms | p95 ms | first token ms | over best dense | over dense of the same type | load s | memory added MB | peak added MB |"
    )
    print("|---|--:|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for r in records:
        do, batch, length = r["point"]
        point = f"batch {batch}, " + (
            f"prompt {length}" if do == "decode" else f"length {length}" if do == "encode" else f"{length} px"
        )
        best = min((f["median"] for n, f in r["figures"].items() if n.startswith("dense")), default=None)
        for name, f in r["figures"].items():
            # What a packed model computes in: the type of its activations, whatever its weights are stored in.
            dtype = name.split()[-1] if name.startswith("dense") else "bfloat16" if r["model"] == "llama" else "float32"
            rivals = [g["median"] for n, g in r["figures"].items() if n.startswith("dense") and n.endswith(dtype)]
            same = min(rivals, default=None)
            cells = [
                r["model"], r["threads"], point, name, f"{batch / f['median']:.1f}", f"{f['median'] * 1e3:.2f}",
                f"{f['p95'] * 1e3:.2f}", f"{f['first'] * 1e3:.1f}" if f["first"] else "",
                f"{best / f['median']:.2f}×" if best else "", f"{same / f['median']:.2f}×" if same else "", f"{f['load']:.2f}", f"{f['added'] / 1e6:.0f}",
                f"{f['added_peak'] / 1e6:.0f}",
            ]  # fmt: skip
            print("| " + " | ".join(map(str, cells)) + " |")
        for name, why in r["failed"].items():
            print(f"| {r['model']} | {r['threads']} | {point} | {name} | failed: {why} | | | | | | | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=common.listed(str), default=list(POINTS), metavar=",".join(POINTS))
    parser.add_argument("--values", type=common.listed(str), help="value types (default: those of each model)")
    parser.add_argument("--sparsity", type=common.listed(float), metavar="0.5,0.9")
    parser.add_argument(
        "--how", type=common.listed(str), default=["packed", "accelerated"], metavar="packed,accelerated"
    )
    parser.add_argument("--batches", type=common.listed(int), metavar="1,8")
    parser.add_argument("--lengths", type=common.listed(int), metavar="32,128")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4, help="of one contender in one round")
    parser.add_argument("--policy", choices=["PASSIVE", "ACTIVE"], default="PASSIVE", help="OMP_WAIT_POLICY of all")
    parser.add_argument("--out", type=Path, default=Path("whole_models.jsonl"), help="one JSON line a point")
    parser.add_argument("--prepare", action="store_true", help="write the pruned artifacts and stop")
    parser.add_argument("--table", action="store_true", help="print the table of --out and stop")
    args = common.arguments(parser)
    done = common.records(args.out)
    if args.table:
        table(done)
        return
    facts = common.heading(threads=args.threads)
    for model in args.models:
        for values in args.values or VALUES[model]:
            if args.prepare:
                for sparsity in args.sparsity or SPARSITY[model]:
                    artifact(model, sparsity, values)
                continue
            have = {(r["model"], r["values"], *r["point"], r["threads"], r["policy"]) for r in done}
            points = [
                p for p in POINTS[model]
                if (model, values, *p, args.threads, args.policy) not in have
                and p[1] in (args.batches or [p[1]]) and p[2] in (args.lengths or [p[2]])
            ]  # fmt: skip
            if points:
                records = [record | {"facts": facts} for record in measure(model, values, points, args)]
                with args.out.open("a") as file:
                    file.writelines(json.dumps(record) + "\n" for record in records)
                done += records
    if args.prepare:
        return
    table([r for r in done if r["model"] in args.models and r["threads"] == args.threads])
    common.finish({"facts": facts, "records": done}, args.json)


if __name__ == "__main__":
    main()
