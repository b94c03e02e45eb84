"""The HTML templates of the pages, and what they share: styles inside, nothing loaded from anywhere."""

from __future__ import annotations

import re
from functools import lru_cache
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from jinja2 import Environment, Template


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

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


def ticks(text: str | None) -> Markup:
    """Escaped text in which `words in backticks` are set as code."""
    safe = escape(text or "")
    return Markup(re.sub(r"`([^`\n]+)`", r"<code>\1</code>", safe))


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(v) for v in value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    return str(value)


def plain_rows(group: dict[str, Any]) -> list[tuple[str, str]]:
    """Recorded facts as rows of words, without those that are empty."""
    return [(str(k).replace("_", " "), _plain(v)) for k, v in group.items() if v is not None and v != ""]
