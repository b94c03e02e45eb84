"""Whole searches as independent jobs: what an executor elsewhere gets, apart from the candidates of one run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from winnow.disk.files import write_atomic
from winnow.run.executor import Local
from winnow.run.store import Store
from winnow.tickets.methods.registry import METHODS
from winnow.tickets.search import Search, Ticket
from winnow.train.task.training import Training

Files = dict[str, bytes]  # path below the store's root -> content
log = logging.getLogger(__name__)


def tickets_of(search: Search) -> list[Ticket]:
    """Every ticket of a search, one for each sparsity.

    Another executor gets the sparsities as jobs where each is a run of its own: all methods but those whose one trajectory
    serves them all (the IMP kinds without a ``budget``). One sparsity of ISP sends its candidates; anything else is a single
    sequence of steps, which a warning says, and runs here. Where work is done changes no bit of the result.
    """
    entry = METHODS[search.method]
    several = len(search.sparsities) > 1
    apart = several and not (entry.trajectory and getattr(search.settings, "budget", None) is None)
    if apart and not search.executor.local:
        return _elsewhere(search)
    if not search.executor.local and not entry.candidates:
        why = "serves all sparsities by one trajectory" if several else "is one sequence of trainings at one sparsity"
        log.warning("%s %s: it runs in this process, the executor has nothing to share out", search.method, why)
    return list(entry.finder(search))


def whole_search(shared: tuple[str, Training, Any, bool], item: tuple[float, str]) -> tuple[Ticket, Files]:
    """The ticket of one (sparsity, key), and the files that a search with a store finds it by.

    ``shared`` by all jobs: method, training, settings, and whether the caller wants the files.
    """
    (method, training, settings, kept), (sparsity, key) = shared, item
    with TemporaryDirectory() as folder:
        root = Path(folder)
        search = Search(method, training, [sparsity], settings, Store(root) if kept else None, key)
        (ticket,) = METHODS[method].finder(search)
        return ticket, {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def _elsewhere(search: Search) -> list[Ticket]:
    parts = [
        replace(search, sparsities=[s], key=f"{search.key}-part-{n}", executor=Local())
        for n, s in enumerate(search.sparsities)
    ]
    missing = [n for n, part in enumerate(parts) if part.store is None or part.store.read(f"{part.key}-there") is None]
    progress = None if search.progress is None else search.progress(search.method)
    ended = len(parts) - len(missing)

    def done(index: int, result: tuple[Ticket, Files]) -> None:
        nonlocal ended
        part, (_, files) = parts[missing[index]], result
        _keep(part, files)
        ended += 1
        if progress:
            progress(ended, len(parts), f"{part.sparsities[0]:.4g} zeros is there")

    shared = (search.method, search.training, search.settings, search.store is not None)
    jobs: Sequence[tuple[float, str]] = [(parts[n].sparsities[0], parts[n].key) for n in missing]
    found = dict(zip(missing, search.executor.map(whole_search, shared, jobs, done)))
    # What an earlier call had finished is read from its files: the runs advance by nothing.
    return [found[n][0] if n in found else next(METHODS[part.method].finder(part)) for n, part in enumerate(parts)]


def _keep(part: Search, files: Files) -> None:
    """Puts the files where the part finds them; the mark comes last, so that the files it stands for are there."""
    if part.store is None:
        return
    for name, data in files.items():
        path = part.store.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    part.store.write(f"{part.key}-there", {})
    files.clear()  # a model's worth of memory for every job
