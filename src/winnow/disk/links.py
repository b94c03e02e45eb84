"""Symbolic links in folders of other people's making: what they point to is copied only where it belongs to the folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from winnow.errors import InputError


def leaves_folder(path: Path, folder: Path) -> bool:
    """Whether ``path``, a file in ``folder``, is in truth one outside of it: a link, or below one, whatever the way there.

    A snapshot of the Hugging Face cache (``snapshots/REVISION``) is made of links into the ``blobs`` beside it: they stay.
    """
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if real.is_relative_to(home):
        return False
    return not (home.parent.name == "snapshots" and real.is_relative_to(home.parent.parent / "blobs"))


def refuse_links(files: Iterable[Path], folder: Path) -> None:
    """Raises InputError for the first of ``files`` that :func:`leaves_folder` the folder."""
    for path in files:
        if leaves_folder(path, folder):
            raise InputError(
                f"{path} is a link to something outside of {folder}, which would be copied: put the file itself there, or remove the link."
            )
