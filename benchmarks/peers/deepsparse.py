"""A pruned MLP in float32: winnow beside DeepSparse, the same weights, a chain of square layers with ReLU between.

    python -m benchmarks.peers.deepsparse --peer ../venv-deepsparse/bin/python
    python -m benchmarks.peers.deepsparse --peer ... --sparsity 0.9 --batches 1 --layers 4

The peer's Python (--peer, or $WINNOW_DEEPSPARSE_PYTHON) has deepsparse 1.8.0, which README.md tells how to install; its
analytics are switched off before it is imported. Both sides make the weights from the same seeds, and their results are
compared. A call walks through all layers: keep --layers so high that the non-zeros are larger than the cache (printed).
Both sides take turns in processes of their own; with several threads winnow and torch run with both OMP_WAIT_POLICY.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common, turns
from benchmarks.kernels.layer import Layer, timed

WAYS = {"winnow packed": "packed", "winnow expanded": "expanded", "winnow spmm": "spmm", "winnow times": "times"}


class Chain:
    """The serving side: holds one chain open, and times it."""

    def __init__(self, side: str) -> None:
        self._side = side
        self._call: Callable[[int], Any] | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "open":
            self._call = None
            # Scaled so that values neither die out nor grow along the chain.
            layers = [
                Layer(request["width"], request["width"], request["sparsity"], 1, seed)
                for seed in range(request["layers"])
            ]
            gain = float(np.sqrt(2 / (request["width"] * (1 - request["sparsity"]))) / 0.02)
            x = np.abs(layers[0].inputs(request["batch"]))
            opener = {"deepsparse": self._deepsparse, "winnow": self._winnow, "torch": self._torch}[self._side]
            self._call, first = opener(layers, gain, x, request.get("way", ""))
            return {"first": np.asarray(first, np.float64).reshape(-1)[:4096].tolist()}
        assert self._call is not None
        return timed(self._call, 1, 0, request["seconds"])

    def _deepsparse(self, layers: list[Layer], gain: float, x: Any, way: str) -> tuple[Callable[[int], Any], Any]:
        import deepsparse
        import onnx
        from onnx import helper, numpy_helper

        shape = [len(x), x.shape[1]]
        nodes, weights = [], []
        for i, layer in enumerate(layers):
            weights.append(numpy_helper.from_array(np.ascontiguousarray(layer.weight().T * np.float32(gain)), f"w{i}"))
            nodes.append(helper.make_node("MatMul", [f"r{i}" if i else "x", f"w{i}"], [f"y{i}"]))
            if i + 1 < len(layers):
                nodes.append(helper.make_node("Relu", [f"y{i}"], [f"r{i + 1}"]))
        values = [helper.make_tensor_value_info(n, 1, shape) for n in ("x", f"y{len(layers) - 1}")]
        graph = helper.make_graph(nodes, "chain", values[:1], values[1:], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        with tempfile.TemporaryDirectory() as folder:
            onnx.save(model, str(Path(folder) / "chain.onnx"))
            threads = int(os.environ["OMP_NUM_THREADS"])
            engine = deepsparse.Engine(str(Path(folder) / "chain.onnx"), batch_size=len(x), num_cores=threads)
        return lambda i: engine.run([x], val_inp=False), engine.run([x])[0]

    def _winnow(self, layers: list[Layer], gain: float, x: Any, way: str) -> tuple[Callable[[int], Any], Any]:
        import torch

        from winnow.kernels import multiply
        from winnow.kernels.matrix import PackedMatrix

        torch.set_grad_enabled(False)
        chain = [PackedMatrix.from_dense(torch.from_numpy(layer.weight() * np.float32(gain))) for layer in layers]
        given = torch.from_numpy(x)

        def rows(i: int = 0) -> Any:
            y = given
            for k, matrix in enumerate(chain):
                y = multiply.linear(matrix, y.relu_() if k else y, way=way)
            return y

        def columns(i: int = 0) -> Any:
            y = turned
            for k, matrix in enumerate(chain):
                y = multiply.times(matrix, y.relu_() if k else y)
            return y

        turned = given.t().contiguous()
        return (columns, columns().t()) if way == "times" else (rows, rows())

    def _torch(self, layers: list[Layer], gain: float, x: Any, way: str) -> tuple[Callable[[int], Any], Any]:
        """The same chain dense: oneDNN's packed product, as a compiled and frozen model runs it."""
        import torch

        torch.set_grad_enabled(False)
        pack, op = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise.default
        chain = [pack(torch.from_numpy(layer.weight() * np.float32(gain))) for layer in layers]
        given = torch.from_numpy(x)

        def call(i: int = 0) -> Any:
            y = given
            for k, weight in enumerate(chain):
                y = op(y.relu_() if k else y, weight, None, "none", [], "")
            return y

        return call, call()


def measure(args: argparse.Namespace, sparsity: float, batch: int) -> dict[str, Any]:
    """One cell: every contender in turns, after a trial that leaves winnow its best way."""
    policies = ["PASSIVE"] if args.threads == 1 else ["PASSIVE", "ACTIVE"]
    asked: dict[tuple[str, str], list[str]] = {}
    for policy in policies:
        asked["deepsparse", policy] = common.script("peers.deepsparse", "--serve", "deepsparse", python=args.peer)
        asked["dense torch", policy] = common.script("peers.deepsparse", "--serve", "torch")
        asked |= {(way, policy): common.script("peers.deepsparse", "--serve", "winnow") for way in WAYS}
    what = {"width": args.width, "layers": args.layers, "sparsity": sparsity, "batch": batch}
    processes: dict[tuple[str, str], turns.Turn] = {}
    failed: dict[str, str] = {}
    results: dict[tuple[str, str], Any] = {}
    trial: dict[tuple[str, str], float] = {}
    loads = [os.getloadavg()[0]]
    try:
        for who, command in asked.items():
            # DeepSparse always spins; what it lets one choose is whether its threads are bound to cores.
            bound = {"NM_BIND_THREADS_TO_CORES": "1" if who[1] == "ACTIVE" or args.threads == 1 else "0"}
            process = turns.Turn(command, args.threads, who[1], bound)
            answer = process.ask(do="open", way=WAYS.get(who[0], ""), **what)
            if "failed" in answer:
                failed[" ".join(who)] = answer["failed"]
                process.end()
                continue
            processes[who], results[who] = process, np.array(answer["first"])
            trial[who] = process.ask(do="time", seconds=args.seconds / 2)["wall"]
            ours = [t for w, t in trial.items() if w[0] in WAYS]
            if who[0] in WAYS and trial[who] > 1.3 * min(ours):
                processes.pop(who).end()
        wanted = results["dense torch", "PASSIVE"]
        for who, found in results.items():
            error = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
            if error > 1e-3:
                raise RuntimeError(f"{who[0]} computes something else: relative difference {error:.3g}")
        times: dict[tuple[str, str], list[dict[str, float]]] = {who: [] for who in processes}
        for i in range(args.rounds):
            for who in list(processes)[:: 1 if i % 2 == 0 else -1]:
                times[who].append(processes[who].ask(do="time", seconds=args.seconds))
    finally:
        for process in processes.values():
            process.end()
    contenders = [
        {
            "name": who[0], "policy": who[1], "wall": statistics.median(t["wall"] for t in taken) / args.layers,
            "cpu": statistics.median(t["cpu"] for t in taken) / args.layers / args.threads,
            "walls": [t["wall"] / args.layers for t in taken],
        }
        for who, taken in times.items()
    ]  # fmt: skip
    return what | {
        "threads": args.threads,
        "load": [*loads, os.getloadavg()[0]],
        "failed": failed,
        "contenders": contenders,
    }


def table(cells: list[dict[str, Any]]) -> None:
    """Markdown: milliseconds a layer, medians; and the ratio of the best rounds, which other work on the machine moves
    less. Where both ratios are far apart the run was disturbed: DeepSparse spins, and loses most to it."""
    print(
        "| layer | threads | sparsity | batch | winnow | ms | deepsparse ms | dense torch ms | over deepsparse | best rounds | over dense | load |"
    )
    print("|---|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|")
    for cell in cells:
        best: dict[str, dict[str, Any]] = {}
        rounds: dict[str, float] = {}
        for c in cell["contenders"]:
            kind = "winnow" if c["name"] in WAYS else c["name"]
            if kind not in best or c["wall"] < best[kind]["wall"]:
                best[kind] = c
            rounds[kind] = min(rounds.get(kind, c["walls"][0]), *c["walls"])
        kinds = ("winnow", "deepsparse", "dense torch")
        ms = [f"{best[kind]['wall'] * 1e3:.3f}" if kind in best else "-" for kind in kinds]
        both = "winnow" in best and "deepsparse" in best
        line = [
            f"{cell['width']}x{cell['width']}, {cell['layers']} layers", cell["threads"], f"{cell['sparsity']:.0%}",
            cell["batch"], WAYS[best["winnow"]["name"]] if "winnow" in best else "-", *ms,
            f"{best['deepsparse']['wall'] / best['winnow']['wall']:.2f}×" if both else "-",
            f"{rounds['deepsparse'] / rounds['winnow']:.2f}×" if both else "-",
            f"{best['dense torch']['wall'] / best['winnow']['wall']:.2f}×" if "winnow" in best else "-",
            f"{max(cell['load']):.1f}",
        ]  # fmt: skip
        print("| " + " | ".join(map(str, line)) + " |")
        for name, why in cell["failed"].items():
            print(f"| | | | | {name} failed: {why} | | | | | | | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default=os.environ.get("WINNOW_DEEPSPARSE_PYTHON"), metavar="PYTHON",
                        help="Python with deepsparse 1.8.0 (default $WINNOW_DEEPSPARSE_PYTHON)")  # fmt: skip
    parser.add_argument("--sparsity", type=common.listed(float), default=[0.8, 0.9])
    parser.add_argument("--batches", type=common.listed(int), default=[1, 8, 16, 64])
    parser.add_argument("--layers", type=int, default=8, help="of the chain (default 8)")
    parser.add_argument("--width", type=int, default=4096, help="inputs and outputs of a layer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="of one contender in one round")
    parser.add_argument("--out", type=Path, default=Path("against_deepsparse.jsonl"), help="one JSON line a cell")
    args = common.arguments(parser)
    if not args.peer:
        parser.error("name a Python that has deepsparse: --peer, or WINNOW_DEEPSPARSE_PYTHON")
    facts = common.heading(threads=args.threads)
    done = common.records(args.out)
    keys = ("sparsity", "batch", "layers", "width", "threads")
    for sparsity in args.sparsity:
        kept = (1 - sparsity) * args.layers * args.width**2 * 4 / 2**20
        print(f"{sparsity:.0%} zeros: {kept:.0f} MiB of non-zeros in the chain", file=sys.stderr, flush=True)
        for batch in args.batches:
            key = (sparsity, batch, args.layers, args.width, args.threads)
            if key in {tuple(cell[k] for k in keys) for cell in done}:
                continue
            began = time.monotonic()
            cell = measure(args, sparsity, batch) | {"facts": facts}
            print(f"  batch {batch}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            done.append(cell)
            with args.out.open("a") as file:
                file.write(json.dumps(cell) + "\n")
    table([cell for cell in done if cell["threads"] == args.threads])
    common.finish({"facts": facts, "cells": done}, args.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        turns.serve(Chain(sys.argv[2]).answer)
    else:
        main()
