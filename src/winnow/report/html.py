"""report.html and report.json: one file each, no network, the same bytes for the same report."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from winnow.disk.ownership import claim
from winnow.errors import FormatError, InputError, WinnowError
from winnow.report.schema import FORMAT, Report

if TYPE_CHECKING:
    from jinja2 import Environment, Template

    from winnow.report.speed_schema import Bench

PAGE, DATA = "report.html", "report.json"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    from winnow.report.view import ticks

    environment = Environment(
        loader=FunctionLoader(_packaged),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["ticks"] = ticks
    environment.globals["css"] = Markup(_packaged("report.css"))
    return environment


def template(name: str) -> Template:
    """A page of this package; the style sheet is in it already."""
    return _environment().get_template(name)


@lru_cache(maxsize=8)
def _packaged(name: str) -> str:
    return files("winnow.report").joinpath(name).read_text(encoding="utf-8")


def render(report: Report, bench: Bench | None = None) -> str:
    """The whole page as one string: styles and pictures inside, nothing loaded from anywhere. ``bench``: what
    ``winnow bench`` found, for its own chapter."""
    from winnow.report.view import view

    return template(PAGE).render(**view(report, bench)) + "\n"


def write(report: Report, folder: str | os.PathLike[str]) -> Path:
    """Writes report.html and report.json into a folder (made when missing) and returns the page's path. A bench.json
    that lies there has its chapter in the page.

    Each file appears whole or not at all. Raises InputError when the folder cannot be written to, WinnowError when
    the disk is full.
    """
    from winnow.report import bench

    target = Path(folder)
    data = report.model_dump_json(indent=2) + "\n"
    try:
        target.mkdir(parents=True, exist_ok=True)
        claim(target, DATA, PAGE)
        page = render(report, bench.read(target / bench.DATA))
        replace(target / DATA, data)
        replace(target / PAGE, page)
    except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(f"cannot write the report to {target}: choose a folder you may write to") from error
    except OSError as error:
        raise WinnowError(f"could not write the report to {target}: {error.strerror or error}") from error
    return target / PAGE


def replace(path: Path, text: str) -> None:
    """Writes a file that appears whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read(folder: str | os.PathLike[str]) -> Report:
    """The report stored in a folder (or in a report.json named directly).

    Raises InputError when there is none, FormatError when it is damaged or of a format this version does not know.
    """
    import json

    from pydantic import ValidationError

    path = Path(folder)
    path = path / DATA if path.is_dir() else path
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"no {DATA} in {folder}: name a folder that winnow compress has written") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is damaged (not JSON): write it again with winnow compress") from error
    version = raw.get("format") if isinstance(raw, dict) else None
    if version != FORMAT:
        raise FormatError(
            f"{path} has report format {version!r}, this winnow reads {FORMAT}: use the version that wrote it"
        )
    try:
        return Report.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FormatError(
            f"{path} is damaged ({where}: {first['msg']}): write it again with winnow compress"
        ) from error
