"""Writing to disk without leaving half of anything: error messages with the fix, and a folder that appears at once."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from winnow.errors import InputError, WinnowError

_MARK = ".winnow-partial"


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
        raise WinnowError(f"{path} cannot be {verb} ({error.strerror}): check the path and the disk") from error


class OutputFolder:
    """A folder that is filled under ``<name>.partial`` and appears under its name, complete, at :meth:`publish`.

    ``ours(folder)`` says whether an existing folder may be replaced; one that holds something else is refused with
    InputError. A partial folder left by a killed run is emptied. When an earlier folder is replaced it is set aside as
    ``.<name>.winnow-old`` for the moment between two renames; a crash in that moment is undone by the next run.
    """

    def __init__(self, folder: Path, ours: Callable[[Path], bool]) -> None:
        self.final = Path(os.path.abspath(folder))
        self.path = self.final.with_name(self.final.name + ".partial")
        self._aside = self.final.with_name(f".{self.final.name}.winnow-old")
        with disk_errors(self.final):
            if self._aside.is_dir() and not self.final.exists() and ours(self._aside):
                os.rename(self._aside, self.final)
            self._refuse_foreign(ours)
            if self.path.exists():
                if not (self.path / _MARK).is_file():
                    raise InputError(
                        f"{self.path} is in the way and holds something else: move it or choose another name"
                    )
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True)
            (self.path / _MARK).touch()

    def _refuse_foreign(self, ours: Callable[[Path], bool]) -> None:
        for folder in (self.final, self._aside):
            if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
                continue
            if not folder.is_dir() or not ours(folder):
                raise InputError(f"{folder} holds something else: choose an empty or a new folder")

    def publish(self) -> Path:
        """Give the folder its name; what winnow wrote there before is removed."""
        with disk_errors(self.final):
            (self.path / _MARK).unlink()
            if self.final.exists():
                if self._aside.exists():
                    shutil.rmtree(self._aside)
                os.rename(self.final, self._aside)
            os.rename(self.path, self.final)
            shutil.rmtree(self._aside, ignore_errors=True)
            _sync(self.final.parent)
        return self.final

    def discard(self) -> None:
        """Remove what was written so far; the final name stays untouched."""
        shutil.rmtree(self.path, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Make renames in ``folder`` last; only POSIX lets a folder be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
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


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for an immutable file, or a copy where the file system cannot do that."""
    with disk_errors(target):
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
