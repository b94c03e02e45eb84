"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from winnow.errors import disk_errors


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` to write; it is flushed and gets the name in one rename when the block ends.

    Where the block fails, or the process is killed, ``path`` is as it was. Raises OSError as the block and the disk do.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield part
        sync(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes ``path`` whole or not at all. Raises WinnowError where the disk is full or read-only."""
    with disk_errors(path), atomic_file(path) as part:
        part.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


def sync(path: Path) -> None:
    """Makes a file, or the renames in a folder, outlast a power cut; only POSIX lets a folder be opened."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    with disk_errors(path):
        path.write_text(text, encoding="utf-8")


def copy_file(source: Path, target: Path) -> None:
    with disk_errors(target):
        shutil.copyfile(source, target)


def copy_below(source: Path, folder: Path, place: str) -> None:
    """Copies a file to ``place`` (with ``/``) in ``folder``, making the folders on the way."""
    target = folder / place
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    copy_file(source, target)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for an immutable file, or a copy where the file system cannot do that."""
    with disk_errors(target):
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
