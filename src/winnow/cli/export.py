"""``winnow export``"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from winnow.cli.flags import Folder, Json, Out, Overwrite, known
from winnow.cli.output import put

FORMS = ("dense",)


def export(
    folder: Folder,
    out: Out,
    to: Annotated[
        str, typer.Option(help="dense: a folder that loads without winnow.", metavar="<name>", **known(FORMS, "to"))
    ] = "dense",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a packed folder in another form."""
    from winnow.formats import export_dense

    written = export_dense(folder, out, overwrite=overwrite)
    put(json.dumps({"folder": str(written)}) if as_json else f"wrote {written}: it loads without winnow.")
