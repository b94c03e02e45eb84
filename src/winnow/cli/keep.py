"""``winnow keep``"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from winnow.cli.flags import Folder, Json, Overwrite
from winnow.cli.output import put


def keep(
    folder: Folder,
    candidate: Annotated[str, typer.Argument(metavar="NAME", help="A candidate of the report, e.g. int4-g128-gptq.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Output folder; by default DIR-NAME.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write another candidate of a finished compression, from what DIR.work keeps of it."""
    from winnow.compression.keeping import keep as run

    written = run(folder, candidate, out, overwrite=overwrite)
    put(json.dumps({"folder": str(written), "candidate": candidate}) if as_json else f"wrote {candidate} to {written}.")
