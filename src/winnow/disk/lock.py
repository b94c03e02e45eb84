"""One process at a time in a folder of work: a lock that the kernel lets go when its process ends, however it does."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from winnow.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: folders of work are not locked there
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"


class Lock:
    """Holds ``folder``, which is made, against other processes until :meth:`release`, or until nobody has this object.

    Within a thread the lock of a folder is shared (:func:`lock`): what an error left behind does not stand in the way of
    the next try. Where the file system has no locks, nothing is held. ``whole``: whether a holder keeps more there than
    the one output that it is writing.

    Raises:
        InputError: another process holds it.
        OSError: the folder cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._handle = folder / NAME, _taken(folder)
        self.whole, self.thread = False, threading.get_ident()
        _held[folder] = self
        self._last: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._end = weakref.finalize(self, Lock._let_go, self._path, self._handle, self._last)

    @staticmethod
    def _let_go(path: Path, handle: int | None, last: list[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
        if handle is None or _same(handle, path):  # else it went with its folder, and a file there is another process's
            for function, given in last[:1]:
                function(*given)
        if handle is not None:
            if _same(handle, path):
                path.unlink(missing_ok=True)
            os.close(handle)

    def on_end(self, function: Callable[..., None], *given: Any) -> None:
        """Has ``function`` called before the lock is let go; the first that asks is the one."""
        self._last.append((function, given))

    def release(self) -> None:
        """The file goes away too; once more does nothing."""
        if _held.get(self._path.parent) is self:
            del _held[self._path.parent]
        self._end()


_held: weakref.WeakValueDictionary[Path, Lock] = weakref.WeakValueDictionary()


def lock(folder: Path) -> Lock:
    """The lock of a folder: this thread's own, or a new one. Raises as :class:`Lock`, for other threads too."""
    folder = folder.absolute()
    held = _held.get(folder)
    if (
        held is not None
        and held.thread != threading.get_ident()
        and held.thread in {t.ident for t in threading.enumerate()}
    ):
        raise _taken_already(folder)
    return held or Lock(folder)


def _taken(folder: Path) -> int | None:
    """A descriptor that holds the lock; None where there are no locks."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return None
        path = folder / NAME
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the run before this one is just taking its folder away
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise _taken_already(folder) from None
        except OSError:
            os.close(handle)
            path.unlink(missing_ok=True)
            return None
        if _same(handle, path):
            return handle
        os.close(handle)  # of a file that its owner has removed meanwhile


def _taken_already(folder: Path) -> InputError:
    name = folder.name.removesuffix(".work")
    return InputError(f"another run is writing {name}: wait for it or choose another --out.")


def _same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _in_child() -> None:
    """After a fork the parent alone holds the locks: they end with it, and the files stay while it lives."""
    for held in list(_held.values()):
        if held._end.detach() is not None and held._handle is not None:
            os.close(held._handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
