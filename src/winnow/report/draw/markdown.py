"""Texts of other people's making in Markdown: shown as they are, never read as Markdown or HTML."""

from __future__ import annotations

import re

from winnow.terminal.legible import visible

_MARKS = re.compile(r"([\\`*_\[\]~|#!<>])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def prose(text: str) -> str:
    """A sentence or a table cell. What stands between two backticks is code; everything else that Markdown or HTML would
    take for a sign of its own is escaped, and line ends are spelled out."""
    text = visible(text)
    parts = text.split("`")
    # Runs of backticks, or one without a partner, are paired in other ways by other readers: then nothing is code.
    if len(parts) % 2 == 0 or any(not part.strip() for part in parts[1::2]) or "``" in text:
        return _escaped(text)
    return "".join(f"`{_plain(part)}`" if i % 2 else _escaped(part) for i, part in enumerate(parts))


def fenced(text: str, language: str = "") -> list[str]:
    """The lines of a code block that ``text`` cannot end: fenced, or of HTML with entities where it holds signs of HTML, so that
    a reader that knows no fences sees no tags either."""
    lines = [visible(line, keep="\t") for line in text.split("\n")]
    if any(sign in text for sign in _HTML):
        code = "\n".join(re.sub("[&<>]", lambda found: _HTML[found[0]], line) for line in lines)
        return f"<pre><code>{code}</code></pre>".split("\n")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *lines, fence]


def _escaped(text: str) -> str:
    def one(found: re.Match[str]) -> str:
        return _HTML.get(found[0]) or f"\\{found[0]}"

    text = _MARKS.sub(one, text.replace("&", "&amp;"))
    text = re.sub(r"(?i)(https?|ftp|www|mailto)([:.])", r"\1&#8203;\2", text)  # a bare address would become a link
    return re.sub(r"^(\s*\d*)([-+=.)])(\s|$)", r"\1\\\2\3", text)


def _plain(code: str) -> str:
    """Code shows what stands there, so only what could be taken for HTML, or end a table cell, is changed."""
    return re.sub("[&<>]", lambda found: _HTML[found[0]], code).replace("|", "\\|")
