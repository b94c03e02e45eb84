"""``winnow demo``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from winnow.cli.flags import Json, Out, Overwrite, Quiet, Verbose
from winnow.cli.output import show_report


def demo(
    out: Out = Path("winnow-demo"),
    sparsity: Annotated[str, typer.Option(help="Target sparsity.")] = "0.7",
    seed: Annotated[int, typer.Option(help="Random seed of training and compression.")] = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """End-to-end demo on built-in data: train a small network on scikit-learn's digits, compress it, report."""
    from winnow.compression.keeping import closing_line
    from winnow.report.compression.console import summary
    from winnow.terminal.progress import on_the_command_line
    from winnow.verbs.demo import run

    with on_the_command_line(quiet=quiet, verbose=verbose, as_json=as_json) as progress:
        result = run(out, sparsity=sparsity, seed=seed, overwrite=overwrite, progress=progress)
    show_report(summary, result.report, out / "report.html", as_json, closing_line(out))
