"""Shares of a whole: a bar cut in parts, and a table of them."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from winnow import words
from winnow.report.draw import table
from winnow.report.draw.page import Block, Stack
from winnow.report.draw.table import Column, Table

COLOURS = ("values", "masks", "scales", "rest", "other")  # of the style sheet
Part = tuple[str, str, float]  # name, value in words, value


def breakdown(
    first: str,
    title: str,
    label: str,
    parts: Sequence[Part],
    whole: float | None = None,
    before: Sequence[tuple[str, Sequence[tuple[str, str, float]]]] = (),
) -> list[Block | Table]:
    """The bar fills ``whole`` (by default the sum of its parts); bars ``before`` stand above it. Parts of 0 are left out."""
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
        Table.of(first, rows, columns, lambda row: table.Row(row[1], _key(row[0])), "slim"),
    ]


def _key(css: str) -> Markup:
    return Markup('<i class="key {}"></i>').format(css)
