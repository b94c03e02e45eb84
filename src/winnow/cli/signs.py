"""``winnow signs``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from winnow.cli.flags import Json, Out, Overwrite, Quiet, Verbose, given, known, with_options
from winnow.cli.output import show_report
from winnow.compression.options import BUDGET, DATA, METHOD

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("linear", "cosine")


@with_options("task", "column", "label", "length", "include", "exclude", "weights", "trust_remote_code")
def signs(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="package.module:function (fresh weights for every seed), a folder, or a Hugging Face name; by default a small network on scikit-learn's digits.",
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Labelled training data.", rich_help_panel=DATA)] = None,
    eval: Annotated[
        str | None, typer.Option(help="Evaluation data; by default a fifth of --data.", rich_help_panel=DATA)
    ] = None,
    sparsity: Annotated[
        str, typer.Option(help="Target sparsity, or several: 95%,98%.", rich_help_panel=BUDGET)
    ] = "95%",
    seeds: Annotated[
        int, typer.Option(help="Trainings of each arm; intervals need three.", rich_help_panel=METHOD)
    ] = 3,
    seed: Annotated[int, typer.Option(help="The first seed.", rich_help_panel=METHOD)] = 0,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of one training.", rich_help_panel=METHOD)] = None,
    epochs: Annotated[float | None, typer.Option(help="In place of --steps.", rich_help_panel=METHOD)] = None,
    batch: Annotated[int | None, typer.Option(help="Examples a step.", rich_help_panel=METHOD)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", rich_help_panel=METHOD)] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay.", rich_help_panel=METHOD)] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="adamw, or sgd with a momentum of 0.9.", metavar="<name>", rich_help_panel=METHOD, **known(OPTIMIZERS, "optimizer"),
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="Of the learning rate, to zero: linear or cosine.", metavar="<name>", rich_help_panel=METHOD, **known(SCHEDULES, "schedule"),
        ),
    ] = None,
    *,
    out: Out = Path("winnow-signs"),
    overwrite: Overwrite = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    **options: Any,
) -> None:  # fmt: skip
    """Train a learned mask anew from its signs, its magnitudes or neither: which of them carries it?"""
    from winnow.compression.reporting import command_line
    from winnow.report.signs.page import PAGE
    from winnow.report.signs.view import summary
    from winnow.terminal.progress import on_the_command_line
    from winnow.tickets.signs.verb import sign_ablation
    from winnow.train.task.training import adamw, sgd

    factory = {"adamw": adamw, "sgd": sgd, None: None}[optimizer]
    training: dict[str, Any] = dict(
        eval=eval, steps=steps, epochs=epochs, batch=batch, lr=lr, weight_decay=weight_decay, optimizer=factory, schedule=schedule
    )  # fmt: skip
    training = {name: value for name, value in training.items() if value is not None} | given(options)
    with on_the_command_line(quiet=quiet, verbose=verbose, as_json=as_json) as progress:
        found = sign_ablation(
            model, data, sparsity=sparsity, seeds=seeds, seed=seed, out=out, overwrite=overwrite, command=command_line(),
            progress=progress, **training,
        )  # fmt: skip
    show_report(summary, found, out / PAGE, as_json)
