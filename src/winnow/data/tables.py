"""Rows of a table as records: which columns are the input, which the label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from winnow.data.records import Records, parse_labels
from winnow.errors import InputError, meant

_HALVES = re.compile("[\ud800-\udfff]")  # of surrogate pairs: no tokenizer takes one alone
TEXT_COLUMNS = ("text", "sentence", "content", "document")
PAIR_COLUMNS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"))
LABEL_COLUMNS = ("label", "labels", "score", "similarity_score", "target", "class")


def table_records(
    header: list[str] | None, rows: Sequence[Any], *, column: str | None, label: str | None, name: str
) -> Records:
    """Records from rows that are dicts (``header`` lists the keys) or lists of cells (``header`` None).

    ``column`` is one column or two with a comma between ("sentence1,sentence2": pairs). A column is a name or, for lists
    of cells, a number counted from 0, which means that the file has no header line (a first line whose label alone is
    not a number is still taken for one). Without ``column``, the usual names are looked for.

    Raises:
        InputError: no rows, a column that is not there (the message lists those that are), or a cell that is not text.
    """
    if not rows:
        raise InputError(f"{name} is empty: give a file with at least two records.")
    if header is None:
        header, rows = _with_header([str(cell) for cell in rows[0]], list(rows), column, label)
        if not rows:
            raise InputError(f"{name} has a header line and no records: give a file with at least two records.")
    columns = _columns(header, column, name)
    chosen = _label(header, label, columns, name)
    position = {key: i for i, key in enumerate(header)}

    def cells(key: str) -> list[Any]:
        return [row.get(key) if isinstance(row, dict) else row[position[key]] for row in rows]

    if chosen is None and len(columns) == 1:
        # Text alone: blank rows (as in the WikiText tables) carry nothing.
        blank = [cell is None or (isinstance(cell, str) and not cell.strip()) for cell in cells(columns[0])]
        rows = [row for row, empty in zip(rows, blank) if not empty]
    texts = [_texts(cells(key), key, name) for key in columns]
    labels, names = parse_labels(cells(chosen), name, chosen) if chosen is not None else (None, None)
    if len(texts) == 2:
        return Records("pairs", list(zip(*texts)), labels, names, name=name)
    return Records("text", texts[0], labels, names, name=name)


def _with_header(
    first: list[str], rows: list[Any], column: str | None, label: str | None
) -> tuple[list[str], list[Any]]:
    """Column names (or numbers, where the first line is data) and the rows without the header line."""
    names = [cell.strip() for cell in first]
    requested = [*(_split(names, column) if column else []), *([label] if label else [])]
    numbers = [key for key in requested if key.isascii() and key.isdigit() and len(key) < 10]
    if not numbers or names == [str(i) for i in range(len(names))]:
        # A one-column file of sentences has no header to find; its first line is data unless it is a usual name.
        if column is None and len(names) == 1 and names[0].lower() not in TEXT_COLUMNS:
            return ["0"], rows
        return names, rows[1:]
    header = [str(i) for i in range(len(names))]
    if len(numbers) < len(requested):
        # Names beside numbers: there is a header, and the numbers count its columns.
        return [header[i] if header[i] in numbers else name for i, name in enumerate(names)], rows[1:]
    if label is not None and int(label) < len(names) and len(rows) > 1:
        labels = [row[int(label)] for row in rows]
        if not _is_number(labels[0]) and all(_is_number(cell) for cell in labels[1:]):
            return header, rows[1:]
    return header, rows


def _split(header: Sequence[str], column: str) -> list[str]:
    return [column] if column in header else [part.strip() for part in column.split(",")]


def _columns(header: list[str], column: str | None, name: str) -> list[str]:
    if column is not None:
        columns = _split(header, column)
        for key in columns:
            if key not in header:
                raise InputError(
                    f"{name} has no column {key!r}{meant(key, header)}: give --column one of {_listed(header)} "
                    "(or its number, counted from 0, if the file has no header line).",
                    option="column",
                )
        if len(columns) > 2:
            raise InputError(f"{name}: {len(columns)} text columns were named: give one, or two for pairs of texts.")
        return columns
    lower = {key.lower(): key for key in header}
    for usual in (*PAIR_COLUMNS, *((key,) for key in TEXT_COLUMNS)):
        if all(key in lower for key in usual):
            return [lower[key] for key in usual]
    if len(header) == 1:
        return [header[0]]
    raise InputError(
        f"{name}: which column is the text is not clear: give --column one of {_listed(header)} "
        "(or its number, counted from 0, if the file has no header line).",
        option="column",
    )


def _label(header: list[str], label: str | None, columns: list[str], name: str) -> str | None:
    if label is not None:
        if label not in header:
            raise InputError(
                f"{name} has no column {label!r}{meant(label, header)}: give --label one of {_listed(header)}.",
                option="label",
            )
        return label
    lower = {key.lower(): key for key in header if key not in columns}
    return next((lower[key] for key in LABEL_COLUMNS if key in lower), None)


def _texts(cells: list[Any], key: str, name: str) -> list[str]:
    for row, cell in enumerate(cells):
        if not isinstance(cell, str):
            kind = "nothing" if cell is None else f"a {type(cell).__name__}"
            raise InputError(
                f"{name}: column {key!r} holds {kind} in record {row}: name a column of texts with --column.",
                option="column",
            )
        if not cell.strip():
            raise InputError(f"{name}: column {key!r} is empty in record {row}: remove the record.")
        if not cell.isascii() and (half := _HALVES.search(cell)):
            raise InputError(
                f"{name}: column {key!r} holds half a character (\\u{ord(half[0]):04x}) in record {row}: fix or remove the record."
            )
    return cells


def _listed(header: list[str]) -> str:
    shown = ", ".join(header[:12])
    return shown + (f" ... ({len(header)} columns)" if len(header) > 12 else "")


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True
