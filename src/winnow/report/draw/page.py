"""A page as one value: verdict, tiles, chapters of text, facts, figures and tables; one template draws every page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from winnow import words
from winnow.report.draw.table import Column, Row, Table

if TYPE_CHECKING:
    from jinja2 import Template

ANSWERS = {"good": "Worth it", "mixed": "Trade-off", "bad": "Not worth it"}


class Block:
    """A part of a page; one whose first field is empty is left out."""

    def __bool__(self) -> bool:
        return bool(getattr(self, fields(self)[0].name))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Text(Block):
    """A paragraph ("lead", "fine" or "prose"); `words in backticks` are code."""

    text: str
    css: str = "fine"
    kind = "text"


@dataclass(frozen=True)
class Bullets(Block):
    items: Sequence[str]
    kind = "bullets"


@dataclass(frozen=True)
class Command(Block):
    text: str
    kind = "command"


@dataclass(frozen=True)
class Facts(Block):
    """Names and values; a value of "" is left out."""

    rows: Sequence[tuple[str, str]]
    css: str = "plain"
    kind = "facts"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", [(name, value) for name, value in self.rows if value])


@dataclass(frozen=True)
class Figure(Block):
    picture: Markup | None
    caption: str = ""
    legend: Sequence[tuple[Markup, str]] = ()
    kind = "figure"


@dataclass(frozen=True)
class Stack(Block):
    """Bars cut in parts: a line above each, and css class, name and share in per cent of its parts."""

    bars: Sequence[tuple[str, Sequence[tuple[str, str, float]]]]
    kind = "stack"


@dataclass(frozen=True)
class Example(Block):
    text: str
    image: str | None
    answers: Sequence[tuple[str, str]]  # the last is the present one
    kind = "example"


class Section(Block):
    """Blocks under a heading, which is left out with them; empty blocks are left out too."""

    kind = "section"

    def __init__(self, title: str, *blocks: Block | Table | None, css: str = "") -> None:
        self.title, self.css, self.blocks = title, css, [block for block in blocks if block]

    def __bool__(self) -> bool:
        return bool(self.blocks)


class Fold(Section):
    """A section that unfolds on a click."""

    kind = "fold"

    def __init__(self, title: str, *blocks: Block | Table | None, unfolded: bool = False) -> None:
        super().__init__(title, *blocks)
        self.unfolded = unfolded


@dataclass(frozen=True)
class Page:
    """What every page has. Texts are plain and escaped when drawn; pictures are ready-made markup."""

    tool: str  # the command it comes from
    title: str
    tone: str  # good, mixed or bad
    sentence: str
    chapters: Sequence[Section | None]
    footer: str
    subtitle: Sequence[str] = ()
    created: str = ""
    answer: str = ""  # before the sentence; by default what the tone says
    tiles: Sequence[tuple[str, str, Sequence[str]]] = ()  # label, value, details
    summary: Facts | None = None
    notes: Sequence[str] = ()
    front: Section | None = None  # side by side, before the chapters
    answers: dict[str, str] = field(default_factory=lambda: ANSWERS)

    def html(self) -> str:
        """The whole page as one string: styles and pictures inside, nothing loaded from anywhere, the same bytes every time."""
        return _template().render(page=self) + "\n"


@lru_cache(maxsize=1)
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    page, css = (
        files("winnow.report").joinpath(name).read_text(encoding="utf-8") for name in ("page.html", "report.css")
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["ticks"] = _ticks
    environment.globals["css"] = Markup(css)
    return environment.from_string(page)


def _ticks(text: str | None) -> Markup:
    """Escaped text in which `words in backticks` are set as code."""
    return Markup(re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escape(text or "")))


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


COLOURS = ("values", "masks", "scales", "rest", "other")  # of the style sheet


def breakdown(
    first: str,
    title: str,
    label: str,
    parts: Sequence[tuple[str, str, float]],
    whole: float | None = None,
    before: Sequence[tuple[str, Sequence[tuple[str, str, float]]]] = (),
) -> list[Block | Table]:
    """Shares of a whole: a bar cut in ``parts`` (name, value in words, value), and a table of them.

    The bar fills ``whole`` (by default the sum of its parts); bars ``before`` stand above it. Parts of 0 are left out.
    """
    total = sum(value for _, _, value in parts)
    rows = [(COLOURS[i % len(COLOURS)], *part) for i, part in enumerate(parts) if part[2]]
    if not rows:
        return []
    columns: list[Column[tuple[str, str, str, float]]] = [
        Column(title, lambda row: row[2]),
        Column("Share", lambda row: words.percent(row[3] / total, fixed=True)),
    ]
    bar = [(css, name, 100 * value / (whole or total)) for css, name, _, value in rows]
    return [
        Stack([*before, (label, bar)]),
        Table.of(
            first, rows, columns, lambda row: Row(row[1], Markup('<i class="key {}"></i>').format(row[0])), "slim"
        ),
    ]
