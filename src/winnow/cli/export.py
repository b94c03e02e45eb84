"""``winnow export``"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from winnow.cli.flags import Folder, Json, Out, Overwrite
from winnow.cli.output import put
from winnow.errors import InputError


def export(
    folder: Folder,
    out: Out,
    to: Annotated[str, typer.Option(help="dense: a folder that loads without winnow.")] = "dense",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a packed folder in another form."""
    from winnow.formats import export_dense

    if to != "dense":
        raise InputError(f"--to {to!r} is not known: choose dense.", option="to")
    written = export_dense(folder, out, overwrite=overwrite)
    put(json.dumps({"folder": str(written)}) if as_json else f"wrote {written}: it loads without winnow.")
