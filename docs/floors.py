"""Draws docs/floors.svg: the floors of the house as import-linter enforces them, each room with its own first sentence.

    python docs/floors.py

The floors are those of ``[tool.importlinter]`` in pyproject.toml, the sentences the docstrings of the rooms.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDTH, LEFT, LINE, GAP, COLUMNS = 1120, 24, 15, 10, 3
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#24292f}.name{font-weight:600}.why{fill:#57606a}"
    "rect{fill:#f6f8fa;stroke:#d0d7de}svg{background:#fff}"
)


def floors() -> list[list[str]]:
    """Rooms by floor, the roof first; those that are not built yet are left out."""
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition('type = "layers"')[2]
    listed = re.search(r"layers = \[(.*?)\n\]", contract, re.DOTALL)
    assert listed is not None
    rows = [re.split(r"\s*\|\s*", row) for row in re.findall(r'"([^"]+)"', listed[1])]
    return [built for row in rows if (built := [name for name in row if not name.startswith("(")])]


def sentence(room: str) -> str:
    """The first sentence of a room's docstring, or of a module's."""
    place = ROOT / "src" / "winnow" / room
    source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    said = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return re.sub(r"\s+", " ", said.partition("\n\n")[0]).replace("``", "")


def draw() -> str:
    body, y = [], GAP
    for rooms in floors():
        count = max(2, len(rooms)) if len(rooms) > 1 else 1
        for row in [rooms[i : i + COLUMNS] for i in range(0, len(rooms), COLUMNS)]:
            wide = (WIDTH - 2 * LEFT - (min(count, COLUMNS) - 1) * GAP) / min(count, COLUMNS)
            texts = [textwrap.wrap(sentence(room), int((wide - 130) / 6.2)) or [""] for room in row]
            high = max(len(lines) for lines in texts) * LINE + 12
            for i, (room, lines) in enumerate(zip(row, texts, strict=True)):
                x = LEFT + i * (wide + GAP)
                body.append(f'<rect x="{x:.0f}" y="{y}" width="{wide:.0f}" height="{high}" rx="4"/>')
                body.append(f'<text class="name" x="{x + 10:.0f}" y="{y + 18}">{room}</text>')
                for n, line in enumerate(lines):
                    body.append(f'<text class="why" x="{x + 110:.0f}" y="{y + 18 + n * LINE}">{escape(line)}</text>')
            y += high + 4
        y += GAP - 4
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img">'
    title = "<title>Floors of winnow: every import points down</title>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", *body, "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs" / "floors.svg").write_text(draw(), encoding="utf-8")
