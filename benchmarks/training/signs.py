"""Learned signs against learned magnitudes, on scikit-learn's digits.

    python -m benchmarks.training.signs [--seeds 20] [--sparsity 95%,98%] [--out FOLDER]

An MLP of 64-96-96-10, 25 epochs of SGD (0.1, cosine, momentum 0.9, weight decay 5e-4, batches of 64): pruned by gradual
magnitude from a quarter to three quarters of the steps, then its mask trained anew from every start of
``winnow signs``. Printed are mean and standard error over the seeds, the training loss of the last epoch, and the paired
difference from the random start with its 95% interval (Student's t); then how many signs flipped and agree with the
learned ones. FOLDER gets the record and its page, and makes the run resumable.
"""

from __future__ import annotations

import argparse
import math

from winnow.records.signs import SignReport
from winnow.report.signs.verdict import difference
from winnow.tickets import sign_ablation
from winnow.words import percent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--sparsity", default="95%,98%")
    parser.add_argument("--out")
    given = parser.parse_args()
    show(sign_ablation(sparsity=given.sparsity, seeds=given.seeds, out=given.out, overwrite=True))


def show(report: SignReport) -> None:
    """Markdown tables, one for each sparsity."""
    root = math.sqrt(len(report.seeds))
    for level in report.levels:
        print(
            f"\n| {percent(level)} sparsity, {len(report.seeds)} seeds | accuracy, % | training loss | against random | flipped | aligned, before and after |"
        )
        print("|---|---|---|---|---|---|")
        runs = {r.name: r for r in report.runs if r.sparsity == level}
        for arm in (a for a in report.arms if a.sparsity == level):
            error = "" if arm.figure.spread is None else f" ± {arm.figure.spread / root:.2f}"
            against = report.contrast(arm.name, "random", level)
            first, last = runs[arm.name].points[0], runs[arm.name].points[-1]
            aligned = " to ".join(filter(None, (percent(first.alignment), percent(last.alignment))))
            cells = [
                report.title_of(arm.name), f"{arm.figure.value:.2f}{error}", f"{arm.loss.value:.3f}",
                "" if against is None else difference(against.gain, report.task), percent(last.flip_share), aligned,
            ]  # fmt: skip
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
