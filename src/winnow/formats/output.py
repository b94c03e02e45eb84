"""Writing to disk without leaving half of anything: error messages with the fix, and a folder that appears at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from winnow.disk.files import sync
from winnow.disk.ownership import read_mark, write_mark
from winnow.disk.work import Work, backup_path, check_made, check_output, output_path, remove_folder, work_folder
from winnow.errors import disk_errors


class OutputFolder:
    """A folder that is filled in ``OUT.work`` and appears under its name, complete, at :meth:`publish`.

    What is there is replaced only where all of it is winnow's and of the same ``kind`` (:mod:`winnow.disk.ownership`), and
    made by the same job (:mod:`winnow.disk.made`) or to be overwritten.
    A partial folder left by a killed run is emptied. When an earlier folder is replaced it is set aside as
    ``.<name>.winnow-old`` for the moment between two renames; a crash in that moment is undone by the next run.

    Args:
        kind: "model" (packed, tickets, recipes), "export" or "data".
        inputs: paths that the output is made of; see :func:`winnow.disk.work.check_output`.
        made: what the job says of itself, which the mark will hold; None asks nothing of what is there.
        overwrite: replace the finished result of another job.

    Raises:
        InputError: something else is there, or another process is writing there.
        WinnowError: it cannot be written.
    """

    def __init__(
        self,
        folder: Path | str,
        kind: str = "model",
        inputs: Iterable[Any] = (),
        *,
        made: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.final, self._kind, self._made, self._overwrite = output_path(folder), kind, made, overwrite
        self._aside = backup_path(self.final)
        with disk_errors(self.final):
            check_output(folder, kind, inputs)
            self._work = Work(work_folder(self.final), whole=False)
            self.path = self._work.root / f"{self.final.name}.partial"
            try:
                check_made(folder, made, overwrite)  # under the lock: another run may just have finished
                if self._aside.exists() and not self.final.exists():
                    os.rename(self._aside, self.final)
                # What a kill left: a partial folder, and an earlier output that was replaced already.
                shutil.rmtree(self.path, ignore_errors=True)
                if self._aside.exists():
                    remove_folder(self._aside, self.final)
                self.path.mkdir()
            except BaseException:
                self._work.release()
                raise

    def publish(self) -> Path:
        """Give the folder its name; what winnow wrote there before is removed.

        Raises:
            FormatError: an artifact in it is not what was written; nothing is published.
            InputError: something else came there meanwhile; nothing is published.
        """
        known = _verified(self.path)
        with disk_errors(self.final):
            write_mark(self.path, self._kind, known, self._made)
            for folder, _, names in os.walk(self.path, topdown=False):
                for name in names:
                    sync(Path(folder, name))
                sync(Path(folder))
            if self.final.exists():
                check_output(self.final, self._kind, names_only=True, made=self._made, overwrite=self._overwrite)
                self._set_aside()
            try:
                os.rename(self.path, self.final)
            except BaseException:
                if self._aside.exists() and not self.final.exists():
                    os.rename(self._aside, self.final)
                raise
            sync(self.final.parent)
            if self._aside.exists():
                remove_folder(self._aside, self.final)
        self._work.release()
        return self.final

    def discard(self) -> None:
        """Remove what was written so far; the final name stays untouched. After :meth:`publish` there is nothing to remove."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._work.release()

    def _set_aside(self) -> None:
        if not any(self.final.iterdir()):
            self.final.rmdir()
            return
        if read_mark(self.final) is None:  # of an earlier version: known for ours, and to be known while it is aside
            write_mark(self.final, self._kind)
        os.rename(self.final, self._aside)


def _verified(folder: Path) -> dict[str, str]:
    """Digests of files by path, of every artifact in a folder, each compared with what is on the disk. Raises FormatError."""
    from winnow.formats.reader import is_artifact, read_artifact

    known: dict[str, str] = {}
    for place in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        if is_artifact(place):
            artifact = read_artifact(place)
            artifact.verify()
            inside = "" if place == folder else f"{place.name}/"
            known |= {inside + name: digest for name, digest in artifact.manifest.get("files", {}).items()}
    return known
