"""Opening files that others have made: only regular ones, so that no read waits, and no more of them than was asked for."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from winnow.errors import FormatError

_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def open_regular(path: Path) -> io.BufferedReader:
    """``path`` for reading. Raises FormatError where it is missing, cannot be read, or is no regular file: a FIFO, a
    device or a socket in its place would be waited for, or read without end."""
    try:
        # Looked at before it is opened (opening a device can do something) and after (it may have been replaced).
        _must_be_regular(path, os.stat(path).st_mode)
        file = os.fdopen(os.open(path, os.O_RDONLY | _NO_WAIT), "rb")
    except FileNotFoundError:
        raise FormatError(f"{path} is missing: copy the whole folder again") from None
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error.strerror}): check the disk and the permissions") from None
    except ValueError:
        raise FormatError(f"{str(path)!r} is no name that a file can have: copy or write the folder again") from None
    try:
        _must_be_regular(path, os.fstat(file.fileno()).st_mode)
    except FormatError:
        file.close()
        raise
    return file


def read_regular(path: Path, largest: int) -> bytes:
    """The content of ``path``. Raises FormatError as :func:`open_regular` does, and for more than ``largest`` bytes."""
    with open_regular(path) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise FormatError(f"{path} is larger than such a file can be: copy or write the folder again")
    return content


def _must_be_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise FormatError(f"{path} is {kind}, not a file: copy the folder again")
