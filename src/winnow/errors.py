"""Errors a person meets: one sentence each, naming the fix, with the exit code the command line ends with."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class WinnowError(Exception):
    """The work failed (exit code 1). The message is one sentence that names the fix."""

    exit_code = 1


class InputError(WinnowError, ValueError):
    """An argument, a file or a model cannot be used as given (exit code 2)."""

    exit_code = 2


class FormatError(WinnowError):
    """A stored artifact is truncated, altered, or of an unknown version (exit code 1)."""


class GateError(WinnowError):
    """A quality gate said no, and nothing was replaced (exit code 3)."""

    exit_code = 3


@contextmanager
def disk_errors(path: Path, verb: str = "written") -> Iterator[None]:
    """Turn an OSError while ``path`` is written (or read) into one sentence that names the fix."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WinnowError(f"the disk is full while writing {path}: free space or choose another folder") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise WinnowError(f"{path} cannot be {verb} (no permission): choose one that you may use") from error
        raise WinnowError(
            f"{path} cannot be {verb} ({error.strerror or error}): check the path and the disk"
        ) from error
    except WinnowError:
        raise
    except Exception as error:
        # Libraries in other languages say in words what the system told them.
        told = re.search(r"\(os error (\d+)\)", str(error))
        if told is None:
            raise
        with disk_errors(path, verb):
            raise OSError(int(told[1]), os.strerror(int(told[1]))) from error
