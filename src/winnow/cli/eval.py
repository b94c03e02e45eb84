"""``winnow eval``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from winnow.cli.flags import Json, Model, Quiet, Verbose, given, with_options
from winnow.cli.output import show
from winnow.compression.options import DATA, METHOD, Inputs


@with_options(*(name for name in Inputs.model_fields if name != "tokenizer"))
def eval(
    model: Model,
    data: Annotated[str, typer.Option(help="Evaluation data.", rich_help_panel=DATA)],
    reference: Annotated[
        str | None,
        typer.Option(
            help="Compare with this (dense) model, or these weights of it: paired change, agreement, KL.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    harness: Annotated[
        list[str] | None,
        typer.Option(help="Also run this local lm-eval task; repeatable.", metavar="<name>", rich_help_panel=METHOD),
    ] = None,
    harness_path: Annotated[
        Path | None, typer.Option(help="Folder of the lm-eval task files.", rich_help_panel=METHOD)
    ] = None,
    *,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Measure a model, packed or dense, alone or against another."""
    from winnow.terminal.progress import on_the_command_line
    from winnow.verbs.evaluate import evaluate, evaluation_table

    with on_the_command_line(quiet=quiet, verbose=verbose, as_json=as_json) as progress:
        found = evaluate(
            model, data, reference=reference, harness_tasks=harness or (), harness_path=harness_path, progress=progress, **given(options)
        )  # fmt: skip
    show(evaluation_table(found), found, as_json)
