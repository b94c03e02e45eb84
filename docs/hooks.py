"""Hooks of the documentation site: pages that lie outside ``docs/``, and links to them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks/scripts.md",
}  # file, page of the site
_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):(?=<code>)")
_LINK = re.compile(r"\]\((?P<file>[\w./-]+)(?P<anchor>#[\w-]+)?\)")


def on_files(files: Files, config: Any) -> Files:
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they are in the repository become links of the site; two intervals in a row are no link."""
    place = page.file.src_uri
    source = {p: s for s, p in OUTSIDE.items()}.get(place, f"docs/{place}")

    def linked(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found["file"]))
        if (ROOT / target).exists() and (target in OUTSIDE or target.startswith("docs/")):
            there = OUTSIDE.get(target, target.removeprefix("docs/"))
            return f"]({posixpath.relpath(there, posixpath.dirname(place) or '.')}{found['anchor'] or ''})"
        return found[0]

    return _LINK.sub(linked, markdown).replace("] [", "] \\[")


def on_page_content(html: str, **_: Any) -> str:
    """Sphinx's roles of the docstrings stand before the names in vain."""
    return _ROLE.sub("", html)
