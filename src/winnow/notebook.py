"""What a person at a prompt or in a notebook sees of a result: a few lines of text, a small card, frames and axes.

pandas and matplotlib are imported when a frame or a picture is asked for, and not before.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from winnow.errors import InputError
from winnow.words import clip, number

FACTS, WIDE = 6, 120  # lines of a text after its first one, and columns of each
ROWS, OPEN = 200, 16  # of a table in a card: at most, and as many as stand there unfolded
TONES = {"good": "#2da44e", "mixed": "#bf8700", "bad": "#cf222e", "": "transparent"}  # of the mark beside the sentence


@dataclass
class Card:
    """What is to be said of a result: a sentence, facts by name, and tables, all but the first of them folded."""

    kind: str  # the class
    sentence: str
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[tuple[str, Sequence[Mapping[str, Any]]]] = ()
    tone: str = ""
    open_tables: int = field(default=1)

    def text(self) -> str:
        """A few lines: the sentence and the facts."""
        said = textwrap.wrap(
            f"{self.kind}: {self.sentence}", WIDE, subsequent_indent="  ", max_lines=3, placeholder=" …"
        )
        return "\n".join([*said, *(clip(f"  {n}: {' '.join(v.split())}", WIDE) for n, v in self.facts[:FACTS] if v)])

    def html(self) -> str:
        """HTML without script or style sheet, which notebooks show on light and on dark pages."""
        esc = html.escape
        mark = f"border-left:4px solid {TONES[self.tone]};padding-left:8px"
        parts = [f'<div class="winnow"><p style="{mark}"><strong>{esc(self.sentence)}</strong></p>']
        if facts := [(n, v) for n, v in self.facts if v]:
            rows = (
                f'<tr><th style="text-align:left">{esc(n)}</th><td style="text-align:left">{esc(v)}</td></tr>'
                for n, v in facts
            )
            parts.append(f"<table>{''.join(rows)}</table>")
        for i, (title, rows_) in enumerate((t, r) for t, r in self.tables if r):
            unfolded = " open" if i < self.open_tables and len(rows_) <= OPEN else ""
            parts.append(f"<details{unfolded}><summary>{esc(title)}</summary>{_table(rows_)}</details>")
        return "".join([*parts, "</div>"])


class Shown:
    """A result that says what it is in a few lines, and in a notebook by a card. A class gives it ``_card``."""

    def _card(self) -> Card:
        raise NotImplementedError

    def __repr__(self) -> str:
        return self._card().text()

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        return self._card().html()


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(c)}</th>" if c.strip() else "<td></td>" for c in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(row.get(c)))}</td>" for c in columns) + "</tr>" for row in rows[:ROWS]
    )
    more = f"<p>{len(rows) - ROWS:,} more</p>" if len(rows) > ROWS else ""
    return f"<table><tr>{head}</tr>{body}</table>{more}"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else number(value)


def figures(given: Mapping[str, Any]) -> dict[str, float]:
    """Of named values those that are numbers, as floats: what a tracker takes. NaN, infinities and None are left out."""
    return {
        name: float(value)
        for name, value in given.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def frame(rows: Sequence[Mapping[str, Any]], index: str | None = None) -> Any:
    """A pandas DataFrame of rows. Raises InputError where pandas is missing."""
    try:
        import pandas
    except ImportError:
        raise InputError("a DataFrame needs pandas: pip install 'winnow-nn[plot]'.") from None
    found = pandas.DataFrame.from_records(list(rows))
    return found.set_index(index) if index is not None and len(found) else found


def axes(given: Any = None) -> Any:
    """``given``, or new matplotlib axes. Raises InputError where matplotlib is missing."""
    if given is not None:
        return given
    try:
        from matplotlib import pyplot
    except ImportError:
        raise InputError("a plot needs matplotlib: pip install 'winnow-nn[plot]'.") from None
    return pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")[1]
