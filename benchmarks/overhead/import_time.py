"""Time of ``import torch`` and of ``import torch, winnow`` in fresh processes, alternating.

    python -m benchmarks.overhead.import_time [--runs 15]

Two times of each process: by the clock, interpreter start included, and of processor (user and system), which other
work on the machine disturbs less. Both sides run once before, so that files are cached and compiled.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from benchmarks import common

SIDES = {"import torch": "import torch", "import torch, winnow": "import torch, winnow"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15, help="runs of each side (default 15)")
    args = common.arguments(parser)
    figures = {"about": common.heading(threads=args.threads)}
    processor: dict[str, list[float]] = {name: [] for name in SIDES}

    def fresh(name: str) -> None:
        before = os.times()
        subprocess.run([sys.executable, "-c", SIDES[name]], check=True)
        after = os.times()
        processor[name].append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )

    for name in SIDES:
        fresh(name)
    processor = {name: [] for name in SIDES}
    clock = common.alternate({name: lambda name=name: fresh(name) for name in SIDES}, args.runs)
    plain, with_winnow = SIDES
    for kind, seconds in (("clock", clock), ("processor", processor)):
        for name in SIDES:
            print(f"{kind:10} {name:22} {common.spread(seconds[name])}")
        ratio = common.ratio(seconds[with_winnow], seconds[plain])
        print(f"{kind:10} ratio {ratio:.3f}\n")
        figures[kind] = {"seconds": seconds, "ratio": ratio}
    common.finish(figures, args.json)


if __name__ == "__main__":
    main()
