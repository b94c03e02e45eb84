"""One profile and number of threads of linear.py: opens contenders, leaves the hopeless ones out, times the rest in turns."""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.common import script
from benchmarks.kernels.contenders import BY_NAME, CONTENDERS
from benchmarks.kernels.layer import Layer
from benchmarks.turns import Turn

CAPS = {
    "all": {},
    "avx512": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "ATEN_CPU_CAPABILITY": "avx512", "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "WINNOW_ISA": "avx512",
    },
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "WINNOW_ISA": "avx2",
    },
}  # fmt: skip
TRIAL_SECONDS, KEEP = 0.03, 1.3  # the preliminary round, and how far from its best a contender may be to go on
Handle = tuple[str, str, float]  # contender, waiting policy, sparsity


@dataclass
class Bench:
    """One profile and number of threads: its processes, and how long everything is timed."""

    args: argparse.Namespace
    profile: str
    threads: int
    _workers: dict[tuple[str, str], Turn] = field(default_factory=dict)

    @property
    def policies(self) -> list[str]:
        return ["PASSIVE"] if self.threads == 1 else ["PASSIVE", "ACTIVE"]

    def worker(self, handle: Handle) -> Turn:
        home = BY_NAME[handle[0]].home
        key = home, handle[1]
        if key not in self._workers:
            python = sys.executable if home == "torch" else self.args.peers
            self._workers[key] = Turn(
                script("kernels.contenders", home, python=python), self.threads, handle[1], CAPS[self.profile]
            )
        return self._workers[key]

    def close(self) -> None:
        for worker in self._workers.values():
            worker.end()

    def handles(self, values: str, sparsities: list[float]) -> list[Handle]:
        """Every contender for the value type, with every policy that can make a difference to it."""
        found: list[Handle] = [("read memory", "PASSIVE", 0.0)]
        for contender in CONTENDERS:
            if contender.values != values or (contender.home == "runtime" and not self.args.peers):
                continue
            if contender.name.startswith("torch.compile") and self.args.no_compile:
                continue
            if self.profile != "all" and contender.name == "torch dynamic int8":
                continue  # FBGEMM picks its own instructions; oneDNN's kernel stands in
            if self.profile == "avx2" and contender.capped == "no":
                continue
            dense = contender.role == "dense"
            if self.args.dense and not dense:
                continue
            policies = self.policies if contender.spins else ["PASSIVE"]
            found += itertools.product([contender.name], policies, [0.0] if dense else sparsities)
        return sorted(found, key=lambda handle: handle[2])  # one sparsity after the other: its weights are made once

    def open(self, handle: Handle, shape: str, values: str, size: int) -> dict[str, Any]:
        rows, cols = map(int, shape.split("x"))
        layer = Layer(rows, cols, handle[2], 4 if values == "int8a" else 1)
        return self.worker(handle).ask(do="open", handle=str(handle), name=handle[0], layer=asdict(layer), size=size)

    def time(self, handle: Handle, batch: int, seconds: float) -> dict[str, Any]:
        return self.worker(handle).ask(do="time", handle=str(handle), batch=batch, seconds=seconds)

    def shut(self, handle: Handle) -> None:
        self.worker(handle).ask(do="close", handle=str(handle))

    def group(self, shape: str, values: str, batches: list[int], sparsities: list[float]) -> list[dict[str, Any]]:
        """All batches of one shape and value type: a preliminary round on fewer copies, then rounds of those in front."""
        failed: dict[str, str] = {}
        trial: dict[int, dict[Handle, float]] = {batch: {} for batch in batches}
        trial_size = min(self.args.size, self.args.trial_size)
        for handle in self.handles(values, sparsities):
            self._try(handle, shape, values, trial, trial_size, failed)
        chosen = {batch: _in_front(trial[batch]) for batch in batches}
        opened: dict[Handle, dict[str, Any]] = {}
        for handle in _fitting(chosen, trial, self.args.size, self.args.ram):
            opened[handle] = self.open(handle, shape, values, self.args.size)
            if "failed" in opened[handle]:
                failed[str(handle)] = opened.pop(handle)["failed"]
        records = []
        for batch in batches:
            handles = [h for h in chosen[batch] if h in opened]
            records.append(self._measure(shape, values, batch, handles, opened))
            records[-1]["trial"] = {" | ".join(map(str, h)): t for h, t in trial[batch].items()}
            records[-1]["failed"] = failed
            records[-1]["sparsities"] = sparsities
        for handle in opened:
            self.shut(handle)
        return records

    def _try(
        self, handle: Handle, shape: str, values: str, trial: dict[int, dict[Handle, float]], size: int,
        failed: dict[str, str],
    ) -> None:  # fmt: skip
        answer = self.open(handle, shape, values, size)
        if "failed" in answer:
            failed[handle[0]] = answer["failed"]
            return
        for batch in trial:
            if batch <= BY_NAME[handle[0]].up_to:
                twice = [self.time(handle, batch, TRIAL_SECONDS) for _ in range(2)]  # one of them may be disturbed
                if "failed" in twice[0]:
                    failed[f"{handle[0]}, batch {batch}"] = twice[0]["failed"]
                else:
                    trial[batch][handle] = min(took["wall"] for took in twice)
        self.shut(handle)

    def _measure(
        self, shape: str, values: str, batch: int, handles: list[Handle], opened: dict[Handle, dict[str, Any]]
    ) -> dict[str, Any]:
        walls: dict[Handle, list[float]] = {handle: [] for handle in handles}
        cpus: dict[Handle, list[float]] = {handle: [] for handle in handles}
        loads = [os.getloadavg()[0]]
        for i in range(self.args.rounds):
            for handle in handles[:: 1 if i % 2 == 0 else -1]:
                took = self.time(handle, batch, self.args.seconds)
                walls[handle].append(took["wall"])
                cpus[handle].append(took["cpu"])
        loads.append(os.getloadavg()[0])
        contenders = [
            {
                "name": handle[0], "policy": handle[1], "sparsity": handle[2], "role": BY_NAME[handle[0]].role,
                "capped": BY_NAME[handle[0]].capped, "bytes": opened[handle]["bytes"],
                "copies": opened[handle]["copies"], "error": opened[handle]["error"],
                "isa": opened[handle]["isa"],
                "wall": statistics.median(walls[handle]), "walls": walls[handle],
                "cpu": statistics.median(cpus[handle]) / self.threads,
            }
            for handle in handles
        ]  # fmt: skip
        return {
            "profile": self.profile, "threads": self.threads, "shape": shape, "values": values, "batch": batch,
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), "load": loads,
            "rounds": self.args.rounds, "size": self.args.size, "amx": has_amx(), "contenders": contenders,
        }  # fmt: skip


def _in_front(times: dict[Handle, float]) -> list[Handle]:
    """Who comes near the best of its kind."""
    kinds: dict[tuple[str, float, bool], list[Handle]] = {}
    for handle in times:
        kinds.setdefault(_kind(handle), []).append(handle)
    return [
        handle
        for handles in kinds.values()
        for handle in handles
        if times[handle] <= KEEP * min(times[h] for h in handles)
    ]


def _fitting(
    chosen: dict[int, list[Handle]], trial: dict[int, dict[Handle, float]], size: int, memory: float
) -> list[Handle]:
    """Of the chosen ones those that fit the memory together, one sparsity after the other.

    Whoever stands worst against the best of its kind goes first; the best of any batch stays, whatever it takes.
    """

    def standing(handle: Handle) -> float:
        rivals = {
            b: [h for h in handles if _kind(h) == _kind(handle)] for b, handles in chosen.items() if handle in handles
        }
        return min(trial[b][handle] / min(trial[b][h] for h in same) for b, same in rivals.items())

    def needed(handles: set[Handle]) -> float:
        shared = {(h[0] if BY_NAME[h[0]].role != "winnow" else "winnow", h[1], h[2]) for h in handles}
        return size * sum(2 if name.startswith("torch.compile") else 1 for name, _, _ in shared)

    left = {handle for handles in chosen.values() for handle in handles}
    for handle in sorted(left, key=standing, reverse=True):
        if needed(left) <= memory or standing(handle) == 1:
            break
        left.discard(handle)
    return sorted(left, key=lambda handle: (handle[2], handle))


def _kind(handle: Handle) -> tuple[str, float, bool]:
    """What a contender competes with: dense ones with each other, sparse ones of each sparsity apart."""
    return BY_NAME[handle[0]].role, handle[2], " times " in handle[0]


def has_amx() -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and "amx_tile" in info.read_text(errors="replace")
