"""The end of a recipe: what the last stage made, with the record of the run, as one folder that appears whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from winnow.disk.files import copy_file, link_or_copy, write_text
from winnow.disk.links import refuse_links
from winnow.errors import disk_errors
from winnow.formats.artifact import as_json
from winnow.formats.output import OutputFolder
from winnow.naming import name_of, without_paths

if TYPE_CHECKING:
    from winnow.records.compression import Report
    from winnow.records.ticket import TicketReport

RECORD, AS_GIVEN = "run.json", "run.yaml"
TICKET = "ticket.json"
OF_REPORT = ("report.html", "report.json", "README.md")


def publish(
    made: Path,
    out: Path,
    recipe: str,
    record: dict[str, Any],
    *,
    report: Report | None = None,
    page: TicketReport | None,
    keep: bool,
    given: Sequence[Any] = (),
) -> Path:
    """Brings the folder ``made`` to ``out``, with run.json and the recipe as given.

    ``report``: of what was packed, written with the model card in place of those in ``made``, which speak of one stage.
    ``page``: the report of the recipe's ticket, written beside them; without one a training's own is left behind.

    ``given``: paths of the recipe; the files, which are given away, call them by name.

    ``made`` stays whole until ``out`` is there, so that a kill in between costs nothing. With ``keep`` it stays for
    good and weights are copied; otherwise they get a second name.
    """
    from winnow.report.compression import card
    from winnow.report.compression.page import write as write_report
    from winnow.report.ticket.page import DATA, PAGE, write

    output = OutputFolder(out)
    anew = {"manifest.json", PAGE, DATA, *(OF_REPORT if report is not None else ())}
    try:
        files = sorted(p for p in made.rglob("*") if p.is_file() and not p.name.startswith("."))
        refuse_links(files, made)
        for path in files:
            place = output.path / path.relative_to(made)
            with disk_errors(place):
                place.parent.mkdir(parents=True, exist_ok=True)
            if path.parent == made and path.name in anew:
                continue
            if path.name == TICKET:
                about = without_paths(json.loads(path.read_text(encoding="utf-8")), given)
                write_text(place, json.dumps(about, indent=1) + "\n")
                continue
            (link_or_copy if path.suffix == ".safetensors" and not keep else copy_file)(path, place)
        _manifest(made, output.path, record)
        if report is not None:
            report = type(report).model_validate(without_paths(report.model_dump(), given))
            write_report(report, output.path)
            card.write(report, output.path)
        if page is not None:
            write(type(page).model_validate(without_paths(page.model_dump(), given)), output.path)
        write_text(output.path / RECORD, as_json(without_paths(record, given)))
        write_text(output.path / AS_GIVEN, without_paths(recipe, given))
        return output.publish()
    except BaseException:
        output.discard()
        raise


def _manifest(made: Path, target: Path, record: dict[str, Any]) -> None:
    """Names the recipe's model as the parent: the folders between the stages go away."""
    path = made / "manifest.json"
    if not path.is_file():
        return
    manifest = json.loads(path.read_text())
    manifest["parent"] = {**manifest.get("parent", {}), "model": name_of(record["model"]["spec"]), "run": RECORD}
    write_text(target / "manifest.json", as_json(manifest))
