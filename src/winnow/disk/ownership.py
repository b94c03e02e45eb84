"""Whose a folder is: the mark that winnow leaves in what it writes, saying what it wrote there.

``.winnow.json`` names the kind of output, the job that made it (:mod:`winnow.disk.made`) and every file with its SHA-256,
and ends with the hash of all that it says. A folder is winnow's, and may be replaced, only where such a mark (or, before there were marks, a manifest) accounts for
every file in it: a report.json or config.json of another tool proves nothing, and what the user added or changed is
found by name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from winnow.disk.files import atomic_file
from winnow.disk.regular import open_regular

MARK = ".winnow.json"
VERSION = 1
FOREIGN, CHANGED = "which is not winnow's", "which was changed since it was written"
WORK = "work"  # the kind of OUT.work, whose files come and go: its mark names none

# Of these the name is enough: they hold times, and `report` and `bench` write them anew.
PAGES = frozenset(
    ("report.json", "report.html", "ticket.json", "ticket.html", "ticket-report.json", "run.json", "bench.json", "bench.html")
)  # fmt: skip
_DESKTOP = frozenset((".DS_Store", "Thumbs.db", "desktop.ini"))  # of file managers, never the user's own
_HALF = re.compile(rf"({'|'.join(re.escape(n) for n in (*sorted(PAGES), MARK))})\.\d+\.tmp")
PARENT_CARD = "README.parent.md"  # README.md of the model that was compressed, beside the card that winnow writes
_CARD = b"---\ntags:\n- winnow\n"  # how README.md of every artifact begins


def sha256(path: Path) -> str:
    """SHA-256 of a file, read in chunks. Raises OSError."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(1 << 18):
            digest.update(chunk)
    return digest.hexdigest()


def write_mark(
    folder: Path, kind: str, known: Mapping[str, str] | None = None, made: Mapping[str, Any] | None = None
) -> None:
    """Marks a folder as winnow's with all that lies in it now.

    ``known``: digests of files by their path in the folder that need not be read again; ``made``: what the job that made
    it says of itself (:mod:`winnow.disk.made`). Raises OSError.
    """
    known = known or {}
    files = {
        name: None if path.name in PAGES else known.get(name) or sha256(path)
        for name, path in _entries(folder)
        if path.name != MARK
    }
    _write(folder, kind, files if kind != WORK else {}, made)


def read_mark(folder: Path) -> tuple[str, dict[str, str | None]] | None:
    """(kind, digests by path) of a folder's mark; None where it has none, or one that is not as it was written."""
    found = _read(folder)
    return None if found is None else (str(found["kind"]), found["files"])


def made_by(folder: Path) -> dict[str, Any] | None:
    """What the job that made a folder says of itself; None where no sound mark does."""
    made = (_read(folder) or {}).get("made")
    return made if isinstance(made, dict) else None


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        if not stat.S_ISREG((folder / MARK).lstat().st_mode):
            return None
        found = json.loads((folder / MARK).read_bytes())
        content = {name: found[name] for name in ("winnow", "kind", "files", "made") if name != "made" or name in found}
        sound = (
            found["sha256"] == _seal(content) and content["winnow"] == VERSION and isinstance(content["files"], dict)
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return content if sound else None


def claim(folder: Path, *names: str) -> None:
    """Adds files that winnow is about to write into a marked folder, by name; any other folder stays as it is.

    Before they are written, so that a kill in between leaves nothing that the mark does not know. Raises OSError.
    """
    found = read_mark(folder)
    if found is not None and not found[1].keys() >= set(names):
        _write(folder, found[0], {**found[1], **dict.fromkeys(names)}, made_by(folder))


def first_foreign(folder: Path, kind: str, *, names_only: bool = False) -> tuple[str, str] | None:
    """The first thing in a folder that stands in the way of replacing it, and why; None where all of it is winnow's ``kind``.

    A file that the mark does not name, one that was changed since (not looked at with ``names_only``), a link, another
    kind of output. An empty folder is nobody's. Raises OSError.
    """
    entries = _own_entries(folder)
    if not entries:
        return None
    mark = read_mark(folder)
    if mark is None:
        return _unproven(entries) if kind == "model" else (entries[0][0], FOREIGN)
    made, files = mark
    if made != kind:
        return MARK, f"which says {made} and not {kind}"
    for name, path in entries:
        if name == MARK:
            continue
        if name not in files:
            return name, FOREIGN
        digest = files[name]
        if not _regular(path) or (digest is not None and not names_only and sha256(path) != digest):
            return name, CHANGED
    return None


def holds_nothing(folder: Path) -> bool:
    """Whether there is no such folder, or nothing in it that counts. Raises OSError."""
    return not folder.is_dir() or not _own_entries(folder)


def _own_entries(folder: Path) -> list[tuple[str, Path]]:
    return [(name, path) for name, path in _entries(folder) if not (path.name in _DESKTOP or _HALF.fullmatch(path.name))]  # fmt: skip


def _unproven(entries: list[tuple[str, Path]]) -> tuple[str, str] | None:
    """The same for a folder without a (sound) mark: artifacts of earlier versions prove by their manifest whose they are."""
    proven: dict[str, dict[str, str]] = {}
    for name, path in entries:
        if path.name == "manifest.json" and name.count("/") <= 1 and _regular(path):
            try:
                found = json.loads(path.read_bytes())
                if type(found["format_version"]) is int and "config.json" in found["files"]:
                    proven[name.rpartition("/")[0]] = dict(found["files"])
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
    for name, path in entries:
        inside, _, last = name.rpartition("/")
        digests = {f"{place}/{file}".lstrip("/"): digest for place in proven for file, digest in proven[place].items()}
        if not _regular(path):
            return name, FOREIGN
        if (name == MARK and proven) or (last == "manifest.json" and inside in proven):
            continue
        if name in digests:
            if sha256(path) != digests[name]:
                return name, CHANGED
        elif not (proven and (inside in proven or not inside) and _own_page(path)):
            return name, FOREIGN
    return None


def is_own_card(path: Path) -> bool:
    """Whether a README.md is a model card that winnow wrote. Raises OSError."""
    with open(path, "rb") as file:
        return file.read(len(_CARD)) == _CARD


def _own_page(path: Path) -> bool:
    """Whether a file beside an unmarked artifact is a page of winnow's: JSON with its fields, or the page beside such JSON."""
    if path.name == "README.md":
        return is_own_card(path)
    if path.name == "run.yaml":
        path = path.with_name("run.json")
    if path.suffix == ".html" and path.name in PAGES:
        data = {"ticket.html": "ticket-report.json"}.get(path.name, f"{path.stem}.json")
        path = path.with_name(data)
    if path.name not in PAGES or not _regular(path):
        return False
    try:
        found: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    if not isinstance(found, dict):
        return False
    versions = found.get("versions")
    return "winnow_ticket" in found or (isinstance(versions, dict) and "winnow" in versions) or type(found.get("format")) is int  # fmt: skip


def _entries(folder: Path, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """(path in the folder, path) of everything that is no folder, in order; links are not followed."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda e: e.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path), f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, Path(entry.path)


def _regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _write(folder: Path, kind: str, files: Mapping[str, str | None], made: Mapping[str, Any] | None) -> None:
    content = {"winnow": VERSION, "kind": kind, "files": dict(sorted(files.items()))}
    if made is not None:
        content["made"] = dict(made)
    with atomic_file(folder / MARK) as part:
        part.write_text(json.dumps({**content, "sha256": _seal(content)}, indent=1) + "\n", encoding="utf-8")


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
