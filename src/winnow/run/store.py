"""Stages are values: results on disk under a key made of everything they depend on, so that a killed run goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from winnow.errors import InputError, WinnowError
from winnow.run.lock import NAME as LOCK
from winnow.run.lock import Lock, lock


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

    Every write goes to a temporary name first and is renamed when it is on disk, so what has a name is whole. A folder
    named ``.work`` is locked against other processes until it is removed, released or the process ends; others (temporary
    ones) are nobody else's.

    Raises:
        InputError: the folder cannot be written, or another process is writing there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock: Lock | None = None
        try:
            root.mkdir(parents=True, exist_ok=True)
            if root.name.endswith(".work"):
                self._lock = lock(root)
            probe = root / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"cannot write beside the output ({root}: {error.strerror}): choose another --out."
            ) from None

    def folder(self, key: str) -> Path:
        """The folder of one stage, made on first use."""
        path = self.root / key
        path.mkdir(exist_ok=True)
        return path

    def read(self, key: str) -> dict[str, Any] | None:
        """The finished JSON result of a stage, or None."""
        path = self.root / f"{key}.json"
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            path.unlink()  # written by something else: do the stage again
            return None

    def write(self, key: str, result: dict[str, Any]) -> None:
        write_atomic(self.root / f"{key}.json", json.dumps(result, default=_plain).encode())

    def remove(self) -> None:
        """The folder with all that is in it; the lock goes last, so that nobody begins in what is being taken away."""
        with contextlib.suppress(OSError):
            for path in list(self.root.iterdir()):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                elif self._lock is None or path.name != LOCK:
                    path.unlink()
        self.release()
        with contextlib.suppress(OSError):  # somebody is writing there again, or it is gone
            self.root.rmdir()

    def release(self) -> None:
        """Lets other processes write here; what is here stays."""
        if self._lock is not None:
            self._lock.release()


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that it is either whole or not there, with one sentence when the disk says no."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise WinnowError(
            f"{path} could not be written ({error.strerror}): free some space or choose another --out."
        ) from None


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON")
