"""One linear layer: packed and sparse against the best dense kernel of the same value type, paired in one run.

    python -m benchmarks.kernels.linear --quick                       # the cells that the targets name
    python -m benchmarks.kernels.linear --shapes 4096x4096 --values bf16 --batches 1,8 --threads 1
    python -m benchmarks.kernels.linear --table                       # print what has been measured, measure nothing

Every figure is written as it is taken, one JSON line a cell (--out); a cell that is there is not measured again.
benchmarks/README.md says how contenders are chosen, capped and timed, and how to make the environment of the runtimes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from pathlib import Path

from benchmarks.common import command, heading, listed, records
from benchmarks.kernels.bench import CAPS, Bench, has_amx
from benchmarks.kernels.table import print_contenders, print_table

SHAPES = ["4096x4096", "1024x4096", "4096x11008", "768x3072"]
VALUES = ["fp32", "bf16", "int8", "int8a", "int4"]
BATCHES = [1, 2, 8, 16, 64, 128, 256]


def last_level_cache() -> int:
    """Bytes of the largest cache that Linux tells of; 32 MiB where it tells nothing."""
    sizes = [32 << 20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) << {"K": 10, "M": 20}.get(text[-1], 0))
    return max(sizes)


def _free_memory() -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def plan(args: argparse.Namespace) -> list[tuple[str, int, str, str, list[int], list[float]]]:
    """What to measure: (profile, threads, shape, values, batches, sparsities), the most wanted first."""

    def sparsities(values: str) -> list[float]:
        return args.sparsity or [0.5, 0.7, 0.8, 0.9, *([0.95] if values == "fp32" else [])]

    if args.quick:
        all_values, big = args.values or VALUES, "4096x4096"
        few = {
            "fp32": [0.8, 0.9, 0.95],
            "bf16": [0.5, 0.7, 0.9],
            "int8": [0.5, 0.7],
            "int8a": [0.8],
            "int4": [0.5],
        }
        cells = [("all", 1, big, v, [1, 8, 16, 128, 256], few[v]) for v in all_values]
        cells += [("avx2", 1, big, v, [1], [0.7]) for v in ("fp32", "int8") if v in all_values]
        cells += [("all", 2, big, v, [1, 8, 128], few[v]) for v in all_values]
        cells += [("avx2", 2, big, v, [1], [0.7]) for v in ("fp32", "int8") if v in all_values]
        at = {"fp32": [1, 128], "int8a": [128]}
        cells += [("all", 1, s, v, at.get(v, [1]), few[v][:2]) for s in SHAPES[1:] for v in all_values]
    else:
        cells = [
            (profile, threads, shape, values, args.batches, sparsities(values))
            for profile in args.profiles
            for threads in args.threads
            for shape in args.shapes
            for values in args.values or VALUES
        ]
    if not has_amx():
        cells = [cell for cell in cells if cell[0] != "avx512"]
    return [cell for cell in cells if cell[0] in args.profiles and cell[1] in args.threads]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only what the targets name, and one look at every shape")
    parser.add_argument("--profiles", type=listed(str), default=list(CAPS), metavar="all,avx512,avx2")
    parser.add_argument("--threads", type=listed(int), default=[1, 2], metavar="1,2")
    parser.add_argument("--shapes", type=listed(str), default=SHAPES, metavar=",".join(SHAPES))
    parser.add_argument("--values", type=listed(str), metavar=",".join(VALUES), help="also int4a")
    parser.add_argument("--batches", type=listed(int), default=BATCHES, metavar="1,8,128")
    parser.add_argument("--sparsity", type=listed(float), metavar="0.5,0.9")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="of one contender in one round")
    parser.add_argument("--size", type=float, default=1024, metavar="MIB", help="of each contender's copies together")
    parser.add_argument(
        "--trial-size", type=float, default=192, metavar="MIB", help="the same in the preliminary round"
    )
    parser.add_argument("--ram", type=float, metavar="GIB", help="memory of all copies (default: 60%% of what is free)")
    parser.add_argument("--peers", default=os.environ.get("WINNOW_PEERS_PYTHON"), metavar="PYTHON",
                        help="Python that has ONNX Runtime and OpenVINO (default $WINNOW_PEERS_PYTHON)")  # fmt: skip
    parser.add_argument("--dense", action="store_true", help="the dense contenders alone (for a file of its own)")
    parser.add_argument(
        "--every", action="store_true", help="print every contender that was in front, not the best alone"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, default=Path("kernels.jsonl"), help="one JSON line a cell (kernels.jsonl)")
    parser.add_argument("--table", action="store_true", help="print the table of --out and stop")
    parser.add_argument("--by", choices=["wall", "cpu"], default="wall", help="the table's time: by the clock, or busy")
    args = parser.parse_args()
    cache = 2 * last_level_cache()
    args.size = max(int(args.size * 2**20), cache)
    args.ram = args.ram * 2**30 if args.ram else 0.6 * _free_memory()
    args.trial_size = max(int(args.trial_size * 2**20), cache)
    if not args.peers:
        try:
            import onnxruntime  # noqa: F401
            import openvino  # noqa: F401

            args.peers = sys.executable
        except ImportError:
            if not args.table:
                print("no ONNX Runtime and OpenVINO: name a Python that has them with --peers", file=sys.stderr)
    return args


def main() -> None:
    args = arguments()
    show = print_contenders if args.every or args.dense else print_table
    done = records(args.out)
    if args.table:
        show(done, args.by)
        return
    heading(threads=0)
    if not has_amx() and "avx512" in args.profiles:
        print("this processor has no AMX: the profile avx512 is the profile all here\n")
    cells = plan(args)
    began = time.monotonic()
    for (profile, threads), group in itertools.groupby(cells, key=lambda cell: cell[:2]):
        bench = Bench(args, profile, threads)
        try:
            for _, _, shape, values, batches, sparsities in group:
                have = {
                    (r["profile"], r["threads"], r["shape"], r["values"], r["batch"])
                    for r in done
                    if set(sparsities) <= set(r["sparsities"]) and r["size"] >= args.size
                }
                wanted = [b for b in batches if (profile, threads, shape, values, b) not in have]
                if not wanted:
                    continue
                note = f"[{time.monotonic() - began:5.0f} s] {profile}, {threads} threads, {shape} {values} {wanted}"
                print(note, file=sys.stderr, flush=True)
                new = bench.group(shape, values, wanted, sparsities)
                with args.out.open("a") as file:
                    for record in new:
                        file.write(json.dumps({**record, "command": command()}) + "\n")
                done += new
        finally:
            bench.close()
    asked = {cell[:4] for cell in cells}
    show([r for r in done if (r["profile"], r["threads"], r["shape"], r["values"]) in asked], args.by)


if __name__ == "__main__":
    main()
