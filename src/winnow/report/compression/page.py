"""report.html and report.json: one file each, no network, the same bytes for the same report."""

from __future__ import annotations

import os
from pathlib import Path

from winnow.errors import InputError
from winnow.records.compression import Report
from winnow.records.speed import Bench
from winnow.report.compression.view import view
from winnow.report.folder import write_files
from winnow.report.speed import page as speed_page

PAGE, DATA = "report.html", "report.json"


def render(report: Report, bench: Bench | None = None) -> str:
    """The whole page as one string: styles and pictures inside, nothing loaded from anywhere. ``bench``: what
    ``winnow bench`` found, for its own chapter."""
    return view(report, bench).html()


def write(report: Report, folder: str | os.PathLike[str]) -> Path:
    """Writes report.html and report.json into a folder (made when missing) and returns the page's path. A bench.json
    that lies there has its chapter in the page. Raises as :func:`winnow.report.folder.write_files`."""
    target = Path(folder)
    bench = speed_page.read(target / speed_page.DATA)
    write_files(target, {DATA: report.to_json(), PAGE: render(report, bench)})
    return target / PAGE


def read(folder: str | os.PathLike[str]) -> Report:
    """The report stored in a folder (or in a report.json named directly).

    Raises InputError when there is none, FormatError when it is damaged or of a format this version does not know.
    """
    path = Path(folder)
    path = path / DATA if path.is_dir() else path
    try:
        return Report.load(path)
    except FileNotFoundError as error:
        raise InputError(f"no {DATA} in {folder}: name a folder that winnow compress has written") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def write_bench(bench: Bench, data: Path) -> None:
    """Writes a bench and its page; in a folder with a report, the report's page is drawn again with it."""
    speed_page.write(bench, data)
    if data.name == speed_page.DATA and (data.parent / DATA).exists():
        write(read(data.parent), data.parent)
