"""``winnow bench``"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from winnow.cli.flags import Json, Overwrite, Quiet, Verbose, given, known, with_options
from winnow.cli.output import show_report
from winnow.compression.options import DATA, METHOD, OUTPUT
from winnow.speed.names import FAMILIES


@with_options("column")
def bench(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="A folder that compress wrote (any other model is timed dense only).")
    ],
    batch: Annotated[str | None, typer.Option(help="Batch sizes, e.g. 1,8.", rich_help_panel=DATA)] = None,
    length: Annotated[
        str | None,
        typer.Option(
            help="Sequence lengths in tokens, e.g. 32,128; for a decoder, of the prompt.", rich_help_panel=DATA
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option(help="Tokens decoded after the prompt, one at a time.", rich_help_panel=DATA)
    ] = 32,
    rounds: Annotated[
        int, typer.Option(help="Rounds of each case, in which all backends are interleaved.", rich_help_panel=METHOD)
    ] = 15,
    threads: Annotated[int | None, typer.Option(help="Threads of every backend.", rich_help_panel=METHOD)] = None,
    contenders: Annotated[
        str | None,
        typer.Option(
            "--with",
            help=f"Backends: {', '.join(FAMILIES)}; default all.",
            rich_help_panel=METHOD,
            metavar="<names>",
            **known(FAMILIES, joined=","),
        ),
    ] = None,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Also time every packed matrix alone.", rich_help_panel=METHOD)
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(help="Real inputs; by default random ones of the kind the model reads.", rich_help_panel=DATA),
    ] = None,
    *,
    factory: Annotated[
        str | None, typer.Option(help="package.module:function that builds a plain torch model.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The dense original; by default the packed model expanded to dense.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="JSON file, with an HTML page beside it; by default in DIR.", rich_help_panel=OUTPUT
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Benchmark a packed model against the dense one on this machine: ms, memory, energy, per layer and in total."""
    from winnow.compression.reporting import command_line
    from winnow.report.speed.view import summary
    from winnow.speed.verb import bench as run
    from winnow.terminal.progress import on_the_command_line

    with on_the_command_line(quiet=quiet, verbose=verbose, as_json=as_json) as progress:
        found = run(
            folder, batch=batch, length=length, tokens=tokens, rounds=rounds, threads=threads, contenders=contenders, per_layer=per_layer,
            data=data, factory=factory, reference=reference, out=out, overwrite=overwrite, command=command_line(), progress=progress, **given(options),
        )  # fmt: skip
    page = Path(found.written).with_suffix(".html") if found.written is not None else None
    show_report(summary, found, page, as_json)
    if found.interrupted:
        print("winnow: stopped before the end; what was measured by then is kept.", file=sys.stderr)
        raise typer.Exit(1)
