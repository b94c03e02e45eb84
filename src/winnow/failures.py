"""Which failures of the machine - memory, disk, paths - are told in one sentence, and with which exit code."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from winnow.errors import InputError, WinnowError

FULL = (errno.ENOSPC, errno.EDQUOT)
# What is wrong is the path that was given, not the machine.
PATHS = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP,
    errno.EEXIST, errno.ENOTEMPTY, errno.ENXIO,
)  # fmt: skip
# Allocators of torch and of C++ raise RuntimeError; safetensors tells a full disk by its own error with the system's words.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "cannot allocate memory", "out of memory")
_NO_SPACE = ("no space left on device", "disk quota exceeded")


def told(error: BaseException) -> tuple[str, int] | None:
    """(sentence, exit code) of a failure of memory, disk or path, or of a refusal that it caused; None for everything else."""
    if isinstance(error, WinnowError) and not isinstance(error, InputError):
        return None
    for cause in _chain(error):
        if out_of_memory(cause):
            return "memory ran out: give --ram a limit to stream the model, or lower --batch-size", 1
        words = str(cause).lower()
        if (isinstance(cause, OSError) and cause.errno in FULL) or any(w in words for w in _NO_SPACE):
            place = getattr(cause, "filename", None) or "output folder"
            return f"the disk is full ({place}): free some space and run the same command again", 1
    if isinstance(error, OSError) and error.errno is not None:
        path = error.filename if error.filename is not None else "a file"
        if error.errno in PATHS:
            return f"{_short(str(path))} cannot be used ({error.strerror}): check the path and its permissions", 2
        return f"{_short(str(path))} cannot be read or written ({error.strerror}): check the disk", 1
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, torch's, or that of a C++ library."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, (RuntimeError, OSError)) and (
        getattr(error, "errno", None) == errno.ENOMEM or any(w in str(error).lower() for w in _NO_MEMORY)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, the latest first. What a refusal replaced is no cause of it."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or (None if isinstance(at, InputError) and at.__suppress_context__ else at.__context__)


def _short(path: str) -> str:
    return path if len(path) <= 120 else f"{path[:80]}... ({len(path)} characters)"
