"""About three bits per weight: half the weights gone and int4 for the rest, against plain int3 by rounding and by GPTQ.

    python -m benchmarks.compression.three_bits [--limit 256] [--threads 2]

reference-lm, float32 arithmetic, 64 x 256 calibration tokens of the corpus' validation text, perplexity on its test text.
50% sparsity + int4 in groups of 128 take 0.5 x 4 + 1 + 16/128 = 3.125 bits per weight, int3 in groups of 128 the same.
winnow stores no int3, so these models are made and measured in memory only.
"""

from __future__ import annotations

import argparse

from benchmarks import common

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--limit", type=int, default=256, help="segments of 256 tokens of the test text")
args = common.arguments(parser)

import torch  # noqa: E402 - after the threads are pinned

from benchmarks.winnow_side import Winnow, calibration  # noqa: E402
from winnow.calibrate.walker import Walker  # noqa: E402
from winnow.data import open_data  # noqa: E402
from winnow.measure.language import LanguageModelTask  # noqa: E402
from winnow.models.source import open_model  # noqa: E402
from winnow.quantize import Grid, round_to_nearest  # noqa: E402
from winnow.solve import Problem, solve_group  # noqa: E402

CONTENDERS = [
    ("int4 g128 RTN", "rtn", 0.0, 4),
    ("int4 g128 GPTQ", "sparsegpt", 0.0, 4),
    ("int3 g128 RTN", "rtn", 0.0, 3),
    ("int3 g128 GPTQ", "sparsegpt", 0.0, 3),
    ("50% + int4 g128, SparseGPT", "sparsegpt", 0.5, 4),
    ("50% + int4 g128, SparseGPT + LSQ", "sparsegpt+lsq", 0.5, 4),
    ("50% + int4 g128, ALPS", "alps", 0.5, 4),
]


def main() -> None:
    facts = common.heading(threads=args.threads)
    rows = []
    folder = common.data("reference-lm")
    side = Winnow(folder, "float32")
    batches = calibration(folder, samples=64, length=256, batch_size=8, seed=0)
    test = open_data(str(common.data("corpus", "test.txt.gz")))
    task = LanguageModelTask(test, open_model(folder).tokenizer(), length=256, limit=args.limit)
    dense = task.evaluate(side.host.model)
    print(
        f"\ndense perplexity {dense.value:.3f}\n\n| contender | bits per weight | perplexity | lost, % |\n|---|---|---|---|"
    )
    for name, solver, sparsity, bits in CONTENDERS:
        side.host.restore(side.scope)
        grid = Grid(bits, 128)

        def visit(unit, stats, solver=solver, sparsity=sparsity, grid=grid):
            for p in unit.prunables:
                parameter = side.host.model.get_parameter(p.name)
                weight = p.matrix(parameter.detach()).float()
                if solver == "rtn":
                    solved = round_to_nearest(weight, grid).dequantize()
                else:
                    problem = Problem(weight, stats[p.name][0], round(sparsity * p.numel), grid=grid, where=p.name)
                    solved = solve_group([problem], solver)[0].weight
                with torch.no_grad():
                    parameter.copy_(p.restore(solved))

        Walker(side.host.model, batches, side.scope, gram=True, by="layer").walk(visit)
        found = task.evaluate(side.host.model)
        per_weight = (1 - sparsity) * bits + (1 if sparsity else 0) + 16 / 128
        lost = 100 * (found.value / dense.value - 1)
        rows.append({"contender": name, "bits": per_weight, "perplexity": found.value, "lost": lost})
        print(f"| {name} | {per_weight:.3f} | {found.value:.3f} | {lost:+.2f} |", flush=True)
    common.finish({**facts, "dense": dense.value, "rows": rows}, args.json)


if __name__ == "__main__":
    main()
