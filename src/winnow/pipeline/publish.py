"""The end of a recipe: what the last stage made, with the record of the run, as one folder that appears whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from winnow.disk.files import copy_file, link_or_copy, write_text
from winnow.disk.links import refuse_links
from winnow.errors import disk_errors
from winnow.formats.artifact import as_json
from winnow.formats.output import OutputFolder
from winnow.naming import name_of, without_paths
from winnow.pipeline.stage import Publication

RECORD, AS_GIVEN = "run.json", "run.yaml"
TRAINING = "ticket.json"  # of the training that made the weights


def publish(
    folder: Path,
    out: Path,
    recipe: str,
    record: dict[str, Any],
    publications: Sequence[Publication] = (),
    *,
    keep: bool,
    given: Sequence[Any] = (),
    made: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Brings ``folder`` to ``out``, with run.json, the recipe as given, and the reports of ``publications``.

    Args:
        publications: of the stages, in place of the reports in it, which speak of one stage alone.
        keep: ``folder`` stays for good, and weights are copied; otherwise they get a second name. It stays whole until
            ``out`` is there in any case, so that an interruption in between costs nothing.
        given: paths of the recipe; the published files, which are given away, call them by name.
        made, overwrite: see :class:`winnow.formats.output.OutputFolder`.
    """
    output = OutputFolder(out, made=made, overwrite=overwrite)
    replaced = {"manifest.json"}.union(*(p.replaces for p in publications))
    try:
        files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
        refuse_links(files, folder)
        for path in files:
            place = output.path / path.relative_to(folder)
            with disk_errors(place):
                place.parent.mkdir(parents=True, exist_ok=True)
            if path.parent == folder and path.name in replaced:
                continue
            if path.name == TRAINING:
                about = without_paths(json.loads(path.read_text(encoding="utf-8")), given)
                write_text(place, json.dumps(about, indent=1) + "\n")
                continue
            (link_or_copy if path.suffix == ".safetensors" and not keep else copy_file)(path, place)
        _manifest(folder, output.path, record)
        for p in publications:
            if p.report is not None:
                report = type(p.report).model_validate(without_paths(p.report.model_dump(), given))
                for write in p.writers:
                    write(report, output.path)
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
