"""bench.json and bench.html: where they lie, how they are written, and what they show."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from winnow.disk.made import difference
from winnow.errors import FormatError, InputError
from winnow.records.speed import Bench
from winnow.report.folder import write_files
from winnow.report.speed.view import view

DATA = "bench.json"


def target(out: str | os.PathLike[str] | None, folder: Path | None) -> Path | None:
    """The JSON file to write: ``out``, else bench.json in the artifact's folder, else none. Checked before any work.

    Raises:
        InputError: not a .json file, in a folder that does not exist, or in the way of something that is no bench.
    """
    if out is None and folder is None:
        return None
    path = Path(out) if out is not None else folder / DATA  # type: ignore[operator]
    if path.suffix != ".json" or path.is_dir():
        raise InputError(f"--out {out} must name a .json file: a page of the same name is written beside it.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--out {out} is in a folder that does not exist: make it first.")
    for place in (path, page_of(path)):
        if os.path.lexists(place) and not (place.is_file() and _is_bench(path)):
            raise InputError(f"{place} is there and is no bench of winnow's: choose another --out, or move it.")
    return path


def refuse_other(path: Path, made: Mapping[str, Any]) -> None:
    """Raises InputError where ``path`` holds the finished bench of another job than ``made`` says (:mod:`winnow.disk.made`)."""
    try:
        found = read(path)
    except FormatError:  # of which nothing can be read any more
        return
    if found is not None and not found.interrupted and (other := difference(found.made, made)):
        raise InputError(
            f"{path} holds another finished bench ({other}): name another file with --out, or add --overwrite to replace it.",
            option="out",
        )


def _is_bench(data: Path) -> bool:
    """Whether a file is a bench of some version of winnow."""
    try:
        found = json.loads(data.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and type(found.get("format")) is int and {"contenders", "measures"} <= found.keys()


def page_of(data: Path) -> Path:
    return data.with_suffix(".html")


def write(bench: Bench, data: Path) -> None:
    """Writes the JSON and its page. Raises as :func:`winnow.report.folder.write_files`."""
    page = view(bench, data.name).html()
    write_files(data.parent, {data.name: bench.to_json(), page_of(data).name: page}, owned=data.name == DATA)


def read(data: Path) -> Bench | None:
    """The bench stored in a file; None where there is none. Raises FormatError for a damaged or unknown one."""
    try:
        return Bench.load(data)
    except (FileNotFoundError, NotADirectoryError):
        return None
