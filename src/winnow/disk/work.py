"""``OUT.work``, the folder beside an output that holds everything until the output is renamed into place, and what may be in it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from winnow.disk.lock import NAME as LOCK
from winnow.disk.lock import Lock, lock
from winnow.disk.made import refuse_other
from winnow.disk.ownership import MARK, WORK, first_foreign, read_mark, write_mark
from winnow.errors import InputError, disk_errors

_BEGUN = re.compile(rf"{re.escape(LOCK)}|{re.escape(MARK)}\.\d+\.tmp|\.writable")  # there before the mark is
_STAGE = re.compile(r"[\w.+-]+-[0-9a-f]{16}([.-].*)?")  # a key of winnow.run.store.stage_key, and what goes by it
LOOKS = 6  # at a folder that is not ours, before that is said
_STORED = (".safetensors", ".json", ".npz", ".bin", ".tmp")


def output_path(out: Path | str) -> Path:
    """The absolute path of an output; of a link, what it points to, so that the link stays."""
    path = Path(os.path.abspath(out))
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def work_folder(out: Path | str) -> Path:
    """The folder that keeps the stages of an output until it is finished."""
    final = output_path(out)
    return final.with_name(final.name + ".work")


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def backup_path(final: Path) -> Path:
    """The name of an earlier output between two renames."""
    return final.with_name(f".{final.name}.winnow-old")


def _trash_path(final: Path) -> Path:
    """The name of what is being removed."""
    return final.with_name(f".{final.name}.winnow-gone")


def check_output(
    out: Path | str,
    kind: str = "model",
    inputs: Iterable[Any] = (),
    *,
    names_only: bool = False,
    made: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Refuses, before any work, a place that cannot become the output without a loss.

    Args:
        kind: of output; only one of the same kind is replaced.
        inputs: models, weights and data of the job, of which those that are paths on this machine count.
        names_only: leave out whether files that winnow wrote there were changed since.
        made: what the job says of itself; without it, :func:`check_made` asks later what is there.
        overwrite: the finished result of another job may be replaced.

    Raises:
        InputError: ``out`` is a file, the current folder, a mount, holds anything that winnow did not write there or the
            result of another job, is one of the inputs, inside one or around one; or what is in OUT.work is not winnow's.
        WinnowError: it cannot be looked at.
    """
    with disk_errors(Path(out), "read"):
        for _ in range(10):  # another process may just be giving a folder its name
            with contextlib.suppress(FileNotFoundError):
                _check(out, output_path(out), kind, inputs, names_only)
                return check_made(out, made, overwrite)
        _check(out, output_path(out), kind, inputs, names_only)
        check_made(out, made, overwrite)


def check_made(out: Path | str, made: Mapping[str, Any] | None, overwrite: bool = False) -> None:
    """Refuses a place that holds the finished result of another job than ``made`` says, unless it may be overwritten.

    Raises:
        InputError: it does; the sentence says in what that job differs.
    """
    final = output_path(out)
    if made is not None and not overwrite:
        refuse_other((final, backup_path(final)), out, made)


def _check(out: Path | str, final: Path, kind: str, inputs: Iterable[Any], names_only: bool) -> None:
    if final.is_symlink() or (os.path.lexists(final) and not final.is_dir()):
        raise InputError(f"{out} is a file: choose another --out.")
    if final.exists() and (os.path.samefile(final, os.curdir) or _within(Path.cwd(), final)):
        raise InputError(f"--out {out} is the folder this runs in, or around it: name a new folder.")
    if os.path.ismount(final):
        raise InputError(f"--out {out} is a mount and cannot be replaced: name a folder in it.")
    for path in _paths(inputs):
        _require_separate(final, path, str(out))
    for folder in (final, backup_path(final)):
        found = _foreign_for_good(folder, kind, names_only)
        if found is not None:
            raise InputError(f"{folder} holds something else ({', '.join(found)}): choose another --out, or move it.")
    check_work(work_folder(final))


def _foreign_for_good(folder: Path, kind: str, names_only: bool) -> tuple[str, str] | None:
    """What is not ours in an output; looked at again, since a process that replaces it right now shows parts of two."""
    found = None
    for look in range(LOOKS):
        time.sleep(0.03 * look)
        found = first_foreign(folder, kind, names_only=names_only) if folder.exists() else None
        if found is None:
            break
    return found


def check_work(root: Path) -> None:
    """Refuses a folder of work that is a link or holds anything that winnow did not write there. Raises InputError."""
    try:
        found = _foreign(root)
    except FileNotFoundError:  # another process is just taking it away; whose it was is asked again under the lock
        found = None
    if found is not None:
        raise InputError(
            f"{root} is where the work is kept, and {found}, which is not winnow's: move it, or choose another --out."
        )


def _foreign(root: Path) -> str | None:
    if root.is_symlink():
        return "it is a link"
    if not root.exists():
        return None
    if not root.is_dir():
        return "it is a file"
    names = sorted(os.listdir(root))
    if MARK not in names:
        # A kill can come before the mark does: an empty folder, or one with winnow's own small files, is nobody's.
        other = next((n for n in names if not (_BEGUN.fullmatch(n) and _is_plain(root / n))), None)
        return None if other is None else f"it holds {other}"
    own = f"{root.name.removesuffix('.work')}.partial"
    for name in names:
        path = root / name
        found: Path | None = path
        if not path.is_symlink() and (_BEGUN.fullmatch(name) or name in (MARK, own, "activations")):
            found = None
        elif not path.is_symlink() and _STAGE.fullmatch(name):
            found = _foreign_in(path) if path.is_dir() else None if name.endswith(_STORED) else path
        if found is not None:
            return f"it holds {found.relative_to(root)}"
    return None


def is_stage(name: str) -> bool:
    """Whether what is called so in a folder of work is a stage's."""
    return name == "activations" or _STAGE.fullmatch(name) is not None


def _is_plain(path: Path) -> bool:
    """Whether it is a regular file, or was one that another run has just given its name."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return True


def _foreign_in(folder: Path) -> Path | None:
    """What lies in the folder of a stage and was not written by one."""
    if (folder / MARK).exists():  # an output, or OUT.work of a stage; one whose mark is damaged is done again
        mark = read_mark(folder)
        if mark is None:
            return None
        if mark[0] != WORK:
            found = first_foreign(folder, mark[0], names_only=True)
            return None if found is None else folder / found[0]
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink() or not (
            entry.is_dir() or entry.name.endswith(_STORED) or entry.name == MARK or _BEGUN.fullmatch(entry.name)
        ):
            return entry
        if entry.is_dir() and not entry.name.endswith((".partial", ".winnow-gone")):
            found_in = _foreign_in(entry)
            if found_in is not None:
                return found_in
    return None


class Work:
    """Holds a folder of work: made, marked and locked, against other processes, until it is removed or released.

    ``whole`` says that stages are kept there (a run's), so that an output written meanwhile leaves it alone.

    Raises:
        InputError: the folder holds something else, or another process is writing there.
        OSError: it cannot be made.
    """

    def __init__(self, root: Path, *, whole: bool) -> None:
        self.root = Path(os.path.abspath(root))
        self._final = self.root.with_name(self.root.name.removesuffix(".work"))
        check_work(self.root)
        _sweep(_trash_path(self._final))
        made = [p for p in self.root.parents if not p.exists()]
        self._lock: Lock = lock(self.root)
        self.nested = not whole and self._lock.whole
        self._lock.whole |= whole
        self._lock.on_end(_tidy, self.root, made)
        if not (self.root / MARK).exists():
            write_mark(self.root, WORK)

    def remove(self) -> None:
        """The folder with all that is in it, unless something is there that winnow did not write there."""
        with contextlib.suppress(OSError):
            if _foreign(self.root) is None:
                remove_folder(self.root, self._final)
        self.release()

    def release(self) -> None:
        """Lets other processes write here. What is finished stays; a folder with nothing in it goes."""
        if not self.nested:
            self._lock.release()


def _tidy(root: Path, made: list[Path]) -> None:
    """Removes a work folder with nothing to resume from, and the folders above that were made for it."""
    with contextlib.suppress(OSError):
        for folder, _, _ in os.walk(root, topdown=False):
            if Path(folder) != root:
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
        names = os.listdir(root)
        if all(name == MARK or _BEGUN.fullmatch(name) for name in names):
            for name in sorted(names, key=lambda n: n == LOCK):  # nobody begins there while it is locked
                (root / name).unlink(missing_ok=True)
            root.rmdir()
            for folder in map(str, made):
                os.rmdir(folder)


def remove_folder(folder: Path, final: Path) -> None:
    """Removes a marked folder beside an output: by a rename, so that no part of it is ever taken for the whole."""
    gone = _trash_path(final)
    _sweep(gone)
    try:
        os.rename(folder, gone)
    except OSError:  # something there cannot be removed
        _sweep(folder)
    else:
        _sweep(gone)


def _sweep(gone: Path) -> None:
    """Removes what a kill left of a marked folder that was being removed; its mark goes last, when all else is gone."""
    with contextlib.suppress(OSError):
        if gone.is_symlink() or not gone.is_dir():
            return
        if (gone / MARK).is_file():
            for path in gone.iterdir():
                if path.name == MARK:
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
            if os.listdir(gone) == [MARK]:
                (gone / MARK).unlink()
        gone.rmdir()


def _paths(inputs: Iterable[Any]) -> Iterator[Path]:
    for given in inputs:
        if isinstance(given, (str, os.PathLike)) and str(given):
            path = Path(given).expanduser()
            with contextlib.suppress(OSError, ValueError):
                if path.exists():
                    yield path


def _require_separate(final: Path, path: Path, out: str) -> None:
    """Raises InputError where an output and an input are one, or one lies in the other, by whatever names."""
    if final.exists() and os.path.samefile(final, path):
        raise InputError(f"--out {out} is {path}, which is read: name another folder; the input is never touched.")
    if path.is_dir() and _within(final, path):
        raise InputError(f"--out {out} lies in {path}, which is read: name a folder outside it.")
    for folder in (final, work_folder(final)):
        if folder.exists() and _within(path, folder):
            raise InputError(f"{path}, which is read, lies in {folder}: name another --out.")


def _within(path: Path, folder: Path) -> bool:
    """Whether ``path`` lies in ``folder``, links and other names of the same folder seen through."""
    seen = os.stat(folder)
    for above in {*Path(os.path.abspath(path)).parents, *Path(os.path.realpath(path)).parents}:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(above), seen):
                return True
    return False
