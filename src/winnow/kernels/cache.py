"""Timings that were taken on this machine before: one JSON file in the user's cache folder."""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from winnow.disk.files import atomic_file
from winnow.kernels import native
from winnow.machine.facts import machine
from winnow.version import __version__

VERSION = 1  # of the file's layout


def folder() -> Path:
    """Where timings are kept: ``$XDG_CACHE_HOME/winnow``, else ``~/.cache/winnow`` (``%LOCALAPPDATA%`` on Windows)."""
    home = os.environ.get("XDG_CACHE_HOME")
    if not home and sys.platform == "win32":
        home = os.environ.get("LOCALAPPDATA")
    return (Path(home) if home else Path("~/.cache").expanduser()) / "winnow"


class TimingCache:
    """Medians in microseconds by machine, case and contender.

    ``machine`` names everything that makes timings incomparable (processor, instruction set, threads, versions). A file
    that is damaged or cannot be written costs one warning and the measuring, never the work. Several processes may
    write: each merges what it measured into the file as it is then, and replaces it whole.
    """

    def __init__(self, machine: str, path: Path | None) -> None:
        self._machine = machine
        self._path = path
        self._fresh: dict[str, dict[str, float]] = {}
        self._known = self._sound(self._read().get(machine, {})) if path is not None else {}

    @classmethod
    def open(cls, cache: bool | Path | str) -> TimingCache:
        """The timings of this machine in the user's cache folder (True) or another one; False keeps none."""
        if cache is False:
            return cls("", None)
        return cls(_machine(), (folder() if cache is True else Path(cache).expanduser()) / "timings.json")

    def get(self, case: str, contenders: set[str]) -> dict[str, float] | None:
        """The medians of ``contenders`` for ``case``, None unless all of them are known."""
        times = self._known.get(case, {})
        return {name: times[name] for name in contenders} if contenders <= times.keys() else None

    def put(self, case: str, times: dict[str, float]) -> None:
        for store in (self._known, self._fresh):
            store.setdefault(case, {}).update(times)

    def save(self) -> None:
        """Writes what was put since the cache was opened. Nothing new, no write."""
        if self._path is None or not self._fresh:
            return
        machines = self._read(quiet=True)
        merged = self._sound(machines.get(self._machine, {}))
        for case, times in self._fresh.items():
            merged.setdefault(case, {}).update(times)
        machines[self._machine] = merged
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(self._path) as part, open(part, "w", encoding="utf-8") as file:
                json.dump({"version": VERSION, "machines": machines}, file, indent=1, sort_keys=True)
        except OSError as error:
            warnings.warn(
                f"timings cannot be kept in {self._path} ({error.strerror or error}): "
                "they are taken again next time; set XDG_CACHE_HOME to a folder that can be written",
                stacklevel=2,
            )
            return
        self._fresh = {}

    def _read(self, quiet: bool = False) -> dict[str, Any]:
        assert self._path is not None
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if content["version"] != VERSION:  # of an older or newer winnow: measured again, then replaced
                return {}
            machines = content["machines"]
            if not isinstance(machines, dict):
                raise TypeError
            return machines
        except OSError:  # not there yet, or not to be read: a warning follows where it cannot be written
            return {}
        except (ValueError, KeyError, TypeError, RecursionError):
            if not quiet:
                warnings.warn(f"the timings in {self._path} are unreadable and are taken again", stacklevel=4)
            return {}

    @staticmethod
    def _sound(cases: Any) -> dict[str, dict[str, float]]:
        """The entries that are what they should be: someone may have edited the file."""
        return {
            case: {name: float(us) for name, us in times.items() if _is_time(us)}
            for case, times in (cases.items() if isinstance(cases, dict) else ())
            if isinstance(times, dict)
        }


def _machine() -> str:
    """Everything that makes timings of two runs incomparable, as text."""
    facts = [
        f"winnow {__version__}",
        str(machine()["cpu"]),
        f"kernels {native.isa()} {native.build()}",
        f"torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}",
        f"threads {torch.get_num_threads()}",
        *(f"{name}={os.environ[name]}" for name in ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS") if name in os.environ),
    ]  # fmt: skip
    return " | ".join(facts)


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
