"""rich with texts taken as they are: no markup, no emoji codes, control characters as escapes.

Names of files, folders, layers and classes come from other people: ``[red]`` or an escape sequence in one is text. What is
printed on a terminal is made of these two instead of rich's own.
"""

from __future__ import annotations

from typing import Any

from rich import console, text

from winnow.terminal.legible import visible


class Text(text.Text):
    """A rich text whose characters are all visible; its parts and styles are those of rich."""

    def __init__(self, text: str = "", *args: Any, **settings: Any) -> None:
        super().__init__(visible(text), *args, **settings)

    def append(self, text: Any, *args: Any, **settings: Any) -> Any:
        return super().append(visible(text) if isinstance(text, str) else text, *args, **settings)


class Console(console.Console):
    """A rich console that takes plain strings, of table cells too, as :class:`Text` does."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **settings)

    def render_str(self, text: str, *args: Any, **settings: Any) -> Any:
        return super().render_str(visible(text), *args, **settings)
