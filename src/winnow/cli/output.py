"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from winnow.terminal.legible import json_for_terminal, visible


def show(table: Any, found: Any, as_json: bool) -> None:
    """A table, or the dataclass it shows."""
    from winnow.terminal.progress import console

    if as_json:
        put(json.dumps(asdict(found), default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v)))
    else:
        console().print(table)


def show_report(table: Any, found: Any, page: Path | None, as_json: bool, work: str | None = None) -> None:
    """A record, where its page was written, and what the folder of work beside it is good for."""
    from winnow.terminal.progress import console

    if as_json:
        put(found.model_dump_json())
        return
    screen = console()
    screen.print(table(found))
    if page is not None:
        screen.print()
        screen.print(f"Report: {page.resolve()}", soft_wrap=True)
    for line in (work or "").splitlines():
        screen.print(line, soft_wrap=True)


def put(text: str) -> None:
    """JSON, or plain lines."""
    print(json_for_terminal(text) if text.startswith(("{", "[")) else visible(text))
