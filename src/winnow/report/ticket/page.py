"""ticket.html and ticket-report.json: what a search for tickets found."""

from __future__ import annotations

import os
from pathlib import Path

from winnow.errors import InputError
from winnow.records.ticket import TicketReport
from winnow.report.folder import write_files
from winnow.report.ticket import training
from winnow.report.ticket.view import view

PAGE, DATA = "ticket.html", "ticket-report.json"  # ticket.json is the saved ticket itself


def render(report: TicketReport) -> str:
    """The whole page as one string: styles and pictures inside, nothing loaded from anywhere."""
    return (view(report) if report.training is None else training.view(report, report.training)).html()


def write(report: TicketReport, folder: str | os.PathLike[str]) -> Path:
    """Writes ticket.html and ticket-report.json into a folder (made when missing); the page's path. Raises as
    :func:`winnow.report.folder.write_files`."""
    target = Path(folder)
    write_files(target, {DATA: report.to_json(), PAGE: render(report)})
    return target / PAGE


def read(folder: str | os.PathLike[str]) -> TicketReport:
    """The report stored in a folder.

    Raises:
        InputError: there is none.
        FormatError: it is damaged, or of a format that this version does not know.
    """
    try:
        return TicketReport.load(Path(folder) / DATA)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"no {DATA} in {folder}: name a folder that a search for tickets has written.") from error
