"""Time of pruning with Wanda over the time of two plain forward passes over the same calibration data.

    python -m benchmarks.overhead.walk_cost [--runs 5] [--samples 64 --length 256]

Wanda needs two runs of every block, so two plain passes are its limit. winnow's time goes from the first calibration
batch to the last pruned weight in the model: statistics, masks, packing in memory and writing the weights back; model
and batches are loaded before. The plain passes call the model's own forward under inference mode, once with the output
head and once without it (the walk never needs the head). Contenders alternate in one process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import common
from benchmarks.winnow_side import Winnow, calibration


def passes(module: Any, batches: list[dict[str, Any]]) -> Callable[[], None]:
    """Two plain forward passes over the batches."""
    import torch

    def run() -> None:
        with torch.inference_mode():
            for _ in range(2):
                for batch in batches:
                    module(**batch, use_cache=False)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model folder (default: reference-lm of the data folder)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each contender (default 5)")
    parser.add_argument("--samples", type=int, default=64, help="calibration sequences (default 64)")
    parser.add_argument("--length", type=int, default=256, help="tokens of each (default 256)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--method", default="wanda")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="arithmetic")
    args = common.arguments(parser)
    figures = {"about": common.heading(threads=args.threads)}
    folder = args.model or common.data("reference-lm")
    batches = calibration(folder, args.samples, args.length, args.batch_size, seed=0)
    winnow = Winnow(folder, args.dtype)
    ours = f"winnow {args.method} 50%"
    contenders = {
        ours: lambda: winnow.seconds(args.method, 0.5, batches),
        "two passes": passes(winnow.model, batches),
        "two passes without the head": passes(winnow.model.base_model, batches),
    }
    passes(winnow.model, batches[:1])()  # the first call allocates
    print(
        f"{sum(b['input_ids'].numel() for b in batches):,} calibration tokens, {winnow.scope.numel:,} prunable weights",
        file=sys.stderr,
    )
    seconds = common.alternate(contenders, args.runs)
    for name, values in seconds.items():
        print(f"{name:30} {common.spread(values)}")
    figures |= {"seconds": seconds, "ratio": {}}
    for name in list(contenders)[1:]:
        figures["ratio"][name] = common.ratio(seconds[ours], seconds[name])
        print(f"{ours} / {name}: {figures['ratio'][name]:.3f}")
    common.finish(figures, args.json)


if __name__ == "__main__":
    main()
