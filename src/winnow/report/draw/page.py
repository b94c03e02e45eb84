"""A page as one value: verdict, tiles, chapters of text, facts, figures and tables; one template draws every page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from markupsafe import Markup

from winnow.report.draw.table import Table
from winnow.report.template import template

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
        return template("page.html").render(page=self) + "\n"
