"""Tables, built once: the page draws them as HTML, a terminal as lines of text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Generic, TypeVar

from markupsafe import Markup

from winnow import words
from winnow.terminal.legible import visible

if TYPE_CHECKING:
    from rich.text import Text

T = TypeVar("T")
ROOMS = {"": 0, "elsewhere": 0, "extra": 1, "below": 2, "roomy": 3}  # what gives way on a terminal: the highest first
LEAST = 6  # columns of a terminal that names keep


def nothing(_: object) -> str:
    return ""


@dataclass(frozen=True)
class Column(Generic[T]):
    """One quantity: its title, and how an item's value reads ("" where it has none).

    Where there is no room, "roomy" columns give way first, then "extra" ones; "elsewhere" ones on a narrow page only, which
    shows them as the ``brief`` of another. ``below`` is a smaller second figure, which on a terminal has a column of its own,
    titled ``under_title``.
    """

    title: str
    show: Callable[[T], str]
    room: str = ""
    below: Callable[[T], str] = nothing
    under_room: str = "below"
    under_title: str = "95% interval"
    brief: Callable[[T], str] = nothing
    left: bool = False


@dataclass(frozen=True)
class Row:
    """The name of a row and what stands around it; its figures (text, below, brief) are filled in by :meth:`Table.of`."""

    name: str
    mark: Markup | str = ""
    under: Sequence[str] = ()
    chosen: bool = False
    same: str = ""  # shown muted, with this explanation
    group: tuple[str, str] = ("", "")  # on a page, heading of the rows it stands with, and a remark on them
    cells: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows of finished words under titled columns; a column nobody has a value for is left out."""

    rows: tuple[Row, ...]
    first: str
    columns: tuple[Column, ...]  # type: ignore[type-arg]
    css: str = ""
    more: str = ""  # said below on a terminal: what the table leaves out
    kind = "table"

    @classmethod
    def of(
        cls, first: str, items: Iterable[T], columns: Sequence[Column[T]], row: Callable[[T], Row], css: str = ""
    ) -> Table:
        """The table of some items. ``first`` is the title of the names, ``css`` the look: "paths" cuts long names at their
        beginning, "ranked" numbers the rows, "slim" is not wider than it must be."""
        given = list(items)
        kept = tuple(c for c in columns if any(c.show(item) for item in given))
        rows = [
            replace(row(item), cells=tuple((c.show(item), c.below(item), c.brief(item)) for c in kept))
            for item in given
        ]
        return cls(tuple(rows), first, kept, css)

    def __bool__(self) -> bool:
        return bool(self.rows)

    def where(self, keep: Callable[[Row], bool]) -> Table:
        """The same columns with some of the rows."""
        return replace(self, rows=tuple(row for row in self.rows if keep(row)))

    def only(self, first: int, last: int | None = None) -> Table:
        return replace(self, rows=self.rows[first:last])

    @property
    def groups(self) -> list[tuple[tuple[str, str], list[Row]]]:
        return [(group, list(rows)) for group, rows in groupby(self.rows, key=lambda row: row.group)]

    def console(self, width: int, limit: int = 40) -> Iterator[Text]:
        """Lines of at most ``width`` columns: figures stand whole, names are cut, columns give way."""
        from rich.cells import cell_len

        from winnow.terminal.screen import Text

        names = [visible(words.clip_middle(row.name, limit)) for row in self.rows]
        need = max(cell_len(name) for name in [*names, self.first])
        lead = 2 if any(row.chosen for row in self.rows) else 0
        # What stays longest, width, side, title and cells of each column.
        shown: list[tuple[tuple[int, int, int], int, bool, list[str]]] = []
        for i, c in enumerate(self.columns):
            for k, room, title in ((0, c.room, c.title), (1, c.under_room, c.under_title)):
                texts = [visible(text) for text in (title, *(row.cells[i][k] for row in self.rows))]
                if any(texts[1:]):
                    stays = (max(ROOMS[c.room], ROOMS[room]), i, k)
                    shown.append((stays, max(map(cell_len, texts)), c.left, texts))
        while len(shown) > 1:
            last = max(shown)
            names_keep = need if last[0][0] else min(need, LEAST)
            if lead + names_keep + sum(2 + size for _, size, _, _ in shown) <= width:
                break
            shown.remove(last)
        name_room = max(4, min(need, width - lead - sum(2 + size for _, size, _, _ in shown)))
        for i, name in enumerate([self.first, *names]):
            chosen = i > 0 and self.rows[i - 1].chosen
            head = Text(words.clip_middle(name, name_room))
            head.truncate(name_room, overflow="ellipsis", pad=True)
            line = Text(("> " if chosen else "  ")[:lead], style="bold" if chosen else "" if i else "dim")
            line.append(head)
            for _, size, left, texts in shown:
                blank = " " * (size - cell_len(texts[i]))
                line.append(f"  {texts[i]}{blank}" if left else f"  {blank}{texts[i]}")
            line.overflow, line.no_wrap = "ellipsis", True
            yield line
        if self.more:
            yield Text(self.more, style="dim")
