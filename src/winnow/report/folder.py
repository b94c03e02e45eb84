"""A record and its page, written beside each other: both whole or not at all, and known for winnow's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from winnow.disk.files import atomic_file
from winnow.disk.ownership import claim
from winnow.errors import InputError, WinnowError


def write_files(folder: Path, files: Mapping[str, str], owned: bool = True) -> None:
    """Writes texts by name into a folder, made when missing. With ``owned`` they are entered in a mark that is there.

    Raises:
        InputError: the folder cannot be written to.
        WinnowError: the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if owned:
            claim(folder, *files)
        for name, text in files.items():
            with atomic_file(folder / name) as part:
                part.write_text(text, encoding="utf-8", newline="\n")
    except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(f"cannot write the report to {folder}: choose a folder you may write to.") from error
    except OSError as error:
        raise WinnowError(f"could not write the report to {folder}: {error.strerror or error}.") from error
