"""Where independent jobs run: here, one after another, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from winnow.errors import InputError, meant
from winnow.run.jobs import Done, Function, R

EXECUTORS = ("local", "ray")


class Executor(Protocol):
    """Runs independent jobs. A job is a module-level function of (shared, item) and depends on nothing else.

    It seeds the random numbers it draws and leaves ``shared`` as it found it; then every executor gives the same results,
    bit for bit, for the same number of threads.
    """

    local: bool  # whether jobs run in this process, where they may work on objects at hand

    def map(self, function: Function[R], shared: Any, items: Iterable[Any], done: Done[R] = None) -> list[R]:
        """``[function(shared, item) for item in items]``, in the order of the items.

        ``done`` is called with (index of the item, result) in this process whenever a job has ended, in the order in which they
        end: a caller that stores each result there does only the missing items when it is started again. The first error of a job,
        or of ``done``, ends the whole and is raised as it is; what had not ended is given up.
        """


class Local:
    """One after another, in this process."""

    local = True

    def map(self, function: Function[R], shared: Any, items: Iterable[Any], done: Done[R] = None) -> list[R]:
        results = []
        for index, item in enumerate(items):
            results.append(function(shared, item))
            if done is not None:
                done(index, results[-1])
        return results


def executor_named(name: str, **options: Any) -> Executor:
    """``"local"``, or ``"ray"`` with the options of :class:`winnow.run.executor_ray.Ray`.

    Raises:
        InputError: an unknown name or option, or Ray is not installed.
    """
    if name not in EXECUTORS:
        raise InputError(
            f"there is no executor {name!r}{meant(name, EXECUTORS)}: choose one of {', '.join(EXECUTORS)}."
        )
    if name == "local":
        if options:
            raise InputError(f"the local executor takes no {', '.join(options)}: leave it out, or use executor ray.")
        return Local()
    from inspect import signature

    from winnow.run.executor_ray import Ray

    known = list(signature(Ray).parameters)
    if unknown := [o for o in options if o not in known]:
        raise InputError(f"the ray executor takes no {', '.join(unknown)}: its options are {', '.join(known)}.")
    return Ray(**options)
