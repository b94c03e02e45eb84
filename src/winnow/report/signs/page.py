"""signs.html and signs.json: the signs of weights in training."""

from __future__ import annotations

import os
from pathlib import Path

from winnow.errors import InputError
from winnow.records.signs import SignReport
from winnow.report.folder import write_files
from winnow.report.signs.view import view

PAGE, DATA = "signs.html", "signs.json"


def write(report: SignReport, folder: str | os.PathLike[str]) -> Path:
    """Writes signs.html and signs.json into a folder (made when missing); the page's path. Raises as
    :func:`winnow.report.folder.write_files`."""
    target = Path(folder)
    write_files(target, {DATA: report.to_json(), PAGE: view(report).html()})
    return target / PAGE


def read(folder: str | os.PathLike[str]) -> SignReport:
    """The record stored in a folder.

    Raises:
        InputError: there is none.
        FormatError: it is damaged, or of a format that this version does not know.
    """
    try:
        return SignReport.load(Path(folder) / DATA)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"no {DATA} in {folder}: name a folder that a record of signs was written to.") from error
