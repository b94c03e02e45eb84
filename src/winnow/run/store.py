"""Stages are values: results on disk under a key made of everything they depend on, so that an interrupted run resumes."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import logging
import shutil
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from winnow.disk.files import write_atomic
from winnow.disk.ownership import sha256
from winnow.disk.work import Work, is_stage
from winnow.errors import FormatError, InputError, disk_errors

log = logging.getLogger(__name__)
_CHECKSUM, _FILES = "winnow_checksum", "winnow_files"


@cache
def code_version() -> str:
    """A hash of winnow's own source: results made by other code are never taken for results of this code."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def stage_key(stage: str, **depends: Any) -> str:
    """A short name for the result of ``stage`` that changes whenever anything it depends on does."""
    text = json.dumps({"stage": stage, "code": code_version(), **depends}, sort_keys=True, default=str)
    return f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


class Store:
    """A folder of finished stages beside the output (``OUT.work``), removed when the output is complete.

    Every write goes to a temporary name first and is renamed when it is on disk, so what has a name is whole; every result
    has its checksum, so what was damaged since is thrown away and done again. A folder named ``.work`` is winnow's by its
    mark and locked against other processes until it is removed, released or the process ends
    (:class:`winnow.disk.work.Work`); others (temporary ones) are nobody else's.

    Raises:
        InputError: the folder cannot be written or holds something else, or another process is writing there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._work: Work | None = None
        try:
            if root.name.endswith(".work"):
                self._work = Work(root, whole=True)
            root.mkdir(parents=True, exist_ok=True)
            probe = root / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            self.release()
            raise InputError(
                f"cannot write beside the output ({root}: {error.strerror}): choose another --out."
            ) from None

    def folder(self, key: str) -> Path:
        """The folder of one stage, made on first use."""
        path = self.root / key
        with disk_errors(path):
            path.mkdir(exist_ok=True)
        return path

    def read(self, key: str) -> dict[str, Any] | None:
        """The finished JSON result of a stage; None where there is none, or where it or one of its files was damaged.

        What was damaged is removed, so that the stage can be done again.
        """
        path = self.root / f"{key}.json"
        found = unsealed(path)
        if found is None:
            drop(path)
            return None
        result, files = found
        harmed = [name for name, digest in files.items() if not _is(self.root / name, digest)]
        for name in harmed:
            drop(self.root / name)
        if harmed:
            log.warning("%s in %s is damaged and is made again", harmed[0], self.root)
            drop(path)
        return None if harmed else result

    def write(self, key: str, result: dict[str, Any], files: Iterable[Path] = ()) -> None:
        """Stores the result of a stage, and with it the digests of the ``files`` below the root that belong to it."""
        names = sorted(p.relative_to(self.root).as_posix() for p in files)
        with disk_errors(self.root, "read"):
            digests = {name: sha256(self.root / name) for name in names}
        write_atomic(self.root / f"{key}.json", sealed(result, digests))

    def discard(self, prefix: str) -> None:
        """Removes everything whose key begins with ``prefix``."""
        for path in self.root.glob(f"{glob.escape(prefix)}*"):
            drop(path)

    def keep_only(self, names: Collection[str]) -> None:
        """Removes everything in the folder but ``names``, and what the folder itself needs; what is not winnow's stays."""
        for path in self.root.iterdir():
            if path.name not in names and is_stage(path.name):
                drop(path)

    def remove(self) -> None:
        """The folder with all that is in it; what is there and is not winnow's stays, and so does the folder then."""
        if self._work is not None:
            self._work.remove()
        else:
            shutil.rmtree(self.root, ignore_errors=True)

    def release(self) -> None:
        """Lets other processes write here; what is finished stays, and an empty folder is removed."""
        if self._work is not None:
            self._work.release()


def sealed(result: dict[str, Any], files: dict[str, str] | None = None) -> bytes:
    """A result as JSON with a checksum of its contents and of the files that belong to it (digests by path)."""
    value = {**json.loads(json.dumps(result, default=_plain)), **({_FILES: files} if files else {})}
    return json.dumps({**value, _CHECKSUM: _digest(value)}).encode()


def unsealed(path: Path) -> tuple[dict[str, Any], dict[str, str]] | None:
    """(result, digests of its files) of what :func:`sealed` made; None where it is not there or not as it was written."""
    try:
        value = json.loads(path.read_bytes())
        checksum = value.pop(_CHECKSUM)
        if checksum != _digest(value):
            return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return value, value.pop(_FILES, {})


def _is(path: Path, digest: str) -> bool:
    try:
        return sha256(path) == digest
    except (OSError, FormatError):  # missing, or no file any more
        return False


def drop(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON")
