"""``winnow compress``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from winnow.cli.flags import DryRun, Json, Model, Quiet, Verbose, given, with_options
from winnow.cli.output import put, show, show_report
from winnow.compression.job import Job
from winnow.compression.options import DATA, OUTPUT, Inputs
from winnow.errors import InputError

OWN = ("model", "data", "out", "eval", "tokenizer")


@with_options(*dict.fromkeys(name for name in (*Inputs.model_fields, *Job.model_fields) if name not in OWN))
def compress(
    model: Model,
    data: Annotated[
        str | None,
        typer.Option(
            help="Calibration data: text, jsonl, csv, tsv, parquet (also .gz), npz, a folder of images, a data set name, or package.module:function.",
            rich_help_panel=DATA,
        ),
    ] = None,
    eval: Annotated[str | None, typer.Option(help=Job.model_fields["eval"].description, rich_help_panel=DATA)] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Output folder.", rich_help_panel=OUTPUT)] = None,
    *,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Prune a model to a budget, pack it, measure it, and report."""
    if out is None and not dry_run:
        raise InputError("give an output folder: --out DIR (or --dry-run to see the plan).", option="out")
    from winnow.compression.keeping import closing_line
    from winnow.compression.plan import plan_table
    from winnow.compression.reporting import command_line
    from winnow.compression.verb import compress as run
    from winnow.report.compression.console import summary
    from winnow.terminal.progress import on_the_command_line

    options = given(options)
    if dry_run:
        plan = run(model, data, eval=eval, out=out, dry_run=True, **options)
        show(plan_table(plan), plan, as_json)
        return
    with on_the_command_line(quiet=quiet, verbose=verbose, as_json=as_json) as progress:
        result = run(model, data, eval=eval, out=out, progress=progress, command=command_line(), **options)
    show_report(summary, result.report, Path(result.folder) / "report.html", as_json, closing_line(result.folder))
    if result.url is not None and not as_json:
        put(f"Uploaded: {result.url}")
