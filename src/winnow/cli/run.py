"""``winnow run``"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from winnow.cli.flags import DryRun, Json, Overwrite, Quiet, Verbose, known
from winnow.cli.output import put
from winnow.compression.options import METHOD, OUTPUT
from winnow.errors import InputError
from winnow.run.executor import EXECUTORS


def run(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A YAML file of stages: train, ticket, compress, eval.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Output folder.", rich_help_panel=OUTPUT)] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="STAGE.FIELD=VALUE",
            help="Override a recipe value, e.g. ticket.sparsity=0.9 or seed=1; repeatable.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(
            help="Executor for independent jobs: local or ray; the results are the same.",
            metavar="<name>",
            **known(EXECUTORS, "executor"),
        ),
    ] = None,
    keep_work: Annotated[
        bool,
        typer.Option(
            "--keep-work",
            help="Keep finished stages in DIR.work, to be reused by a changed recipe.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    poc: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES",
            rich_help_panel=METHOD,
            help="Time-boxed trial of the ticket stage: writes nothing and says whether the run is worth it. Exit codes: 0 go, 3 no-go, 1 undecided (or failed: then without a verdict), 2 bad arguments.",
        ),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe of several stages: train, find a ticket, compress, measure. An interrupted run resumes."""
    from winnow.compression.reporting import command_line
    from winnow.disk.work import folder_bytes, work_folder
    from winnow.pipeline.table import planned_table, ran_table, trial, trial_table
    from winnow.pipeline.trial import try_recipe
    from winnow.pipeline.verb import run_recipe
    from winnow.records.parts import finite
    from winnow.terminal.progress import console, on_the_command_line
    from winnow.words import size

    if poc is not None and dry_run:
        raise InputError("--poc and --dry-run are mutually exclusive: give one of them.", option="poc")
    options: dict[str, Any] = dict(sets=sets or (), executor=executor, keep_work=keep_work, overwrite=overwrite)
    if dry_run:
        stages = run_recipe(recipe, out, dry_run=True, **options)
        put(json.dumps([vars(s) for s in stages])) if as_json else console().print(planned_table(stages))
        return
    with on_the_command_line(quiet=quiet, verbose=verbose, as_json=as_json) as progress:
        if poc is not None:
            verdict = try_recipe(recipe, poc, out, sets=sets or (), progress=progress)
        else:
            ran = run_recipe(recipe, out, progress=progress, command=command_line(), **options)
    if poc is not None:
        put(json.dumps(finite(trial(verdict)), indent=1)) if as_json else console().print(trial_table(verdict))
        raise typer.Exit(verdict.exit_code)
    if as_json:
        put((ran.folder / "run.json").read_text(encoding="utf-8").rstrip())
    else:
        console().print(ran_table(ran), soft_wrap=False)
        if keep_work:
            work = work_folder(ran.folder)
            console().print("Finished stages are kept for a changed recipe (with --overwrite).")
            console().print(
                f"{work} ({size(folder_bytes(work))}) holds them: delete it when you need none.", soft_wrap=True
            )
