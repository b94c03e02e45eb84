"""``winnow report``"""

from __future__ import annotations

from winnow.cli.flags import Folder, Json
from winnow.cli.output import show_report


def report(folder: Folder, as_json: Json = False) -> None:
    """Write report.html again from report.json, and print its summary."""
    from winnow.report.compression.console import summary
    from winnow.report.compression.page import read, write

    found = read(folder)
    write(found, folder)
    show_report(summary, found, folder / "report.html", as_json)
